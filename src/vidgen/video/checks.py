"""Checks of names given as arguments."""

from __future__ import annotations

from collections.abc import Sequence

from vidgen.errors import UnknownNameError

__all__ = ["check_name"]


def check_name(kind: str, given: str, known: Sequence[str]) -> None:
    """Raise UnknownNameError with the nearest ``known`` name unless ``given`` is one of them."""
    if given not in known:
        raise UnknownNameError(kind, given, known)
