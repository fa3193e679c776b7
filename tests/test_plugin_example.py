"""The plug-in of the examples: fifty lines, installed by pip, used from Python and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"
SMALL = ["width=8", "window=4", "clip_length=8", "size=16", "videos=8"]
SHORT = ["steps=30", "batch_size=4", "warmup_steps=2", "log_every=10"]

# What a user's own script would do: one process, since importing torch takes seconds.
SCRIPT = """
import json, sys
from dataclasses import replace
import vidgen
from vidgen import cli
from vidgen.testing import check_strategy
from vidgen.video import Video
from vidgen_relay import Relay, RelayConfig, tiny

def command(*arguments):
    sys.argv = ["vidgen", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, end.code

config = replace(tiny().model, width=8, window=4, sample_frames=8, sample_size=(16, 16))
report = check_strategy("relay", config)
sampler = vidgen.load("run", device="cpu")
words = sampler.strategy.config.words
print("words", *words)
command("info", "relay", "--set", "width=8", "--num-frames", "40", "--json")
command("generate", "run", words[0], "--num-frames", "18", "--steps", "2", "--seed", "3", "--out", "long")
made = Video.load("long").frames
again = sampler(words[0], num_frames=18, num_inference_steps=2, seed=3).videos[0].frames
found = {
    "class": [type(sampler.strategy).__name__, type(sampler.strategy).__module__],
    "config": [type(sampler.strategy.config) is RelayConfig, type(sampler.strategy) is Relay],
    "shape": made.shape,
    "apart": int(abs(made.astype(int) - again.astype(int)).max()),
    "plan": [[call.frames, [frame for _, frame in call.given]] for call in sampler.strategy.plan(18).calls],
    "checks": {check.name: check.outcome for check in report.checks},
}
open("found.json", "w").write(json.dumps(found))
"""


def run(arguments, folder, site):
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with nothing but the plug-in, as pip installs it."""
    target = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    run([sys.executable, "-m", "pip", "install", *options, "--target", target, PLUGIN], target, target)
    return target


@pytest.fixture(scope="module")
def trained(site, tmp_path_factory):
    """A folder with a run of a few steps, by the command line."""
    folder = tmp_path_factory.mktemp("plugin")
    changes = [f"--set={change}" for change in (*SMALL, *SHORT)]
    train = ["train", "relay", "--recipe", "relay/tiny", "--out", "run", "--device", "cpu", *changes]
    output = run([sys.executable, "-m", "vidgen.cli", *train], folder, site)
    assert "relay by the recipe relay/tiny" in output
    return folder


def test_it_takes_fifty_lines():
    (module,) = PLUGIN.glob("*.py")
    lines = [line for line in module.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 112  # they are lines, not paragraphs


def test_installed_it_is_listed_by_name_and_distribution(site):
    found = json.loads(run([sys.executable, "-m", "vidgen.cli", "list", "--json"], site, site))
    assert found["strategies"]["relay"] == "vidgen-relay"
    assert found["recipes"]["relay/tiny"] == "vidgen-relay"
    assert found["strategies"]["vdm"] == "vidgen"


def test_trained_sampled_and_checked(site, trained):
    losses = [json.loads(line)["loss"] for line in (trained / "run" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]
    output = run([sys.executable, "-c", SCRIPT], trained, site)
    found = json.loads((trained / "found.json").read_text())
    assert found["class"] == ["Relay", "vidgen_relay"]
    assert found["config"] == [True, True]
    assert found["shape"] == [18, 16, 16, 3]  # longer than a clip, on the command line
    assert found["apart"] <= 1  # and the same from Python
    assert found["plan"][:3] == [[[0, 1, 2, 3], []], [[0, 3, 4, 5], [0, 3]], [[0, 5, 6, 7], [0, 5]]]
    assert set(found["checks"].values()) == {"passed"}
    assert len(found["checks"]) > 20
    assert '"calls": 7' in output  # vidgen info: 40 frames, a beginning of 8 and six new ones a call
    assert "circle" in output
