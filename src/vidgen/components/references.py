"""Where a checkpoint's component lies: in its own folder, or in another checkpoint that it refers to.

A reference, ``{"from": "shapes/codec", "hash": "..."}`` in place of a class's name in ``vidgen.json``, means
the component of the same name in another checkpoint: a bundled model by name, a folder beside this checkpoint
or in it (``"../codec"``), or a repository of the hub. Its configuration and weights are verified by their hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vidgen import plugins
from vidgen.components import hub
from vidgen.components.hub import INDEX
from vidgen.config import read_json
from vidgen.errors import CheckpointError, shown
from vidgen.weights import newest_model

__all__ = [
    "INDEX",
    "Located",
    "Reference",
    "component_hash",
    "find_component",
    "is_reference",
    "locate_component",
    "relative_source",
    "repositories_allowed",
    "repository_allowed",
]

_ALLOWED: ContextVar[frozenset[str]] = ContextVar("repositories", default=frozenset())


@dataclass(frozen=True)
class Reference:
    """A component that another checkpoint holds.

    Args:
        source: a bundled model's name, a hub id, or a folder: relative to the checkpoint in a file
            (``./`` or ``../``), absolute in memory.
        digest: of the component, see ``component_hash``.
    """

    source: str
    digest: str

    def to_json(self) -> dict[str, str]:
        """Return what stands in ``vidgen.json``."""
        return {"from": self.source, "hash": self.digest}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], where: str) -> Reference:
        """Read what ``to_json`` gave; ``where`` is for the message.

        Raises:
            CheckpointError: it is something else.
        """
        if set(entry) != {"from", "hash"} or not all(isinstance(value, str) for value in entry.values()):
            raise CheckpointError(
                f"{where} is {shown(entry)}; expected the name of a class, or a reference "
                '{"from": "shapes/codec", "hash": "..."}. The file was changed, or is of a newer vidgen.'
            )
        return cls(entry["from"], entry["hash"])


@dataclass(frozen=True)
class Located:
    """Where a component lies.

    Attributes:
        folder: with its configuration and weights.
        class_name: its class, as the checkpoint that holds it says; None where that is no checkpoint.
        reference: None for a component of the checkpoint's own; otherwise to the checkpoint that holds it, a
            folder as an absolute path.
    """

    folder: Path
    class_name: str | None
    reference: Reference | None = None


@contextmanager
def repositories_allowed(names: Iterable[str]) -> Iterator[None]:
    """Within the block, checkpoints may have these hub repositories loaded besides the one asked for."""
    token = _ALLOWED.set(_ALLOWED.get() | frozenset(name.partition("@")[0] for name in names))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def repository_allowed(name: str) -> bool:
    """Whether the caller said that a checkpoint may have the hub repository ``name`` loaded."""
    return name.partition("@")[0] in _ALLOWED.get()


def is_reference(checkpoint: Path, name: str) -> bool:
    """Whether the component ``name`` of ``checkpoint`` is that of another one."""
    return isinstance(_entry(checkpoint, name), Mapping)


def find_component(checkpoint: Path, name: str) -> Path:
    """Return the folder of the component ``name`` of ``checkpoint``; see ``locate_component``."""
    return locate_component(checkpoint, name).folder


def locate_component(checkpoint: Path, name: str) -> Located:
    """Return where the component ``name`` of ``checkpoint`` lies, verified where it is a reference.

    Raises:
        CheckpointError: a reference leads nowhere, in a circle, to a repository that the caller did not allow,
            or to other content than it was made for.
    """
    entry = _entry(checkpoint, name)
    if not isinstance(entry, Mapping):
        return Located(checkpoint / name, entry if isinstance(entry, str) else None)
    first = Reference.from_json(entry, f"component {name!r} in {checkpoint / INDEX}")
    found: Any = entry
    holder, source = checkpoint, first.source
    passed: list[Path] = []
    while isinstance(found, Mapping):
        reference = Reference.from_json(found, f"component {name!r} in {holder / INDEX}")
        passed.append(holder.resolve())
        holder, source = _followed(reference.source, holder, name)
        if holder.resolve() in passed:
            raise CheckpointError(
                f"component {name!r} of {checkpoint} is a reference that comes back to {holder}: the "
                "checkpoints refer to each other and none holds it. Save one of them with whole=True."
            )
        found = _entry(holder, name)
    folder = holder / name
    if not folder.is_dir():
        raise CheckpointError(
            f"component {name!r} of {checkpoint} is that of {source!r}, which has none (no folder {folder}). "
            f"{_own(name)}"
        )
    _verify(folder, first, checkpoint, name)
    return Located(folder, found if isinstance(found, str) else None, Reference(source, first.digest))


def _entry(checkpoint: Path, name: str) -> Any:
    """Return what ``vidgen.json`` says of a component; None where there is no such file, or nothing in it."""
    file = checkpoint / INDEX
    if not file.is_file():
        return None
    try:
        components = read_json(file).get("components")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    return components.get(name) if isinstance(components, Mapping) else None


def _followed(source: str, checkpoint: Path, name: str) -> tuple[Path, str]:
    """Return the checkpoint that ``source`` means in ``checkpoint``, and what to call it elsewhere."""
    what = f"component {name!r} of {checkpoint} is that of {source!r}"
    if source.startswith("."):
        base = checkpoint.resolve()
        folder = newest_model((base / source).resolve())
        if not folder.is_relative_to(base.parent):
            raise CheckpointError(
                f"{what}, outside {base.parent}; expected a folder in the checkpoint or beside it. It is not "
                f"followed. {_own(name)}"
            )
        if not folder.is_dir():
            raise CheckpointError(
                f"{what}; there is no folder {folder}. Put it there: a checkpoint that refers to others moves "
                f"together with them. {_own(name)}"
            )
        return folder, str(folder)
    if source in plugins.available(plugins.MODELS):
        return plugins.model_folder(source), source
    remote = hub.parse(source)
    if remote is None:
        raise CheckpointError(
            f"{what}; expected the name of a bundled model, a folder that begins with ./ or ../, or a hub id "
            f"user/repo. {_own(name)}"
        )
    if not repository_allowed(remote.repo):
        raise CheckpointError(
            f"{what}, and no installed package brings a model of that name: install the one that does. If it "
            "is a repository of the hub that you trust, say so: vidgen.load(..., "
            f"repositories=[{remote.repo!r}]). {_own(name)}"
        )
    return hub.snapshot(remote, files=[f"{name}/*.json", f"{name}/*.safetensors"]), source


def _own(name: str) -> str:
    return f"Or give the component yourself: {name}=..."


def _verify(folder: Path, reference: Reference, checkpoint: Path, name: str) -> None:
    found = component_hash(folder)
    if found != reference.digest:
        raise CheckpointError(
            f"component {name!r} of {checkpoint} was saved as that of {reference.source!r} with hash "
            f"{shown(reference.digest)}; the one in {folder} has {found}: it was changed since, or is "
            f"another version. Install the version that it was saved with, or give the component: {name}=..."
        )


def component_hash(folder: Path) -> str:
    """Return a digest of all that a component's folder holds: configuration and every value of its weights.

    What makes no difference to the loaded component is left out: half precision or float32 of the same values,
    layout of the JSON, versions noted in it.

    Raises:
        CheckpointError: a file cannot be read.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".md"]
    kept = [file for file in files if not any(p.startswith(".") for p in file.relative_to(folder).parts)]
    state = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in kept]
    return _hashed(str(folder), tuple(state))


