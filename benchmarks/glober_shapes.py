"""Whether a trained GLOBER works as its paper says: measured on test videos of the shapes data.

Run ``python benchmarks/glober_shapes.py --out benchmarks/results/glober_shapes.json``. Reconstruction at
indices that training saw and between them; whether the video comes from ``v`` or from the prompt; whether
the discriminator knows the order of frames; and the guidance of frames and of ``v`` (the paper's tables 7
and 8).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import glober_measures as measures
import record
import torch

from vidgen.checkpoint import load_strategy
from vidgen.classifier import load_classifier
from vidgen.metrics.prompts import prompt_set
from vidgen.sampling import Sampler
from vidgen.weights import weight_hash


def of_frames(
    strategy: Any, judge: Any, given: measures.Clips, steps: int, scales: list[float]
) -> list[dict[str, Any]]:
    """Reconstructions for every guidance scale of the frames (GLOBER table 7)."""
    rows = []
    for scale in scales:
        frames = given.clips.shape[2]
        videos = measures.decode(strategy, given.v, given.captions, frames, scale=scale, steps=steps)
        rows.append(
            {
                "frame_guidance": scale,
                "distance": measures.distance(judge, given.clips, videos),
                "agreement": measures.agreement(judge, videos, given.captions),
            }
        )
    return rows


def of_v(
    strategy: Any, judge: Any, given: measures.Clips, steps: int, scales: list[float]
) -> list[dict[str, Any]]:
    """Samples for every guidance scale of ``v`` (GLOBER table 8); the same seeds for all."""
    prompts = prompt_set(len(given.clips), 0.1, "trained")
    sampler = Sampler(strategy)
    sampler.set_progress_bar_config(disable=True)
    rows = []
    for scale in scales:
        made = sampler(
            prompts,
            generator=[torch.Generator().manual_seed(10_000 + i) for i in range(len(prompts))],
            num_inference_steps=steps,
            global_guidance_scale=scale,
            batch_size=measures.BATCH,
        )
        videos = torch.stack([video.to_tensor() for video in made.videos])
        rows.append(
            {
                "global_guidance": scale,
                "distance": measures.distance(judge, given.clips, videos),
                "agreement": measures.agreement(judge, videos, prompts),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON record goes; else printed")
    parser.add_argument("--model", default="shapes/glober", help="bundled name, folder or training run")
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--frame-scales", type=float, nargs="*", default=[1.0, 1.5, 2.0, 4.0, 7.0])
    parser.add_argument("--global-scales", type=float, nargs="*", default=[1.0, 2.0, 3.0, 4.0, 7.0])
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    strategy: Any = load_strategy(args.model, device="cpu")
    judge = load_classifier()
    given = measures.test_clips(strategy, args.videos)
    settings = {"model": args.model, "videos": args.videos, "steps": args.steps}
    weights = weight_hash(strategy.modules["video_encoder"])
    head = record.header("glober_shapes", record.cpu(), "float32", weights=weights, **settings)
    parts: dict[str, Callable[[], Any]] = {
        "real_clips": lambda: measures.agreement(judge, given.clips, given.captions),
        "codec_alone": lambda: measures.agreement(
            judge, measures.through_codec(strategy, given), given.captions
        ),
        "null_distance": lambda: measures.null(strategy, judge, args.videos),
        "reconstruction": lambda: measures.reconstruction(strategy, judge, given, args.steps),
        "origin": lambda: measures.origin(strategy, judge, given, args.steps),
        "guidance_of_frames": lambda: of_frames(strategy, judge, given, args.steps, args.frame_scales),
        "guidance_of_v": lambda: of_v(strategy, judge, given, args.steps, args.global_scales),
    }
    if strategy.config.adversarial:
        parts["order"] = lambda: measures.order_sensitivity(strategy, given)
    result = head
    for name, part in parts.items():
        result[name] = part()
        if args.out is not None:  # what was measured stays, whatever comes
            record.write(result, args.out)
    if args.out is None:
        record.write(result, None)


if __name__ == "__main__":
    main()
