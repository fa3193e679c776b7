"""The rules that make a list of calls a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from vidgen.errors import PlanError
from vidgen.plans.call import Call, Level, Slot

__all__ = ["check_plan"]

T = TypeVar("T", bound=Hashable)


def check_plan(
    calls: Sequence[Call],
    levels: Sequence[Level],
    pins: frozenset[Slot],
    targets: frozenset[int] | None,
) -> None:
    """Raise PlanError for the first rule broken, naming the first bad call and why."""
    by_name = _check_levels(levels)
    _check_pins(pins, by_name)
    sources: dict[Slot, str] = dict.fromkeys(pins, "a pin")
    ids: set[str] = set()
    for call in calls:
        if call.id in ids:
            raise PlanError(f"call {call.id!r} appears twice; give every call an id of its own.")
        ids.add(call.id)
        _check_frames(call, by_name)
        _check_given(call, sources)
        _check_emits(call, sources, by_name)
    _check_video(levels[-1], targets, sources)


def _check_levels(levels: Sequence[Level]) -> Mapping[str, Level]:
    if not levels:
        raise PlanError("a plan without levels was given; name at least the video's level.")
    twice = _repeated(level.name for level in levels)
    if twice is not None:
        raise PlanError(f"level {twice!r} is defined twice; level names must differ.")
    for level in levels:
        if level.num_frames < 1 or level.window < 1:
            raise PlanError(
                f"level {level.name!r} has num_frames={level.num_frames} and "
                f"window={level.window}; both must be at least 1."
            )
    return {level.name: level for level in levels}


def _check_pins(pins: frozenset[Slot], levels: Mapping[str, Level]) -> None:
    for name, frame in sorted(pins):
        if name not in levels:
            raise PlanError(f"pin {(name, frame)} is of an unknown level; {_known(levels)}")
        if frame < 0:
            raise PlanError(f"pin {(name, frame)} has a negative frame; frames count from 0.")


def _check_frames(call: Call, levels: Mapping[str, Level]) -> None:
    if call.level not in levels:
        raise PlanError(f"call {call.id!r} is of unknown level {call.level!r}; {_known(levels)}")
    if not call.frames or not call.emits:
        raise PlanError(f"call {call.id!r} covers or emits no frame; leave it out of the plan.")
    if call.frames[0] < 0:
        raise PlanError(f"call {call.id!r} covers the negative frame {call.frames[0]}; frames count from 0.")
    for before, after in pairwise(call.frames):
        if after <= before:
            raise PlanError(
                f"call {call.id!r} lists frame {after} after frame {before}; list each frame "
                "once, in ascending order."
            )
    if levels[call.level].state:
        raise PlanError(
            f"call {call.id!r} is of level {call.level!r}, which is a state that calls of other levels emit; "
            "give the call the level of its frames."
        )
    window = levels[call.level].window
    if len(call.frames) > window:
        raise PlanError(
            f"call {call.id!r} covers {len(call.frames)} frames, more than the window of "
            f"{window} at level {call.level!r}; shorten the call or widen the window."
        )


def _check_given(call: Call, sources: Mapping[Slot, str]) -> None:
    twice = _repeated(call.given)
    if twice is not None:
        raise PlanError(f"call {call.id!r} is given slot {twice} twice; list it once.")
    for slot in call.given:
        if slot not in sources:
            raise PlanError(
                f"call {call.id!r} is given slot {slot}, which no earlier call emits and nothing "
                "pins; put its producer before it or pin the slot."
            )


def _check_emits(call: Call, sources: dict[Slot, str], levels: Mapping[str, Level]) -> None:
    frames = frozenset(call.frames)
    states = [name for name, _ in call.emits if name in levels and levels[name].state]
    twice = _repeated(states)
    if twice is not None:
        raise PlanError(
            f"call {call.id!r} emits two slots of state {twice!r}; a call leaves one of each state."
        )
    for slot in call.emits:
        if slot[0] not in states and (slot[0] != call.level or slot[1] not in frames):
            raise PlanError(
                f"call {call.id!r} emits slot {slot}, which is not one of its frames at level "
                f"{call.level!r}; emit only frames that the call covers, and slots of levels that are states."
            )
        if slot in sources:
            raise PlanError(
                f"call {call.id!r} emits slot {slot}, which already comes from {sources[slot]}; "
                "every slot has one source."
            )
        sources[slot] = f"call {call.id!r}"


def _check_video(video: Level, targets: frozenset[int] | None, sources: Mapping[Slot, str]) -> None:
    if video.state:
        raise PlanError(f"the last level {video.name!r} is a state; the last level is the video.")
    if targets is not None:
        outside = [frame for frame in sorted(targets) if not 0 <= frame < video.num_frames]
        if outside or not targets:
            raise PlanError(
                f"target frames {outside or 'none'} were given; ask for frames 0 to {video.num_frames - 1}."
            )
    for frame in range(video.num_frames) if targets is None else sorted(targets):
        if (video.name, frame) not in sources:
            raise PlanError(
                f"no call emits frame {frame} of the last level {video.name!r} and nothing pins "
                "it; add a call that emits it or pin it."
            )


def _repeated(items: Iterable[T]) -> T | None:
    """The first item that occurs more than once."""
    return next((item for item, count in Counter(items).items() if count > 1), None)


def _known(levels: Mapping[str, Level]) -> str:
    return f"the plan's levels are {', '.join(levels)}."
