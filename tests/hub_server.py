"""A hub for the tests: as much of the Hugging Face hub's HTTP interface as pushing and loading use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants as hub_constants
from huggingface_hub.utils import _http as hub_http


class Repo:
    """Commits of whole folders, and branches that point to them."""

    def __init__(self, private: bool = False) -> None:
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.messages: list[str] = []
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def sha(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[revision]]


class HubServer:
    """Serves ``repos`` on localhost while used as a context."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.refuses = False  # whoever pushes

    def __enter__(self) -> HubServer:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.thread = Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(b"")

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _serve(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)/([^/]+)(/.*)?", path):
            self._model(match[1], match[2], match[3], body)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        else:
            self._json({"error": f"no route {path}"}, 404)

    def _reply(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: object, status: int = 200, **headers: str) -> None:
        self._reply(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def _missing(self, code: str) -> None:
        self._json({"error": code}, 404, X_Error_Code=code)

    def _file(self, name: str, revision: str, path: str) -> None:
        repo = self.hub.repos.get(name)
        sha = repo.sha(revision) if repo else None
        if repo is None or sha is None:
            self._missing("RepoNotFound" if repo is None else "RevisionNotFound")
        elif path not in repo.commits[sha]:
            self._json({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        else:
            content = repo.commits[sha][path]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._reply(content, X_Repo_Commit=sha, ETag=etag, Accept_Ranges="none")

    def _create(self, wanted: dict) -> None:
        self.hub.tokens.add(self.headers.get("Authorization"))
        name = f"{wanted['organization']}/{wanted['name']}"
        if self.hub.refuses:
            self._json({"error": "you may not write here"}, 403)
            return
        status = 409 if name in self.hub.repos else 200
        self.hub.repos.setdefault(name, Repo(wanted.get("private") or wanted.get("visibility") == "private"))
        self._json({"url": f"{self.hub.endpoint}/{name}"}, status)

    def _model(self, name: str, verb: str, revision: str, body: bytes) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self._missing("RepoNotFound")
        elif verb == "branch":
            status = 409 if revision in repo.branches else 200
            repo.branches.setdefault(revision, repo.branches["main"])
            self._json({}, status)
        elif repo.sha(revision) is None:
            self._missing("RevisionNotFound")
        elif verb in ("revision", "tree"):
            self._describe(name, repo, verb, repo.sha(revision))
        elif verb == "preupload":
            files = json.loads(body)["files"]
            self._json(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        else:
            self._commit(name, repo, revision, body)

    def _describe(self, name: str, repo: Repo, verb: str, sha: str) -> None:
        files = repo.commits[sha]
        if verb == "revision":
            self._json({"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in files]})
            return
        self._json(
            [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
        )

    def _commit(self, name: str, repo: Repo, branch: str, body: bytes) -> None:
        files, message = dict(repo.files(branch)), ""
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        sha = repo.commit(branch, files, message)
        url = f"{self.hub.endpoint}/{name}/commit/{sha}"
        self._json({"success": True, "commitUrl": url, "commitOid": sha})


def go_offline(monkeypatch, offline=True):
    """Let huggingface_hub believe that there is no network, or that there is."""
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", offline)
    forget_sessions()


def forget_sessions():
    """Before 1.0 one remembers whether it was made offline."""
    getattr(hub_http, "reset_sessions", lambda: None)()
