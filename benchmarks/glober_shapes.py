"""Whether a trained GLOBER works as its paper says: measured on test videos of the shapes data.

Run ``python benchmarks/glober_shapes.py --out benchmarks/results/glober_shapes.json``. Reconstruction at
indices that training saw and between them; whether the video comes from ``v`` or from the prompt; whether
the discriminator knows the order of frames; and the guidance of ``v`` and of frames (the paper's table 8).
"""

from __future__ import annotations

import argparse
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


def guidance(strategy: Any, judge: Any, number: int, steps: int, scales: list[float]) -> list[dict[str, Any]]:
    """Prompt agreement of samples for every pair of guidance scales; the same seeds for all."""
    prompts = prompt_set(number, 0.1, "trained")
    sampler = Sampler(strategy)
    sampler.set_progress_bar_config(disable=True)
    rows = []
    for of_v in scales:
        for of_frames in scales:
            made = sampler(
                prompts,
                generator=[torch.Generator().manual_seed(i) for i in range(number)],
                num_inference_steps=steps,
                guidance_scale=of_frames,
                global_guidance_scale=of_v,
                batch_size=measures.BATCH,
            )
            videos = torch.stack([video.to_tensor() for video in made.videos])
            agreement = measures.agreement(judge, videos, prompts)
            rows.append({"global_guidance": of_v, "frame_guidance": of_frames, "agreement": agreement})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON record goes; else printed")
    parser.add_argument("--model", default="shapes/glober", help="bundled name, folder or training run")
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=63, help="of each pair of guidance scales")
    parser.add_argument("--scales", type=float, nargs="*", default=[1.0, 2.0, 4.0])
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    strategy, judge = load_strategy(args.model, device="cpu"), load_classifier()
    given = measures.test_clips(strategy, args.videos)
    settings = {"model": args.model, "videos": args.videos, "steps": args.steps}
    weights = weight_hash(strategy.modules["video_encoder"])
    head = record.header("glober_shapes", record.cpu(), "float32", weights=weights, **settings)
    result = {
        **head,
        "real_clips": measures.agreement(judge, given.clips, given.captions),
        "reconstruction": measures.reconstruction(strategy, judge, given, args.steps),
        "origin": measures.origin(strategy, judge, given, args.steps),
        "order": measures.order_sensitivity(strategy, given),
    }
    if args.scales:
        result["prompts"] = args.prompts
        result["guidance"] = guidance(strategy, judge, args.prompts, args.steps, args.scales)
    record.write(result, args.out)


if __name__ == "__main__":
    main()
