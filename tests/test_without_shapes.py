"""Deleting the toy world and its entry points leaves a library that works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from vidgen.video import Video

ROOT = Path(__file__).parents[1]
TOY = "vidgen.shapes"

IMPORT_ALL = """
import importlib, json, pkgutil, vidgen
failed = {}
for found in pkgutil.walk_packages(vidgen.__path__, "vidgen.", onerror=lambda name: None):
    if not found.name.endswith("__main__"):
        try:
            importlib.import_module(found.name)
        except ImportError as error:
            failed[found.name] = error.name
print(json.dumps([vidgen.__file__, failed]))
"""

SETTINGS = [
    "steps=1",
    "batch_size=2",
    "warmup_steps=0",
    "clip_length=4",
    "size=16",
    "widths=[8,16]",
    "head_dim=8",
    "context=2",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The library without the toy world, with the metadata that it would then be installed with."""
    root = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("shapes", "__pycache__")
    shutil.copytree(
        ROOT / "src" / "vidgen",
        root / "vidgen",
        ignore=lambda folder, names: (
            ignored(folder, names) if Path(folder).name == "vidgen" else {"__pycache__"} & set(names)
        ),
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = []
    for group, points in project["entry-points"].items():
        lines.append(f"[{group}]")
        lines += [f"{name} = {value}" for name, value in points.items() if not value.startswith(TOY)]
    info = root / f"vidgen-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vidgen\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return root


def run(site, *arguments, code=0):
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=site, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if not code else done.stderr


def test_everything_imports(site):
    file, failed = json.loads(run(site, "-c", IMPORT_ALL).splitlines()[-1])
    assert Path(file) == site / "vidgen" / "__init__.py"
    # The metrics that the toy world's classifier judges still import it; nothing else may.
    assert {name.split(".")[1] for name in failed} <= {"metrics"}, failed
    assert {name.rpartition(".")[0] if name != TOY else name for name in failed.values()} <= {TOY, "vidgen"}


def test_help_and_list_know_no_shapes(site):
    help_ = run(site, "-m", "vidgen", "--help")
    commands = {line.split()[0] for line in help_.partition("Commands:")[2].splitlines() if line.strip()}
    assert {"train", "generate", "info", "list", "eval", "data"} <= commands
    assert "models" not in commands
    found = json.loads(run(site, "-m", "vidgen", "list", "--json"))
    assert {"glober", "ldm", "vdm"} <= set(found["strategies"])
    assert found["models"] == found["datasets"] == {}
    assert not [name for name in found["recipes"] if name.startswith("shapes/")]


def test_it_trains_on_a_folder_and_generates(site):
    (site / "clips").mkdir()
    for seed in range(2):
        frames = np.random.default_rng(seed).integers(0, 255, (6, 16, 16, 3), np.uint8)
        Video(frames, 8.0).save(site / "clips" / f"{seed}.mp4")
        (site / "clips" / f"{seed}.txt").write_text(f"noise {seed}")
    settings = [f"--set={setting}" for setting in SETTINGS]
    train = ["-m", "vidgen", "train", "vdm", "--out", "run", "--device", "cpu", *settings]
    # Without data, the recipe's is asked for, and is not there.
    message = run(site, *train, code=2)
    assert "shapes was given as data and does not exist; expected a folder of videos." in message
    run(site, *train, "--data", "clips")
    run(site, "-m", "vidgen", "generate", "run", "noise 1", "--steps", "1", "--out", "made.mp4")
    assert Video.load(site / "made.mp4").num_frames == 4