@lru_cache(maxsize=256)
def _hashed(folder: str, state: tuple[tuple[str, int, int], ...]) -> str:
    """``component_hash``, once for every state of the files."""
    digest = hashlib.blake2b(digest_size=16)
    for name, _, _ in state:
        file = Path(name)
        digest.update(f"{file.relative_to(folder).as_posix()}\n".encode())
        try:
            if file.suffix == ".safetensors":
                _add_tensors(digest, file)
            elif file.suffix == ".json":
                fields = {k: v for k, v in read_json(file).items() if k == "_class_name" or k[:1] != "_"}
                digest.update(json.dumps(fields, sort_keys=True).encode())
            else:
                digest.update(file.read_bytes())
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
    return digest.hexdigest()


def _add_tensors(digest: Any, file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        for name in sorted(opened.keys()):
            tensor = opened.get_tensor(name)
            if tensor.is_floating_point() and tensor.element_size() < 4:
                tensor = tensor.float()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def relative_source(source: str, folder: Path) -> str | None:
    """Return how a checkpoint in ``folder`` may name ``source``; None where it may not.

    Names stay. A folder must lie beside the checkpoint or in it, so that both can be moved together.
    """
    if not Path(source).is_absolute():
        return source
    base = folder.resolve()
    if not Path(source).is_relative_to(base.parent) or Path(source) == base:
        return None
    path = Path(os.path.relpath(source, base)).as_posix()
    return path if path.startswith(".") else f"./{path}"
