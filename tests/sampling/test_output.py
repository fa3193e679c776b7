"""Videos that go to files: what the system refuses is said before anything is computed."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import vidgen
from toy import toy
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError, VideoError
from vidgen.sampling import Sampler
from vidgen.sampling.output import FileSink, output_paths
from vidgen.video import Video, read_metadata
from vidgen.video.parts import part_beside

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


@pytest.fixture
def dead(monkeypatch):
    """Give a process number that no process has."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_killed_work_folder_is_cleaned_and_two_writers_do_not_collide(sampler, tmp_path, monkeypatch, dead):
    sampler(seed=0, work=tmp_path / "work")
    call = tmp_path / "work" / "video-0000" / "all.safetensors"
    assert len({part_beside(call) for _ in range(9)}) == 9
    with monkeypatch.context() as context:
        context.setattr(os, "getpid", lambda: dead)
        part_beside(call).touch()
    part_beside(call).touch()  # this process lives
    sampler(seed=0, work=tmp_path / "work")
    assert len(list(call.parent.glob(".*"))) == 1


def test_a_file_of_another_origin_is_replaced_only_when_told(sampler, tmp_path):
    out = tmp_path / "v.mp4"
    asked = {"num_inference_steps": 1, "num_frames": 2, "height": 16, "width": 16}

    def refused(match, **changes):
        before = out.read_bytes()
        with pytest.raises(InvalidArgumentError, match=f"{match}.*--overwrite"):
            sampler(**{"prompt": "a", "seed": 0, "out": out, **asked, **changes})
        assert out.read_bytes() == before

    for content in ("text", None):
        out.write_text(content) if content else Video(np.zeros((2, 16, 16, 3), np.uint8), 8).save(out)
        refused("v.mp4 exists and is no result of these")
    sampler("a", seed=0, out=out, overwrite=True, **asked)
    sampler("a", seed=0, out=out, **asked)  # the same again
    sampler("a", out=out, **asked)  # of whatever seed
    seed = read_metadata(out)["seed"]
    refused(f"result of other settings .prompt 'a', seed {seed}")
    sampler("a", seed=0, out=out, overwrite=True, **asked)
    changes = [{"prompt": "b"}, {"seed": 1}, {"eta": 0.5}, {"num_frames": 3}, {"frames": [1]}, {"fps": 3}]
    for change in [*changes, {"image": np.zeros((8, 8, 3), np.uint8)}, {"noise_prior": "independent"}]:
        refused("result of other settings", **change)
    with torch.no_grad():
        sampler.strategy.modules["network"].conv.bias += 1
    refused("result of other settings")
    numbered = tmp_path / "v-001.mp4"
    numbered.write_text("mine")
    with pytest.raises(InvalidArgumentError, match=r"v-001\.mp4 exists"):
        sampler(["a", "b"], seed=0, out=out, **asked)
    assert not (tmp_path / "v-000.mp4").exists()


def test_what_was_given_is_not_overwritten_unless_told(sampler, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    given = Video(clip, 8).save(tmp_path / "a.gif")
    (tmp_path / "link.gif").symlink_to(given)
    (tmp_path / "b.png").write_bytes(given.read_bytes())
    asked = {"seed": 0, "num_inference_steps": 1, "height": 16, "width": 16}
    before = given.read_bytes()
    for video, out in ((given, "a.gif"), ("a.gif", given), ("link.gif", given), (given, "link.gif")):
        with pytest.raises(InvalidArgumentError, match=r"was given as an input.*--overwrite"):
            sampler("a", video=video, out=out, **asked)
    for pictures in ({"image": given}, {"last_image": "a.gif"}, {"pins": {1: ["a.gif"]}}, {"mask": "a.gif"}):
        with pytest.raises(InvalidArgumentError, match="was given as an input"):
            sampler("a", out=given, **{"video": clip, "num_frames": 2, **pictures}, **asked)
    assert given.read_bytes() == before
    sampler("a", video=given, out=given, overwrite=True, **asked)
    assert read_metadata(given)["prompt"] == "a"


def test_names_with_percent_and_colon(sampler, tmp_path):
    asked = {"seed": 0, "num_inference_steps": 1, "height": 16, "width": 16, "num_frames": 2}
    (tmp_path / "50%").mkdir()
    names = ["100%.mp4", "%d.gif", "50%/a.mp4", "12.30%05d.webm"]
    for name in names:
        assert [path.name for path in output_paths(tmp_path / name, 2)][1].count("-001.") == 1
        made = sampler(["a", "b"], out=tmp_path / name, **asked)
        assert [video.num_frames for video in made.videos] == [2, 2]
    with pytest.raises(InvalidArgumentError, match="names one picture, not a sequence"):
        sampler("a", out=tmp_path / "100%.png", **asked)
    assert sampler.strategy.modules["network"].calls[len(names) * 1 :] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 100_000, "width": 100_000}, "100000 x 100000 pixels.*at most 16384"),
        ({"width": 16_386}, "8 x 16386 pixels"),
        ({"num_frames": 10**8}, "num_frames is 100000000; expected at most 1000000"),
        ({"frames": range(10**15)}, "frames in 0..7"),
        ({"num_videos_per_prompt": 10**9}, "num_videos_per_prompt is 1000000000"),
        ({"prompt": {0: "a", 8: "b"}}, "a prompt begins at frame 8, and the video has 8 frames"),
        ({"prompt": ["a", {0: "a", 30: "b"}]}, "a prompt begins at frame 30"),
        ({"paste_given": 1}, "paste_given is 1"),
        ({"noise_prior": 3}, "noise_prior is 3"),
        ({"noise_prior": {"a": 1}}, "needs its 'kind'"),
        ({"noise_prior": {"kind": "mixed", "a": -1}}, "a=-1"),
    ],
)
def test_what_cannot_be_made_is_refused_before_work_begins(sampler, arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        sampler(**{"prompt": "a", "seed": 0, **arguments})
    assert sampler.strategy.modules["network"].calls == []


def test_frames_that_memory_cannot_hold_are_refused_unless_they_go_to_a_file(sampler, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}[name])
    with pytest.raises(InvalidArgumentError, match=r"100 frames of 8 x 8 pixels .* or write them to a file"):
        sampler("a", seed=0, num_frames=100)
    sampler("a", seed=0, num_frames=100, output_type="latent")


