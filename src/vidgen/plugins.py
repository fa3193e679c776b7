"""Entry points: how strategies and recipes are found, the built-in ones by the same door as all others.

Listing reads names from installed metadata and imports nothing.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vidgen.errors import UnknownNameError, VidgenError

__all__ = ["RECIPES", "STRATEGIES", "available", "check", "load"]

STRATEGIES = "vidgen.strategies"
RECIPES = "vidgen.recipes"
_KIND = {STRATEGIES: "strategy", RECIPES: "recipe"}


def _points(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.setdefault(point.name, point)
        if other.value != point.value or _distribution(other) != _distribution(point):
            raise VidgenError(
                f"two packages register {point.name!r} in {group!r}: {_distribution(other)} "
                f"({other.value}) and {_distribution(point)} ({point.value}). Uninstall one of them."
            )
    return dict(sorted(found.items()))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown distribution"


def available(group: str) -> dict[str, str]:
    """Return ``{name: distribution}`` of everything registered in ``group``, without importing it.

    Raises:
        VidgenError: two packages register the same name.
    """
    return {name: _distribution(point) for name, point in _points(group).items()}


def check(group: str, name: str) -> None:
    """Raise ``UnknownNameError`` unless ``name`` is registered in ``group``; imports nothing."""
    points = _points(group)
    if name not in points:
        raise UnknownNameError(_KIND.get(group, group), name, points)


def load(group: str, name: str) -> Any:
    """Import and return what is registered as ``name`` in ``group``.

    Raises:
        UnknownNameError: nothing is; the nearest name is suggested.
        ImportError: the plug-in's own, unchanged.
    """
    check(group, name)
    return _points(group)[name].load()
