"""What is measured of a GLOBER of the shapes data, for ``glober_shapes.py`` and ``glober_ablations.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidgen.conditioning import Conditioning
from vidgen.level_model import CallBatch
from vidgen.metrics.distances import frechet_distance
from vidgen.metrics.prompts import expected_spec, prompt_set
from vidgen.metrics.statistics import Statistics
from vidgen.plans import chunks, rooted
from vidgen.request import Canvas, Request
from vidgen.shapes.classifier import ShapesClassifier
from vidgen.shapes.raster import paint
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.strategies.glober import GLOBAL, GLOBER
from vidgen.strategies.glober.cra import draw_frames
from vidgen.video.transforms import to_clip

LOOKS = ("shape", "colour", "motion")
BATCH = 16


@dataclass(frozen=True)
class Clips:
    """Test videos that no training saw: pixels ``b 3 f h w``, their ``v``, captions and scenes."""

    clips: Tensor
    v: Tensor
    captions: list[str]
    scenes: list[Any]


@torch.no_grad()
def test_clips(strategy: GLOBER, number: int) -> Clips:
    data = dataset(strategy, number)
    clips = rendered(data, range(number))
    v = torch.stack([strategy.encode(clip) for clip in clips])
    captions = [data.caption(i) for i in range(number)]
    return Clips(clips, v, captions, [data.scene(i) for i in range(number)])


def dataset(strategy: GLOBER, number: int) -> ShapesDataset:
    """So many test videos as long and as large as the strategy's."""
    config = strategy.config
    side, other = config.sample_size
    if side != other:
        raise SystemExit(f"the model makes {side} x {other} pixels; shapes videos are square.")
    return ShapesDataset(number, num_frames=config.sample_frames, size=side, split="test")


def rendered(data: ShapesDataset, indices: range) -> Tensor:
    return torch.stack([to_clip(data.render(i, range(data.num_frames))) for i in indices])


def null(strategy: GLOBER, judge: ShapesClassifier, number: int) -> float:
    """The distance between two sets of so many test videos: what perfect samples would have."""
    data = dataset(strategy, 2 * number)
    return distance(judge, rendered(data, range(number)), rendered(data, range(number, 2 * number)))


@torch.no_grad()
def through_codec(strategy: GLOBER, given: Clips) -> Tensor:
    """The clips encoded and decoded frame by frame: the best that latents can do."""
    parts = given.clips.split(BATCH)
    return torch.cat([strategy.codec.decode(strategy.codec.encode(x.to(strategy.device))).cpu() for x in parts])


@torch.no_grad()
def decode(
    strategy: GLOBER, v: Tensor, prompts: Sequence[str], frames: int, *, scale: float = 1.0, steps: int = 25
) -> Tensor:
    """Pixels ``b 3 f h w`` of frames ``0/frames, 1/frames, ...`` of each ``v``, as the sampler makes them."""
    _, call = rooted(chunks(frames, frames), GLOBAL).calls
    height, width = strategy.config.sample_size
    level, levels = strategy.frames_level, {name: m.settings() for name, m in strategy.levels.items()}
    levels[level.name] = replace(levels[level.name], guidance_scale=scale, num_inference_steps=steps)
    found = []
    for start in range(0, len(v), BATCH):
        rows = range(start, min(start + BATCH, len(v)))
        requests = tuple(Request(prompts[i], "", i, frames, height, width, 8.0, levels) for i in rows)
        conds = [
            level.condition(call, Canvas({(GLOBAL, 0): v[i]}), request)
            for i, request in zip(rows, requests, strict=True)
        ]
        cond = Conditioning.collate(conds).to(strategy.device)
        batch = CallBatch(level, (call,) * len(rows), requests, cond, strategy.device)
        found.append(strategy.codec.decode(level.answer(batch)).float().cpu())
    return torch.cat(found)


