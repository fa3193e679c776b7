"""The README's Python blocks run as they stand, on a small model; what it points to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from vidgen import checkpoint
from vidgen.shapes.export import write_folder
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.strategies.vdm import VDM, VDMConfig
from vidgen.video import Video

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model in runs/mine and clips in ~/clips."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = VDMConfig(
        sample_frames=8,
        sample_size=(16, 16),
        words=("a", "circle", "left", "moves", "red", "up"),
        widths=(16, 16),
        head_dim=16,
        text_width=16,
        text_layers=1,
        num_inference_steps=2,
    )
    checkpoint.save_strategy(checkpoint.build(VDM, config), tmp_path / "runs" / "mine")
    write_folder(ShapesDataset(2, num_frames=20), tmp_path / "clips")
    return tmp_path


def test_sampling_block(place):
    picture = np.zeros((16, 16, 3), np.uint8)
    code = BLOCKS[0].replace("10_000", "40")
    clip = np.zeros((8, 16, 16, 3), np.uint8)
    scope = {"first": picture, "last": picture, "clip": clip, "mask": [frame > 3 for frame in range(8)]}
    exec(compile(code, "README", "exec"), scope)
    assert scope["result"].frames.shape == (4, 64, 16, 16, 3)
    assert Video.load(place / "circle.mp4").num_frames == 64
    assert Video.load(place / "long.mp4").num_frames == 40


def test_training_block(place):
    code = BLOCKS[1].replace("steps=5000", "steps=1, batch_size=1").replace("runs/mine", "runs/other")
    exec(compile(code, "README", "exec"), {})
    assert checkpoint.find_checkpoint("runs/other").is_dir()


def test_files_that_it_points_to_are_there():
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert len(targets) > 5
    assert [target for target in targets if not (ROOT / target).exists()] == []


def commands(text: str) -> list[list[str]]:
    """The commands that make videos with the bundled video model, word by word."""
    lines = text.replace("\\\n", " ").replace("$(BIN)/", "").splitlines()
    return [shlex.split(line) for line in lines if line.strip().startswith("vidgen generate shapes/vdm")]


def test_pictures_are_made_by_the_commands_shown_which_are_those_of_the_demo():
    shown, demo = commands(README), commands((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(shown) == 2
    assert shown == demo[1:]  # after the first video, which comes at once
