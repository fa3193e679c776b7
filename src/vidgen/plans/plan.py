"""The plan: a directed acyclic graph of calls as plain data, with its queries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from hashlib import blake2b
from typing import Any

from vidgen.errors import PlanError, UnknownNameError
from vidgen.plans.call import Call, Level, Slot
from vidgen.plans.check import check_plan
from vidgen.plans.order import depth_first, depths, peak_frames

__all__ = ["Plan"]

_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """Which frames are made in which calls, given which others.

    Frames are absolute indices of latents at their level. Calls are listed so that each comes
    after the calls it depends on. Every slot has one source: one call that emits it, or a pin.
    Slots past the end of their level may be emitted (a call keeps its full window) and given to
    other calls; they are never part of the video.

    Args:
        calls: the calls, producers before consumers.
        levels: every level that a call or pin names; the last one is the video.
        pins: slots whose content the user (or an earlier run) supplies.
        targets: the video frames wanted; ``None`` wants all of them.

    Raises:
        PlanError: a rule is broken; the first bad call is named.
    """

    calls: tuple[Call, ...]
    levels: tuple[Level, ...]
    pins: frozenset[Slot] = frozenset()
    targets: frozenset[int] | None = None

    def __post_init__(self) -> None:
        """Check the rules of the class description."""
        check_plan(self.calls, self.levels, self.pins, self.targets)

    @property
    def video(self) -> Level:
        """The last level, whose frames are the result."""
        return self.levels[-1]

    @property
    def num_frames(self) -> int:
        """Frames of the whole video, also in a plan for a part of it."""
        return self.video.num_frames

    @cached_property
    def frames(self) -> tuple[int, ...]:
        """The video frames this plan delivers, ascending: all of them, or the targets."""
        return tuple(range(self.num_frames) if self.targets is None else sorted(self.targets))

    @property
    def num_calls(self) -> int:
        """How many calls there are."""
        return len(self.calls)

    @property
    def critical_path(self) -> int:
        """Calls that must run one after the other, with unlimited devices."""
        return len(self._waves)

    def call(self, call_id: str) -> Call:
        """The call of that id; PlanError if there is none."""
        try:
            return self._by_id[call_id]
        except KeyError:
            near = get_close_matches(call_id, self._by_id, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise PlanError(
                f"the plan has no call {call_id!r} among its {self.num_calls} calls.{hint}"
            ) from None

    def level(self, name: str) -> Level:
        """The level of that name; UnknownNameError if there is none."""
        for level in self.levels:
            if level.name == name:
                return level
        raise UnknownNameError("level", name, [level.name for level in self.levels])

    def producer(self, slot: Slot) -> Call | None:
        """The call that emits a slot, ``None`` for a pin; PlanError if it has no source."""
        call = self._producers.get(slot)
        if call is None and slot not in self.pins:
            raise PlanError(
                f"slot {slot} is neither emitted nor pinned in this plan; ask for a slot of "
                f"levels {', '.join(level.name for level in self.levels)} that a call emits."
            )
        return call

    def dependencies(self, call_id: str) -> tuple[Call, ...]:
        """The calls that emit what a call is given, each once, in the order of ``given``."""
        return self._parents[self.call(call_id).id]

    def kept(self, call: Call) -> tuple[Slot, ...]:
        """The slots of a call worth storing; a sampler drops the others.

        These are the frames inside their level's range, and states and frames past its end that another
        call is given (in a tree such a frame bounds the last segment). Where a store is shared
        between a plan and its subplans, ask the whole plan.
        """
        end = self.level(call.level).num_frames
        return tuple(
            slot for slot in call.emits if (slot[0] == call.level and slot[1] < end) or slot in self._needed
        )

    def output(self, call: Call) -> tuple[int, ...]:
        """The video frames that a call contributes to the result, in the order it emits them."""
        if call.level != self.video.name:
            return ()
        return tuple(frame for level, frame in call.emits if level == call.level and frame in self._wanted)

    def waves(self) -> tuple[tuple[Call, ...], ...]:
        """Calls grouped by the longest path that leads to them; one wave may run at once."""
        return self._waves

    def order(self, kind: str = "depth") -> tuple[Call, ...]:
        """All calls, one after the other.

        Args:
            kind: ``"breadth"`` runs wave after wave; ``"depth"`` finishes the earliest video
                frames first, so that a video streams with few frames in memory.

        Raises:
            UnknownNameError: another kind was given.
        """
        if kind == "breadth":
            return tuple(call for wave in self._waves for call in wave)
        if kind == "depth":
            return self._depth_order
        raise UnknownNameError("order of calls", kind, ["breadth", "depth"])

    def peak_frames(self, order: str = "depth") -> int:
        """The most slots that live at once when the calls run in an order, in frames.

        While a call runs, these live: every slot emitted so far (by this call too, past the end
        too) that is not yet freed, and whatever the call is given (pins count only then). After
        the call, a slot is freed once no later call is given it and, if it belongs to the
        finished video, once every video frame up to it is there and has been written out.

        A full tree of ``m`` levels with window ``L`` needs ``m (L - 2) + 2`` in depth order.
        """
        video = self.video.name
        outputs = [(video, frame) for frame in self.frames]
        return peak_frames(self.order(order), outputs, self.pins)

    def subplan(self, frames: Iterable[int]) -> Plan:
        """The calls that some video frames need, and no others; frame numbers stay absolute.

        Raises:
            PlanError: no frame was asked for, or one that this plan does not deliver.
        """
        targets = frozenset(frames)
        foreign = sorted(targets - self._wanted)
        if foreign or not targets:
            asked = f"frame {foreign[0]} was" if foreign else "no frame was"
            raise PlanError(
                f"{asked} asked for; this plan delivers {len(self.frames)} frames from "
                f"{self.frames[0]} to {self.frames[-1]}; ask for some of these."
            )
        needed = {(self.video.name, frame) for frame in targets}
        chosen = []
        for call in reversed(self.calls):
            if not needed.isdisjoint(call.emits):
                needed.update(call.given)
                chosen.append(call)
        return replace(self, calls=tuple(reversed(chosen)), targets=targets)

    def remaining(self, done: Iterable[str]) -> Plan:
        """The calls not yet done; what the done ones left in store becomes pinned.

        Raises:
            PlanError: an id is not of this plan.
        """
        finished = {call_id: self.call(call_id) for call_id in done}
        stored = frozenset(slot for call in finished.values() for slot in self.kept(call))
        calls = tuple(call for call in self.calls if call.id not in finished)
        return replace(self, calls=calls, pins=self.pins | stored)

    def with_pins(self, slots: Iterable[Slot]) -> Plan:
        """The plan when the user supplies some slots.

        A pinned slot is no longer emitted; each call that covers it is given it; calls with
        nothing left to emit (or only slots past the end that nothing needs) are dropped. Calls
        that only fed those stay: ``subplan`` drops them.

        Raises:
            PlanError: a level is unknown, or a slot lies past the end where no call reaches.
        """
        added = frozenset(slots)
        ends = {level.name: level.num_frames for level in self.levels}
        for name, frame in sorted(added - self.pins - self._producers.keys()):
            if name in ends and frame >= ends[name]:
                raise PlanError(
                    f"pin {(name, frame)} lies past the end and in no call; level {name!r} has "
                    f"frames 0 to {ends[name] - 1}."
                )
        pins = self.pins | added
        calls = [_with_given(call, pins) for call in self.calls]
        return replace(self, calls=_worthwhile(calls, ends), pins=pins)

    def fingerprint(self) -> str:
        """32 hexadecimal digits that are equal for equal plans, on every machine."""
        return blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """The plan as canonical JSON: equal plans give equal text."""
        return json.dumps(
            {
                "format": _FORMAT,
                "levels": [
                    [level.name, level.num_frames, level.window, *([True] if level.state else [])]
                    for level in self.levels
                ],
                "calls": [[c.id, c.level, c.frames, c.given, c.emits] for c in self.calls],
                "pins": sorted(self.pins),
                "targets": None if self.targets is None else self.frames,
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what ``to_json`` wrote; PlanError if the text is something else."""
        try:
            data: dict[str, Any] = json.loads(text)
            written = data["format"]
            if written == _FORMAT:
                return cls(**_fields(data))
        except PlanError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise PlanError(
                f"the text is not a plan written by Plan.to_json ({error}); write it again."
            ) from error
        raise PlanError(f"the plan has format {written!r}, this version reads {_FORMAT}; write it again.")

    @cached_property
    def _by_id(self) -> dict[str, Call]:
        return {call.id: call for call in self.calls}

    @cached_property
    def _producers(self) -> dict[Slot, Call]:
        return {slot: call for call in self.calls for slot in call.emits}

    @cached_property
    def _parents(self) -> dict[str, tuple[Call, ...]]:
        source = self._producers
        return {
            call.id: tuple({source[s].id: source[s] for s in call.given if s in source}.values())
            for call in self.calls
        }

    @cached_property
    def _needed(self) -> frozenset[Slot]:
        return frozenset(slot for call in self.calls for slot in call.given)

    @cached_property
    def _wanted(self) -> frozenset[int]:
        return frozenset(self.frames)

    @cached_property
    def _waves(self) -> tuple[tuple[Call, ...], ...]:
        depth = depths(self.calls, self._parents)
        waves: list[list[Call]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
        for call in self.calls:
            waves[depth[call.id]].append(call)
        return tuple(tuple(wave) for wave in waves)

    @cached_property
    def _depth_order(self) -> tuple[Call, ...]:
        slots = ((self.video.name, frame) for frame in self.frames)
        streamed = (self._producers[slot] for slot in slots if slot in self._producers)
        # calls that no delivered frame needs come last, so that every call runs
        return depth_first((*streamed, *self.calls), self._parents)


def _with_given(call: Call, pins: frozenset[Slot]) -> Call:
    """The call when it is handed every pinned frame it covers instead of making it."""
    covered = [slot for slot in ((call.level, frame) for frame in call.frames) if slot in pins]
    if not covered and pins.isdisjoint(call.emits):
        return call
    above = [slot for slot in call.given if slot[0] != call.level]
    own = sorted({slot for slot in call.given if slot[0] == call.level} | set(covered))
    emits = tuple(slot for slot in call.emits if slot not in pins)
    return replace(call, given=(*above, *own), emits=emits)


def _worthwhile(calls: Sequence[Call], ends: Mapping[str, int]) -> tuple[Call, ...]:
    """The calls that emit a slot inside its level's range or one that such a call is given."""
    needed: set[Slot] = set()
    chosen = []
    for call in reversed(calls):
        end = ends[call.level]
        if any((slot[0] == call.level and slot[1] < end) or slot in needed for slot in call.emits):
            needed.update(call.given)
            chosen.append(call)
    return tuple(reversed(chosen))


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    """The arguments of Plan from parsed JSON."""
    calls = (
        Call(str(name), str(level), tuple(map(int, frames)), _slots(given), _slots(emits))
        for name, level, frames, given, emits in data["calls"]
    )
    targets = data["targets"]
    return {
        "calls": tuple(calls),
        "levels": tuple(
            Level(str(name), int(n), int(window), state == [True]) for name, n, window, *state in data["levels"]
        ),
        "pins": frozenset(_slots(data["pins"])),
        "targets": None if targets is None else frozenset(map(int, targets)),
    }


def _slots(items: Iterable[Any]) -> tuple[Slot, ...]:
    return tuple((str(level), int(frame)) for level, frame in items)
