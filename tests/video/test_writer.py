"""Files as they come out of the writer: pixels, colours, metadata, and nothing after a failure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import vidgen.video.writer as writer_module
from vidgen.errors import InvalidArgumentError, UnknownNameError, VideoError
from vidgen.video import VideoReader, VideoWriter, probe, read_metadata
from vidgen.video.writer import as_rate

SETTINGS = {"prompt": 'a réd "circle"', "seed": 2**62, "steps": [1, 2], "eta": 0.5}
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50), (255, 255, 255), (0, 0, 0)]


def moving(count: int = 12, height: int = 64, width: int = 64) -> np.ndarray:
    """A bright square that moves over a smooth background."""
    rows, columns = np.mgrid[:height, :width]
    frames = np.empty((count, height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[...] = np.stack([rows * 3, columns * 2, np.full_like(rows, 60)], -1)
        frame[10:20, 3 * i : 3 * i + 10] = (250, 240, 20)
    return frames


def noise(height: int = 65, width: int = 71) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, height, width, 3), np.uint8)


def write(path: Path, frames: np.ndarray, fps: Any = 10, **options: Any) -> np.ndarray:
    with VideoWriter(path, fps, **options) as writer:
        writer.extend(frames)
    assert writer.num_frames == len(frames)
    with VideoReader(path, accurate=True) as reader:
        return reader.read(0, len(reader))


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.mp4", {}, 3),
        ("a.mp4", {"codec": "hevc", "crf": 10}, 3),
        ("a.webm", {}, 3),
        ("a.gif", {}, 5),
    ],
)
def test_frames_come_back(tmp_path: Path, name: str, options: dict[str, Any], tolerance: float) -> None:
    frames = moving()
    back = write(tmp_path / name, frames, 12.5, metadata=SETTINGS, **options)
    assert back.shape == frames.shape
    # Against the neighbouring frame too: an order mixed up or a frame lost would show there.
    own = np.abs(back.astype(int) - frames).mean((1, 2, 3))
    next_one = np.abs(back[:-1].astype(int) - frames[1:]).mean((1, 2, 3))
    assert own.max() < tolerance
    assert (own[:-1] < next_one).all()
    assert probe(tmp_path / name).fps == Fraction(25, 2)
    assert read_metadata(tmp_path / name) == SETTINGS
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "h264"), ("a.mp4", "hevc"), ("a.webm", "vp9")])
def test_lossless_is_exact_at_odd_sizes(tmp_path: Path, name: str, codec: str) -> None:
    frames = noise()
    assert np.array_equal(write(tmp_path / name, frames, codec=codec, lossless=True), frames)
    assert probe(tmp_path / name).codec == codec


@pytest.mark.parametrize("name", ["patches.mp4", "patches.webm"])
def test_lossy_colors_are_bt709_limited(tmp_path: Path, name: str) -> None:
    patches = np.empty((len(COLORS), 32, 32, 3), np.uint8)
    patches[...] = np.array(COLORS)[:, None, None]
    write(tmp_path / name, patches, crf=1)
    with av.open(str(tmp_path / name)) as container:
        for frame, (r, g, b) in zip(container.decode(video=0), np.array(COLORS) / 255, strict=True):
            assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv420p", 1, 1)
            luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
            expected = (
                16 + 219 * luma,
                128 + 224 * (b - luma) / 1.8556,
                128 + 224 * (r - luma) / 1.5748,
            )
            for plane, level in zip(frame.planes, expected, strict=True):
                assert abs(int(np.frombuffer(memoryview(plane), np.uint8)[5]) - level) <= 2


# A process of its own fills fresh memory with something else and has other cores: what an encoder reads
# without having written it, or leaves to the order of its threads, would show.
WRITE_ALL = """
import json, os, sys
from pathlib import Path
import numpy as np
from vidgen.video import VideoWriter

