"""`vidgen generate` up to the sampler: what it hands on, and what it refuses before anything is loaded."""

from __future__ import annotations

import inspect
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from toy import toy
from vidgen.cli import app
from vidgen.sampling import Sampler
from vidgen.video import Video, read_metadata


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


class Recorder:
    """Stands for a sampler: keeps what it is called with."""

    def __init__(self):
        self.arguments, self.paths = {}, ()

    def __call__(self, **arguments):
        self.arguments = arguments
        return SimpleNamespace(paths=self.paths, seeds=[0] * len(self.paths))


@pytest.fixture
def recorder(monkeypatch):
    sampler = Recorder()

    def load(source, *, device, repositories=(), strategy=None):
        sampler.source, sampler.strategy = source, strategy
        return sampler

    monkeypatch.setattr("vidgen.sampling.load", load)
    return sampler


@pytest.fixture
def generating(monkeypatch):
    """A sampler that really generates, small and untrained."""

    def load(source, *, device, repositories=(), strategy=None):
        return Sampler(toy())

    monkeypatch.setattr("vidgen.sampling.load", load)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Pictures, masks and a video of 6 frames, in the working folder."""
    monkeypatch.chdir(tmp_path)
    black, white = (Image.new("L", (16, 16), value) for value in (0, 255))
    Image.new("RGBA", (16, 16), (255, 0, 0, 128)).save("red.png")
    Image.new("RGB", (16, 16), (0, 0, 255)).save("blue.jpg", quality=95)
    white.save("white.png")
    (tmp_path / "masks").mkdir()
    for i, picture in enumerate([white, black, black, white, white, white]):
        picture.save(f"masks/{i}.png")
    (tmp_path / "masks" / "notes.txt").write_text("no picture")
    white.save("mask.gif", save_all=True, append_images=[black, white], duration=100)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    Video(np.zeros((6, 16, 16, 3), np.uint8), 8.0).save("clip.mp4")
    return tmp_path


@pytest.mark.parametrize("source", ["runs/demo", "shapes/vdm", "ann/demo@v1"])
def test_sources_are_handed_on_as_they_are(recorder, source):
    run("generate", source)
    assert recorder.source == source
    assert isinstance(recorder.source, str)


def test_nothing_is_handed_on_that_was_not_asked_for(recorder):
    run("generate", "runs/demo", "red", "--steps", 3, "--num-videos", 2)
    common = {"prompt": ["red"], "negative_prompt": "", "out": Path("video.mp4")}
    common |= {"paste_given": True, "overwrite": False}
    assert recorder.arguments == {**common, "num_inference_steps": 3, "num_videos_per_prompt": 2}


def test_settings_of_all_levels_or_of_single_ones(recorder):
    run("generate", "x", "--guidance-scale", 3, "--steps", 4, "--scheduler", "UniPC", "--eta", "0.5")
    given = recorder.arguments
    assert [given[name] for name in ("guidance_scale", "num_inference_steps", "scheduler", "eta")] == [
        3.0,
        4,
        "UniPC",
        0.5,
    ]
    levels = ("--guidance-scale", "global=3", "--guidance-scale", "video=1.5", "--steps", "video=20")
    run("generate", "x", *levels, "--scheduler", "global=DDIM")
    assert recorder.arguments["guidance_scale"] == {"global": 3.0, "video": 1.5}
    assert recorder.arguments["num_inference_steps"] == {"video": 20}
    assert recorder.arguments["scheduler"] == {"global": "DDIM"}
    assert "eta" not in recorder.arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "many"), "--num-inference-steps was given 'many'; expected a whole number"),
        (("--steps", "video=2.5"), "'video=2.5'; expected a whole number"),
        (("--guidance-scale", "global="), "'global='; expected a number"),
        (("--guidance-scale", "3", "--guidance-scale", "global=2"), "for all levels and for global too"),
        (("--eta", "video=0", "--eta", "video=1"), "--eta is given twice for level 'video'"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(recorder, arguments, message):
    assert message in run("generate", "x", *arguments, code=2).stderr.replace("\n", " ")


def test_another_strategy_is_handed_on(recorder):
    run("generate", "shapes/vdm", "--strategy", "freenoise")
    assert recorder.strategy == "freenoise"
    assert "strategy" not in recorder.arguments


def test_given_pictures(recorder, files):
    run(
        "generate",
        "x",
        "--image",
        "red.png",
        "--last-image",
        "blue.jpg",
        "--pin",
        "3=blue.jpg",
        "--pin",
        "04=red.png",
    )
    given = recorder.arguments  # files, which the sampler reads
    assert (given["image"], given["last_image"]) == (Path("red.png"), Path("blue.jpg"))
    assert given["pins"] == {3: Path("blue.jpg"), 4: Path("red.png")}
    assert not {"video", "mask", "strength"} & given.keys()


def test_given_video_and_masks(recorder, files):
    run("generate", "x", "--video", "clip.mp4", "--strength", 0.5)
    assert (recorder.arguments["video"], recorder.arguments["strength"]) == (Path("clip.mp4"), 0.5)
    for spelling, expected in ("2:4", [0, 0, 1, 1, 0, 0]), ("5", [0, 0, 0, 0, 0, 1]):
        run("generate", "x", "--video", "clip.mp4", "--mask", spelling)
        assert recorder.arguments["mask"] == [bool(value) for value in expected]
        assert recorder.arguments["video"] == Path("clip.mp4")
    run("generate", "x", "--video", "clip.mp4", "--mask", "2:8", "--num-frames", 8)
    assert recorder.arguments["mask"] == [False, False] + [True] * 6
    for name in ("white.png", "masks", "mask.gif", "clip.mp4"):
        run("generate", "x", "--video", "clip.mp4", "--mask", name)
        assert recorder.arguments["mask"] == Path(name)


def test_short_and_long_spellings_are_the_same(recorder):
    run("generate", "x", "a", "--steps", 3, "--num-videos", 2)
    short = recorder.arguments
    run("generate", "x", "--prompt", "a", "--num-inference-steps", 3, "--num-videos-per-prompt", 2)
    assert recorder.arguments == short
    run("generate", "x", "a", "--prompt", "b", "--prompt", "c")
    assert recorder.arguments["prompt"] == ["a", "b", "c"]


def test_prompts_of_a_file(recorder, tmp_path):
    text = "\ufeffa red circle\r\n\n  moves, \u201cleft\u201d\u2028up  \n"
    (tmp_path / "p.txt").write_bytes(text.encode())
    run("generate", "x", "first", "--prompt-file", tmp_path / "p.txt")
    assert recorder.arguments["prompt"] == ["first", "a red circle", "moves, \u201cleft\u201d\u2028up"]
    rows = ['"a"', '{"prompt": "b", "more": 1}', "", '{"path": "c.mp4", "caption": "c"}']
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    run("generate", "x", "--prompt-file", tmp_path / "p.jsonl")
    assert recorder.arguments["prompt"] == ["a", "b", "c"]
    for content, said in {
        "": "holds no prompt",
        '"a"\n{"text": "b"}': "line 2: expected a text",
        "{": "line 1: not JSON",
    }.items():
        (tmp_path / "p.jsonl").write_text(content)
        assert said in run("generate", "x", "--prompt-file", tmp_path / "p.jsonl", code=2).stderr
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
    assert "UTF-8" in run("generate", "x", "--prompt-file", tmp_path / "p.txt", code=2).stderr


def test_captions_are_written_beside_the_videos(recorder, tmp_path):
    recorder.paths = [tmp_path / "v-000.mp4", tmp_path / "v-001.mp4"]
    arguments = ["generate", "x", "a, b", "\u0928\u0940\u0932\u093e", "--out", tmp_path / "v.mp4", "--captions"]
    for _ in range(2):  # the same again
        run(*arguments)
        found = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
        assert found == {"v-000.txt": "a, b\n", "v-001.txt": "\u0928\u0940\u0932\u093e\n"}
    (tmp_path / "v-001.txt").write_text("mine")
    del recorder.source
    stderr = run(*arguments, code=2).stderr
    assert "v-001.txt exists and is no caption of this prompt" in stderr
    assert not hasattr(recorder, "source")
    run(*arguments, "--overwrite")
    assert "mine" not in (tmp_path / "v-001.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--video", "clip.mp4", "--out", "clip.mp4"],
        ["--video", "clip.mp4", "--mask", "2:4", "--out", "./clip.mp4"],
        ["--video", "clip.mp4", "--mask", "mask.gif", "--out", "mask.gif"],
        ["--image", "red.png", "--sheet", "red.png"],
        ["--last-image", "blue.jpg", "--sheet", "blue.jpg"],
        ["--pin", "3=white.png", "--sheet", "white.png"],
        ["--prompt-file", "text.png", "--sheet", "text.png"],
        ["--prompt-file", "video.txt", "--captions"],
    ],
)
def test_what_was_given_is_not_overwritten(recorder, files, arguments):
    (files / "video.txt").write_text("a\n")
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    stderr = run("generate", "x", *arguments, code=2).stderr
    assert "was given as an input, and the result would overwrite it" in stderr
    assert not hasattr(recorder, "source")
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "none.png"], "--image is none.png, which does not exist"),
        (["--last-image", "text.png"], "--last-image is text.png, which is no picture"),
        (["--image", "clip.mp4"], "--image is clip.mp4, which is no picture"),
        (["--pin", "3"], "expected FRAME=FILE"),
        (["--pin", "x=red.png"], "expected FRAME=FILE"),
        (["--pin", "-1=red.png"], "expected FRAME=FILE"),
        (["--pin", "3=red.png", "--pin", "03=red.png"], "--pin gives frame 3 twice"),
        (["--video", "none.mp4"], "--video is none.mp4, which does not exist"),
        (["--mask", "2:4"], "--mask 2:4 was given without --video"),
        (["--video", "clip.mp4", "--mask", "4:9"], "the video has 6 frames"),
        (["--video", "clip.mp4", "--mask", "4:4"], "0 <= START < STOP <= 6"),
        (["--video", "clip.mp4", "--mask", "none.png"], "--mask is none.png, which does not exist"),
        (["--video", "clip.mp4", "--mask", "empty"], "holds no picture"),
        (["--option", "num_inference_steps=3"], "use --steps"),
        (["--option", "last_image=red.png"], "use --last-image"),
        (["--option", "pins=3"], "use --pin."),
        (["--option", "num_videos_per_prompt=3"], "use --num-videos."),
        (["--option", "prompt=red"], "write prompts after the checkpoint"),
        (["--option", "callback_on_step_end=3"], "'callback_on_step_end' is for Python alone"),
        (["--option", "return_dict=False"], "'return_dict' is for Python alone"),
        (["--option", "output_type=latent"], "'output_type' is for Python alone"),
        (["--option", "given=clean", "--option", "plan=x"], "'plan' is for Python alone"),
        (["--option", "self=1"], "'self' is for Python alone"),
    ],
)
def test_bad_pictures_are_named_before_anything_is_loaded(recorder, files, arguments, message):
    result = run("generate", "x", *arguments, code=2)
    assert message in result.stderr
    assert not hasattr(recorder, "source")


def test_every_argument_of_the_sampler_has_a_flag_or_is_refused(recorder):
    from vidgen.sampling import Sampler

    flags = run("generate", "--help").stdout
    names = [name for name in inspect.signature(Sampler.__call__).parameters if name != "options"]
    assert len(names) > 30
    for name in names:
        stderr = run("generate", "x", "--option", f"{name}=1", code=2).stderr
        flag = re.search(r"use (--[a-z-]+)\.", stderr)
        assert flag is None or flag[1] in flags
    run("generate", "x", "--option", "given=clean", "--option", "options=3")
    assert recorder.arguments["given"] == "clean"
    assert recorder.arguments["options"] == 3  # the sampler itself has no argument called so


def test_a_prior_is_chosen_by_its_kind_or_as_json(recorder):
    run("generate", "x", "--noise-prior", "windowed-shuffle")
    assert recorder.arguments["noise_prior"] == "windowed-shuffle"
    run("generate", "x", "--noise-prior", '{"kind": "windowed-shuffle", "window": 8}')
    assert recorder.arguments["noise_prior"] == {"kind": "windowed-shuffle", "window": 8}


def test_a_foreign_sheet_is_not_overwritten(generating, files):
    arguments = ["generate", "x", "--steps", 1, "--num-frames", 2, "--seed", 1, "--out", "v.gif"]
    for suffix in ("png", "jpg", "webp"):
        sheet = files / f"sheet.{suffix}"
        for _ in range(2):  # the same again
            run(*arguments, "--sheet", sheet)
            with Image.open(sheet) as picture:
                assert picture.size[0] > 32
    assert sorted(path.name for path in files.glob("*sheet*")) == ["sheet.jpg", "sheet.png", "sheet.webp"]
    for sheet in ("red.png", "sheet.png"):
        before = (files / sheet).read_bytes()
        stderr = run(*arguments, "--sheet", sheet, "--sheet-columns", 2, code=2).stderr
        assert f"{sheet} exists and is no sheet of the same command" in stderr
        assert (files / sheet).read_bytes() == before
    run(*arguments, "--sheet", "red.png", "--overwrite")
    with Image.open(files / "red.png") as picture:
        assert picture.size[0] > 32


def test_a_video_of_other_settings_is_not_overwritten(generating, files):
    arguments = ["generate", "x", "--steps", 1, "--num-frames", 2, "--out"]
    before = (files / "clip.mp4").read_bytes()
    assert "clip.mp4 exists" in run(*arguments, "clip.mp4", code=2).stderr
    assert (files / "clip.mp4").read_bytes() == before
    for more in ([], ["--seed", 1, "--overwrite"], ["--seed", 1]):
        run(*arguments, "v.mp4", *more)
    assert "--overwrite" in run(*arguments, "v.mp4", "--seed", 2, code=2).stderr
    assert read_metadata("v.mp4")["seed"] == 1


def test_terminated_leaves_nothing_behind(generating, tmp_path, monkeypatch):
    """SIGTERM, as batch systems send it: what is half-written is removed."""
    from vidgen.sampling.engine import Engine

    def terminated(self, jobs):
        yield from ()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(Engine, "run", lambda self: terminated(self, None))
    before = signal.getsignal(signal.SIGTERM)
    for out in ("v.mp4", "frames"):
        stderr = run("generate", "x", "--out", tmp_path / out, code=130).stderr
        assert "vidgen: interrupted" in stderr
    assert not any(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before
