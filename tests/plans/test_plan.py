"""Rules and queries of a plan, against simulations that know nothing of its code."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.errors import PlanError, UnknownNameError
from vidgen.plans import (
    Call,
    CascadeLevel,
    Level,
    Plan,
    all_at_once,
    autoregressive,
    cascade,
    chunks,
    keyframes,
    rooted,
    tree,
)

VIDEO = Level("video", 4, 3)


def call(name: str, frames: tuple[int, ...], known: tuple[int, ...] = (), level: str = "video"):
    """A call over frames of one level, some of them known."""
    emits = tuple((level, f) for f in frames if f not in known)
    return Call(name, level, frames, tuple((level, f) for f in known), emits)


GOOD = (call("a", (0, 1, 2)), call("b", (2, 3), (2,)))


def grow(n: int, window: int, halo: int) -> Plan:
    """A cascade of three levels."""
    return cascade(
        [
            CascadeLevel("x1", n, n),
            CascadeLevel("x2", 2 * n, window, 2, halo),
            CascadeLevel("video", 6 * n - 1, 2 * window, 3, halo),
        ]
    )


def roll(n: int, context: int, new: int) -> Plan:
    return autoregressive(n, context + new, context)


def rooted_chunks(n: int, window: int) -> Plan:
    """Chunks behind a root."""
    return rooted(chunks(n, window), "global")


def handed_on(n: int, window: int) -> Plan:
    """Chunks that each leave a state for the next one, which also sees the last frame before its own."""
    plan, calls = chunks(n, window), []
    for number, each in enumerate(plan.calls):
        before = (("state", number - 1), ("video", each.frames[0] - 1)) if number else ()
        calls.append(replace(each, given=before, emits=(*each.emits, ("state", number))))
    return Plan(tuple(calls), (Level("state", len(calls), 1, state=True), *plan.levels))


def recipes() -> st.SearchStrategy[tuple[Callable[..., Plan], tuple[int, ...]]]:
    """Functions and arguments of plans of many sizes."""
    sizes, few = st.integers(1, 60), st.integers(1, 6)
    return st.one_of(
        st.tuples(st.just(all_at_once), st.tuples(sizes)),
        st.tuples(st.just(roll), st.tuples(sizes, few, few)),
        st.tuples(st.just(tree), st.tuples(sizes, st.integers(3, 7))),
        st.tuples(st.just(keyframes), st.tuples(sizes, st.just(9))),
        st.tuples(st.just(chunks), st.tuples(sizes, few)),
        st.tuples(st.just(rooted_chunks), st.tuples(sizes, few)),
        st.tuples(st.just(handed_on), st.tuples(sizes, few)),
        st.tuples(st.just(grow), st.tuples(few, few, st.integers(0, 4))),
    )


def replay(plan: Plan, calls: tuple[Call, ...], stored: set[tuple[str, int]]) -> list[int]:
    """Run calls as a sampler does, dropping what is not kept; the video frames delivered."""
    store, delivered = set(stored), []
    for each in calls:
        assert store.issuperset(each.given), each.id
        assert store.isdisjoint(plan.kept(each))
        store.update(plan.kept(each))
        delivered.extend(plan.output(each))
    return delivered


BROKEN = {
    "no levels": ({"levels": ()}, "without levels"),
    "level twice": ({"levels": (VIDEO, VIDEO)}, "'video' is defined twice"),
    "empty level": ({"levels": (Level("video", 0, 3),)}, "num_frames=0"),
    "no window": ({"levels": (Level("video", 4, 0),)}, "window=0"),
    "pin of unknown level": ({"pins": frozenset({("x", 0)})}, r"pin \('x', 0\).*unknown level"),
    "negative pin": ({"pins": frozenset({("video", -1)})}, "negative frame"),
    "id twice": ({"calls": (GOOD[0], replace(GOOD[1], id="a"))}, "'a' appears twice"),
    "unknown level": ({"calls": (call("z", (0,), level="x"),)}, "'z' is of unknown level 'x'"),
    "no frames": ({"calls": (Call("z", "video", (), (), ()),)}, "'z' covers or emits no frame"),
    "emits nothing": ({"calls": (*GOOD, call("z", (1, 2), (1, 2)))}, "'z' covers or emits no"),
    "negative frame": ({"calls": (call("z", (-1, 0)),)}, "'z' covers the negative frame -1"),
    "descending": ({"calls": (call("z", (1, 0)),)}, "'z' lists frame 0 after frame 1"),
    "frame twice": ({"calls": (call("z", (1, 1)),)}, "'z' lists frame 1 after frame 1"),
    "over the window": ({"calls": (call("z", (0, 1, 2, 3)),)}, "'z' covers 4 frames.*window of 3"),
    "not acyclic": ({"calls": GOOD[::-1]}, r"'b' is given slot \('video', 2\), which no earlier"),
    "given twice": (
        {"calls": (GOOD[0], replace(GOOD[1], given=GOOD[1].given * 2))},
        r"'b' is given slot \('video', 2\) twice",
    ),
    "of a state level": (
        {"levels": (Level("s", 4, 4, state=True), VIDEO), "calls": (replace(GOOD[0], level="s"), GOOD[1])},
        "'a' is of level 's', which is a state",
    ),
    "a state twice": (
        {
            "levels": (Level("s", 4, 4, state=True), VIDEO),
            "calls": (replace(GOOD[0], emits=(*GOOD[0].emits, ("s", 0), ("s", 1))), GOOD[1]),
        },
        "'a' emits two slots of state 's'",
    ),
    "a state as the video": (
        {"levels": (VIDEO, Level("s", 4, 4, state=True))},
        "last level 's' is a state",
    ),
    "emits off its frames": (
        {"calls": (replace(GOOD[0], frames=(0, 1)), GOOD[1])},
        r"'a' emits slot \('video', 2\), which is not one of its frames",
    ),
    "emits another level": (
        {"levels": (Level("x", 4, 4), VIDEO), "calls": (replace(GOOD[0], emits=(("x", 0),)), GOOD[1])},
        r"'a' emits slot \('x', 0\)",
    ),
    "emitted twice": (
        {"calls": (*GOOD, call("z", (1,)))},
        r"'z' emits slot \('video', 1\), which already comes from call 'a'",
    ),
    "emitted and pinned": (
        {"pins": frozenset({("video", 1)})},
        r"'a' emits slot \('video', 1\), which already comes from a pin",
    ),
    "frame missing": ({"calls": GOOD[:1]}, "no call emits frame 3"),
    "target outside": ({"targets": frozenset({4})}, r"\[4\] were given; ask for frames 0 to 3"),
    "no target": ({"targets": frozenset()}, "target frames none"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_each_broken_rule_is_named(change: dict, message: str):
    fields = {"calls": GOOD, "levels": (VIDEO,), **change}
    with pytest.raises(PlanError, match=message):
        Plan(**fields)


def test_what_the_rules_allow():
    plan = Plan(GOOD, (VIDEO,))
    assert (plan.num_frames, plan.num_calls, plan.critical_path) == (4, 2, 2)
    assert plan.producer(("video", 3)) == GOOD[1]
    assert plan.dependencies("b") == (GOOD[0],)
    pinned = Plan(GOOD[1:], (VIDEO,), frozenset(("video", f) for f in range(3)))
    assert pinned.producer(("video", 1)) is None
    assert pinned.dependencies("b") == ()
    assert Plan((), (VIDEO,), frozenset(("video", f) for f in range(4))).critical_path == 0


def test_wrong_queries_are_told_what_exists():
    plan = Plan(GOOD, (VIDEO,))
    with pytest.raises(PlanError, match="neither emitted nor pinned"):
        plan.producer(("video", 4))
    with pytest.raises(PlanError, match=r"no call 'video/0-14'.*Did you mean 'video/0-15'"):
        tree(40, 16).dependencies("video/0-14")
    with pytest.raises(UnknownNameError, match=r"'depht'.*Did you mean 'depth'"):
        plan.order("depht")
    with pytest.raises(UnknownNameError, match="level 'vidoe'"):
        plan.level("vidoe")


def test_past_the_end_is_kept_only_where_needed():
    plan = tree(20, 5)  # strides 16, 4, 1: the root emits 0, 16, 32, 48, 64
    root = plan.calls[0]
    assert root.frames == (0, 16, 32, 48, 64)
    assert plan.kept(root) == (("video", 0), ("video", 16), ("video", 32))
    assert plan.output(root) == (0, 16)


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_orders_and_waves_deliver_every_frame_once(recipe):
    plan = recipe[0](*recipe[1])
    longest: dict[str, int] = {}
    for each in plan.calls:  # longest path, from the slots alone
        above = [c for c in plan.calls if set(c.emits) & set(each.given)]
        assert set(plan.dependencies(each.id)) == set(above)
        longest[each.id] = 1 + max((longest[c.id] for c in above), default=0)
    waves = plan.waves()
    assert plan.critical_path == len(waves) == max(longest.values())
    assert [{longest[c.id] for c in wave} for wave in waves] == [{depth} for depth in range(1, len(waves) + 1)]
    for kind in ("breadth", "depth"):
        order = plan.order(kind)
        assert sorted(order, key=lambda c: c.id) == sorted(plan.calls, key=lambda c: c.id)
        assert sorted(replay(plan, order, set())) == list(range(plan.num_frames))


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_depth_order_finishes_the_earliest_frames_first(recipe):
    plan = recipe[0](*recipe[1])
    order = plan.order("depth")
    place = {each.id: index for index, each in enumerate(order)}
    parents = {c.id: {plan.producer(slot).id for slot in c.given} for c in plan.calls}
    closures: dict[str, set[str]] = {}
    for each in plan.calls:
        closures[each.id] = {each.id}.union(*(closures[p] for p in parents[each.id]))
    needed: set[str] = set()
    for frame in range(plan.num_frames):
        # all calls that frames 0..frame need come before any other call
        needed |= closures[plan.producer(("video", frame)).id]
        assert {c.id for c in order[: len(needed)]} == needed
        assert max(place[name] for name in needed) == len(needed) - 1


def simulated_peak(plan: Plan, kind: str) -> int:
    """Live slots call by call, found anew each time from the rule in words."""
    order = plan.order(kind)
    wanted = set(plan.frames)
    peak = 0
    for now in range(len(order)):
        emitted = {slot for each in order[:now] for slot in each.emits}
        there = emitted | plan.pins
        prefix = takewhile(lambda f, there=there: ("video", f) in there, plan.frames)
        later = {slot for each in order[now:] for slot in each.given}
        unwritten = {("video", f) for f in wanted.difference(prefix)}
        live = {slot for slot in emitted if slot in later or slot in unwritten}
        peak = max(peak, len(live | set(order[now].emits) | set(order[now].given)))
    return peak


@settings(max_examples=60, deadline=None)
@given(recipes(), st.data())
def test_peak_frames_against_simulation(recipe, data: st.DataObject):
    plan = recipe[0](*recipe[1])
    frames = st.integers(0, plan.num_frames - 1)
    plan = plan.with_pins(("video", f) for f in data.draw(st.sets(frames, max_size=3)))
    if data.draw(st.booleans()):
        plan = plan.subplan(data.draw(st.sets(frames, min_size=1, max_size=4)))
    for kind in ("breadth", "depth"):
        assert plan.peak_frames(kind) == simulated_peak(plan, kind)


@pytest.mark.parametrize(("window", "depth"), [(16, 3), (16, 2), (8, 3), (5, 4), (3, 5)])
def test_a_full_tree_streams_in_few_frames(window: int, depth: int):
    plan = tree((window - 1) ** depth + 1, window)
    assert plan.peak_frames("depth") == depth * (window - 2) + 2
    assert plan.peak_frames() <= plan.peak_frames("breadth")


def test_streaming_an_autoregressive_plan_takes_one_window():
    assert autoregressive(1000, 16, 4).peak_frames() == 16
    assert rooted(chunks(1000, 16), "global").peak_frames() == 17


def test_frames_made_ahead_of_the_first_wait_to_be_written():
    forwards = chunks(40, 10)
    backwards = replace(forwards, calls=forwards.calls[::-1])
    assert forwards.peak_frames("breadth") == 10
    assert backwards.peak_frames("breadth") == 40
    assert backwards.peak_frames("depth") == 10
    assert backwards.subplan([0, 35]).peak_frames("breadth") == 11


def test_depth_order_takes_dependencies_as_they_are_given():
    plan = grow(4, 3, 0)  # 4 frames, 8 in windows of 3, 23 in windows of 6
    names = ["x1/0-3", "x2/0-2", "video/0-5", "x2/3-5", "video/6-11", "video/12-17", "x2/6-7", "video/18-22"]
    assert [each.id for each in plan.order("depth")] == names
    wide = cascade([CascadeLevel("x1", 4, 4), CascadeLevel("x2", 8, 2, 2), CascadeLevel("video", 16, 16, 2)])
    names = ["x1/0-3", "x2/0-1", "x2/2-3", "x2/4-5", "x2/6-7", "video/0-15"]
    assert [each.id for each in wide.order("depth")] == names


@settings(max_examples=60, deadline=None)
@given(recipes(), st.data())
def test_subplan_is_exactly_the_ancestors(recipe, data: st.DataObject):
    plan = recipe[0](*recipe[1])
    frames = data.draw(st.sets(st.integers(0, plan.num_frames - 1), min_size=1))
    needed: set[str] = set()
    front = {("video", f) for f in frames}
    while front:
        makers = [c for c in plan.calls if front & set(c.emits)]
        needed |= {c.id for c in makers}
        front = {slot for c in makers for slot in c.given}
    part = plan.subplan(frames)
    assert [c.id for c in part.calls] == [c.id for c in plan.calls if c.id in needed]
    assert part.num_frames == plan.num_frames
    assert sorted(replay(part, part.order(), set())) == sorted(frames)


def test_subplan_costs_the_path_to_a_frame():
    plan = tree(3376, 16)
    assert plan.subplan([2000]).num_calls == 3  # not on the root's or the middle level's grid
    assert plan.subplan([225]).num_calls == 1
    with pytest.raises(PlanError, match="frame 3376 was asked for"):
        plan.subplan([5, 3376])
    with pytest.raises(PlanError, match="no frame was asked for"):
        plan.subplan([])
    with pytest.raises(PlanError, match="frame 7 was asked for"):
        plan.subplan([5, 6]).subplan([7])


@settings(max_examples=60, deadline=None)
@given(recipes(), st.data())
def test_resuming_after_any_kill_delivers_the_rest(recipe, data: st.DataObject):
    frames = st.integers(0, recipe[0](*recipe[1]).num_frames - 1)
    pins = {("video", f) for f in data.draw(st.sets(frames, max_size=2))}
    plan = recipe[0](*recipe[1]).with_pins(pins)
    order = plan.order(data.draw(st.sampled_from(["breadth", "depth"])))
    count = data.draw(st.integers(0, len(order)))
    done = order[:count]
    rest = plan.remaining(each.id for each in done)
    stored = {slot for each in done for slot in plan.kept(each)} | pins
    assert rest.pins == stored
    assert set(rest.calls) == set(order[count:])
    before = [frame for each in done for frame in plan.output(each)]
    after = replay(rest, rest.order(), stored)
    assert sorted(before + after) == [f for f in range(plan.num_frames) if ("video", f) not in pins]


def test_remaining_refuses_calls_of_another_plan():
    with pytest.raises(PlanError, match="no call 'nowhere'"):
        tree(40, 16).remaining(["nowhere"])


@settings(max_examples=60, deadline=None)
@given(recipes(), st.data())
def test_pins_are_given_where_covered_and_never_made(recipe, data: st.DataObject):
    plan = recipe[0](*recipe[1])
    slots = sorted({slot for each in plan.calls for slot in plan.kept(each)})
    pins = data.draw(st.sets(st.sampled_from(slots)))
    pinned = plan.with_pins(pins)
    before = {each.id: each for each in plan.calls}
    for each in pinned.calls:
        covered = {(each.level, f) for f in each.frames} & pins
        assert covered <= set(each.given)
        assert set(each.given) == set(before[each.id].given) | covered
        assert set(each.emits) == set(before[each.id].emits) - pins
        assert pinned.kept(each)
    dropped = before.keys() - {each.id for each in pinned.calls}
    assert all(
        slot in pins or slot[1] >= plan.level(slot[0]).num_frames
        for name in dropped
        for slot in plan.kept(before[name])
    )
    made = replay(pinned, pinned.order(), pins)
    assert sorted(made) == [f for f in range(plan.num_frames) if ("video", f) not in pins]


def test_pins_are_checked_and_kept_in_one_order():
    plan = autoregressive(30, 8, 2)
    at_once = plan.with_pins([("video", 9), ("video", 12)])
    assert at_once == plan.with_pins([("video", 12)]).with_pins([("video", 9)])
    assert at_once.call("video/6-13").given == tuple(("video", f) for f in (6, 7, 9, 12))
    with pytest.raises(PlanError, match="past the end"):
        plan.with_pins([("video", 99)])
    with pytest.raises(PlanError, match="unknown level"):
        plan.with_pins([("vido", 1)])
    with pytest.raises(PlanError, match="negative"):
        plan.with_pins([("video", -1)])


def test_pinning_a_whole_window_drops_its_call_although_it_passes_the_end():
    plan = autoregressive(13, 8, 2)  # windows 0-7 and 6-13; frame 13 is past the end
    pinned = plan.with_pins(("video", f) for f in range(8, 13))
    assert [each.id for each in pinned.calls] == ["video/0-7"]


@settings(max_examples=40, deadline=None)
@given(recipes(), st.data())
def test_json_round_trip_and_fingerprint(recipe, data: st.DataObject):
    plan = recipe[0](*recipe[1])
    frames = st.sets(st.integers(0, plan.num_frames - 1), min_size=1)
    other = plan.with_pins(("video", f) for f in data.draw(frames)).subplan(data.draw(frames))
    for each in (plan, other):
        again = Plan.from_json(each.to_json())
        assert again == each
        assert again.fingerprint() == each.fingerprint()
    assert other.fingerprint() != plan.fingerprint()


def test_fingerprint_never_changes():
    assert tree(20, 5).fingerprint() == "f9bf0941f2eb4d81ac34633fcb41c249"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":1}', '{"format":1,"calls":[1]}'])
def test_text_that_is_no_plan_is_refused(text: str):
    with pytest.raises(PlanError, match=r"not a plan written by Plan\.to_json"):
        Plan.from_json(text)


def test_foreign_formats_and_broken_plans_are_refused():
    text = Plan(GOOD, (VIDEO,)).to_json()
    with pytest.raises(PlanError, match="format 9, this version reads 1"):
        Plan.from_json(text.replace('"format":1', '"format":9'))
    with pytest.raises(PlanError, match="no call emits frame 4"):
        Plan.from_json(text.replace('["video",4,3]', '["video",5,3]'))


def test_ten_thousand_calls_take_seconds_not_minutes():
    start = time.process_time()
    for plan in (autoregressive(120_000, 16, 4), tree(100_000, 12)):
        assert plan.num_calls >= 10_000
        plan.waves(), plan.order(), plan.peak_frames(), plan.fingerprint()
        half = [each.id for each in plan.calls[: plan.num_calls // 2]]
        plan.remaining(half).with_pins([("video", 119_999 if plan.critical_path > 9 else 99_999)])
        plan.subplan(range(500, 600))
    assert time.process_time() - start < 20


def test_plans_load_neither_torch_nor_numpy():
    code = "import sys, vidgen.plans; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
