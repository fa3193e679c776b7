"""Training steps and samples per second of ``vdm``, and the share of its parts.

Run ``python benchmarks/vdm_speed.py --out benchmarks/results/vdm_speed_cpu.json``; with ``--device cuda
--dtype bfloat16 --recipe small`` on a GPU. Weights are random: they change no cost. Each row also gives
the ratio to the 2D network alone (the temporal layers switched off) in the same run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import torch

from vidgen import checkpoint, plugins
from vidgen.sampling import Sampler
from vidgen.strategy import TrainingStep
from vidgen.video.dataset import collate, open_dataset


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else record.cpu()


def timed(task: Callable[[], Any], device: str, warmup: int, repeats: int) -> list[float]:
    times = []
    for turn in range(warmup + repeats):
        start = time.perf_counter()
        task()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn >= warmup:
            times.append(time.perf_counter() - start)
    return times


def training_step(strategy: Any, batch: Any, dtype: torch.dtype, device: str) -> Callable[[], None]:
    (stage,) = strategy.stages()
    (group,) = stage.optimizers()
    optimizer = torch.optim.AdamW(group.parameters, lr=1e-5)
    step = TrainingStep(0, stage.name, 0, tuple(range(len(batch))))

    def run() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            (loss,) = stage.losses(batch, step)
        loss.value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def forward(strategy: Any, temporal: bool, batch: int) -> Callable[[], None]:
    c = strategy.config
    shape = strategy.codec.latent_shape(*c.sample_size)
    x = torch.randn(batch, shape[0], c.sample_frames, *shape[1:], device=strategy.device)
    x = x.to(next(strategy.network.parameters()).dtype)
    t = torch.full((batch,), 500, device=strategy.device)
    tokens = strategy.text_encoder.encode([""] * batch)

    @torch.no_grad()
    def run() -> None:
        if temporal:
            strategy.network(x, t, tokens)
            return
        frames = x.transpose(1, 2).flatten(0, 1)
        frames = torch.cat([frames, frames[:, :1]], 1)
        strategy.modules["unet"](frames, 500, tokens.repeat_interleave(c.sample_frames, 0))

    return run


def measure(args: argparse.Namespace) -> dict[str, Any]:
    dtype = getattr(torch, args.dtype)
    recipe = plugins.load(plugins.RECIPES, f"vdm/{args.recipe}")()
    strategy_class = plugins.load(plugins.STRATEGIES, "vdm")
    dataset = open_dataset(recipe.data.changed(videos=64))
    config = strategy_class.prepare(recipe.model, dataset)
    strategy = checkpoint.build(strategy_class, config).to(args.device)
    batch = collate([dataset[i] for i in range(recipe.training.batch_size)]).to(args.device)
    rows: dict[str, Any] = {}

    def row(name: str, task: Callable[[], Any], repeats: int = args.repeats) -> None:
        rows[name] = record.spread(timed(task, args.device, args.warmup, repeats), "seconds")

    row("training step", training_step(strategy, batch, dtype, args.device))
    strategy.to(dtype=dtype)
    row("video network, one clip", forward(strategy, True, 1))
    row("2D network alone, the same frames", forward(strategy, False, 1))
    sampler = Sampler(strategy)
    sampler.set_progress_bar_config(disable=True)
    steps = config.num_inference_steps
    few, prompt = max(3, args.repeats // 4), batch.captions[0]
    row(f"one clip, {steps} steps, guided", lambda: sampler(prompt, guidance_scale=3.0, seed=0), few)
    row("64 frames, the same", lambda: sampler(prompt, guidance_scale=3.0, seed=0, num_frames=64), few)
    median = {name: r["seconds_median"] for name, r in rows.items()}
    return {
        "recipe": args.recipe,
        "parameters": strategy.num_parameters(),
        "clip": [config.sample_frames, *config.sample_size],
        "batch_size": len(batch),
        "seconds": rows,
        "training_steps_per_second": round(1 / median["training step"], 3),
        "samples_per_second": round(1 / median[f"one clip, {steps} steps, guided"], 4),
        "video_over_2d": round(
            median["video network, one clip"] / median["2D network alone, the same frames"], 3
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON record goes; else printed")
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    args = parser.parse_args()
    threads = torch.get_num_threads()
    head = record.header("vdm_speed", device_name(args.device), args.dtype, warmup=args.warmup)
    result = {**head, "torch": torch.__version__, "threads": threads, **measure(args)}
    record.write(result, args.out)
    print({k: v for k, v in result.items() if k.endswith("second") or k == "video_over_2d"})


if __name__ == "__main__":
    main()
