"""Names for what is being written, and removal of what killed processes left under such names.

A name tells the machine and the process that writes; what a process of this machine that runs no more
has left is of no use to anyone.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
import re
import shutil
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["part_beside", "remove", "remove_dead"]

_NUMBERS = itertools.count()
_LONGEST = 180
"""Bytes of a name that are kept, so that the part's name too is one that file systems take."""


def part_beside(path: Path) -> Path:
    """A hidden name beside ``path`` that no other writer has, in a folder cleaned of dead writers' parts."""
    folder = path.parent
    _clean_once(folder.resolve())
    name = path.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    return folder / f".{name}.{_host()}-{os.getpid()}-{next(_NUMBERS)}.part"


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it; harmless if it is gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


@cache  # one look at a folder is enough for a process
def _clean_once(folder: Path) -> None:
    with suppress(OSError):
        remove_dead(folder)


def remove_dead(folder: Path) -> None:
    """Remove from ``folder`` the parts that dead writers left; those of other machines stay.

    Raises:
        OSError: the folder is missing or cannot be read.
    """
    ending = re.compile(rf"\..*\.{_host()}-(\d+)-\d+\.part(\.plain)?")
    with os.scandir(folder) as entries:
        parts = [(entry.name, found) for entry in entries if (found := ending.fullmatch(entry.name))]
    for name, found in parts:
        if not _is_running(int(found[1])):
            with suppress(OSError):
                remove(folder / name)


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True  # there is no harmless way to ask
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
