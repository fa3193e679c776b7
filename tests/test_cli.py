"""The command line: the whole way from data to a video, and clear failures."""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vidgen import __version__, plugins
from vidgen.cli import app
from vidgen.errors import CheckpointError
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
    (root / "said").write_text(result.stdout)
    return root


def test_train_sums_up_what_it_resolved_and_says_what_to_do_next(trained, tmp_path):
    said = (trained / "said").read_text()
    words = json.loads((trained / "run" / "recipe.json").read_text())["model"]["words"]
    caption = sorted((trained / "clips").glob("*.txt"))[0].read_text().strip()
    assert said.splitlines() == [
        f"vdm by the recipe vdm/tiny, on 3 videos of {trained / 'clips'}",
        f"  clips of 4 frame(s) of 16 x 16, {len(words)} words in captions: {', '.join(words[:12])}"
        + ", ..." * (len(words) > 12),
        *[line for line in said.splitlines() if line.endswith(" parameters")],
        "  3 steps of denoiser, 2 clips each, learning rate 0.002 (cosine), on cpu in float32",
        f"  saved every 200 steps in {trained / 'run'}; all settings: {trained / 'run' / 'recipe.json'}",
        f"trained: {trained / 'run'}",
        f"now: vidgen generate {trained / 'run'} '{caption}' --out video.mp4",
    ]
    counts = re.findall(r"^  (?:codec|unet|temporal|text_encoder): [\d,]+ parameters$", said, re.MULTILINE)
    assert len(counts) == 4
    arguments = ["train", "vdm", "--data", trained / "clips", "--out", tmp_path / "quiet", "--device", "cpu"]
    quiet = run(*arguments, *SMALL, "-q")
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_a_dry_run_knows_the_data_and_writes_nothing(trained, tmp_path):
    arguments = ["train", "vdm", "--data", trained / "clips", "--out", tmp_path / "dry", *SMALL, "--dry-run"]
    found = json.loads(run(*arguments).stdout)
    kept = json.loads((trained / "run" / "recipe.json").read_text())
    assert found["model"] == kept["model"]
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_says_what_is_saved_and_what_to_run(trained, tmp_path, monkeypatch, kind):
    from vidgen.denoising.stage import DenoisingStage

    losses = DenoisingStage.losses

    def interrupting(self, batch, step):
        if step.index == 1:
            signal.raise_signal(kind)
        yield from losses(self, batch, step)

    monkeypatch.setattr(DenoisingStage, "losses", interrupting)
    command = ["train", "vdm", "--data", "my clips", "--out", "out"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/vidgen", *command])
    monkeypatch.chdir(tmp_path)
    Path("my clips").symlink_to(trained / "clips")
    before = signal.getsignal(kind)
    stderr = run("-q", *command, "--device", "cpu", *SMALL, code=130).stderr
    assert stderr == (
        "vidgen: interrupted. The checkpoint of step 2 is kept. To go on from there: "
        "vidgen train vdm --data 'my clips' --out out\n"
    )
    assert signal.getsignal(kind) is before
    info = run("info", "out")
    assert "trained on 3 videos of clips; not finished: denoiser 2 of 3 steps" in info.stdout
    assert "is not finished: denoiser 2 of 3 steps. What it generates" in info.stderr


def test_sigterm_ends_any_command_as_ctrl_c_does(trained, monkeypatch):
    from vidgen.sampling import Sampler

    cleaned = []

    def interrupted(*args, **kwargs):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append(True)

    monkeypatch.setattr(Sampler, "__call__", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    assert run("generate", trained / "run", code=130).stderr == "vidgen: interrupted\n"
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_info_says_what_a_run_is(trained):
    found = json.loads(run("info", trained / "run", "--json").stdout)
    recipe = json.loads((trained / "run" / "recipe.json").read_text())
    assert found["training"] == {
        "stages": [{"name": "denoiser", "step": 3, "steps": 3}],
        "finished": True,
        "data": {"name": "clips", "videos": 3},
    }
    words = recipe["model"]["words"]
    assert found["prompts"] == {"kind": "words", "words": words, "max_words": recipe["model"]["max_words"]}
    lines = run("info", trained / "run", "--num-frames", 8).stdout.splitlines()
    assert lines[:5] == [
        f"{trained / 'run'}: vdm",
        "  makes 4 frame(s) of 16 x 16 at 8 per second",
        "  video: 50 steps of DDIMScheduler, guidance scale 2",
        f"  prompts: up to {recipe['model']['max_words']} of {len(words)} words: {', '.join(words)}",
        "  trained on 3 videos of clips; finished: denoiser 3 steps",
    ]
    assert "8 frames in 3 call(s)" in lines
    same = json.loads(run("info", "vdm", *SMALL, f"--set=path={trained / 'clips'}", "--json").stdout)
    counts = {name: value["parameters"] for name, value in found["components"].items()}
    assert counts == {name: value["parameters"] for name, value in same["components"].items()}
    assert (found["gmacs_per_call"], found["plan"]) == (same["gmacs_per_call"], same["plan"])


def test_info_says_what_bundled_models_are():
    lines = run("info", "shapes/codec").stdout.splitlines()
    assert lines[0] == "shapes/codec: frame_codec"
    assert lines[1].startswith("  trained on 16384 videos of shapes; finished: frame_codec ")
    record = json.loads((plugins.model_folder("shapes/codec") / "record.json").read_text())
    assert lines[-1] == f"  together  {record['parameters']['codec']:,} parameters"
    found = json.loads(run("info", "shapes/ldm", "--json").stdout)
    assert found["strategy"] == "ldm"
    assert found["training"]["data"] == {"name": "shapes", "videos": 8192}
    record = json.loads((plugins.model_folder("shapes/ldm") / "record.json").read_text())
    assert {name: v["parameters"] for name, v in found["components"].items()} == record["parameters"]


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


def test_train_goes_on_where_it_was(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")  # other tests look at the run as it is
    result = run(
        "train",
        "vdm",
        "--data",
        trained / "clips",
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        *SMALL,
        "--set=steps=5",
    )
    assert "trained" in result.stdout
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000003",
        "step-00000005",
    ]


def test_dry_run_prints_the_recipe_and_writes_nothing(tmp_path):
    result = run("train", "vdm", "--out", tmp_path / "run", "--dry-run", "--set", "learning_rate=0.5")
    assert json.loads(result.stdout)["training"]["learning_rate"] == 0.5
    assert not (tmp_path / "run").exists()


def test_list_and_version():
    assert "vdm/tiny  (vidgen)" in run("list").stdout
    found = json.loads(run("list", "--json").stdout)
    assert list(found) == ["strategies", "recipes", "models", "datasets", "networks"]
    assert found["datasets"] == {"shapes": "vidgen", "story": "vidgen"}
    assert found["strategies"]["vdm"] == "vidgen"
    assert found["recipes"]["vdm/tiny"] == "vidgen"
    assert run("--version").stdout.strip() == f"vidgen {__version__}"


def test_info_prints_json_or_a_table():
    arguments = ["info", "vdm", "--num-frames", 100, "--set", "videos=8", "--set", "widths=[16,16]"]
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["recipe"] == "vdm/tiny"
    assert set(found) == {"strategy", "recipe", "components", "gmacs_per_call", "plan"}
    assert all(set(values) == {"parameters"} for values in found["components"].values())
    assert set(found["plan"]) == {"frames", "calls", "waves", "critical_path", "peak_frames"}
    assert found["plan"]["calls"] == 8
    table = run(*arguments, "--recipe", "tiny").stdout
    for name, value in found["components"].items():
        assert re.search(rf"^  {name} +{value['parameters']:,} parameters$", table, re.MULTILINE)
    assert "100 frames in 8 call(s)" in table
    assert f"{found['gmacs_per_call']:.4g} GMACs per call" in table


def test_cost_is_said_before_and_hidden_on_request(trained, tmp_path):
    def stderr(*before_and_after):
        before, after = before_and_after
        arguments = ["generate", trained / "run", "--steps", 2, "--out", tmp_path / "v.gif", *after]
        return run(*before, *arguments).stderr

    assert "1 video(s) x 1 call(s) in 1 wave(s): 2 network evaluations" in stderr([], [])
    assert "sampling: 100%" in stderr([], [])
    for before, after in ([["-q"], []], [[], ["-q"]], [[], ["--quiet"]], [["-q"], ["-q"]]):
        assert stderr(before, after) == ""
    assert "network evaluations" in stderr(["-q"], ["-v"])


def test_levels():
    logger = logging.getLogger("vidgen")
    for flags, level in ([], "INFO"), (["-v"], "DEBUG"), (["-q"], "WARNING"), (["-qq"], "ERROR"):
        run(*flags, "list")
        assert logging.getLevelName(logger.level) == level
    assert len({type(handler) for handler in logger.handlers}) == len(logger.handlers)  # one, however often


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A picture and a video of another origin, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16), (255, 0, 0)).save("red.png")
    Video(np.zeros((6, 16, 16, 3), np.uint8), 8.0).save("clip.mp4")
    return tmp_path


