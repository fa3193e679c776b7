"""Scores of motion: rates are part of their protocols, and the real videos are their goal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fake_metrics import PixelExtractor
from vidgen.errors import InvalidArgumentError
from vidgen.metrics.evaluate import Settings, evaluate
from vidgen.metrics.protocol import Protocol, ProtocolMismatchError
from vidgen.metrics.score import best
from vidgen.metrics.sources import View
from vidgen.metrics.statistics import HalvedStatistics
from vidgen.video import VideoWriter

SETTINGS = Settings(view=View(num_frames=8))
STEADY = [100 + 10 * k for k in range(8)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))


def write(folder, *videos, fps=8.0):
    """Videos of grey frames with these brightnesses."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, levels in enumerate(videos):
        with VideoWriter(folder / f"{number}.mp4", fps) as writer:
            writer.extend(np.stack([np.full((16, 16, 3), level, np.uint8) for level in levels]))
    return folder


def one(scores):
    (score,) = scores
    return score


def motion(folder, real=None, metric="motion_decay", settings=SETTINGS, **given):
    return one(evaluate(folder, real, metrics=[metric], settings=settings, **given))


def test_videos_of_other_rates_are_not_compared(tmp_path):
    slow, fast = (motion(write(tmp_path / str(fps), STEADY, fps=fps)) for fps in (8.0, 24.0))
    assert (slow.protocol["rates"], fast.protocol["rates"]) == ([8], [24])
    with pytest.raises(ProtocolMismatchError, match=r"rates: \[8\] against \[24\]"):
        slow.difference(fast)


def test_one_rate_for_both_is_compared(tmp_path):
    write(tmp_path / "slow", STEADY)
    write(tmp_path / "fast", np.repeat(STEADY, 3), fps=24.0)
    settings = Settings(view=View(num_frames=8, fps=8))
    slow, fast = (motion(tmp_path / name, settings=settings) for name in ("slow", "fast"))
    assert "rates" not in slow.protocol.to_json()
    assert slow.difference(fast) == pytest.approx(0, abs=0.1)


def test_stored_statistics_know_the_rate_of_their_videos(tmp_path, caplog):
    file = tmp_path / "real.safetensors"
    real = write(tmp_path / "real", *[STEADY] * 4, fps=24.0)
    slow, fast = (write(tmp_path / str(fps), *[STEADY] * 4, fps=fps) for fps in (8.0, 24.0))
    given = {"metric": "fvd", "extractors": [PixelExtractor()]}
    direct = motion(slow, real, save_statistics=file, **given)
    statistics, protocol = HalvedStatistics.load(file)
    assert protocol["rates"] == [24]
    caplog.clear()
    assert motion(fast, file, **given).protocol["rates"] == [24]
    assert not caplog.text
    assert motion(slow, file, **given).protocol == direct.protocol
    assert "8 has [8] frames per second" in caplog.text.replace("8.0", "8")
    fields = protocol.to_json()
    del fields["rates"]  # as files had it before
    statistics.save(file, Protocol.from_json(fields))
    caplog.clear()
    assert motion(slow, file, **given).protocol == direct.protocol
    assert "unknown ones" in caplog.text


def test_what_the_real_videos_have_is_the_goal(tmp_path):
    real = write(tmp_path / "real", STEADY)
    slowing = write(tmp_path / "slowing", [100, 120, 140, 150, 160, 165, 170, 175])
    speeding = write(tmp_path / "speeding", [100, 102, 104, 110, 120, 140, 160, 180])
    itself, less, more = (motion(folder, real) for folder in (real, slowing, speeding))
    assert itself.goal == pytest.approx(itself.value)
    assert itself.goal == pytest.approx(1, abs=0.3)  # as H.264 has it
    assert less.value < 0.6
    assert more.value > 4
    assert itself.improves_on(more) is True
    assert itself.improves_on(less) is True
    assert more.improves_on(less) is False  # though it is higher
    assert best([more, less, itself]) is itself
    alone = motion(slowing)
    assert (alone.higher_is_better, alone.goal) == (None, None)
    with pytest.raises(ProtocolMismatchError, match=r"real: .*none.* against"):
        alone.difference(less)


def test_real_videos_at_rest_are_no_goal(tmp_path):
    score = motion(write(tmp_path / "moving", STEADY), write(tmp_path / "still", [100] * 8))
    assert score.goal is None
    assert score.notes == ("the real videos have nan.",)


def test_seams_are_part_of_the_protocol(tmp_path):
    jumping = write(tmp_path / "jumping", [100, 105, 110, 115, 155, 160, 165, 170])
    seams, others = (
        motion(jumping, metric="seam_discontinuity", settings=replace(SETTINGS, seams=frames))
        for frames in ((4,), (3, 6))
    )
    assert (seams.key, seams.goal, seams.higher_is_better) == ("seam_discontinuity", 1, None)
    assert seams.value == pytest.approx(8, rel=0.2)
    assert others.value == pytest.approx(1, rel=0.2)
    assert (seams.protocol["seams"], others.protocol["seams"]) == ([4], [3, 6])
    with pytest.raises(ProtocolMismatchError, match="seams: "):
        seams.difference(others)
    again = motion(jumping, jumping, metric="seam_discontinuity", settings=replace(SETTINGS, seams=(4, 4)))
    assert again.difference(seams) == 0
    assert again.notes == (f"the real videos have {again.value:.4g}.",)


def test_seams_outside_the_frames_are_refused_before_anything_is_read():
    for seams, said in (
        ((), "--seams 16,32"),
        ((8,), "got seam 8 for videos of 8 frames"),
        ((0,), "got seam 0"),
    ):
        with pytest.raises(InvalidArgumentError, match=said):
            motion("nowhere", metric="seam_discontinuity", settings=replace(SETTINGS, seams=seams))
