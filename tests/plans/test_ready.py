"""The ready-made plans against frame-by-frame enumeration and the published counts."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.errors import PlanError
from vidgen.plans import (
    CascadeLevel,
    Plan,
    all_at_once,
    autoregressive,
    cascade,
    chunks,
    keyframes,
    rooted,
    tree,
)


def counts(plan: Plan) -> tuple[int, int]:
    return plan.num_calls, plan.critical_path


def known(plan: Plan, name: str) -> list[int]:
    """Frames of its own level that a call is given."""
    call = plan.call(name)
    return [frame for level, frame in call.given if level == call.level]


def test_all_at_once():
    plan = all_at_once(7)
    assert counts(plan) == (1, 1)
    assert plan.calls[0].frames == tuple(range(7))
    assert plan.calls[0].given == ()


def windows_by_hand(num_frames: int, window: int, context: int) -> list[tuple[int, ...]]:
    """Roll the window until the last frame is there."""
    spans, have = [tuple(range(window))], window
    while have < num_frames:
        spans.append(tuple(range(have - context, have - context + window)))
        have += window - context
    return spans


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 12))
def test_autoregressive(num_frames: int, context: int, new: int):
    window = context + new
    plan = autoregressive(num_frames, window, context)
    assert [call.frames for call in plan.calls] == windows_by_hand(num_frames, window, context)
    total = 1 + max(0, ceil((num_frames - window) / (window - context)))
    assert counts(plan) == (total, total)
    for call in plan.calls[1:]:
        assert known(plan, call.id) == list(call.frames[:context])


def test_autoregressive_calls_do_not_depend_on_the_length():
    short, long = autoregressive(20, 16, 4), autoregressive(500, 16, 4)
    assert short.calls == long.calls[: short.num_calls]
    assert short.calls[1].id == "video/12-27"
    assert [autoregressive(1024, 16, c).num_calls for c in (1, 4)] == [69, 85]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 120), st.integers(12, 20), st.integers(2, 11))
def test_keyframes(num_frames: int, window: int, stride: int):
    keys = list(range(0, num_frames - 1 + stride, stride)) if num_frames > 1 else [0]
    if len(keys) > window:
        with pytest.raises(PlanError, match=f"at most {(window - 1) * stride + 1} frames"):
            keyframes(num_frames, window, stride)
        return
    plan = keyframes(num_frames, window, stride)
    assert list(plan.calls[0].frames) == keys
    assert plan.calls[0].given == ()
    assert counts(plan) == (len(keys), min(2, len(keys)))
    for first, call in zip(keys, plan.calls[1:], strict=False):
        assert call.frames == tuple(range(first, first + stride + 1))
        assert known(plan, call.id) == [first, first + stride]
        assert len(call.emits) == stride - 1


def test_keyframes_fill_the_window_by_default():
    plan = keyframes(226, 16)
    assert counts(plan) == (16, 2)
    assert plan.calls[0].id == "video/0-225:15"
    assert {len(call.frames) for call in plan.calls} == {16}
    with pytest.raises(PlanError, match="at most 226 frames"):
        keyframes(227, 16)
    assert plan.fingerprint() == tree(226, 16).fingerprint()


def tree_by_hand(num_frames: int, window: int, depth: int) -> set[tuple[int, ...]]:
    """Descend from the root into each frame that needs it; the spans visited."""
    gap = window - 1
    spans = {tuple(i * gap ** (depth - 1) for i in range(window))}
    for frame in range(num_frames):
        start, stride = 0, gap ** (depth - 1)
        while frame != start and (frame - start) % stride:
            start += (frame - start) // stride * stride
            stride //= gap
            spans.add(tuple(start + i * stride for i in range(window)))
    return spans


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(3, 8), st.integers(0, 2))
def test_tree(num_frames: int, window: int, extra: int):
    gap = window - 1
    depth = next(m for m in range(1, 10) if gap**m + 1 >= num_frames) + extra
    plan = tree(num_frames, window, depth if extra else None)
    per_level = [max(1, ceil((num_frames - 1) / gap**depth))]
    per_level += [ceil((num_frames - 1) / gap ** (depth - k + 1)) for k in range(2, depth + 1)]
    assert plan.num_calls == sum(per_level)
    assert plan.critical_path == (depth if num_frames > 1 else 1)
    assert {call.frames for call in plan.calls} == tree_by_hand(num_frames, window, depth)
    for call in plan.calls[1:]:
        assert known(plan, call.id) == [call.frames[0], call.frames[-1]]
        assert len(call.emits) == window - 2


def test_tree_counts_of_the_paper():
    assert [counts(tree(n, 16)) for n in (256, 1024, 3376)] == [(20, 3), (75, 3), (241, 3)]
    for window, totals in ((16, (16, 226, 3376)), (8, (8, 50, 344))):
        for depth, total in enumerate(totals, 1):
            full = tree(total, window)
            assert full.critical_path == depth
            assert full.num_calls == ((window - 1) ** depth - 1) // (window - 2)
            assert {frame for call in full.calls for _, frame in call.emits} == set(range(total))
            assert tree(total + 1, window).critical_path == depth + 1
    levels = [len(wave) for wave in tree(1024, 16).waves()]
    assert levels == [1, 5, 69]
    assert tree(1024, 16).calls[0].frames[-1] == 3375  # the root spans the full tree


def test_tree_calls_do_not_depend_on_the_length():
    assert set(tree(500, 16).calls) < set(tree(1024, 16).calls)


def cascade_inputs(start: int, end: int, factor: int, halo: int, above: int) -> list[int]:
    """Inputs of a window, frame by frame."""
    reached = {frame // factor for frame in range(start - halo, end + halo)}
    return sorted(frame for frame in reached if 0 <= frame < above)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 20),
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 7), st.integers(0, 3)),
        max_size=3,
    ),
)
def test_cascade(first: int, steps: list[tuple[int, int, int, int]]):
    levels = [CascadeLevel("x0", first, first + 3)]
    for index, (factor, window, halo, cut) in enumerate(steps, 1):
        length = levels[-1].num_frames * factor - min(cut, factor - 1)
        levels.append(CascadeLevel(f"x{index}", length, window, factor, halo))
    plan = cascade(levels)
    assert plan.num_calls == 1 + sum(ceil(x.num_frames / x.window) for x in levels[1:])
    assert plan.critical_path == len(levels)
    assert plan.video.name == levels[-1].name
    for above, level in pairwise(levels):
        calls = [call for call in plan.calls if call.level == level.name]
        for start, call in zip(range(0, level.num_frames, level.window), calls, strict=True):
            end = min(start + level.window, level.num_frames)
            inputs = cascade_inputs(start, end, level.time_factor, level.halo, above.num_frames)
            assert call.frames == tuple(range(start, end))
            assert call.given == tuple((above.name, frame) for frame in inputs)


def test_cascade_of_the_paper():
    plan = cascade([CascadeLevel("x1", 24, 24), CascadeLevel("video", 48, 12, 2, halo=4)])
    assert counts(plan) == (5, 2)
    assert [frame for _, frame in plan.call("video/12-23").given] == list(range(4, 14))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 20))
def test_chunks(num_frames: int, window: int):
    plain = chunks(num_frames, window)
    assert counts(plain) == (ceil(num_frames / window), 1)
    assert [f for call in plain.calls for f in call.frames] == list(range(num_frames))
    plan = rooted(chunks(num_frames, window), "global")
    assert counts(plan) == (1 + ceil(num_frames / window), 2)
    assert plan.calls[0].emits == (("global", 0),)
    assert {call.given for call in plan.calls[1:]} == {(("global", 0),)}
    assert [call.frames for call in plan.calls[1:]] == [call.frames for call in plain.calls]


WRONG = {
    "no frames": (lambda: all_at_once(0), "num_frames=0 was given"),
    "negative length": (lambda: autoregressive(-1, 16, 4), "num_frames=-1"),
    "no context": (lambda: autoregressive(20, 16, 0), r"context=0.*chunks\(\)"),
    "context fills": (lambda: autoregressive(20, 16, 16), "context=16 and window=16"),
    "narrow keyframes": (lambda: keyframes(5, 2), "window=2"),
    "dense keyframes": (lambda: keyframes(5, 4, stride=1), "stride=1.*strides 2 to 3"),
    "wide gap": (lambda: keyframes(5, 4, stride=4), "stride=4.*strides 2 to 3"),
    "no keyframe length": (lambda: keyframes(0, 4), "num_frames=0"),
    "too many keyframes": (lambda: keyframes(100, 4), r"at most 10 frames.*tree\(\)"),
    "no tree length": (lambda: tree(0, 4), "num_frames=0"),
    "shallow tree": (lambda: tree(227, 16, depth=2), "reaches 226 frames: use depth=3"),
    "no depth": (lambda: tree(5, 16, depth=0), "depth=0"),
    "narrow tree": (lambda: tree(3, 2), "window=2.*at least 3"),
    "narrow deep tree": (lambda: tree(2, 2, depth=2), "window=2.*at least 3"),
    "narrow shallow tree": (lambda: tree(5, 2, depth=1), "window=2.*at least 3"),
    "empty tree window": (lambda: tree(1, 0), "window=0"),
    "no chunk": (lambda: chunks(5, 0), "window=0"),
    "no chunk length": (lambda: chunks(0, 5), "num_frames=0"),
    "root is the video": (lambda: rooted(chunks(5, 5), "video"), "has a level 'video' already"),
    "empty cascade": (lambda: cascade([]), "without levels"),
    "first too long": (lambda: cascade([CascadeLevel("a", 9, 8)]), "made in one call"),
    "first has a factor": (lambda: cascade([CascadeLevel("a", 8, 8, 2)]), "time_factor=2"),
    "first has a halo": (lambda: cascade([CascadeLevel("a", 8, 8, 1, 2)]), "halo=2"),
    "first is empty": (lambda: cascade([CascadeLevel("a", 0, 8)]), "num_frames of level 'a'=0"),
    "lengths disagree": (
        lambda: cascade([CascadeLevel("a", 8, 8), CascadeLevel("b", 17, 4, 2)]),
        "level 'b' has 17 frames.*make 15 to 16",
    ),
    "inputs unused": (
        lambda: cascade([CascadeLevel("a", 8, 8), CascadeLevel("b", 14, 4, 2)]),
        "make 15 to 16",
    ),
    "no factor": (
        lambda: cascade([CascadeLevel("a", 8, 8), CascadeLevel("b", 8, 4, 0)]),
        "time_factor of level 'b'=0",
    ),
    "no cascade window": (
        lambda: cascade([CascadeLevel("a", 8, 8), CascadeLevel("b", 8, 0)]),
        "window of level 'b'=0",
    ),
    "negative halo": (
        lambda: cascade([CascadeLevel("a", 8, 8), CascadeLevel("b", 8, 4, 1, -1)]),
        "halo of level 'b'=-1",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_say_what_to_do(make, message: str):
    with pytest.raises(PlanError, match=message):
        make()
