"""GLOBER's ablations in miniature: tables 4 (CRA), 5 (shape of ``v``) and 10 (posterior) of the paper.

Three more are of what this library changed: the decoder's prompts, the encoder's warm-up and the deviation
that ``v`` starts with. The encoder's warm-up stays as long as it is, so that its rate ends low.

Run ``python benchmarks/glober_ablations.py --out benchmarks/results/glober_ablations.json``; one variant
alone with ``--variants "no CRA"``. Each variant is trained from the same weights on the same clips, with as
many steps, in at most ten minutes of one CPU core, and measured alike. One seed each: a difference smaller
than that between two seeds of the base (``base`` and ``base, seed 1``) says nothing. A smaller ``v`` takes an
encoder with more levels, so these two variants are deeper too. Finished variants stay in the record, with the
commit that measured them, as long as their recipe is the same, so that a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import glober_measures as measures
import record
import torch

from vidgen import config as configs
from vidgen import plugins
from vidgen.metrics.prompts import prompt_set
from vidgen.recipe import Recipe
from vidgen.sampling import Sampler
from vidgen.shapes.classifier import load_classifier
from vidgen.training import Trainer

VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "base": {},
        "base, seed 1": {"seed": 1},
        "no CRA": {"cra_weight": 0.0},
        "CRA of the paper": {
            "cra_weight": 0.1,
            "cra_order": True,
            "cra_balance": False,
            "cra_warmup_steps": 0,
        },
        "CRA in the printed log form": {"cra_form": "log"},
        "deterministic": {"posterior": "deterministic"},
        "variance without KL": {"posterior": "variance"},
        "v of 16 x 4 x 4": {"encoder_widths": (64, 96)},
        "v of 16 x 2 x 2": {"encoder_widths": (64, 64, 96)},
        "v of 4 x 8 x 8": {"global_channels": 4},
        "8 keyframes": {"keyframes": 8},
        "prompts always right": {"wrong_text_frames": 0.0},
        "encoder without warm-up": {"encoder_warmup_steps": 0},
        "v's deviation starts at 1": {"initial_std": 1.0},
    }
)


def recipe_of(variant: Mapping[str, Any], steps: int, batch: int) -> Recipe:
    """The bundled model's recipe with fewer steps, and what the variant changes."""
    base: Recipe = plugins.load(plugins.RECIPES, "shapes/glober")()
    changes = {name: value for name, value in variant.items() if name != "seed"}
    warmup = min(base.model.cra_warmup_steps, steps // 4)
    # Guidance is fixed here, so that rows stay comparable when the bundled model's is chosen anew.
    model = replace(base.model, guidance_scale=2.0, **{"cra_warmup_steps": warmup, **changes})
    training = replace(
        base.training,
        steps=steps,
        batch_size=batch,
        seed=variant.get("seed", 0),
        warmup_steps=min(100, steps // 8),
        ema_decay=0.995,
        checkpoint_every=steps,
    )
    return replace(base, model=model, data=base.data.changed(videos=1024), training=training)


def measured(recipe: Recipe, judge: Any, videos: int, steps: int) -> dict[str, Any]:
    """Train, and measure reconstructions and samples."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, Path(folder) / "run", device="cpu", progress=False)
        trainer.run()
        strategy: Any = trainer.strategy
    seconds = time.process_time() - began
    for module in strategy.modules.values():
        module.eval()
    given = measures.test_clips(strategy, videos)
    again = measures.decode(strategy, given.v, given.captions, strategy.config.sample_frames, steps=steps)
    prompts = prompt_set(videos, 0.1, "trained")
    sampler = Sampler(strategy)
    sampler.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(i) for i in range(videos)]
    made = sampler(prompts, generator=seeds, num_inference_steps=steps, batch_size=measures.BATCH)
    samples = torch.stack([video.to_tensor() for video in made.videos])
    judged = {"order": measures.order_sensitivity(strategy, given)} if strategy.config.adversarial else {}
    return {
        "training_cpu_seconds": round(seconds, 1),
        "reconstruction": measures.reconstruction(strategy, judge, given, steps),
        "reconstruction_distance": measures.distance(judge, given.clips, again),
        "sample_distance": measures.distance(judge, given.clips, samples),
        "sample_agreement": measures.agreement(judge, samples, prompts),
        "origin": measures.origin(strategy, judge, given, steps),
        **judged,
    }


def finished(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the variants that the record has; a record of other settings is not overwritten."""
    if not out.is_file():
        return {}
    kept = json.loads(out.read_text())
    other = {name: kept.get(name) for name, value in settings.items() if kept.get(name) != value}
    if other:
        raise SystemExit(f"{out} was measured with {other}; ask for the same, or give another --out.")
    variants: dict[str, Any] = kept["variants"]
    return variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the JSON record; variants in it stay")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=700, help="of each of the two stages")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--videos", type=int, default=48)
    parser.add_argument("--solver-steps", type=int, default=12)
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in ("steps", "batch", "videos", "solver_steps")}
    head = record.header("glober_ablations", record.cpu(), "bfloat16 training, float32 sampling", **settings)
    del head["revision"]  # of every variant by itself
    rows = finished(args.out, settings)
    recipes = {name: recipe_of(VARIANTS[name], args.steps, args.batch) for name in args.variants}
    judge = load_classifier()
    for name in args.variants:
        recipe = configs.to_dict(recipes[name])
        if rows.get(name, {}).get("recipe") != recipe:
            rows[name] = {
                "changes": dict(VARIANTS[name]),
                "revision": record.revision(),
                **measured(recipes[name], judge, args.videos, args.solver_steps),
                "recipe": recipe,
            }
            record.write({**head, "variants": rows}, args.out)


if __name__ == "__main__":
    main()
