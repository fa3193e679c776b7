"""Orders in which a plan's calls may run, and what each holds in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vidgen.plans.call import Call, Slot

__all__ = ["depth_first", "depths", "peak_frames"]


def depths(calls: Sequence[Call], parents: Mapping[str, tuple[Call, ...]]) -> dict[str, int]:
    """Longest path from a call without dependencies (depth 0) to each call, in calls."""
    found: dict[str, int] = {}
    for call in calls:
        found[call.id] = 1 + max((found[parent.id] for parent in parents[call.id]), default=-1)
    return found


def depth_first(roots: Iterable[Call], parents: Mapping[str, tuple[Call, ...]]) -> tuple[Call, ...]:
    """Finish one root after the other, each preceded by whatever ancestors are still missing."""
    done: dict[str, Call] = {}
    for root in roots:
        stack = [root]  # a recursion would be as deep as an autoregressive plan is long
        while stack:
            call = stack[-1]
            waiting = [parent for parent in parents[call.id] if parent.id not in done]
            if waiting:
                stack.extend(reversed(waiting))
            else:
                done.setdefault(call.id, call)
                stack.pop()
    return tuple(done.values())


def peak_frames(order: Sequence[Call], outputs: Sequence[Slot], pins: frozenset[Slot]) -> int:
    """The most slots that live at once when the calls run in ``order``.

    ``outputs`` are the slots of the finished video in the order in which they are written.
    The rule is described at ``Plan.peak_frames``.
    """
    last_use = {slot: index for index, call in enumerate(order) for slot in call.given}
    unwritten = set(outputs)
    ready: set[Slot] = set(pins)
    live: set[Slot] = set()
    written, peak = 0, 0
    for index, call in enumerate(order):
        live.update(call.emits)
        peak = max(peak, len(live) + sum(slot not in live for slot in call.given))
        ready.update(call.emits)
        passed = [*call.given, *call.emits]
        while written < len(outputs) and outputs[written] in ready:
            unwritten.discard(outputs[written])
            passed.append(outputs[written])
            written += 1
        live.difference_update(
            slot for slot in passed if last_use.get(slot, -1) <= index and slot not in unwritten
        )
    return peak
