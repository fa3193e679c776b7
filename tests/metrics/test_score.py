"""Scores: what stands beside a number, and what it may be compared with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import vidgen
from vidgen.errors import InvalidArgumentError
from vidgen.metrics.protocol import Protocol, ProtocolMismatchError
from vidgen.metrics.score import Score, best

PROTOCOL = Protocol("fvd_shapes_v1", frames=16)


def score(value: float, key: str = "fvd_shapes_v1", **more) -> Score:
    return Score(key, value, more.pop("protocol", PROTOCOL), **more)


def test_a_score_prints_null_counts_and_notes() -> None:
    full = score(12.3, null=4.1, num_real=512, num_generated=256, notes=("few videos.", "short videos."))
    assert str(full).splitlines() == [
        "fvd_shapes_v1 12.3 (null 4.1, 512 vs 256 videos)",
        "  note: few videos.",
        "  note: short videos.",
    ]
    assert str(score(12.3)) == "fvd_shapes_v1 12.3"
    assert str(score(0.98765, key="psnr", num_generated=7)) == "psnr 0.9877 (7 videos)"


def test_json_gives_an_equal_score_back() -> None:
    full = score(1 / 3, null=0.1, num_real=512, num_generated=256, notes=("few.",), higher_is_better=True)
    aimed = score(0.9, key="motion_decay", higher_is_better=None, goal=0.938)
    for one in (full, score(math.inf, key="psnr"), score(-1.0, null=-0.5), aimed):
        again = Score.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False)))
        assert again == one
        assert hash(again) == hash(one)


def test_an_edited_score_is_refused() -> None:
    data = score(1.0).to_json()
    with pytest.raises(InvalidArgumentError, match="edited"):
        Score.from_json({**data, "protocol": {"metric": "fvd_shapes_v1", "frames": 32}})
    with pytest.raises(InvalidArgumentError, match="format 3"):
        Score.from_json({**data, "format": 3})
    del data["null"]
    with pytest.raises(InvalidArgumentError, match="no score: KeyError"):
        Score.from_json(data)


def test_comparable_scores_have_an_order_and_a_difference() -> None:
    low, high = score(1.0), score(3.5)
    assert high.difference(low) == 2.5
    assert low < high
    assert high > low
    assert low <= score(1.0) >= low
    assert sorted([high, low])[0] is low
    assert not low < score(1.0)
    assert not high <= low
    assert not low >= high


def test_scores_of_format_1_are_read() -> None:
    rising = score(0.5, key="psnr", higher_is_better=True)
    old = {**rising.to_json(), "format": 1}
    del old["goal"]
    assert Score.from_json(old) == rising
    models = Path(vidgen.__file__).parent / "shapes" / "models"
    records = [json.loads(file.read_text(encoding="utf-8")) for file in models.rglob("record.json")]
    groups = [group for record in records for group in record.get("quality", {}).get("scores", {}).values()]
    found = [Score.from_json(data) for group in groups for data in group]
    assert len(found) >= 5
    assert all(one.improves_on(one) is None for one in found)


def test_nearest_to_a_goal_is_best() -> None:
    values = (1.409, 0.7, 1.1, 0.95)
    scores = [score(value, key="position_spread_x", higher_is_better=None, goal=1.0) for value in values]
    assert best(scores) is scores[3]
    wide, narrow, near, nearest = scores
    assert near.improves_on(wide) is True
    assert narrow.improves_on(near) is False
    assert nearest.improves_on(near) is True
    assert (
        score(1.25, higher_is_better=None, goal=1.0).improves_on(score(0.75, higher_is_better=None, goal=1.0))
        is None
    )


def test_without_a_goal_nothing_is_best() -> None:
    one, other = (score(value, key="motion_decay", higher_is_better=None) for value in (0.9, 1.1))
    assert other.improves_on(one) is None
    assert other.difference(one) == pytest.approx(0.2)
    with pytest.raises(InvalidArgumentError, match="motion_decay has no best value without real videos"):
        best([one, other])
    aimed = score(0.9, key="motion_decay", higher_is_better=None, goal=0.938)
    with pytest.raises(ProtocolMismatchError, match=r"without a goal\).* \(nearest to 0\.938 is best"):
        one.difference(aimed)


def test_best_knows_the_direction() -> None:
    scores = [score(value) for value in (3.0, 1.0, 2.0, 1.0)]
    assert best(scores) is scores[1]
    rising = [score(value, key="psnr", higher_is_better=True) for value in (3.0, 1.0)]
    assert best(iter(rising)) is rising[0]
    assert rising[0].improves_on(rising[1]) is True
    assert scores[0].improves_on(scores[1]) is False
    with pytest.raises(InvalidArgumentError, match="no scores"):
        best([])


@pytest.mark.parametrize(
    "other",
    [
        score(1.0, protocol=Protocol("fvd_shapes_v1", frames=32)),
        score(1.0, key="fvd_i3d"),
        score(1.0, higher_is_better=True),
    ],
)
def test_unequal_scores_are_never_compared(other: Score) -> None:
    one = score(2.0)
    for compare in (
        one.difference,
        one.__lt__,
        one.__le__,
        one.__gt__,
        one.__ge__,
        lambda that: best([one, one, that]),
    ):
        with pytest.raises(ProtocolMismatchError):
            compare(other)
    with pytest.raises(ProtocolMismatchError, match="frames: 16 against 32"):
        best([one, score(1.0, protocol=Protocol("fvd_shapes_v1", frames=32))])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"key": "fvd"}, "fvd_shapes_v1"),
        ({"key": ""}, "fvd_shapes_v1"),
        ({"value": math.nan}, "value of the score 'fvd_shapes_v1' is nan"),
        ({"null": math.nan}, "null of the score"),
        ({"num_real": 0}, "num_real"),
        ({"goal": 1.0}, "goal 1.0 and higher_is_better=False"),
        ({"goal": math.inf, "higher_is_better": None}, "expected a finite goal"),
    ],
)
def test_what_is_no_score_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Score(**{"key": "fvd_shapes_v1", "value": 1.0, "protocol": PROTOCOL, **fields})


def test_equal_infinities_do_not_differ() -> None:
    one, other = (Score("psnr", value, Protocol("psnr"), higher_is_better=True) for value in (math.inf, 30.0))
    assert one.difference(one) == 0
    assert one.difference(other) == math.inf
    assert other.difference(one) == -math.inf
