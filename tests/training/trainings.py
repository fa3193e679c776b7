"""What the tests of training share: a recipe, clips that cost nothing, and how to read what a run left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from toy import Toy, ToyConfig, toy
from vidgen.recipe import Recipe, TrainingConfig
from vidgen.training import Trainer
from vidgen.video.dataset import ClipDataset, ClipSample, DataConfig

RECIPE = Recipe(
    strategy="toy",
    model=ToyConfig(),
    data=DataConfig.of("shapes", clip_length=4, size=16, videos=5, frames=8),
    training=TrainingConfig(
        steps=12,
        batch_size=4,
        learning_rate=1e-2,
        warmup_steps=2,
        ema_decay=0.9,
        checkpoint_every=5,
        log_every=3,
    ),
)


class Noise(ClipDataset):
    """Clips that cost nothing to read: noise, another one for every draw."""

    def __len__(self):
        return 5

    def read(self, index, draw):
        generator = torch.Generator().manual_seed(100 * index + draw)
        clip = torch.rand(3, 4, 16, 16, generator=generator) * 2 - 1
        return ClipSample(clip, f"clip {index}", -1, 8.0, index, draw, (0, 1, 2, 3))

    def content_key(self, index):
        return f"noise {index}"

    def texts(self):
        return [f"clip {index}" for index in range(5)]


def trainer(
    out: Path, strategy: Toy | None = None, *, data: ClipDataset | None = None, own: tuple = (), **changes
) -> Trainer:
    """Train the toy on noise, by the recipe with ``changes`` to its training; ``own`` are trackers."""
    recipe = replace(RECIPE, training=replace(RECIPE.training, **changes))
    return Trainer(
        recipe,
        out,
        dataset=data or Noise(),
        strategy=strategy or toy(),
        trackers=own,
        progress=False,
        device="cpu",
    )


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of the toy's network."""
    return load_file(checkpoint / "model" / "network" / "diffusion_pytorch_model.safetensors")


def raw(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of the trainer's state."""
    return load_file(checkpoint / "state" / "tensors.safetensors")


def log(out: Path) -> list[dict]:
    """The lines of the log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
