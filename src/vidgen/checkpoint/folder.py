"""Folders that appear whole or not at all, whenever the process is killed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replaced_folder", "settled"]


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``folder`` when the block ends well, and vanishes otherwise.

    A new folder appears by one rename. Replacing takes two: the old one is set aside as ``.NAME.old``, then
    the new one takes its name; who is killed between them leaves a folder that ``settled`` still finds, and
    that the next writer puts back. One process writes a folder at a time; any number may read it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = folder.with_name(f".{folder.name}.tmp"), _set_aside(folder)
    if not folder.exists() and old.exists():
        old.rename(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(old, ignore_errors=True)  # left by a writer killed after its second rename
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def settled(folder: Path) -> Path:
    """Return where the content of ``folder`` is: there, or set aside by a writer that was killed."""
    old = _set_aside(folder)
    return old if not folder.exists() and old.is_dir() else folder


def _set_aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
