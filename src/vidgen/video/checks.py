"""Checks of names given as arguments, and how names of files are shown."""

from __future__ import annotations

from collections.abc import Sequence

from vidgen.errors import UnknownNameError

__all__ = ["check_name", "printable"]


def check_name(kind: str, given: str, known: Sequence[str]) -> None:
    """Raise UnknownNameError with the nearest ``known`` name unless ``given`` is one of them."""
    if given not in known:
        raise UnknownNameError(kind, given, known)


def printable(text: str) -> str:
    """Return ``text`` with what cannot be printed as escapes.

    Names of files may hold bytes that are no UTF-8 (lone surrogates to Python), and control characters.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
