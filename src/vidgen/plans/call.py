"""The parts of a plan: slots, levels and calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["Call", "Level", "Slot", "call_id"]

Slot = tuple[str, int]
"""One frame of one level, ``(level name, absolute frame)``; a feature without a frame is 0."""


@dataclass(frozen=True)
class Level:
    """One resolution, rate or feature that a plan produces.

    Args:
        name: chosen by the strategy, for example ``"global"``, ``"x1"`` or ``"video"``.
        num_frames: how many frames the level has (>= 1); slots past the end are dropped.
        window: the most frames that one call may cover at this level (>= 1).
        state: whether calls of other levels emit its slots beside their frames, such as the hidden state that
            one chunk hands to the next; no call is of such a level.
    """

    name: str
    num_frames: int
    window: int
    state: bool = False


@dataclass(frozen=True)
class Call:
    """One run of a denoiser (or generator) over a few frames of one level.

    Args:
        id: short, readable, unique in the plan.
        level: the level whose frames the call covers.
        frames: absolute indices of the frames covered, ascending, given ones included.
        given: slots the call must be handed, of any level. Those of its own level may lie outside of
            ``frames``: the network then sees them as context.
        emits: slots the call produces: of its own level, in ``frames``, and of state levels.
    """

    id: str
    level: str
    frames: tuple[int, ...]
    given: tuple[Slot, ...]
    emits: tuple[Slot, ...]

    def halves(self) -> tuple[Call, Call] | None:
        """Return two calls that each emit half of the slots, or None of a call that emits one or a state.

        They cover no other frames: for networks that make each frame alone.
        """
        if len(self.emits) < 2 or any(level != self.level for level, _ in self.emits):
            return None
        middle = len(self.emits) // 2
        return self._part(self.emits[:middle]), self._part(self.emits[middle:])

    def _part(self, emits: tuple[Slot, ...]) -> Call:
        frames = tuple(sorted(frame for _, frame in emits))
        return replace(self, id=call_id(self.level, frames), frames=frames, emits=emits)


def call_id(level: str, frames: Sequence[int]) -> str:
    """Name a call by the evenly spaced frames it covers: ``video/12-27``, ``video/0-225:15``.

    The name depends on the frames alone, so a call keeps it in a longer plan.
    """
    if len(frames) == 1:
        return f"{level}/{frames[0]}"
    stride = frames[1] - frames[0]
    suffix = f":{stride}" if stride != 1 else ""
    return f"{level}/{frames[0]}-{frames[-1]}{suffix}"
