"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

from vidgen.errors import InvalidArgumentError

__all__ = ["expanded"]


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` with the home folder that ``~`` or ``~name`` stands for.

    Raises:
        InvalidArgumentError: there is no such user, or this one has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        home = Path(path).parts[0]
        raise InvalidArgumentError(
            f"{os.fspath(path)!r} begins with {home}, and no such home folder is known here. Write the path "
            "out in full."
        ) from error
