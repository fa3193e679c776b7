"""What a generation will cost, said before it starts, and how long it will take, once measured."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["Cost", "Pace"]


@dataclass(frozen=True)
class Cost:
    """What a generation will cost.

    Args:
        videos: how many videos.
        calls: calls of the plan, for each video.
        waves: how many of them must wait for each other (the plan's critical path).
        evaluations: network evaluations over all videos, guidance counted twice.
        disk_bytes: what a work folder would hold at the end.
        seconds: at the pace of an earlier generation of this size by the same sampler; None before one.
    """

    videos: int
    calls: int
    waves: int
    evaluations: int
    disk_bytes: int = 0
    seconds: float | None = None

    def __str__(self) -> str:
        text = (
            f"{self.videos} video(s) x {self.calls} call(s) in {self.waves} wave(s): "
            f"{self.evaluations} network evaluations, {_size(self.disk_bytes)} if kept in a work folder"
        )
        return text if self.seconds is None else f"{text}, about {_duration(self.seconds)}"


class Pace:
    """Seconds per network evaluation, by what makes evaluations alike."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, float] = {}

    def measured(self, kind: Hashable, seconds: float, evaluations: int) -> None:
        """Remember that ``evaluations`` of this ``kind`` took ``seconds``."""
        if evaluations > 0:
            self._seconds[kind] = seconds / evaluations

    def expected(self, kind: Hashable, evaluations: int) -> float | None:
        """Return the seconds that ``evaluations`` of this ``kind`` will take, or None if none ran yet."""
        return self._seconds[kind] * evaluations if kind in self._seconds else None


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
