"""A package that is merely there, by its metadata, adds data, a codec, a network and commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MODULE = """
from dataclasses import dataclass

import torch
import typer
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from vidgen.codecs import FrameCodec
from vidgen.networks import ClipDenoiser
from vidgen.strategies.vdm import VDM
from vidgen.video.dataset import ClipDataset, ClipSample, DataSource


@dataclass(frozen=True)
class GreyOptions:
    videos: int = 3
    level: float = 0.25


class Greys(ClipDataset):
    def __init__(self, config):
        super().__init__()
        self.config = config

    def __len__(self):
        return self.config.options.videos

    def read(self, index, draw):
        frames = tuple(range(self.config.clip_length))
        clip = torch.full((3, len(frames), self.config.size, self.config.size), self.config.options.level)
        clip[:, :, : index + 1] = -1
        return ClipSample(clip, f"grey {index}", -1, 8.0, index, draw, frames)

    def content_key(self, index):
        return f"grey {index}"

    def texts(self):
        return [f"grey {index}" for index in range(len(self))]


class Grey(DataSource):
    Options = GreyOptions

    @classmethod
    def open(cls, config, *, progress=True):
        return Greys(config)


class Negative(FrameCodec, ModelMixin, ConfigMixin):
    channels, space_factor = 3, 1

    @register_to_config
    def __init__(self, scale=2.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(scale))

    def encode_frames(self, frames):
        return -frames * self.factor

    def decode_frames(self, latents):
        return -latents / self.factor


class Point(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, channels=3):
        super().__init__()
        self.conv = torch.nn.Conv3d(channels, channels, 1)

    def forward(self, x):
        return self.conv(x)


class Pointwise(ClipDenoiser):
    part_types = {"point": Point}

    def __init__(self, point):
        super().__init__()
        self.point = point

    @classmethod
    def create(cls, channels, size, token_width):
        return cls(Point(channels))

    def forward(self, x_t, t, tokens=None, known=None, clean=None):
        return self.point(x_t)


class Borrower(VDM):
    name = "borrower"
    component_types = {**VDM.component_types, "network": (ClipDenoiser,)}


commands = typer.Typer(help="What the package says.")


@commands.command()
def hello() -> None:
    typer.echo("hello from the package")
"""

GROUPS = {
    "datasets": "greys = theirs:Grey",
    "codecs": "Negative = theirs:Negative",
    "networks": "pointwise = theirs:Pointwise",
    "strategies": "borrower = theirs:Borrower",
    "commands": "theirs = theirs:commands\ntrain = theirs:commands",
}

CODEC = """
import json, sys, torch, theirs, vidgen
from vidgen.codecs import load_codec
theirs.Negative(4.0).save_pretrained("negative")
codec = load_codec("negative")
print(json.dumps([type(codec).__name__, float(codec.factor)]))
"""

NETWORK = """
import json, torch, theirs, vidgen
from vidgen import checkpoint, config, plugins
from vidgen.networks import network_class

base = vidgen.load("run", device="cpu").strategy
torch.manual_seed(1)
network = network_class("pointwise").create(3, 16, 8)
made = theirs.Borrower(base.config, {**base.modules, "network": network}, base.scheduler)
checkpoint.save_strategy(made, "borrowed")
again = vidgen.load("borrowed", device="cpu").strategy
x = torch.randn(1, 3, 2, 4, 4)
print(json.dumps({
    "codec": [type(base.codec).__name__, float(base.codec.factor)],
    "words": list(base.config.words),
    "network": type(again.modules["network"]).__name__,
    "equal": torch.equal(again.modules["network"](x, 0), network(x, 0)),
    "registered": plugins.load(plugins.NETWORKS, "pointwise") is theirs.Pointwise,
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the package and its metadata, as pip leaves them; the commands run in it."""
    root = tmp_path_factory.mktemp("site")
    (root / "theirs.py").write_text(MODULE)
    info = root / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    text = "\n".join(f"[vidgen.{group}]\n{line}\n" for group, line in GROUPS.items())
    (info / "entry_points.txt").write_text(text)
    return root


def run(folder, *arguments, code=0):
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def vidgen(folder, *arguments, code=0):
    return run(folder, "-m", "vidgen", *arguments, code=code)


def told(output):
    """What a script printed as JSON; warnings stand around it."""
    (line,) = [line for line in output.splitlines() if line.startswith(("{", "["))]
    return json.loads(line)


def test_names_are_listed_with_their_package(folder):
    found = json.loads(vidgen(folder, "list", "--json"))
    assert found["datasets"]["greys"] == found["networks"]["pointwise"] == "theirs"
    assert found["networks"]["vdm"] == "vidgen"


def test_help_names_added_commands_and_imports_no_package(folder):
    code = (
        "import sys; sys.argv = ['vidgen', '--help']\nfrom vidgen.cli import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        "assert not {'theirs', 'vidgen.shapes', 'torch'} & set(sys.modules)"
    )
    assert "theirs    Commands of the package theirs." in run(folder, "-c", code)


def test_added_commands_run_and_replace_none(folder):
    assert "hello from the package" in vidgen(folder, "theirs", "hello")
    assert "What the package says." in vidgen(folder, "theirs", "--help")
    assert "Train a strategy by a recipe" in vidgen(folder, "train", "--help")


def test_data_by_name_has_its_own_options(folder):
    facts = json.loads(vidgen(folder, "data", "inspect", "greys"))
    assert facts["items"] == 3
    message = vidgen(folder, "data", "make", "greys", "out", code=2)
    assert "the dataset 'greys' cannot be written as files" in message
    tiny = ["train", "vdm", "--recipe", "tiny", "--data", "greys", "--out", "none", "--dry-run"]
    resolved = json.loads(vidgen(folder, *tiny, "--set=data.level=0.5", "--set=videos=5"))
    assert resolved["data"]["path"] == "greys"
    assert resolved["data"]["options"] == {"videos": 5, "level": 0.5}
    assert resolved["model"]["words"] == ["0", "1", "2", "3", "4", "grey"]
    assert "unknown field 'hold_out'" in vidgen(folder, *tiny, "--set=hold_out=0.1", code=2)


def test_codec_and_network_are_loaded_from_checkpoints_by_their_classes(folder):
    assert told(run(folder, "-c", CODEC)) == ["Negative", 4.0]
    settings = ["codec=negative", "prediction_type=epsilon", "widths=[8,16]", "head_dim=8", "steps=1"]
    settings += ["clip_length=2", "context=1", "batch_size=2", "warmup_steps=0", "text_width=8", "size=16"]
    train = ["train", "vdm", "--recipe", "tiny", "--data", "greys", "--out", "run", "--device", "cpu"]
    vidgen(folder, *train, *(f"--set={setting}" for setting in settings))
    assert told(run(folder, "-c", NETWORK)) == {
        "codec": ["Negative", 4.0],
        "words": ["0", "1", "2", "grey"],
        "network": "Pointwise",
        "equal": True,
        "registered": True,
    }