def test_given_pictures_reach_the_video(trained, files):
    """The whole way: the picture given as the first frame is the first frame."""
    Image.new("RGB", (16, 16), (200, 40, 40)).save("first.png")
    run("generate", trained / "run", "--steps", 1, "--image", "first.png", "--out", "v")
    frames = Video.load(files / "v").frames
    assert abs(frames[0].astype(int) - (200, 40, 40)).max() <= 1
    assert abs(frames[1].astype(int) - (200, 40, 40)).max() > 1


@pytest.mark.parametrize("module", ["vidgen", "vidgen.cli"])
def test_the_package_runs_as_a_program(module):
    command = [sys.executable, "-m", module, "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"vidgen {__version__}\n"


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
        (["train", "vdm", "--data", "no/such/folder", "--out", "x"], 2, "does not exist"),
        (["train", "vdm", "--data", __file__, "--out", "x"], 2, "is no folder"),
        (["train", "vdm", "--data", "no/such/folder", "--out", "x", "--dry-run"], 2, "does not exist"),
        (["train", "vdm", "--out", "x", "--dry-run", "--set", "steps=0"], 2, "training.steps is 0"),
        (["train", "vdm", "--out", Path(__file__).parent], 2, "holds no recipe.json"),
        (["models", "train", "shapes/vmd"], 2, "Did you mean 'shapes/vdm'"),
        (["models", "assess", "no/such/folder"], 2, "is no folder"),
        (["data", "make", "shapes", "x", "--count", "0"], 2, "num_videos=0"),
        (["data", "make", "shapes", "x", "--size", "0"], 2, "size"),
        (["data", "make", "shapes", "x", "--fps", "0"], 2, "--fps is 0.0"),
        (["data", "make", "shapes", "x", "--fps", "nan"], 2, "--fps is nan"),
        (["data", "make", "shapes", Path(__file__).parent], 2, "not an empty folder"),
        (["data", "make", "shapes", __file__], 2, "not an empty folder"),
        (["data", "index", __file__], 2, "is no folder"),
        (["info", "vdm/tinny"], 2, "Did you mean 'vdm/tiny'"),
        (["info", "shapes/vdm", "--recipe", "tiny"], 2, "is a checkpoint"),
        (["info", "shapes/vdm", "--set", "steps=3"], 2, "is a checkpoint"),
        (["info", "frame_codec"], 2, "unknown strategy"),
        (["data", "make", "shape", "x"], 2, "Did you mean 'shapes'"),
        (["data", "inspect", "no/such/folder"], 2, "does not exist"),
        (["generate", "no/such/folder"], 2, "does not exist"),
        (["generate", "shapes/unheard-of"], 2, "no bundled model is called 'shapes/unheard-of'"),
        (["generate", "shape/vmd"], 2, "did you mean 'shapes/vdm'"),
        (["generate", "."], 2, "is no checkpoint"),
        (["generate", "x", "--sheet", "a.txt"], 2, "expected a picture: .png"),
        (["generate", "x", "--out", "a.png", "--sheet", "a.png"], 2, "a.png would be written twice"),
        (["generate", "x", "--prompt-file", "none.txt"], 2, "--prompt-file none.txt cannot be read"),
        (["generate", "x", "--noise-prior", "{3"], 2, "which is no JSON"),
        (["eval", "nowhere"], 2, "needs a real set"),
        (["eval", "nowhere", "--metric", "flicker_pixels"], 2, "nowhere does not exist"),
        (["eval", "shapes", "--against", "nowhere"], 2, "nowhere does not exist"),
        (["info", "vmd"], 2, "Did you mean 'vdm'"),
        (["info", "vdm", "--set", "widht=3"], 2, "Did you mean 'width"),
        (["info", "vdm", "--set", "mask_past=.95"], 2, "mask_past=0.95, mask_random="),
        (["info", "vdm", "--num-frames", "0"], 2, "num_frames is 0"),
        (["info", "vdm", "--frames", "8"], 2, "No such option"),
        (["info", "vdm", "--recipe", "tinny"], 2, "Did you mean 'vdm/tiny'"),
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
    return Video(np.zeros((2, 16, 16, 3), np.uint8), 8.0).save(folder / "black.mp4")


def test_settings_that_belong_together_are_set_in_any_order():
    pairs = ["--set=text=open_clip", "--set=text_model=X", "--set=mask_random=.7", "--set=mask_past=.3"]
    for assignments in pairs, pairs[::-1]:
        model = json.loads(run("train", "vdm", "--out", "x", "--dry-run", *assignments).stdout)["model"]
        found = (model["text"], model["text_model"], model["mask_random"], model["mask_past"])
        assert found == ("open_clip", "X", 0.7, 0.3)


def test_what_the_system_refuses_is_one_line(trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    arguments = ["generate", trained / "run", "--steps", 1, "--out", tmp_path / "file" / "v.mp4"]
    stderr = run("-q", *arguments, code=1).stderr
    assert re.fullmatch(r"vidgen: .*v\.mp4 cannot be written: .*/file is a file.*Give out=.*\n", stderr)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "No space left on device (a/b)."),
        (OSError("the hub\nis away."), "the hub is away."),
        (TimeoutError(), "TimeoutError."),
    ],
)
def test_other_errors_of_the_system_are_one_line_and_verbose_a_traceback(monkeypatch, error, said):
    available = plugins.available

    def refuse(group):
        if group == plugins.COMMANDS:  # read before any command is run
            return available(group)
        raise error

    monkeypatch.setattr(plugins, "available", refuse)
    line = f"vidgen: the system reports: {said} Check that place; `vidgen -v` shows where it arose.\n"
    assert run("list", code=1).stderr == line
    verbose = run("-v", "list", code=1).stderr
    assert "Traceback" in verbose
    assert verbose.endswith(line)


def test_a_reader_that_has_enough_is_no_error():
    script = "import sys; from vidgen.cli import main; sys.argv[1:] = ['list', '--json']; main()"
    # `true` reads nothing, and is gone before the first line
    command = f'(sleep 1; exec {sys.executable} -c "{script}") | true'
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert found.stderr == ""


def test_interrupt_is_130(trained, monkeypatch):
    from vidgen.sampling import Sampler

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, "__call__", interrupt)
    assert "interrupted" in run("generate", trained / "run", code=130).stderr


def test_repositories_are_allowed_by_name(monkeypatch):
    asked = {}

    def load(source, **arguments):
        asked.update(arguments, source=source)
        raise CheckpointError("seen")

    monkeypatch.setattr("vidgen.sampling.load", load)
    run("generate", "ann/video", "a red circle", "--repository", "bob/codec", "--repository", "c/d", code=1)
    assert asked["repositories"] == ["bob/codec", "c/d"]
    run("generate", "ann/video", "a red circle", code=1)
    assert not asked["repositories"]
