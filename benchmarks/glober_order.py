"""Whether GLOBER's discriminator learns the order of frames (CRA loss, swapped pairs are fakes).

Run ``python benchmarks/glober_order.py --out benchmarks/results/glober_order.json``. Fresh discriminators of
the bundled model's size learn from real pairs and from the trained decoder's estimates at any noise, swapped
pairs among the fakes as the paper has it: one on clips that all move right, one on all clips. On unseen clips
of the same kinds, the share of swapped pairs that is scored below the pair in order. All clips together look
alike backwards, so there 50% is all that can be had. The decoder stays as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import glober_measures as measures
import record
import torch
from torch import Tensor

from vidgen.checkpoint import load_strategy
from vidgen.strategies.glober import GLOBER
from vidgen.strategies.glober.cra import (
    DISCRIMINATOR_FAKE,
    discriminator_loss,
    discriminator_pairs,
    judge,
    pair_weights,
    timestep_gate,
)
from vidgen.strategies.glober.stages import AutoencoderStage
from vidgen.trainable import TrainingStep
from vidgen.video.dataset import ClipBatch, DataConfig, collate, open_dataset

BATCH = 16
UNSEEN = 64


def clips_of(strategy: GLOBER, number: int, direction: str | None) -> ClipBatch:
    """Latents of so many clips, of those that move in ``direction`` where one is given."""
    frames, size = strategy.config.sample_frames, strategy.config.sample_size[0]
    data: Any = open_dataset(
        DataConfig.of("shapes", clip_length=frames, frames=frames, size=size, videos=40 * number)
    )
    chosen = [i for i in range(len(data)) if direction is None or direction in data.source.caption(i).split()]
    batch = collate([data[i] for i in chosen[:number]])
    with torch.no_grad():
        parts = [strategy.codec.encode(part.to(strategy.device)).cpu() for part in batch.clip.split(BATCH)]
    return replace(batch, latents=torch.cat(parts))


def pairs(strategy: GLOBER, clips: ClipBatch, seed: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two frames of each clip, the decoder's estimates of them, and their gates."""
    with torch.no_grad():
        step = TrainingStep(seed, "autoencoder", 0, tuple(range(len(rows))))
        stage = AutoencoderStage(strategy, strategy.config)
        example = stage.example(clips.select(rows.tolist()), step)
        found, process = stage.denoised(example, step), stage.level.process
        estimate = process.clean_estimate(found.prediction, found.x_t, found.t)
    return example.clean, estimate, timestep_gate(process, found.t, strategy.config.cra_gate)


def batches(strategy: GLOBER, clips: ClipBatch, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        rows = torch.randint(len(clips), (BATCH,), generator=generator)
        yield pairs(strategy, clips, step, rows)


def scored_lower(strategy: GLOBER, direction: str | None, steps: int, clips: int, rate: float) -> float:
    """Train a discriminator; return the share of swapped pairs, of unseen clips, that it scores lower."""
    given = clips_of(strategy, clips + UNSEEN, direction)
    seen = given.select(range(clips))
    torch.manual_seed(0)
    network = strategy.config.build_discriminator(strategy.codec)
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    for clean, estimate, gates in batches(strategy, seen, steps):
        real, fake = discriminator_pairs(clean, estimate, DISCRIMINATOR_FAKE)
        logits = judge(network, torch.cat([real, fake]))
        weights = pair_weights(gates, DISCRIMINATOR_FAKE) / len(DISCRIMINATOR_FAKE)
        discriminator_loss(logits[:1], logits[1:], fake_weights=weights).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    rows = torch.arange(clips, clips + UNSEEN)
    clean, _, _ = pairs(strategy, given, steps, rows)
    with torch.no_grad():
        return measures.lower(network(clean.flip(2)), network(clean))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON record goes; else printed")
    parser.add_argument("--model", default="shapes/glober", help="bundled name, folder or training run")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    strategy: Any = load_strategy(args.model, device="cpu")
    settings = {name: getattr(args, name) for name in ("model", "steps", "clips", "rate")}
    head = record.header("glober_order", record.cpu(), "float32", batch=BATCH, unseen=UNSEEN, **settings)
    shares = {
        name: scored_lower(strategy, word, args.steps, args.clips, args.rate)
        for name, word in (("all_move_right", "right"), ("all_clips", None))
    }
    record.write({**head, "swapped_scored_lower": shares}, args.out)


if __name__ == "__main__":
    main()