def warnings_of(caplog):
    return [record for record in caplog.records if record.levelname == "WARNING"]


def test_another_size_than_trained_is_said(sampler, caplog):
    sampler("a", seed=0, height=16)
    assert "trained on 8 x 8 pixels (height x width), and 16 x 8 were asked for" in caplog.text
    caplog.clear()
    sampler("a", seed=0, height=8)
    assert not warnings_of(caplog)


def test_another_prior_than_trained_is_used_and_said(sampler, caplog, tmp_path):
    from vidgen.noise import NoiseKey, WindowedShuffle

    prior = WindowedShuffle(window=4, stride=2)
    asked = {"seed": 5, "num_frames": 13, "output_type": "latent"}
    made = sampler("a", noise_prior={"kind": "windowed-shuffle", "window": 4, "stride": 2}, **asked).frames
    assert "the noise prior is {'kind': 'windowed-shuffle'" in caplog.text
    assert "the model was trained on {'kind': 'decomposed'" in caplog.text
    sampler("a", noise_prior=prior, work=tmp_path / "work", **asked)
    with pytest.raises(CheckpointError, match="other settings"):
        sampler("a", work=tmp_path / "work", **asked)
    caplog.clear()
    seen, network = [], sampler.strategy.modules["network"]
    forward = network.forward
    network.forward = lambda x, *rest: seen.append(x) or forward(x, *rest)
    assert torch.equal(sampler("a", noise_prior=prior, **asked).frames, made)
    start = prior.sample(range(8), (12, 4, 4), NoiseKey(5, "start", "video"))
    assert torch.equal(seen[0][0], start)
    for level in sampler.strategy.levels.values():
        level.prior = prior
    caplog.clear()
    assert torch.equal(sampler("a", **asked).frames, made)
    assert torch.equal(sampler("a", noise_prior=prior, **asked).frames, made)
    assert not warnings_of(caplog)
    assert sampler("a", seed=0, noise_prior="mixed").metadata[0]["noise_prior"] == {"kind": "mixed", "a": 1.0}
    with pytest.raises(UnknownNameError, match=r"unknown noise prior 'mixd'.*Did you mean 'mixed'"):
        sampler("a", noise_prior="mixd")


def test_results_and_samplers_are_described_in_short(sampler, tmp_path):
    latent = sampler("a", seed=3, output_type="latent")
    assert repr(latent) == (
        "SamplerOutput(1 video(s) of 8 frames, 8 x 8, 4 fps, latent (1, 12, 8, 4, 4), seeds 3)"
    )
    assert "latent (1, 12" in latent._repr_html_()
    made = sampler(["a", "b"], seed=3, num_videos_per_prompt=4, output_type="pil", num_inference_steps=1)
    assert "pil 8 lists, seeds 3, 4, 5, 6, ...)" in repr(made)
    html = made._repr_html_()
    assert html.count("<video ") == 6
    assert "and 2 more" in html
    written = sampler("a", seed=3, out=tmp_path / "v.gif", num_inference_steps=1)
    assert "v.gif, seeds 3)" in repr(written)
    assert written._repr_html_().count("<video ") == 1
    assert repr(sampler) == (
        "Sampler(toy, 0.00422 million parameters, 8 frames of 8 x 8 at 4 fps, DDIMScheduler, 4 steps, on cpu)"
    )
    table = sampler._repr_html_()
    assert table.count("<tr>") == 4 + 3
    assert "<th>network</th><td>4,224 parameters</td>" in table


def test_a_dtype_has_a_name(sampler):
    def dtype_of(sampler):
        return sampler.strategy.modules["network"].dtype

    for dtype in ("bfloat16", "torch.bfloat16", "bf16", torch.bfloat16):
        assert dtype_of(sampler.to("float32")) == torch.float32
        assert dtype_of(sampler.to(dtype=dtype)) == torch.bfloat16
    assert dtype_of(sampler.to("cpu", "float64")) == torch.float64
    with pytest.raises(UnknownNameError, match=r"unknown dtype 'flaot16'\. Did you mean 'float16'"):
        sampler.to(dtype="flaot16")
    with pytest.raises(InvalidArgumentError, match=r"dtype is torch\.int8; expected a floating-point type"):
        vidgen.load("shapes/vdm", dtype=torch.int8)
    with pytest.raises(InvalidArgumentError, match="torch_dtype=float16 was given; it is called dtype here"):
        vidgen.load("shapes/vdm", torch_dtype="float16")
