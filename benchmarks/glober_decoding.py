"""What GLOBER's sampling costs against the number of frames: time, memory, the parts.

Run ``python benchmarks/glober_decoding.py --beside --out benchmarks/results/glober_decoding_cpu.json``; at
the paper's size on a GPU (GLOBER tables 3 and 9) with ``--recipe ucf101_256 --device cuda --dtype float16
--steps 50 --chunk 32 --beside --out benchmarks/results/glober_decoding_cuda.json``. Weights are random: they
change no cost. Every length runs in a process of its own, so that its memory is its own, and is in the record
when it is done, also if it failed; ``--beside`` measures ``vdm`` with the same UNet.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import record
import torch

from vidgen import checkpoint, plugins
from vidgen.plans import chunks, rooted
from vidgen.sampling import Sampler
from vidgen.strategies.glober import GLOBAL, GLOBER
from vidgen.strategies.vdm import VDM, VDMConfig


def config_of(name: str) -> Any:
    """The recipe's model; prompts by a small encoder of the same width, so that nothing is fetched."""
    model = plugins.load_recipe("glober", name).model
    if model.text != "open_clip":
        return replace(model, words=("a", "circle"))
    return replace(
        model,
        text="words",
        text_model=None,
        text_pretrained=None,
        text_width=768,
        text_layers=1,
        words=("a", "circle"),
        max_words=77,
    )


def built(kind: Any, config: Any, args: argparse.Namespace) -> Any:
    strategy = checkpoint.build(kind, config).to(args.device, getattr(torch, args.dtype))
    for module in strategy.modules.values():
        module.eval()
    return strategy


def sampler_of(strategy: Any) -> Sampler:
    sampler = Sampler(strategy)
    sampler.set_progress_bar_config(disable=True)
    return sampler


def on_gpu(device: str) -> bool:
    return torch.device(device).type == "cuda"


def seconds(task: Any, device: str, repeats: int) -> float:
    """The fastest of ``repeats`` runs after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        task()
        if on_gpu(device):
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return round(min(times[1:]), 4)


def frames_of(strategy: Any, frames: int) -> tuple[int, int, int, int]:
    """The shape of a video's latents."""
    c, h, w = strategy.codec.latent_shape(*strategy.config.sample_size)
    return c, frames, h, w


class Parted(logging.Handler):
    """Stops where the sampler parts a batch that memory did not hold: it would time something else."""

    def emit(self, record: logging.LogRecord) -> None:
        raise SystemExit(f"not measured: {record.getMessage()}. Give --chunk less frames.")


def peak_megabytes(device: str) -> float:
    """Most memory since the last call on a GPU, since the process began on a CPU."""
    if not on_gpu(device):
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)
    found = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    torch.cuda.reset_peak_memory_stats(device)
    return found


@torch.no_grad()
def length(args: argparse.Namespace, frames: int) -> dict[str, Any]:
    """One length: the whole video's latents, its frames' alone (``v`` given), the codec, and peak memory."""
    logging.getLogger("vidgen.sampling.engine").addHandler(Parted())
    torch.set_num_threads(args.threads)
    strategy = built(GLOBER, config_of(args.recipe), args)
    sampler = sampler_of(strategy)
    plan = rooted(chunks(frames, args.chunk or frames), GLOBAL)
    ask = {"num_inference_steps": args.steps, "seed": 0, "num_frames": frames, "output_type": "latent"}
    v = torch.zeros(strategy.modules["video_encoder"].global_shape)
    before = peak_megabytes(args.device)
    whole = seconds(lambda: sampler("a circle", plan=plan, **ask), args.device, args.repeats)
    alone = seconds(
        lambda: sampler("a circle", plan=plan, pins={(GLOBAL, 0): v}, **ask), args.device, args.repeats
    )
    peak = peak_megabytes(args.device)
    latents = torch.zeros(1, *frames_of(strategy, frames), device=args.device)
    decoding = seconds(lambda: strategy.codec.decode(latents), args.device, args.repeats)
    return {
        "frames": frames,
        "chunk": args.chunk or frames,
        "seconds": whole,
        "codec_seconds": decoding,
        "frames_seconds": alone,
        "generator_share": round(max(whole - alone, 0) / whole, 4),
        "peak_megabytes_before": before,
        "peak_megabytes": peak,
        "codec_peak_megabytes": peak_megabytes(args.device),
        "global_numbers": v.numel(),
    }


