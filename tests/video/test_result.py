"""The ``Video`` result: loading, saving, tiling, tensors and the notebook player."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vidgen.errors import InvalidArgumentError, VideoError
from vidgen.video import Video


def shades(count: int = 6, height: int = 16, width: int = 24, offset: int = 0) -> Video:
    """Frame ``i`` is grey ``offset + 10 i``."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[...] = (offset + 10 * np.arange(count))[:, None, None, None]
    return Video(frames, 8, {"seed": 5})


def test_sizes_and_duration() -> None:
    video = shades()
    assert (video.num_frames, video.height, video.width) == (6, 16, 24)
    assert (len(video), video.duration) == (6, 0.75)
    assert repr(video) == "Video(6 frames, 24 x 16, 8 fps, 0.75 s)"


def test_slices_keep_pace_and_metadata() -> None:
    video = shades()
    part = video[1:4]
    assert np.array_equal(part.frames, video.frames[1:4])
    assert (part.fps, part.metadata) == (8, {"seed": 5})
    half = video[::2]
    assert half.frames[:, 0, 0, 0].tolist() == [0, 20, 40]
    assert (half.fps, half.duration) == (4, video.duration)
    with pytest.raises(InvalidArgumentError, match="selects none"):
        video[6:]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 3, 4, 4), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
    ],
)
def test_wrong_frames(frames: np.ndarray) -> None:
    with pytest.raises(InvalidArgumentError, match="expected uint8 RGB"):
        Video(frames, 8)


@pytest.mark.parametrize("fps", [0, -3.0, float("nan")])
def test_wrong_rate(fps: float) -> None:
    with pytest.raises(InvalidArgumentError, match="fps"):
        Video(np.zeros((1, 4, 4, 3), np.uint8), fps)


@pytest.mark.parametrize(
    ("name", "fps", "options"),
    [
        ("a.mp4", 30000 / 1001, {"lossless": True}),
        ("a.webm", 12, {"lossless": True}),
        ("frames", 7.5, {}),
        ("frames/%04d.png", 24, {}),
    ],
)
def test_lossless_round_trip(tmp_path: Path, name: str, fps: float, options: dict[str, Any]) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (5, 17, 23, 3), np.uint8)
    saved = Video(frames, fps, {"prompt": "a red circle", "seed": 3}).save(tmp_path / name, **options)
    back = Video.load(saved.parent if "%" in name else saved)
    assert np.array_equal(back.frames, frames)
    assert back.fps == fps
    assert back.metadata == {"prompt": "a red circle", "seed": 3}


def test_gif_keeps_the_rate_that_was_meant(tmp_path: Path) -> None:
    back = Video.load(Video(shades(20).frames, 12).save(tmp_path / "a.gif"))
    assert back.fps == 12  # 8.33 hundredths of a second a frame cannot be stored
    assert np.abs(back.frames.astype(int) - shades(20).frames).max() <= 2


def test_broken_png_folders(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"metadata\.json"):
        Video.load(tmp_path)
    shades().save(tmp_path / "frames")
    (tmp_path / "frames" / "00002.png").unlink()
    with pytest.raises(VideoError, match="00002"):
        Video.load(tmp_path / "frames")
    with pytest.raises(VideoError, match="no such file"):
        Video.load(tmp_path / "missing.mp4")


def test_tensors_round_trip_exactly() -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1).repeat(3, -1)
    frames[..., 1] //= 2
    clip = Video(frames, 8).to_tensor()
    assert clip.shape == (3, 2, 8, 16)
    assert clip.dtype == torch.float32
    assert (clip.min(), clip.max()) == (-1, 1)
    assert clip[1, 1, 3, 5] == pytest.approx(frames[1, 3, 5, 1] / 127.5 - 1)
    back = Video.from_tensor(clip, 8, {"a": 1})
    assert np.array_equal(back.frames, frames)
    assert back.metadata == {"a": 1}
    clipped = Video.from_tensor(clip * 3, 8).frames
    assert (clipped.min(), clipped.max()) == (0, 255)


