"""The command line: the whole way from data to a video, and clear failures."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from vidgen import __version__
from vidgen.cli import app
from vidgen.video import Video, VideoWriter, read_metadata

SMALL = [
    "--set=widths=[16,16]",
    "--set=head_dim=16",
    "--set=text_width=16",
    "--set=clip_length=4",
    "--set=context=2",
    "--set=size=16",
    "--set=steps=3",
    "--set=batch_size=2",
]


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of mp4 files and a model trained on them, all by the command line."""
    root = tmp_path_factory.mktemp("cli")
    run("data", "make", "shapes", root / "clips", "--count", 3, "--num-frames", 8, "--size", 16)
    result = run("train", "vdm", "--data", root / "clips", "--out", root / "run", "--device", "cpu", *SMALL)
    assert '"clip_length": 4' in result.stdout  # the resolved recipe is printed
    return root


def test_data_train_generate(trained):
    recipe = json.loads((trained / "run" / "recipe.json").read_text())
    assert recipe["model"]["widths"] == [16, 16]
    assert recipe["model"]["sample_size"] == [16, 16]
    captions = {word for path in (trained / "clips").glob("*.txt") for word in path.read_text().split()}
    assert set(recipe["model"]["words"]) == captions
    out = trained / "long.mp4"
    word = recipe["model"]["words"][-1]
    result = run(
        "generate",
        trained / "run",
        word,
        "--num-frames",
        10,
        "--steps",
        2,
        "--seed",
        7,
        "--out",
        out,
        "--fps",
        5,
    )
    assert "long.mp4 (seed 7)" in result.stdout
    video = Video.load(out)
    assert (video.frames.shape, video.fps) == ((10, 16, 16, 3), 5.0)
    settings = read_metadata(out)
    assert (settings["prompt"], settings["seed"], settings["num_inference_steps"]) == (word, 7, 2)


def test_generate_is_reproducible_and_renders_spans(trained):
    def frames(name, *arguments):
        run(
            "generate",
            trained / "run",
            "--num-frames",
            10,
            "--steps",
            2,
            "--seed",
            1,
            "--out",
            trained / name,
            *arguments,
        )
        return Video.load(trained / name).frames

    whole = frames("whole")  # a folder of PNG files: lossless
    assert (frames("again") == whole).all()
    assert (frames("span", "--frames", "6:9") == whole[6:9]).all()
    assert not (frames("replaced", "--option", "given=replacement") == whole).all()
    assert not (frames("noisy", "--eta", "1") == whole).all()


def test_train_goes_on_where_it_was(trained):
    result = run(
        "train",
        "vdm",
        "--data",
        trained / "clips",
        "--out",
        trained / "run",
        "--device",
        "cpu",
        *SMALL,
        "--set=steps=5",
    )
    assert "trained" in result.stdout
    assert sorted(p.name for p in (trained / "run" / "checkpoints").iterdir()) == [
        "step-00000003",
        "step-00000005",
    ]


def test_dry_run_prints_the_recipe_and_writes_nothing(tmp_path):
    result = run("train", "vdm", "--out", tmp_path / "run", "--dry-run", "--set", "learning_rate=0.5")
    assert json.loads(result.stdout)["training"]["learning_rate"] == 0.5
    assert not (tmp_path / "run").exists()


def test_list_and_version():
    assert "vdm/tiny  (vidgen)" in run("list").stdout
    assert json.loads(run("list", "--json").stdout)["strategies"] == {"vdm": "vidgen"}
    assert run("--version").stdout.strip() == f"vidgen {__version__}"


def test_inspect_and_index_report_broken_files(tmp_path):
    run("data", "make", "story", tmp_path / "clips", "--count", 2, "--num-frames", 40, "--size", 32)
    (tmp_path / "clips" / "bad.mp4").write_bytes(b"not a video")
    found = json.loads(run("data", "inspect", tmp_path / "clips").stdout)
    assert found["videos"] == 2
    assert list(found["broken"]) == ["bad.mp4"]
    text = run("data", "index", tmp_path / "clips").stdout
    assert re.search(r"2 videos indexed, 1 broken\n  bad.mp4: ", text)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "vmd", "--out", "x"], 2, "Did you mean 'vdm'"),
        (["train", "vdm", "--out", "x", "--recipe", "tinny"], 2, "Did you mean 'vdm/tiny'"),
        (["train", "vdm", "--out", "x", "--set", "widht=3"], 2, "Did you mean 'width"),
        (["train", "vdm", "--out", "x", "--set", "steps"], 2, "expected NAME=VALUE"),
        (["train", "vdm"], 2, "Missing option"),
        (["train", "vdm", "--data", "no/such/folder", "--out", "x"], 1, "does not exist"),
        (["data", "make", "shape", "x"], 2, "Did you mean 'shapes'"),
        (["data", "inspect", "no/such/folder"], 1, "does not exist"),
        (["generate", "no/such/folder"], 1, "does not exist"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_failures_say_what_to_do_in_one_line(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, code=code)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "a:b"], "expected START:STOP"),
        (["--frames", "3:99"], "frames in 0..3"),
        (["--num-frames", "0"], "num_frames is 0"),
        (["--height", "15"], "multiple"),
        (["--scheduler", "Eular"], "Did you mean 'Euler'"),
        (["--scheduler", "DDPM"], "DDIMScheduler with eta=1"),
        (["--option", "givn=clean"], "Did you mean 'given'"),
        (["--option", "given"], "expected NAME=VALUE"),
        (["--option", "seed=3"], "use --seed"),
        (["--steps", "0"], "num_inference_steps is 0"),
        (["--device", "nonsense"], "device 'nonsense' is unknown"),
        (["unheard-of"], "never learnt"),
    ],
)
def test_bad_generation_arguments(trained, tmp_path, arguments, message):
    result = run("generate", trained / "run", "--out", tmp_path / "v.mp4", *arguments, code=2)
    assert message in " ".join(result.stderr.split())
    assert not any(tmp_path.iterdir())


def test_empty_and_unusable_folders(tmp_path):
    (tmp_path / "clips").mkdir()
    result = run("train", "vdm", "--data", tmp_path / "clips", "--out", tmp_path / "run", code=1)
    assert "holds no video" in result.stderr
    with VideoWriter(tmp_path / "clips" / "short.mp4", 8) as writer:
        writer.append(Video.load(_picture(tmp_path)).frames[0])
    result = run("train", "vdm", "--data", tmp_path / "clips", "--out", tmp_path / "run", code=1)
    assert "short" in result.stderr


def _picture(folder):
    import numpy as np

    return Video(np.zeros((2, 16, 16, 3), np.uint8), 8.0).save(folder / "black.mp4")


def test_interrupt_is_130(trained, monkeypatch):
    from vidgen.sampling import Sampler

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, "__call__", interrupt)
    assert "interrupted" in run("generate", trained / "run", code=130).stderr
