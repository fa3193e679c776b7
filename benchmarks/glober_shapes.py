"""Whether a trained GLOBER works as its paper says: measured on test videos of the shapes data.

Run ``python benchmarks/glober_shapes.py --out benchmarks/results/glober_shapes.json``. Reconstruction at
indices that training saw and between them; whether the video comes from ``v`` or from the prompt, also where
frames are guided as the model samples; whether sizes and backgrounds stay as they are from frame to frame,
beside ``shapes/vdm``; whether the discriminator knows the order of frames; and the guidance of frames and of
``v`` (the paper's tables 7 and 8).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import glober_measures as measures
import record
import torch
from torch import Tensor

from vidgen.checkpoint import load_strategy
from vidgen.metrics.prompts import prompt_set
from vidgen.sampling import Sampler
from vidgen.shapes.classifier import load_classifier
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


def guided_origin(strategy: Any, judge: Any, given: measures.Clips, steps: int) -> dict[str, Any]:
    """Encoded clips under a contradicting prompt, guided as the model samples."""
    others, scale = measures.contradicting(given.captions), strategy.config.guidance_scale
    videos = measures.decode(strategy, given.v, others, given.clips.shape[2], scale=scale, steps=steps)
    return {
        "frame_guidance": scale,
        "as_clip": measures.agreement(judge, videos, given.captions),
        "as_prompt": measures.agreement(judge, videos, others),
    }


def sampled(strategy: Any, number: int, steps: int, **options: Any) -> tuple[Tensor, list[str]]:
    """Videos of prompts, each of a seed of its own, the same ones whatever the model."""
    prompts = prompt_set(number, 0.1, "trained")
    sampler = Sampler(strategy)
    sampler.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(10_000 + i) for i in range(number)]
    made = sampler(prompts, generator=seeds, num_inference_steps=steps, batch_size=measures.BATCH, **options)
    return torch.stack([video.to_tensor() for video in made.videos]), prompts


def still(strategy: Any, given: measures.Clips, steps: int) -> dict[str, dict[str, float]]:
    """Sizes and backgrounds over frames: of clips, of what becomes of them, of samples, of ``shapes/vdm``'s."""
    frames, number = given.clips.shape[2], len(given.clips)
    videos = {
        "clips": given.clips,
        "codec": measures.through_codec(strategy, given),
        "reconstructions": measures.decode(strategy, given.v, given.captions, frames, steps=steps),
        "samples, frames unguided": sampled(strategy, number, steps, guidance_scale=1.0)[0],
        "samples": sampled(strategy, number, steps)[0],
        "samples of shapes/vdm": sampled(load_strategy("shapes/vdm", device="cpu"), number, steps)[0],
    }
    return {name: measures.constancy(found) for name, found in videos.items()}


def of_v(
    strategy: Any, judge: Any, given: measures.Clips, steps: int, scales: list[float]
) -> list[dict[str, Any]]:
    """Samples for every guidance scale of ``v`` (GLOBER table 8); the same seeds for all."""
    rows = []
    for scale in scales:
        videos, prompts = sampled(strategy, len(given.clips), steps, guidance_scale={"global": scale})
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
    parser.add_argument("--videos", type=int, default=48)
    parser.add_argument("--frame-scales", type=float, nargs="*", default=[1.0, 2.0, 4.0, 7.0])
    parser.add_argument("--global-scales", type=float, nargs="*", default=[1.0, 2.0, 3.0, 4.0, 7.0])
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    strategy: Any = load_strategy(args.model, device="cpu")
    judge = load_classifier()
    given = measures.test_clips(strategy, args.videos)
    settings = {"model": args.model, "videos": args.videos, "steps": args.steps}
    weights = {name: weight_hash(strategy.modules[name]) for name in ("video_encoder", "unet", "generator")}
    head = record.header("glober_shapes", record.cpu(), "float32", weights=weights, **settings)
    parts: dict[str, Callable[[], Any]] = {
        "real_clips": lambda: measures.agreement(judge, given.clips, given.captions),
        "codec_alone": lambda: measures.agreement(
            judge, measures.through_codec(strategy, given), given.captions
        ),
        "null_distance": lambda: measures.null(strategy, judge, args.videos),
        "reconstruction": lambda: measures.reconstruction(strategy, judge, given, args.steps),
        "origin": lambda: measures.origin(strategy, judge, given, args.steps),
        "origin_guided": lambda: guided_origin(strategy, judge, given, args.steps),
        "constancy": lambda: still(strategy, given, args.steps),
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
