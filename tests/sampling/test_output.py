"""Videos that go to files: what the system refuses is said before anything is computed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from toy import toy
from vidgen.errors import VideoError
from vidgen.sampling import Sampler
from vidgen.sampling.output import FileSink
from vidgen.video import Video

CLIP = torch.zeros(3, 2, 16, 16)


@pytest.fixture
def sampler():
    made = Sampler(toy())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webm", "frames", "frames/%04d.png"])
def test_a_place_that_cannot_be_written_is_named_before_the_first_call(sampler, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(VideoError, match=r"file/.*Not a directory.*Give out= a path in a folder"):
        sampler(seed=0, num_inference_steps=1, out=tmp_path / "file" / "sub" / name)
    assert sampler.strategy.modules["network"].calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["a" * 300 + ".mp4", "a" * 300, "a" * 300 + "/%04d.png"])
def test_a_name_too_long(name, tmp_path):
    sink = FileSink([tmp_path / name], 8, [{}])
    with pytest.raises(VideoError, match=r"File name too long.*Give out= a path"), sink:
        pass
    assert not any(tmp_path.iterdir())


def test_a_folder_without_permission(tmp_path, monkeypatch):
    def closed(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", closed)
    with (
        pytest.raises(VideoError, match=r"Permission denied.*Give out= a path"),
        FileSink([tmp_path / "new" / "a.mp4"], 8, [{}]),
    ):
        pass


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webm"])
def test_a_file_that_cannot_be_made_is_said_at_once(tmp_path, monkeypatch, name):
    """FFmpeg opens its file at the first frame: after the first call, which may take long."""

    def closed(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", closed)
    with (
        pytest.raises(VideoError, match=r"/a\..* cannot be written: Permission denied\. Give out= a path"),
        FileSink([tmp_path / name], 8, [{}]),
    ):
        pass
    assert not any(tmp_path.iterdir())


def test_one_that_cannot_be_opened_undoes_the_others(tmp_path):
    (tmp_path / "file").write_text("mine")
    paths = [tmp_path / "a.mp4", tmp_path / "file" / "b.mp4"]
    with (
        pytest.raises(VideoError, match=r"b\.mp4 .* is a file and no folder.*Give out="),
        FileSink(paths, 8, [{}, {}]),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_on_the_way_leaves_nothing_not_even_the_folder_of_pictures(tmp_path):
    sink = FileSink([tmp_path / "frames" / "%04d.png", tmp_path / "a.mp4"], 8, [{}, {}])

    def interrupted():
        with sink:
            sink.append(0, CLIP)
            sink.append(1, CLIP)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        interrupted()
    assert not any(tmp_path.iterdir())


def test_missing_folders_are_made(tmp_path):
    paths = [tmp_path / "new" / "a.mp4", tmp_path / "more" / "frames" / "%04d.png"]
    with FileSink(paths, 8, [{}, {}]) as sink:
        for video in range(2):
            sink.append(video, CLIP + video)
    assert Video.load(paths[0]).frames.shape == (2, 16, 16, 3)
    assert (Video.load(paths[1].parent).frames == 255).all()
