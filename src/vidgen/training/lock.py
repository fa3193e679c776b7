"""One writer of a run's folder at a time."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vidgen import config as configs
from vidgen.errors import InvalidArgumentError, RunFolderError

__all__ = ["FILES", "held"]

_LOCK, _HOLDER = ".lock", ".holder.json"
FILES = (_LOCK, _HOLDER)
"""What a lock leaves in its folder."""

_PATIENCE = 10.0
"""Seconds: so long may processes that a killed training started for reading outlive it, and hold its lock."""

_logger = logging.getLogger("vidgen")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the one process that writes the existing ``folder``; the system frees it when the process ends.

    Raises:
        RunFolderError: another process writes it; who that is, is said.
    """
    lock = FileLock(folder / _LOCK)
    try:
        _acquire(lock, folder)
    except NotImplementedError:  # a file system without locks: as it was before there were any
        _logger.warning("%s: this file system knows no locks; start only one training there", folder)
        yield
        return
    holder = folder / _HOLDER
    try:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        configs.write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": now})
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> None:
    with suppress(Timeout):
        lock.acquire(timeout=0)
        return
    _logger.info("%s is in use by %s; waiting %g s for it to end", folder, _holder(folder), _PATIENCE)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout as error:
        raise RunFolderError(
            f"{folder} is being trained by {_holder(folder)}; expected a folder that no other process writes. "
            "Wait for its end or stop it, or give another --out."
        ) from error


def _holder(folder: Path) -> str:
    with suppress(OSError, InvalidArgumentError, KeyError):
        found = configs.read_json(folder / _HOLDER)
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    return "another process"