@torch.no_grad()
def branch(args: argparse.Namespace) -> dict[str, Any]:
    """One network evaluation with the branch computed beforehand, and with it computed again."""
    torch.set_num_threads(args.threads)
    strategy = built(GLOBER, config_of(args.recipe), args)
    c, h, w = strategy.codec.latent_shape(*strategy.config.sample_size)
    frames, device = strategy.config.sample_frames, strategy.device
    x = torch.zeros(1, c, frames, h, w, device=device, dtype=strategy.frames_level.dtype)
    t, tokens = torch.full((1,), 500, device=device), strategy.text_encoder.encode(["a circle"])
    tokens = tokens.to(x.dtype)
    v = torch.zeros(1, *strategy.modules["video_encoder"].global_shape, device=device)
    vectors = strategy.modules["index"](torch.arange(frames, device=device) / frames)[None]
    kept = strategy.frames_level.decoder.features(v, vectors, (h, w))
    cached = seconds(lambda: strategy.frames_level.decoder(x, t, tokens, kept), args.device, 3 * args.repeats)
    again = seconds(
        lambda: strategy.frames_level.decoder(x, t, tokens, v=v, index=vectors), args.device, 3 * args.repeats
    )
    return {"cached_seconds": cached, "recomputed_seconds": again, "ratio": round(again / cached, 4)}


def beside(args: argparse.Namespace, frames: int) -> dict[str, Any]:
    """The baseline with the same UNet and as many solver steps, all frames at once up to the clip's length."""
    torch.set_num_threads(args.threads)
    own = config_of(args.recipe)
    shared = {name: getattr(own, name) for name in VDMConfig.__dataclass_fields__ if hasattr(own, name)}
    sampler = sampler_of(built(VDM, VDMConfig(**shared), args))
    ask = {"num_inference_steps": args.steps, "seed": 0, "num_frames": frames, "output_type": "latent"}
    found = seconds(lambda: sampler("a circle", **ask), args.device, args.repeats)
    return {"frames": frames, "seconds": found, "peak_megabytes": peak_megabytes(args.device)}


def answer(task: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], connection: Connection) -> None:
    """What a fresh process does: measure, and tell what was found or what went wrong."""
    try:
        connection.send(task(*arguments))
    except (Exception, SystemExit) as error:  # an out-of-memory error is one result of many
        connection.send({"failed": f"{type(error).__name__}: {error}"})


def alone(task: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run a measurement in a fresh process; one that died has ``failed`` for its result."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(task, arguments, sending))
    process.start()
    sending.close()  # so that the end of the other process is the end of what can be received
    try:
        found: dict[str, Any] = receiving.recv()
    except EOFError:
        process.join()
        found = {"failed": f"the process ended with {process.exitcode}"}
    process.join()
    return found


def slope(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Least squares of the frames' time over their number, and how much of its variance that explains."""
    x, y = (torch.tensor([float(row[name]) for row in rows]) for name in ("frames", "frames_seconds"))
    design = torch.stack([x, torch.ones_like(x)], dim=1)
    solution = torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
    rest = ((design @ solution - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    return {"seconds_per_frame": round(float(solution[0]), 5), "r_squared": round(1 - float(rest), 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON record goes; else printed")
    parser.add_argument("--recipe", default="shapes/glober", help="of glober")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=10, help="solver steps, of v and of the frames")
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--chunk", type=int, default=16, help="frames of a call; 0 takes all at once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beside", action="store_true", help="measure vdm too")
    args = parser.parse_args()
    device = torch.cuda.get_device_name(args.device) if on_gpu(args.device) else record.cpu()
    recipe = args.recipe if "/" in args.recipe else f"glober/{args.recipe}"
    settings = {"recipe": recipe, "steps": args.steps, "threads": args.threads}
    head = record.header("glober_decoding", device, args.dtype, torch=torch.__version__, **settings)
    result: dict[str, Any] = {**head, "branch": alone(branch, args), "lengths": []}
    for name, task in (("lengths", length), *([("vdm", beside)] if args.beside else [])):
        result[name] = []
        for frames in args.frames:
            result[name].append({"frames": frames, **alone(task, args, frames)})
            if args.out is not None:  # what was measured stays, whatever comes
                record.write(result, args.out)
    done = [row for row in result["lengths"] if "failed" not in row]
    if len(done) > 2:
        result["linear"] = slope(done)
    record.write(result, args.out)


if __name__ == "__main__":
    main()