@pytest.mark.parametrize(
    "clip",
    [
        torch.zeros(1, 3, 2, 4, 4),
        torch.zeros(2, 3, 4, 4),
        torch.zeros(3, 2, 4, 4, dtype=torch.uint8),
        torch.full((3, 2, 4, 4), float("nan")),
        np.zeros((3, 2, 4, 4)),
    ],
)
def test_wrong_tensors(clip: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"expected|NaN"):
        Video.from_tensor(clip, 8)


def test_grid_places_and_holds() -> None:
    videos = [shades(6), shades(2, offset=100), shades(6, offset=150)]
    grid = Video.grid(videos, columns=2, gap=4, fill=9)
    assert grid.frames.shape == (6, 16 + 4 + 16, 24 + 4 + 24, 3)
    assert np.array_equal(grid.frames[:, :16, :24], videos[0].frames)
    assert grid.frames[:, 3, 30, 0].tolist() == [100, 110, 110, 110, 110, 110]
    assert np.array_equal(grid.frames[:, 20:, :24], videos[2].frames)
    assert (grid.frames[:, 20:, 28:] == 9).all()
    assert (grid.frames[:, 16:20] == 9).all()
    assert (grid.frames[:, :, 24:28] == 9).all()
    assert grid.fps == 8
    assert Video.grid([shades()] * 5).width == 3 * 24 + 2 * 2


def test_grid_refuses_what_does_not_fit() -> None:
    for videos, options in (
        ([], {}),
        ([shades(), shades(height=18)], {}),
        ([shades(), Video(shades().frames, 9)], {}),
        ([shades()], {"columns": 0}),
        ([shades()], {"gap": -1}),
        ([shades()], {"fill": 256}),
    ):
        with pytest.raises(InvalidArgumentError):
            Video.grid(videos, **options)


def test_contact_sheet_shows_evenly_spaced_frames() -> None:
    video = Video(shades(21, height=20, width=40).frames, 8)
    sheet = np.asarray(video.contact_sheet(columns=3, count=5))
    strip = (sheet.shape[0] - 2 - 2 * 20) // 2
    assert sheet.shape[1] == 3 * 40 + 2 * 2
    tops = [strip + 10, strip + 10, strip + 10, 2 * strip + 32, 2 * strip + 32]
    seen = [int(sheet[top, 20 + 42 * (k % 3), 0]) for k, top in enumerate(tops)]
    assert seen == [0, 50, 100, 150, 200]
    labels = [sheet[:strip, 42 * k : 42 * k + 40] for k in range(3)]
    assert all((label < 128).any() for label in labels)
    assert not np.array_equal(labels[0], labels[1])
    with pytest.raises(InvalidArgumentError, match="count"):
        video.contact_sheet(count=0)


def test_contact_sheet_of_tiny_frames() -> None:
    sheet = Video(np.zeros((120, 4, 4, 3), np.uint8), 8).contact_sheet(columns=8, count=120)
    assert isinstance(sheet, Image.Image)
    assert sheet.width > 8 * 12  # wide enough for three figures
    assert (np.asarray(sheet) < 128).any()


def test_notebook_player_holds_the_video() -> None:
    video = shades(6, height=15, width=21, offset=40)
    html = video._repr_html_()
    found = re.search(r'src="data:video/mp4;base64,([^"]+)"', html)
    assert found
    with av.open(io.BytesIO(base64.b64decode(found[1]))) as container:
        frames = [f.to_ndarray(format="gray") for f in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 8
    assert len(frames) == 6
    assert frames[0].shape == (16, 22)  # even sizes, as H.264 needs
    assert abs(int(frames[5][-1, -1]) - int(frames[5][5, 5])) < 6  # and no black edge
    assert frames[5].mean() - frames[0].mean() == pytest.approx(50, abs=10)
    assert 'width="84"' in html