def agreement(judge: ShapesClassifier, videos: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Share of videos whose shape, colour and motion are read as the captions say."""
    read = [seen for part in videos.split(BATCH) for seen in judge.read(part)]
    wanted = [expected_spec(caption) for caption in captions]
    return {
        name: round(
            float(np.mean([getattr(r, name) == getattr(w, name) for r, w in zip(read, wanted, strict=True)])), 4
        )
        for name in LOOKS
    }


def features(judge: ShapesClassifier, clips: Tensor) -> Statistics:
    """Statistics of the classifier's features, for Frechet distances."""
    found = Statistics(128)
    with torch.no_grad():
        for part in clips.split(BATCH):
            found.update(judge(part).features)
    return found


def distance(judge: ShapesClassifier, clips: Tensor, others: Tensor) -> float:
    """Frechet distance of two sets of videos of one size; biased upwards, the more the fewer they are."""
    return round(frechet_distance(features(judge, clips), features(judge, others)), 3)


def contradicting(captions: Sequence[str]) -> list[str]:
    """For each caption another one of which nothing agrees."""
    others = [(text, expected_spec(text)) for text in prompt_set(126, 0.0, "trained")]
    found = []
    for i, caption in enumerate(captions):
        own = expected_spec(caption)
        fitting = [t for t, s in others if all(getattr(s, name) != getattr(own, name) for name in LOOKS)]
        found.append(fitting[i % len(fitting)])
    return found


@torch.no_grad()
def reconstruction(strategy: GLOBER, judge: ShapesClassifier, given: Clips, steps: int = 25) -> dict[str, Any]:
    """Errors of frames at indices that training saw, and half-way between them, beside the ground truth."""
    frames, size = strategy.config.sample_frames, strategy.config.sample_size[0]
    made = decode(strategy, given.v, given.captions, 2 * frames, steps=steps)
    times = np.arange(2 * frames - 1) / 2  # half a frame past the last one no training frame follows
    made = made[:, :, : len(times)]
    truth = torch.stack([to_clip(paint(scene, times, size)) for scene in given.scenes])
    mse = ((made.clamp(-1, 1) - truth) ** 2).mean((1, 3, 4))
    psnr = 10 * torch.log10(4 / mse)
    where = torch.cat([judge(part).position for part in made.split(BATCH)])
    places = [torch.from_numpy(scene.objects[0].positions(times)).float() for scene in given.scenes]
    right = torch.stack(places)
    away = (((where - right + 0.5) % 1.0 - 0.5).norm(dim=-1) * size).numpy()
    return {
        "psnr_seen": round(float(psnr[:, ::2].mean()), 3),
        "psnr_between": round(float(psnr[:, 1::2].mean()), 3),
        "pixels_off_seen": round(float(np.median(away[:, ::2])), 3),
        "pixels_off_between": round(float(np.median(away[:, 1::2])), 3),
        "agreement": agreement(judge, made[:, :, ::2], given.captions),
    }


@torch.no_grad()
def origin(strategy: GLOBER, judge: ShapesClassifier, given: Clips, steps: int = 25) -> dict[str, Any]:
    """Whether the video comes from ``v``: with a contradicting prompt, with none, and without ``v``."""
    frames, others = strategy.config.sample_frames, contradicting(given.captions)
    nothing = [""] * len(others)
    against = decode(strategy, given.v, others, frames, steps=steps)
    silent = decode(strategy, given.v, nothing, frames, steps=steps)
    empty = decode(strategy, torch.zeros_like(given.v), nothing, frames, steps=steps)
    return {
        "contradicting_prompt_as_clip": agreement(judge, against, given.captions),
        "contradicting_prompt_as_prompt": agreement(judge, against, others),
        "no_prompt_as_clip": agreement(judge, silent, given.captions),
        "zeroed_v_as_clip": agreement(judge, empty, given.captions),
    }


def constancy(videos: Tensor) -> dict[str, float]:
    """How still what never changes stays over a video's frames: the object's size, the background.

    The background is a frame's median colour, the object what differs from it, its size the root of its
    pixels. ``size`` is the largest over the smallest of a video's frames: the median and the 90th percentile
    over videos. ``background`` is the share of videos with a frame whose background is more than 12 of 255
    from that of the whole.
    """
    ground = videos.flatten(3).median(-1).values  # b 3 f
    object_ = (videos - ground[..., None, None]).abs().amax(1) > 0.3
    sizes = object_.flatten(2).sum(-1).clamp_min(1).sqrt()  # b f
    ratio = (sizes.amax(1) / sizes.amin(1)).numpy()
    away = (ground - ground.median(2, keepdim=True).values).abs().amax((1, 2))
    return {
        "size_median": round(float(np.median(ratio)), 3),
        "size_90": round(float(np.quantile(ratio, 0.9)), 3),
        "background": round(float((away > 2 * 12 / 255).float().mean()), 4),
    }


def lower(swapped: Tensor, ordered: Tensor) -> float:
    """Share of pairs that are scored lower when swapped; a pair of equal frames, of a still object, is half."""
    return round(float(((swapped < ordered).float() + 0.5 * (swapped == ordered).float()).mean()), 4)


@torch.no_grad()
def order_sensitivity(strategy: GLOBER, given: Clips) -> dict[str, float]:
    """How the discriminator scores real pairs of frames in order and swapped."""
    generator = torch.Generator().manual_seed(0)
    frames = strategy.config.sample_frames
    pairs = draw_frames(torch.rand(len(given.clips), 2, generator=generator), frames)
    latents = strategy.codec.encode(given.clips.to(strategy.device))
    shown = latents if strategy.config.judge == "latent" else given.clips
    rows = torch.arange(len(pairs))[:, None]
    pair = shown.transpose(1, 2)[rows, pairs].transpose(1, 2)
    judge = strategy.modules["discriminator"]
    ordered, swapped = judge(pair), judge(pair.flip(2))
    return {
        "logit_ordered": round(float(ordered.mean()), 4),
        "logit_swapped": round(float(swapped.mean()), 4),
        "swapped_scored_lower": lower(swapped, ordered),
    }
