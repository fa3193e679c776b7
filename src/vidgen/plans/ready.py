"""The plans that publications use.

A call keeps its full window even where it runs past the end of the video, because a network
trained on windows of one length should see that length, and because a frame then does not
depend on how long the video is. Frames past the end are dropped. ``chunks`` and ``cascade``
shorten their last call instead: their frames meet only inside the network's receptive field
(or not at all), so a shorter call is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from vidgen.errors import PlanError
from vidgen.plans.call import Call, Level, Slot, call_id
from vidgen.plans.plan import Plan

__all__ = [
    "CascadeLevel",
    "all_at_once",
    "autoregressive",
    "cascade",
    "chunks",
    "keyframes",
    "rooted",
    "tree",
]


def all_at_once(num_frames: int, level: str = "video") -> Plan:
    """One call for the whole video: 1 call, critical path 1.

    Args:
        num_frames: frames of the video (>= 1); also the window.
        level: name of the video's level.

    Raises:
        PlanError: ``num_frames`` is below 1.
    """
    _at_least("num_frames", num_frames, 1)
    call = _call(level, range(num_frames))
    return Plan((call,), (Level(level, num_frames, num_frames),))


def autoregressive(num_frames: int, window: int, context: int, level: str = "video") -> Plan:
    """Windows one after the other, each given the last frames of the one before.

    ``1 + ceil((N - L) / (L - c))`` calls, which all wait for each other.

    Args:
        num_frames: frames of the video, N (>= 1).
        window: frames of every call, L, context included.
        context: frames handed on from window to window, c (1 to L - 1).
        level: name of the video's level.

    Raises:
        PlanError: an argument is out of range.
    """
    _at_least("num_frames", num_frames, 1)
    _at_least("context", context, 1, "; for windows that share nothing use chunks()")
    if context >= window:
        raise PlanError(
            f"context={context} and window={window} were given; a window of {window} frames "
            f"leaves nothing to generate: use a context below the window."
        )
    step = window - context
    calls = [_call(level, range(window))]
    for start in range(step, step * (_ceil(num_frames - window, step) + 1), step):
        frames = range(start, start + window)
        calls.append(_call(level, frames, own=frames[:context]))
    return Plan(tuple(calls), (Level(level, num_frames, window),))


def keyframes(num_frames: int, window: int, stride: int | None = None, level: str = "video") -> Plan:
    """Keyframes in one call, then the gaps between them, each given both of its ends.

    ``K = ceil((N - 1) / stride) + 1`` keyframes, K calls, critical path 2.

    Args:
        num_frames: frames of the video, N (>= 1).
        window: the most frames that a call can cover.
        stride: frames from one keyframe to the next (2 to ``window - 1``); by default
            ``window - 1``, so that the gaps fill the window and the calls are fewest.
        level: name of the video's level.

    Raises:
        PlanError: an argument is out of range, or the keyframes do not fit one call.
    """
    _at_least("num_frames", num_frames, 1)
    _at_least("window", window, 3)
    stride = window - 1 if stride is None else stride
    if not 2 <= stride < window:
        raise PlanError(
            f"stride={stride} was given; with window={window} a gap and both of its keyframes "
            f"fit one call for strides 2 to {window - 1}."
        )
    gaps = _ceil(num_frames - 1, stride)
    if gaps + 1 > window:
        raise PlanError(
            f"num_frames={num_frames} needs {gaps + 1} keyframes at stride {stride}, but "
            f"window={window} fits {window}; at most {(window - 1) * stride + 1} frames are "
            f"possible with this stride and {(window - 1) ** 2 + 1} with stride {window - 1}; "
            "for more use tree()."
        )
    calls = [_call(level, range(0, gaps * stride + 1, stride))]
    calls += [_segment(level, start * stride, 1, stride) for start in range(gaps)]
    return Plan(tuple(calls), (Level(level, num_frames, window),))


def tree(num_frames: int, window: int, depth: int | None = None, level: str = "video") -> Plan:
    """NUWA-XL's coarse-to-fine tree: each call fills the gaps that the level above left.

    Level k of m covers ``window`` frames at stride ``(L - 1)^(m - k)``; below the root, both
    ends are given. Reaches ``(L - 1)^m + 1`` frames in m waves; subtrees that start at the
    last frame or later are left out, which leaves ``ceil((N - 1) / (L - 1)^(m - k + 1))``
    calls in level k.

    Args:
        num_frames: frames of the video, N (>= 1).
        window: frames of every call, L.
        depth: levels of the tree, m; by default the fewest that reach.
        level: name of the video's level.

    Raises:
        PlanError: an argument is out of range, or the tree does not reach that many frames.
    """
    # NUWA-XL (Yin et al. 2023), "Diffusion over Diffusion"
    _at_least("num_frames", num_frames, 1)
    _at_least("window", window, 1)
    depth = _depth(num_frames, window) if depth is None else depth
    _at_least("depth", depth, 1)
    if depth > 1:
        _at_least("window", window, 3, f" for a tree of depth {depth}")
    gap = window - 1
    reach = gap**depth + 1
    if num_frames > reach:
        raise PlanError(
            f"num_frames={num_frames} was given; a tree of depth {depth} with window={window} "
            f"reaches {reach} frames: use depth={_depth(num_frames, window)} or a wider window."
        )
    top = gap ** (depth - 1)
    calls = [_call(level, tuple(i * top for i in range(window)))]
    for exponent in range(depth - 2, -1, -1):
        span = gap ** (exponent + 1)
        count = _ceil(num_frames - 1, span)
        calls += [_segment(level, i * span, gap**exponent, gap) for i in range(count)]
    return Plan(tuple(calls), (Level(level, num_frames, window),))


@dataclass(frozen=True)
class CascadeLevel:
    """One level of a cascade.

    Args:
        name: the level's name.
        num_frames: frames of the level (>= 1).
        window: frames of one call; in the first level at least ``num_frames``.
        time_factor: frames of this level per frame of the one before (1 in the first level).
        halo: frames of this level on either side of a window whose inputs the call needs too
            (0 in the first level).
    """

    name: str
    num_frames: int
    window: int
    time_factor: int = 1
    halo: int = 0


def cascade(levels: Sequence[CascadeLevel]) -> Plan:
    """The first level in one call, each further level window by window from the one before.

    Frame i of a level comes from frame ``i // time_factor`` of the one before; inputs beyond
    either end are left out. ``1 + sum(ceil(N_j / w_j))`` calls over the further levels, critical
    path = number of levels. The last window of a level is shorter where it would pass the end.

    Args:
        levels: coarse to fine; the last one is the video.

    Raises:
        PlanError: an argument is out of range, or the lengths of two levels do not agree.
    """
    if not levels:
        raise PlanError("a cascade without levels was given; give at least one CascadeLevel.")
    _check_first(levels[0])
    calls = [_call(levels[0].name, range(levels[0].num_frames))]
    for before, level in pairwise(levels):
        _check_step(before, level)
        for start in range(0, level.num_frames, level.window):
            end = min(start + level.window, level.num_frames)
            # CVG's partial views: a window sees its own inputs and those of its halo
            first = max(start - level.halo, 0) // level.time_factor
            last = min((end - 1 + level.halo) // level.time_factor, before.num_frames - 1)
            above = [(before.name, frame) for frame in range(first, last + 1)]
            calls.append(_call(level.name, range(start, end), above=above))
    sizes = tuple(Level(level.name, level.num_frames, level.window) for level in levels)
    return Plan(tuple(calls), sizes)


def chunks(num_frames: int, window: int, level: str = "video") -> Plan:
    """Chunks that share no frame: ``ceil(N / window)`` calls, critical path 1.

    Args:
        num_frames: frames of the video, N (>= 1).
        window: frames of a chunk (>= 1); the last chunk may be shorter.
        level: name of the video's level.

    Raises:
        PlanError: an argument is out of range.
    """
    _at_least("num_frames", num_frames, 1)
    _at_least("window", window, 1)
    calls = []
    for start in range(0, num_frames, window):
        calls.append(_call(level, range(start, min(start + window, num_frames))))
    return Plan(tuple(calls), (Level(level, num_frames, window),))


def rooted(plan: Plan, level: str) -> Plan:
    """Put a root before a plan: one call makes a feature of the whole video, which every call is given.

    One call more, critical path one longer; GLOBER's plan is ``rooted(chunks(n, window), "global")``.

    Args:
        plan: any plan.
        level: name of the root's level, whose one slot is ``(level, 0)``.

    Raises:
        PlanError: the plan has a level of that name.
    """
    if level in [each.name for each in plan.levels]:
        raise PlanError(f"the plan has a level {level!r} already; give its root another name.")
    calls = [replace(call, given=((level, 0), *call.given)) for call in plan.calls]
    return replace(plan, calls=(_call(level, range(1)), *calls), levels=(Level(level, 1, 1), *plan.levels))


def _call(level: str, frames: Sequence[int], own: Sequence[int] = (), above: Sequence[Slot] = ()) -> Call:
    """A call given the frames ``own`` of its level and the slots ``above``, making the rest."""
    known = frozenset(own)
    given = (*above, *((level, frame) for frame in own))
    emits = tuple((level, frame) for frame in frames if frame not in known)
    return Call(call_id(level, frames), level, tuple(frames), given, emits)


def _segment(level: str, start: int, stride: int, gap: int) -> Call:
    """A call over ``gap + 1`` frames at a stride, given the first and the last."""
    frames = range(start, start + gap * stride + 1, stride)
    return _call(level, frames, own=(frames[0], frames[-1]))


def _depth(num_frames: int, window: int) -> int:
    """The fewest levels of a tree that reach a number of frames."""
    if num_frames > window:
        _at_least("window", window, 3, f" for a tree of {num_frames} frames")
    depth, reach = 1, window
    while reach < num_frames:
        depth += 1
        reach = (window - 1) ** depth + 1
    return depth


def _check_first(level: CascadeLevel) -> None:
    _at_least(f"num_frames of level {level.name!r}", level.num_frames, 1)
    if level.window < level.num_frames:
        raise PlanError(
            f"the first level {level.name!r} has {level.num_frames} frames and "
            f"window={level.window}; it is made in one call: widen the window or shorten it."
        )
    if level.time_factor != 1 or level.halo != 0:
        raise PlanError(
            f"the first level {level.name!r} has time_factor={level.time_factor} and "
            f"halo={level.halo}; nothing comes before it: use 1 and 0."
        )


def _check_step(before: CascadeLevel, level: CascadeLevel) -> None:
    for field, least in (("num_frames", 1), ("window", 1), ("time_factor", 1), ("halo", 0)):
        _at_least(f"{field} of level {level.name!r}", getattr(level, field), least)
    if _ceil(level.num_frames, level.time_factor) != before.num_frames:
        most = before.num_frames * level.time_factor
        raise PlanError(
            f"level {level.name!r} has {level.num_frames} frames; {before.num_frames} frames of "
            f"level {before.name!r} times time_factor={level.time_factor} make "
            f"{most - level.time_factor + 1} to {most}: change one of the three."
        )


def _at_least(name: str, value: int, least: int, why: str = "") -> None:
    if value < least:
        raise PlanError(f"{name}={value} was given; it must be at least {least}{why}.")


def _ceil(frames: int, step: int) -> int:
    """Steps that cover a number of frames; 0 if it is not positive."""
    return max(0, -(-frames // step))
