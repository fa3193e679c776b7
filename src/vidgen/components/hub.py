"""The Hugging Face hub: checkpoints fetched as local snapshots.

Only JSON and safetensors files are ever fetched, and all of them of one commit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vidgen.errors import CheckpointError, InvalidArgumentError

__all__ = ["FILES", "INDEX", "HubId", "explained", "parse", "snapshot"]

INDEX = "vidgen.json"
"""The file that makes a folder a checkpoint."""

FILES = ["*.json", "*.safetensors"]
# Every error of the HTTP library that this huggingface_hub uses.
_TRANSPORT = cast("type[Exception]", HfHubHTTPError.__bases__[0])
_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[^@\s]+))?")


@dataclass(frozen=True)
class HubId:
    """A repository ``user/repo`` of the hub, and the revision asked for with it."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def parse(text: str) -> HubId | None:
    """Return the hub id that ``text`` could be (``user/repo`` or ``user/repo@revision``), or None."""
    match = _ID.fullmatch(text)
    return None if match is None else HubId(match["repo"], match["revision"])


def snapshot(source: HubId, revision: str | None = None, files: Sequence[str] = FILES) -> Path:
    """Fetch a checkpoint's ``files`` (patterns), where the cache lacks them, and return their folder.

    Raises:
        CheckpointError: the hub has no such repository, revision or checkpoint, or cannot be reached.
        InvalidArgumentError: two different revisions are asked for.
    """
    if None not in (revision, source.revision) and revision != source.revision:
        raise InvalidArgumentError(
            f"{str(source)!r} names a revision, and revision={revision!r} names another; give one."
        )
    wanted = HubId(source.repo, revision or source.revision)
    with explained(wanted):
        # Of a repository that is no checkpoint, nothing large is fetched.
        index = Path(hf_hub_download(wanted.repo, INDEX, revision=wanted.revision))
        commit = index.parent.name  # both requests see the same commit, whatever is pushed in between
        return Path(snapshot_download(wanted.repo, revision=commit, allow_patterns=[INDEX, *files]))


@contextmanager
def explained(source: HubId) -> Iterator[None]:
    """Turn the hub's errors into one that says what to do."""
    try:
        yield
    except (_TRANSPORT, OSError, EntryNotFoundError, HFValidationError) as error:
        raise CheckpointError(f"{_reason(source, error)} ({_first_line(error)})") from error


def _reason(source: HubId, error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return f"the hub's {source} is gated: ask for access on its page, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub shows no repository {source.repo}: check the name, or log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub's {source.repo} has no revision {source.revision!r}: check branch, tag or commit"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"the hub's {source} is not in the local cache and the hub cannot be reached: go online (unset "
            "HF_HUB_OFFLINE), or copy the checkpoint here and give its folder"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return f"the hub cannot be asked for {source} while HF_HUB_OFFLINE is set: unset it"
    if isinstance(error, EntryNotFoundError):
        return f"the hub's {source} holds no {INDEX}: it was not pushed by vidgen"
    return f"the hub failed on {source}: check the connection and the token (`hf auth login`), and try again"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
