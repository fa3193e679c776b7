"""Folders with odd files, odd names, every suffix: used, or named as left out."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from vidgen.errors import VideoError
from vidgen.shapes.export import write_folder
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.video import folder as folder_module
from vidgen.video.dataset import DataConfig, VideoFolder, open_dataset
from vidgen.video.listing import find_videos


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))


SHAPES = ShapesDataset(5, num_frames=12, seed=11)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(SHAPES, tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture
def copy(shapes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes, tmp_path / "copy"))


def videos_in(root: Path) -> VideoFolder:
    return VideoFolder(root, clip_length=8, progress=False)


def test_a_link_back_to_the_folder_is_followed_once(tmp_path: Path) -> None:
    write_folder(ShapesDataset(2, num_frames=8, size=16), tmp_path / "clips")
    (tmp_path / "clips" / "loop").symlink_to(tmp_path / "clips", target_is_directory=True)
    assert len(find_videos(tmp_path / "clips")) == 2


def test_no_odd_file_stops_a_folder(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = (copy / "00000.mp4").read_bytes()
    assert b"avc1" in whole
    assert b"VideoHandler" in whole
    (copy / "codec.mp4").write_bytes(whole.replace(b"avc1", b"zqx7"))  # none that FFmpeg knows
    (copy / "tags.mp4").write_bytes(
        whole.replace(b"VideoHandler", b"\xca\xd3\xc6\xb5\xbe\xe4\xb1\xfa\xb4\xa6\xc0\xed")
    )
    os.mkfifo(copy / "pipe.mp4")
    (copy / "folder.mp4").mkdir()
    (copy / "gone.mp4").symlink_to("nowhere.mp4")
    (copy / "loop.mp4").symlink_to("loop.mp4")
    odd = {"codec.mp4", "pipe.mp4", "gone.mp4", "loop.mp4"}
    with caplog.at_level(logging.WARNING):
        data = VideoFolder(copy, clip_length=8, captions="none", progress=False)
    read = {f"{number:05d}.mp4" for number in range(5)}
    assert set(data.records) == {*read, "tags.mp4"}  # tags do not matter to clips
    assert set(data.broken) == odd
    assert "no regular file" in data.broken["pipe.mp4"]
    assert sum("skipping" in line for line in caplog.messages) == len(data.broken)
    assert len(list(data)) == len(data.records)


@pytest.mark.parametrize(
    "error", [RuntimeError("odd"), UnicodeDecodeError("utf-8", b"x", 0, 1, "odd"), MemoryError("odd")]
)
def test_errors_that_nobody_foresaw_are_the_files_alone(
    copy: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    reader = folder_module.VideoReader

    class Odd(reader):
        def __init__(self, path: Path, **arguments: object) -> None:
            if path.name == "00001.mp4":
                raise error
            super().__init__(path, **arguments)

    before = videos_in(copy)
    monkeypatch.setattr(folder_module, "VideoReader", Odd)
    shutil.rmtree(os.environ["VIDGEN_CACHE"])
    after = videos_in(copy)
    assert list(after.broken) == ["00001.mp4"]
    assert after.broken["00001.mp4"].startswith(f"{type(error).__name__}: ")
    assert len(after) == 4
    sample = before[1]  # found while reading: the next one stands in
    assert sample.index == 2
    assert before.broken == after.broken


NAMES = [
    "100%.mp4",
    "%05d.mp4",
    "%s%n.mp4",
    "12:30.mp4",
    "http:x.mp4",
    "-i.mp4",
    "a b\u00a0c'\"$(x).mp4",
    "x" * 251 + ".mp4",
]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems forbid such names")
def test_odd_names_are_names(shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "50% of it: all"
    root.mkdir()
    names = [*NAMES, os.fsdecode(b"\xff\xfe.mp4"), "two\nlines\x1b[31m.mp4"]
    for number, name in enumerate(names):
        shutil.copy(shapes / f"{number % 5:05d}.mp4", root / name)
        (root / name).with_suffix(".txt").write_text(f"caption {number}")
    (root / "torn\n\udcff.mp4").write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        data = videos_in(root)
    assert list(data.broken) == ["torn\\n\\udcff.mp4"]
    assert all(line.isprintable() for line in caplog.messages)
    found = {item.video: (item.caption, data[number].caption) for number, item in enumerate(data.items)}
    assert found == {name: (f"caption {n}", f"caption {n}") for n, name in enumerate(names)}
    assert json.loads(json.dumps(data.summary())) == data.summary()
    for folder in (f"{root}/{'x' * 300}", f"{root}/nul\0"):
        with pytest.raises(VideoError, match="does not exist"):
            open_dataset(DataConfig(folder), progress=False)


def test_a_folder_given_relative_may_hold_colons(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "http:x.mp4", "concat:a.mp4"):
        shutil.copy(shapes / "00000.mp4", name)
    data = VideoFolder(".", clip_length=8, progress=False)
    assert [data[number].index for number in range(3)] == [0, 1, 2]
    assert data.broken == {}


def write_kind(path: Path, codec: str, **options: str) -> None:
    """Write 8 frames with ``codec`` in the container that the suffix names."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8))
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))


KINDS = {
    "a.MPG": "mpeg1video",
    "b.ts": "mpeg2video",
    "c.wmv": "wmv2",
    "d.flv": "flv",
    "e.asf": "msmpeg4",
    "f.3gp": "mpeg4",
    "g.m2ts": "mpeg2video",
    "h.mxf": "mpeg2video",
    "i.vob": "mpeg2video",
    "j.nut": "mpeg4",
    "k.Mov": "mpeg4",
    "l.mpeg": "mpeg2video",
}


def test_videos_of_every_suffix_are_used_and_the_rest_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, codec in KINDS.items():
        write_kind(tmp_path / name, codec)
    for name in ("notes.md", "a.json", "b.JSON", ".hidden.zip", "list", "captions.csv", "a.txt"):
        (tmp_path / name).write_text("path,caption\n")
    with caplog.at_level(logging.INFO, "vidgen.video"):
        data = VideoFolder(tmp_path, clip_length=4, size=16, captions="txt", progress=False)
    assert data.broken == {}
    assert set(data.records) == set(KINDS)
    assert {record.num_frames for record in data.records.values()} == {8}
    assert data.summary()["left_out"] == {".json": 2, ".md": 1, "no suffix": 1}
    assert "left out in" in caplog.text
    assert "2 x .json" in caplog.text


def test_an_empty_folder_says_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(VideoError, match=r"holds no video; .*\.mpg.* There is: 1 x \.png\."):
        find_videos(tmp_path)


def test_folders_that_cannot_be_listed_are_problems(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "closed").mkdir()
    scan = os.scandir

    def closed(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    (problem,) = videos_in(copy).problems
    assert problem.endswith("closed cannot be listed (Permission denied); what is in it is left out.")