folder, cores, jobs = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
for number, (name, (height, width), options) in enumerate(jobs):
    random = np.random.default_rng(number)
    texture = random.normal(128, 50, (height, width, 3))
    frames = [np.roll(texture, (i // 2, i), (0, 1)) + random.normal(0, 6, texture.shape) for i in range(24)]
    with VideoWriter(folder / f"{number}-{name}", 8, **options) as writer:
        writer.extend(np.clip(frames, 0, 255).astype(np.uint8))
"""
SMALL = [(16, 16), (32, 48), (64, 64)]
FORMATS: list[tuple[str, dict[str, Any], list[tuple[int, int]]]] = [
    ("a.mp4", {}, [*SMALL, (128, 96)]),
    ("a.mp4", {"lossless": True}, [(17, 33)]),
    ("a.mp4", {"codec": "hevc"}, [(64, 64)]),
    ("a.webm", {}, [(64, 64)]),
    ("a.gif", {}, [(16, 16)]),
    ("frames", {}, [(16, 16)]),
]


def test_the_same_frames_give_the_same_video(tmp_path: Path) -> None:
    jobs = [(name, size, options) for name, options, sizes in FORMATS for size in sizes]
    children = []
    for fill, cores in (("0", 1), ("85", 2), ("170", 64)):
        (tmp_path / fill).mkdir()
        command = [sys.executable, "-c", WRITE_ALL, str(tmp_path / fill), str(cores), json.dumps(jobs)]
        children.append(subprocess.Popen(command, env={**os.environ, "MALLOC_PERTURB_": fill}))
    assert [child.wait() for child in children] == [0, 0, 0]
    for number, (name, size, _) in enumerate(jobs):
        files = [tmp_path / fill / f"{number}-{name}" for fill in ("0", "85", "170")]
        for other in files[1:]:
            for one, two in zip(listed(files[0]), listed(other), strict=True):
                assert one.read_bytes() == two.read_bytes(), (name, size, one.name)


def listed(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def test_x264_neither_has_a_macroblock_tree_nor_counts_cores(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", moving(), options={"g": "3"})
    settings = re.findall(rb"\w+=[\w.]+", (tmp_path / "a.mp4").read_bytes())  # x264 notes them in the stream
    assert {b"mbtree=0", b"threads=1", b"keyint=3"} <= set(settings)


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (48, 48), (64, 32), (62, 640)])
def test_hevc_refuses_frames_that_break_its_encoder(
    tmp_path: Path, size: tuple[int, int], lossless: bool
) -> None:
    with (
        pytest.raises(InvalidArgumentError, match="HEVC needs 64 x 64"),
        VideoWriter(tmp_path / "a.mp4", 10, codec="hevc", lossless=lossless) as writer,
    ):
        writer.append(np.zeros((*size, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_mp4_starts_with_its_index(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", moving())
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_crf_and_encoder_options_are_used(tmp_path: Path) -> None:
    frames = noise(64, 64)
    for name, crf in (("fine.mp4", 5), ("coarse.mp4", 40)):
        write(tmp_path / name, frames, crf=crf)
    fine, coarse = ((tmp_path / n).stat().st_size for n in ("fine.mp4", "coarse.mp4"))
    assert fine > 3 * coarse
    write(tmp_path / "keys.mp4", moving(), options={"g": "3", "sc_threshold": "0"})
    with VideoReader(tmp_path / "keys.mp4") as reader:
        assert len(reader.index.keyframes) == 4


def test_frames_are_encoded_as_they_come(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (60, 128, 128, 3), np.uint8)
    with VideoWriter(tmp_path / "a.mp4", 10, crf=5) as writer:
        writer.extend(frames)
        (part,) = tmp_path.iterdir()
        assert part.name.endswith(".part")
        assert part.stat().st_size > 100_000
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_gif_colors_and_viewer_comment(tmp_path: Path) -> None:
    write(tmp_path / "a.gif", moving(), 25, metadata=SETTINGS)
    with Image.open(tmp_path / "a.gif") as picture:
        assert json.loads(picture.info["comment"])["vidgen"] == SETTINGS
        assert (picture.n_frames, picture.info["duration"]) == (12, 40)
    with pytest.raises(InvalidArgumentError, match="GIF can show"):
        VideoWriter(tmp_path / "b.gif", 60)


@pytest.mark.parametrize("target", ["frames", "frames/shot_%03d.png"])
def test_png_sequence(tmp_path: Path, target: str) -> None:
    frames = noise()
    with VideoWriter(tmp_path / target, 29.97, metadata=SETTINGS) as writer:
        writer.extend(frames)
        assert not (tmp_path / "frames").exists()
    pattern = "%05d.png" if target == "frames" else "shot_%03d.png"
    for number, frame in enumerate(frames):
        with Image.open(tmp_path / "frames" / (pattern % number)) as picture:
            assert np.array_equal(np.asarray(picture), frame)
    record = json.loads((tmp_path / "frames" / "metadata.json").read_text())
    assert record["fps"] == "30000/1001"
    assert read_metadata(tmp_path / "frames") == SETTINGS
    assert [p.name for p in tmp_path.iterdir()] == ["frames"]
    with pytest.raises(InvalidArgumentError, match="not an empty folder"):
        VideoWriter(tmp_path / target, 10)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a"])
def test_a_failure_leaves_nothing(tmp_path: Path, name: str) -> None:
    def failing() -> Any:
        yield from moving(3)
        raise KeyError("while generating")

    with pytest.raises(KeyError), VideoWriter(tmp_path / "new" / name, 10) as writer:
        writer.extend(failing())
    assert list((tmp_path / "new").iterdir()) == []


def test_a_failure_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write(path, moving())
    before = path.read_bytes()
    with (
        pytest.raises(InvalidArgumentError),
        VideoWriter(path, 10) as writer,
    ):
        writer.extend([moving()[0], noise()[0]])
    assert path.read_bytes() == before
    write(path, moving(5))
    assert probe(path).num_frames == 5


def test_encoder_errors_become_video_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer_module.ContainerSink, "append", full)
    with (
        pytest.raises(VideoError, match="No space left"),
        VideoWriter(tmp_path / "a.mp4", 10) as writer,
    ):
        writer.append(moving()[0])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(VideoError, match="cannot write"):
        VideoWriter(tmp_path / "file" / "a.mp4", 10)


def test_no_frames_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no frames"), VideoWriter(tmp_path / "a.mp4", 10):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_closed_writer_refuses_frames(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", 10)
    writer.extend(moving(2))
    assert writer.close() == writer.close() == tmp_path / "a.mp4"
    with pytest.raises(VideoError, match="closed"):
        writer.append(moving()[0])


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_odd_sizes_need_lossless(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(InvalidArgumentError, match="lossless=True"),
        VideoWriter(tmp_path / name, 10) as writer,
    ):
        writer.extend(noise())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((64, 64, 3), np.float32),
        np.zeros((64, 64, 1), np.uint8),
        np.zeros((64, 64), np.uint8),
        np.zeros((3, 64, 64), np.uint8),
        np.zeros((50, 64, 3), np.uint8),
    ],
)
def test_wrong_frames(tmp_path: Path, frame: np.ndarray) -> None:
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        writer.append(moving()[0])
        with pytest.raises(InvalidArgumentError, match=r"expected uint8|began with"):
            writer.append(frame)
    assert probe(tmp_path / "a.mp4").num_frames == 1


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("a.mov", {}, UnknownNameError, r"\.mp4"),
        ("a.mp4", {"codec": "vp9"}, UnknownNameError, "h264"),
        ("a.mp4", {"crf": 52}, InvalidArgumentError, "0 to 51"),
        ("a.mp4", {"crf": 5, "lossless": True}, InvalidArgumentError, "exclude"),
        ("a.mp4", {"metadata": {"x": object()}}, InvalidArgumentError, "JSON"),
        ("a.gif", {"crf": 5}, InvalidArgumentError, "no meaning"),
        ("a.gif", {"lossless": True}, InvalidArgumentError, "no meaning"),
        ("a", {"codec": "h264"}, InvalidArgumentError, "no meaning"),
        ("a.png", {}, InvalidArgumentError, "number pattern"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        VideoWriter(tmp_path / name, 10, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (24, Fraction(24)),
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (12.5, Fraction(25, 2)),
        (Fraction(2997, 100), Fraction(2997, 100)),
    ],
)
def test_rates_are_exact(fps: Any, rate: Fraction) -> None:
    assert as_rate(fps) == rate


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_rates_must_be_positive(tmp_path: Path, fps: float) -> None:
    with pytest.raises(InvalidArgumentError, match="fps"):
        VideoWriter(tmp_path / "a.mp4", fps)


def test_metadata_of_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["comment"] = "made elsewhere"
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    assert read_metadata(path) == {}
    assert read_metadata(tmp_path) == {}
    with pytest.raises(VideoError, match="no such file"):
        read_metadata(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(VideoError, match="not a video"):
        read_metadata(tmp_path / "text.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webm"])
def test_a_folder_in_the_place_of_a_file_is_refused_at_once(tmp_path, suffix):
    (tmp_path / f"video{suffix}" / "inside").mkdir(parents=True)
    with pytest.raises(InvalidArgumentError, match="is a folder"):
        VideoWriter(tmp_path / f"video{suffix}", 8)
    assert (tmp_path / f"video{suffix}" / "inside").is_dir()
