"""`vidgen eval`: from folders to numbers, files of scores, and comparisons that are refused."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fake_metrics import FrameExtractor, PixelExtractor, reader
from vidgen.cli import logs
from vidgen.cli.eval import eval_
from vidgen.cli.exits import exits
from vidgen.metrics import specs
from vidgen.metrics.evaluate import METRICS, Settings, evaluate
from vidgen.metrics.extractors import Preprocessing, TorchScriptExtractor
from vidgen.metrics.score import Score
from vidgen.metrics.sources import View
from vidgen.metrics.specs import KINDS
from vidgen.shapes.export import write_folder
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.video import VideoWriter

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command("eval")(exits(eval_))
app.callback()(logs.start)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_folder(ShapesDataset(12, num_frames=4, size=16, seed=1), root / "generated")
    write_folder(ShapesDataset(12, num_frames=4, size=16), root / "real")
    return root


@pytest.fixture(autouse=True)
def fakes(monkeypatch, tmp_path):
    """The extractor `shapes` and the judge are functions of pixels."""
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))
    known = {"shapes": PixelExtractor(), "shapes_frames": FrameExtractor("frames")}
    kinds = {name: ((), False, lambda _, built=built: built) for name, built in known.items()}
    kinds["scaled"] = (("scale",), False, lambda _, scale: PixelExtractor(scale=float(scale)))
    monkeypatch.setattr(specs, "KINDS", specs.KINDS | kinds)
    monkeypatch.setattr(specs, "shapes_judge", lambda device: reader())


def test_scores_of_two_folders(folders):
    result = run("eval", folders / "generated", "--against", folders / "real", "--num-frames", 4)
    expected = evaluate(
        folders / "generated",
        folders / "real",
        extractors=[PixelExtractor()],
        settings=Settings(view=View(num_frames=4)),
    )
    assert result.stdout == "\n".join(str(score) for score in expected) + "\n"
    assert result.stdout.startswith("fvd_pixels ")
    assert "kvd_pixels" in result.stdout
    assert "scoring generated" in result.stderr
    quiet = run("eval", folders / "generated", "--against", folders / "real", "--num-frames", 4, "-q")
    assert "scoring" not in quiet.stderr


def test_scores_as_json_and_in_a_file(folders, tmp_path):
    out = tmp_path / "deep" / "scores.json"
    given = [
        "--metric",
        "psnr",
        "--metric",
        "prompt-accuracy",
        "--num-frames",
        4,
        "--against",
        folders / "real",
    ]
    result = run("eval", folders / "real", *given, "--json", "--out", out)
    printed = json.loads(result.stdout)
    assert printed == json.loads(out.read_text())
    scores = [Score.from_json(row) for row in printed["scores"]]
    assert [score.key for score in scores][:2] == ["psnr", "prompt_shape_fake"]
    assert scores[0].value == float("inf")
    assert list(out.parent.iterdir()) == [out]


def test_every_option_reaches_the_evaluation(folders, tmp_path):
    result = run(
        "eval",
        folders / "generated",
        *("--against", folders / "real", "--metric", "kvd", "--metric", "b_fvd", "--metric", "is"),
        *("--num-frames", 2, "--stride", 2, "--size", "8x12", "--crop", "none", "--videos", 11),
        *(
            "--seed",
            3,
            "--block",
            1,
            "--splits",
            2,
            "--batch-size",
            5,
            "--extractor",
            "scaled,scale=2",
            "--json",
        ),
    )
    kvd, blocks, inception = (Score.from_json(row) for row in json.loads(result.stdout)["scores"])
    fields = {"frames": 2, "stride": 2, "size": [8, 12], "crop": "none", "fps": None, "seed": 3, "num_real": 11}
    assert fields.items() <= kvd.protocol.to_json().items()
    assert kvd.protocol["extractor"]["scale"] == 2
    assert blocks.key == "b_fvd_1_pixels"
    assert inception.protocol["splits"] == 2
    result = run(
        "eval",
        folders / "generated",
        *("--metric", "flicker_pixels", "--fps", 8, "--num-frames", 3, "--captions", "none", "--json"),
    )
    assert json.loads(result.stdout)["scores"][0]["protocol"]["fps"] == 8


def test_metrics_of_frames_have_their_own_default_extractor(folders):
    given = ["--against", folders / "real", "--num-frames", 4, "-q"]
    result = run("eval", folders / "generated", "--metric", "avg_fid", "--metric", "fvd", *given)
    assert "avg_fid_frames" in result.stdout
    assert "fvd_pixels" in result.stdout


def test_stored_statistics(folders, tmp_path):
    given = ["--metric", "fvd", "--num-frames", 4, "--json", "-q"]
    file = tmp_path / "real.safetensors"
    direct = run(
        "eval", folders / "generated", "--against", folders / "real", "--save-statistics", file, *given
    )
    stored = run("eval", folders / "generated", "--against", file, *given)
    one, other = (json.loads(result.stdout)["scores"][0] for result in (direct, stored))
    assert one["fingerprint"] == other["fingerprint"]
    assert one["value"] == pytest.approx(other["value"])
    given[3] = 3
    refused = run("eval", folders / "generated", "--against", file, *given, code=2)
    assert "frames: 3 against 4" in refused.stderr


def test_comparison_with_another_run(folders, tmp_path):
    out = tmp_path / "scores.json"
    given = ["--against", folders / "real", "--num-frames", 4, "-q"]
    run("eval", folders / "generated", *given, "--out", out)
    again = run("eval", folders / "generated", *given, "--compare", out)
    assert "fvd_pixels +0 against" in again.stdout
    assert ": equal" in again.stdout
    better = run("eval", folders / "real", *given, "--metric", "fvd", "--compare", out, "--json")
    assert "fvd_pixels -" in better.stderr  # stdout is JSON alone
    assert ": better" in better.stderr
    assert json.loads(better.stdout)["format"] == 1
    psnr = ["--metric", "psnr"]
    run("eval", folders / "real", *given, *psnr, "--out", out)
    assert ": worse" in run("eval", folders / "generated", *given, *psnr, "--compare", out).stdout


def test_two_perfect_scores_are_equal(folders, tmp_path):
    given = [
        "eval",
        folders / "real",
        "--against",
        folders / "real",
        "--num-frames",
        4,
        "--metric",
        "psnr",
        "-q",
    ]
    run(*given, "--out", tmp_path / "scores.json")
    assert "psnr +0 against" in run(*given, "--compare", tmp_path / "scores.json").stdout


def test_the_best_of_several_futures(folders, tmp_path):
    for video in sorted((folders / "real").glob("*.mp4"))[:2]:
        (tmp_path / "real").mkdir(exist_ok=True)
        shutil.copy(video, tmp_path / "real")
        (tmp_path / "futures" / video.stem).mkdir(parents=True)
        shutil.copy(video, tmp_path / "futures" / video.stem / "0.mp4")
        shutil.copy(folders / "generated" / "00000.mp4", tmp_path / "futures" / video.stem / "1.mp4")
    given = [
        "eval",
        tmp_path / "futures",
        "--against",
        tmp_path / "real",
        "--num-frames",
        4,
        "--metric",
        "psnr",
    ]
    result = run(*given, "--best-of", 2, "--json")
    (score,) = (Score.from_json(row) for row in json.loads(result.stdout)["scores"])
    assert (score.key, score.value) == ("psnr_best_of_2", float("inf"))
    assert score.protocol["best_of"] == 2
    assert "cannot be paired" in run(*given, code=2).stderr


def test_seams(folders):
    given = ["eval", folders / "generated", "--metric", "seam-discontinuity", "--num-frames", 4]
    result = run(*given, "--seams", "1,2", "--json")
    assert json.loads(result.stdout)["scores"][0]["protocol"]["seams"] == [1, 2]
    assert "--seams 16,32" in run(*given, code=2).stderr
    assert "--seams was given '1;2'" in run(*given, "--seams", "1;2", code=2).stderr
    assert "got seam 4" in run(*given, "--seams", "4", code=2).stderr


def test_the_real_videos_are_the_goal_of_motion(folders, tmp_path):
    out = tmp_path / "scores.json"
    given = ["--metric", "motion_decay", "--metric", "position_spread", "--num-frames", 4, "-q"]
    real = ["--against", folders / "real"]
    run("eval", folders / "generated", *real, *given, "--out", out)
    itself = run("eval", folders / "real", *real, *given, "--compare", out).stdout
    assert itself.count(": better (nearest to ") == 2
    assert "better (nearest to 1 is best)" in itself
    run("eval", folders / "real", *real, *given, "--out", out)
    other = run("eval", folders / "generated", *real, *given, "--compare", out).stdout
    assert other.count(": worse (nearest to ") == 2
    run("eval", folders / "real", *given[:2], *given[4:], "--out", out)
    alone = run("eval", folders / "generated", *given[:2], *given[4:], "--compare", out).stdout
    assert ": different, and only real videos (--against) would say which is better" in alone


def test_videos_of_another_rate_are_not_compared(tmp_path):
    for fps in (8, 24):
        write_folder(ShapesDataset(2, num_frames=4, size=16), tmp_path / str(fps), fps=fps)
    given = ["--metric", "flicker_pixels", "--num-frames", 4, "-q"]
    run("eval", tmp_path / "8", *given, "--out", tmp_path / "scores.json")
    refused = run("eval", tmp_path / "24", *given, "--compare", tmp_path / "scores.json", code=2)
    assert "rates: [24] against [8]" in refused.stderr


def test_an_unusable_place_for_scores_is_refused_before_any_work(folders, tmp_path):
    given = ["eval", folders / "none", "--metric", "is"]
    assert "expected a file" in run(*given, "--out", tmp_path, code=2).stderr
    (tmp_path / "file").touch()
    assert "does not exist" not in run(*given, "--out", tmp_path / "file" / "s.json", code=1).stderr
    statistics = ["--save-statistics", tmp_path / "file" / "s.safetensors", "--metric", "fvd"]
    assert "does not exist" not in run(*given, "--against", folders / "none", *statistics, code=1).stderr


def test_scores_are_printed_though_they_cannot_be_written(folders, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("vidgen.config.write_json", full)
    given = ["--metric", "is", "--splits", 1, "--num-frames", 4, "--out", tmp_path / "s.json", "-q"]
    result = run("eval", folders / "generated", *given, code=1)
    assert "is_pixels" in result.stdout
    assert "No space left" in result.stderr


def test_unequal_protocols_are_not_compared(folders, tmp_path):
    out = tmp_path / "scores.json"
    given = ["--against", folders / "real", "--metric", "fvd", "-q"]
    run("eval", folders / "generated", *given, "--num-frames", 4, "--out", out)
    for changed, said in (
        (["--num-frames", 3], "frames: 3 against 4"),
        (["--num-frames", 4, "--size", 8], "size"),
        (["--num-frames", 4, "--extractor", "scaled,scale=2"], "extractor.scale: 2 against 1"),
        (["--num-frames", 4, "--videos", 9], "num_real: 9 against 12"),
    ):
        result = run("eval", folders / "generated", *given, *changed, "--compare", out, code=2)
        assert said in result.stderr
        assert "fvd_pixels" in result.stdout  # what was measured is not lost
    none = run(
        "eval", folders / "generated", "--metric", "is", "--num-frames", 4, "--compare", out, "-q", code=2
    )
    assert "ask for the same metrics" in none.stderr


def test_unreadable_scores_are_refused_before_any_work(folders, tmp_path):
    for text in ("{", "[]", '{"format": 9, "scores": []}', '{"format": 1, "scores": [{}]}'):
        (tmp_path / "scores.json").write_text(text)
        result = run("eval", folders / "none", "--compare", tmp_path / "scores.json", code=2)
        assert "scores.json holds no scores" in result.stderr
    run("eval", folders / "none", "--compare", tmp_path / "missing.json", code=2)


def test_unusable_sets_end_in_one_line(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for name, size in (("a", 16), ("b", 32)):
        with VideoWriter(tmp_path / "mixed" / f"{name}.mp4", 8.0) as writer:
            writer.extend(np.zeros((4, size, size, 3), np.uint8))
    for arguments, code, said in (
        ([tmp_path / "empty", "--against", folders / "real"], 1, "holds no video"),
        ([folders / "real", "--against", tmp_path / "none", "--num-frames", 4], 2, "does not exist"),
        ([tmp_path / "mixed", "--against", folders / "real", "--num-frames", 4], 2, "2 sizes"),
        ([folders / "generated", "--against", folders / "real"], 1, "shorter than 16 frames"),
        (
            [folders / "generated", "--num-frames", 4],
            2,
            "'fvd' needs a real set to compare with: give `real` (--against",
        ),
        ([folders / "generated", "--metric", "fvdd"], 2, "Did you mean 'fvd'"),
        ([folders / "generated", "--metric", "lpips", "--against", folders / "real"], 2, "(--lpips FILE)"),
        ([folders / "generated", "--size", "big"], 2, "--size was given 'big'"),
        ([folders / "generated", "--extractor", "c3d:file"], 2, "unknown extractor 'c3d'"),
        ([folders / "generated", "--device", "cuda:99"], 2, "cuda:99"),
    ):
        result = run("eval", *arguments, code=code)
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("vidgen: ")]
        assert said in line


def test_the_help_names_metrics_that_there_are():
    text = " ".join(run("eval", "--help").stdout.split())
    assert "statistics that --save-statistics wrote" in text
    assert {"fvd", "kvd", "prompt_accuracy"} <= set(METRICS)
    parameters = inspect.signature(Settings).parameters
    assert {"splits", "block", "seed"} <= set(parameters)


def test_the_documentation_has_the_options_that_there_are():
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    known = set(re.findall(r"--[a-z-]+", run("eval", "--help").stdout))
    assert set(re.findall(r"`?(--[a-z][a-z-]+)", text)) <= known
    commands = [line for line in text.splitlines() if line.startswith("vidgen eval")]
    named = re.findall(r"--metric ([a-z_]+)", " ".join(commands))
    assert len(commands) > 5
    assert set(named) <= set(METRICS)


def test_the_declaration_in_the_documentation_is_one():
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    fields = json.loads(block)
    pixels = fields.pop("preprocessing")
    Preprocessing(**{name: tuple(v) if isinstance(v, list) else v for name, v in pixels.items()})
    assert fields.keys() <= inspect.signature(TorchScriptExtractor).parameters.keys()
    kinds = {
        spec.partition(":")[0] for spec in re.findall(r"^\| `([a-z0-9_]+(?::[A-Z]+)?)` \|", text, re.MULTILINE)
    }
    assert set(KINDS) <= kinds


def test_importing_the_command_loads_no_torch():
    code = "import sys, vidgen.cli.eval; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_that_is_read_is_written(folders, tmp_path):
    given = ["eval", folders / "generated", "--num-frames", 4, "--metric", "flicker_pixels"]
    video = folders / "generated" / "00000.mp4"
    (tmp_path / "text.safetensors").write_text("no statistics")
    (tmp_path / "scores.json").write_text(run(*given, "--json").stdout)
    files = {path: path.read_bytes() for path in (video, *tmp_path.glob("*.*"))}
    real = ["--against", folders / "real", "--metric", "fvd"]
    for arguments, said in (
        (["--out", video], "exists and holds no scores"),
        (["--compare", tmp_path / "scores.json", "--out", tmp_path / "scores.json"], "was given as an input"),
        ([*real, "--save-statistics", tmp_path / "text.safetensors"], "exists and holds no statistics"),
    ):
        assert said in run(*given, *arguments, code=2).stderr
    assert {path: path.read_bytes() for path in files} == files


def test_messages_name_the_flags_and_short_videos_are_skipped(folders, tmp_path):
    shutil.copytree(folders / "real", tmp_path / "mixed")
    write_folder(ShapesDataset(2, num_frames=2, size=16, seed=7), tmp_path / "short")
    for i, path in enumerate(sorted((tmp_path / "short").glob("*.mp4"))):
        shutil.copy(path, tmp_path / "mixed" / f"short-{i}.mp4")
    given = ["eval", tmp_path / "mixed", "--num-frames", 4, "--metric", "flicker_pixels", "--captions", "none"]
    assert "(--num-frames), leave these out (--skip-short)" in run(*given, code=1).stderr
    result = run(*given, "--skip-short", "--json")
    assert "2 of 14 videos" in result.stderr
    score = Score.from_json(json.loads(result.stdout)["scores"][0])
    whole = run("eval", folders / "real", *given[2:], "--json")
    assert score == Score.from_json(json.loads(whole.stdout)["scores"][0])
    assert score.num_generated == 12
    write_folder(ShapesDataset(2, num_frames=4, size=32, seed=7), tmp_path / "large")
    shutil.copy(tmp_path / "large" / "00000.mp4", tmp_path / "mixed" / "large.mp4")
    assert "such as --size 64" in run(*given, "--skip-short", code=2).stderr
    run(*given, "--skip-short", "--size", 16)
