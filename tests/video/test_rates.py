"""What is said of frame rates that differ, are uneven, or too low."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidgen.shapes.export import write_folder
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.video.dataset import VideoFolder
from vidgen.video.writer import VideoWriter


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))


def test_mixed_and_uneven_frame_rates_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [np.zeros((16, 16, 3), np.uint8)] * 12
    for name, rate in (("a", 8), ("b", 24), ("c", 24), ("d", 24000 / 1001)):
        with VideoWriter(tmp_path / f"{name}.mp4", rate) as writer:
            writer.extend(frames)

    def problems(**view: object) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            data = VideoFolder(tmp_path, **{"clip_length": 2, "size": 16, "progress": False, **view})
        assert caplog.messages == data.problems == data.summary()["problems"]
        return "\n".join(data.problems)

    assert "different frame rates (2 at 24, 1 at 8, 1 at 23.98), and clips take frames as they" in problems()
    assert problems(fps=8) == problems(fps=6.5) == problems(clip_length=1) == ""
    assert "1 of 4 videos have fewer than fps=12 frames per second (first: a.mp4, 8)" in problems(fps=12)
    (tmp_path / "a.mp4").unlink()
    assert problems() == problems(stride=2) == problems(fps=24) == ""  # 23.976 and 24 are one
    with av.open(str(tmp_path / "e.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width = stream.height = 16
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms in (0, 42, 83, 300, 342, 500):
            frame = av.VideoFrame.from_ndarray(frames[0]).reformat(format="yuv420p")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "1 of 4 videos have frames that are not evenly spaced (first: e.mkv)" in problems()
    assert "not evenly" not in problems(fps=8)


def test_the_rate_that_clips_have_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folder(ShapesDataset(1, num_frames=12), tmp_path / "shapes")
    with caplog.at_level(logging.INFO, "vidgen.video"):
        VideoFolder(root, clip_length=6, stride=2, progress=False)
    assert caplog.messages[-1:] == ["clips of 6 frames at stride 2, 1.5 s each (4 frames per second)"]
