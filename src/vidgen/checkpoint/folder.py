"""Folders that appear whole or not at all, whenever the process is killed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vidgen.errors import CheckpointError, VidgenError

__all__ = ["readable", "replaced_folder", "settled", "writable"]


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``folder`` when the block ends well, and vanishes otherwise.

    A new folder appears by one rename. Replacing takes two: the old one is set aside as ``.NAME.old``, then
    the new one takes its name; who is killed between them leaves a folder that ``settled`` still finds, and
    that the next writer puts back. One process writes a folder at a time; any number may read it.

    Raises:
        CheckpointError: the system refuses to write, here or in the block; what was there stays.
    """
    with writable(folder):
        temporary = _begun(folder)
        try:
            yield temporary
            _take_place(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turn what the system says while ``folder`` is written into a ``CheckpointError``."""
    try:
        yield
    except VidgenError:  # some are errors of the system too, and say enough
        raise
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in its own
        raise CheckpointError(
            f"{folder} cannot be written: {_reason(error)}. Nothing half-written is kept, and what was there "
            "stays. Give a folder that you may write to, on a disk with room."
        ) from error


@contextmanager
def readable(source: object) -> Iterator[None]:
    """Turn what the system says while the checkpoint ``source`` is read into a ``CheckpointError``."""
    try:
        yield
    except VidgenError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{str(source)!r} cannot be read as a checkpoint: {_reason(error)}. Give a folder that you may "
            "read, or fetch the checkpoint again."
        ) from error


def settled(folder: Path) -> Path:
    """Return where the content of ``folder`` is: there, or set aside by a writer that was killed."""
    if folder.exists():  # also "." and "/", beside which nothing can be set aside
        return folder
    old = _set_aside(folder)
    return old if old.is_dir() else folder


def _set_aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _begun(folder: Path) -> Path:
    """Return a new, empty folder beside ``folder``, after a look at what a killed writer left."""
    if folder.name in ("", ".."):
        raise CheckpointError(f"{folder} cannot be replaced as a whole; give a folder by its name.")
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; expected a folder, or nothing yet. Give another name.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = folder.with_name(f".{folder.name}.tmp"), _set_aside(folder)
    if not folder.exists() and old.exists():
        old.rename(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    return temporary


def _take_place(temporary: Path, folder: Path) -> None:
    """Give ``temporary`` the name ``folder``, and delete what had it."""
    old = _set_aside(folder)
    shutil.rmtree(old, ignore_errors=True)  # left by a writer killed after its second rename
    replaces = folder.exists()
    if replaces:
        folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        if replaces:
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _reason(error: Exception) -> str:
    """Return what the system said, and of which file, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f" ({error.filename})" if error.filename else "")
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
