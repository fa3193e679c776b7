"""Temporary files beside what is written: unique to their writer, and removed once that is dead."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

__all__ = ["remove_leftovers", "temporary_beside"]

# Processes of several machines may share a folder, and of those of others nobody here knows whether they live.
_HOST = blake2b(socket.gethostname().encode(), digest_size=3).hexdigest()
_OWN = re.compile(rf"\..+\.{_HOST}-(?P<pid>\d+)-[0-9a-f]+\.tmp")
_PART = re.compile(r"\..+\.(?P<pid>\d+)-\d+\.(part|test)(\.plain)?")  # of ``VideoWriter``


def temporary_beside(path: Path) -> Path:
    """Return a name beside ``path`` that no other writer uses."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(3)}.tmp")


def remove_leftovers(folder: Path, names: Iterable[str] | None = None) -> None:
    """Remove from ``folder`` what writers that were killed have left there.

    Args:
        folder: looked at without its sub-folders; it need not exist.
        names: of the files that they were writing; None stands for all.
    """
    wanted = None if names is None else set(names)
    with suppress(OSError):  # of a folder that may not be read nothing can be removed
        for entry in list(folder.iterdir()):
            match = _OWN.fullmatch(entry.name) or _PART.fullmatch(entry.name)
            if match is None or _is_alive(int(match["pid"])):
                continue
            if wanted is None or any(entry.name.startswith(f".{name}.") for name in wanted):
                _remove(entry)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 is one like any other
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True
