"""Damage to videos by name and level, the same for the same seed: what a metric is held against.

A frame is taken as a torus, as the shapes data has it, so that blur and jitter bring no border in.
Each function leaves its input as it is, and works clip by clip, so that a batch may be cut anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.shapes.scene import COLOURS
from vidgen.video.draws import digest

__all__ = [
    "CORRUPTIONS",
    "Corruption",
    "add_noise",
    "blur",
    "compress",
    "corrupt",
    "freeze_order",
    "jitter_shifts",
    "kept_colours",
    "relight",
    "reorder",
    "shift",
    "shuffle_order",
]

BLOCK = 8


def add_noise(
    clips: Float[Tensor, "b 3 f h w"], sigma: Float[Tensor, " b"], generators: Sequence[np.random.Generator]
) -> Float[Tensor, "b 3 f h w"]:
    """Add white Gaussian noise of standard deviation ``sigma``, in pixel values, to each clip."""
    noisy = []
    for clip, strength, generator in zip(clips, sigma.tolist(), generators, strict=True):
        noise = generator.standard_normal(tuple(clip.shape), dtype=np.float32) if strength else np.float32(0)
        noisy.append(clip + strength * torch.as_tensor(noise).to(clip))
    return torch.stack(noisy)


def blur(clips: Float[Tensor, "b 3 f h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b 3 f h w"]:
    """Blur each frame with a Gaussian of standard deviation ``sigma`` pixels; 0 leaves it as it is."""
    height, width = clips.shape[-2:]
    rows, columns = (_circulant(sigma, side).to(clips) for side in (height, width))
    return torch.einsum("bcfhw,bhi,bwj->bcfij", clips, rows, columns)


def _circulant(sigma: Float[Tensor, " b"], side: int) -> Float[Tensor, "b side side"]:
    """Return the matrices that blur the axis of a torus; each row sums to one."""
    gap = torch.arange(side, dtype=torch.float64)
    gap = (gap[:, None] - gap[None] + side / 2).remainder(side) - side / 2
    width = sigma.double().cpu()[:, None, None].clamp_min(1e-3)  # as good as no blur, and no division by 0
    weight = torch.exp(-(gap**2) / (2 * width**2))
    return weight / weight.sum(dim=2, keepdim=True)


def compress(clips: Float[Tensor, "b 3 f h w"], step: Float[Tensor, " b"]) -> Float[Tensor, "b 3 f h w"]:
    """Round the cosine transform of 8 x 8 blocks to multiples of ``step``, as codecs do; 0 rounds nothing.

    Raises:
        InvalidArgumentError: frames whose sides are no multiples of 8.
    """
    height, width = clips.shape[-2:]
    if height % BLOCK or width % BLOCK:
        raise InvalidArgumentError(
            f"frames of {height} x {width} have no whole blocks of {BLOCK}; resize them."
        )
    wave = _cosines().to(clips)
    blocks = clips.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))  # b c f rows y columns x
    found = torch.einsum("bcfrysx,vy,ux->bcfrvsu", blocks, wave, wave)
    size = step.to(clips)[:, None, None, None, None, None, None]
    kept = torch.where(size > 0, torch.round(found / size.clamp_min(1e-6)) * size, found)
    made = torch.einsum("bcfrvsu,vy,ux->bcfrysx", kept, wave, wave)
    return made.flatten(-2).flatten(-3, -2)


def _cosines() -> Float[Tensor, "8 8"]:
    """Return the orthonormal cosine transform of eight numbers."""
    place = torch.arange(BLOCK, dtype=torch.float64)
    wave = torch.cos(math.pi * (place[None] + 0.5) * place[:, None] / BLOCK) * math.sqrt(2 / BLOCK)
    wave[0] /= math.sqrt(2)
    return wave


def relight(
    clips: Float[Tensor, "b 3 f h w"], gain: Float[Tensor, "b f"], offset: Float[Tensor, "b f"] | None = None
) -> Float[Tensor, "b 3 f h w"]:
    """Multiply the brightness of each frame (black is -1) by ``gain`` and add ``offset``, in pixel values."""
    lit = (clips + 1) * gain.to(clips)[:, None, :, None, None] - 1
    return lit if offset is None else lit + offset.to(clips)[:, None, :, None, None]


def reorder(clips: Float[Tensor, "b 3 f h w"], order: Int64[Tensor, "b f"]) -> Float[Tensor, "b 3 f h w"]:
    """Show frame ``order[i, k]`` of clip i at place k; frames may repeat."""
    rows = torch.arange(len(clips), device=clips.device)[:, None]
    return clips.transpose(1, 2)[rows, order.to(clips.device)].transpose(1, 2)


def shift(clips: Float[Tensor, "b 3 f h w"], pixels: Int64[Tensor, "b f 2"]) -> Float[Tensor, "b 3 f h w"]:
    """Move each frame by whole ``pixels`` (x, y) on the torus."""
    height, width = clips.shape[-2:]
    columns = (torch.arange(width) - pixels[..., 0, None].cpu()).remainder(width).to(clips.device)
    rows = (torch.arange(height) - pixels[..., 1, None].cpu()).remainder(height).to(clips.device)
    moved = clips.gather(4, columns[:, None, :, None, :].expand(clips.shape))
    return moved.gather(3, rows[:, None, :, :, None].expand(clips.shape))


def shuffle_order(frames: int, level: float, generator: np.random.Generator) -> np.ndarray:
    """Return the order of ``frames`` frames of which the share ``level``, chosen at random, change places.

    Those chosen move on by one among themselves in a random cycle, so that every one of them moves.
    """
    count = round(level * frames)
    order = np.arange(frames)
    if count > 1:
        chosen = generator.permutation(frames)[:count]
        order[chosen] = np.roll(chosen, 1)
    return order


def freeze_order(frames: int, level: float) -> np.ndarray:
    """Return the order in which the picture stands still for the last ``level`` (a share) of the frames."""
    moving = max(frames - round(level * frames), 1)
    return np.minimum(np.arange(frames), moving - 1)


def jitter_shifts(frames: int, level: float, generator: np.random.Generator) -> np.ndarray:
    """Return shifts ``f 2`` in whole pixels: rounded Gaussian ones of standard deviation ``level`` pixels."""
    return np.rint(level * generator.standard_normal((frames, 2))).astype(np.int64)


def kept_colours(dropped: int) -> tuple[str, ...]:
    """Return the colours that are left when ``dropped`` of them are, more dropped ones containing fewer.

    Raises:
        InvalidArgumentError: none would be left.
    """
    if not 0 <= dropped < len(COLOURS):
        raise InvalidArgumentError(
            f"dropped={dropped} of {len(COLOURS)} colours; give 0 to {len(COLOURS) - 1}."
        )
    order = sorted(COLOURS, key=lambda name: digest("vidgen.classifier.modes", name))
    return tuple(order[dropped:])


_Apply = Callable[[Tensor, float, Sequence[np.random.Generator]], Tensor]


@dataclass(frozen=True)
class Corruption:
    """One kind of damage.

    Attributes:
        levels: from mild to severe, in ``unit``.
        unit: what a level counts.
        apply: ``(clips b 3 f h w, level, one generator per clip) -> clips``.
        temporal: True where every frame is one that the clip had. A metric of single frames is blind to it
            where every one is shown once (shuffle, reversal); of freeze, which repeats one and leaves others
            out, it sees a little.
        control: True where the shapes data are as likely after as before, so that no metric may react.
    """

    levels: tuple[float, ...]
    unit: str
    apply: _Apply
    temporal: bool = False
    control: bool = False


def _all(level: float, clips: Tensor) -> Tensor:
    return torch.full((len(clips),), level)


def _ordered(clips: Tensor, orders: Sequence[np.ndarray]) -> Tensor:
    return reorder(clips, torch.from_numpy(np.stack(orders)))


def _flickered(clips: Tensor, level: float, generators: Sequence[np.random.Generator]) -> Tensor:
    gains = np.stack([1 + level * generator.standard_normal(clips.shape[2]) for generator in generators])
    return relight(clips, torch.from_numpy(gains).clamp_min(0))


def _shuffled(clips: Tensor, level: float, generators: Sequence[np.random.Generator]) -> Tensor:
    return _ordered(clips, [shuffle_order(clips.shape[2], level, generator) for generator in generators])


def _jittered(clips: Tensor, level: float, generators: Sequence[np.random.Generator]) -> Tensor:
    shifts = [jitter_shifts(clips.shape[2], level, generator) for generator in generators]
    return shift(clips, torch.from_numpy(np.stack(shifts)))


CORRUPTIONS: MappingProxyType[str, Corruption] = MappingProxyType(
    {
        "noise": Corruption(
            (0.02, 0.05, 0.1, 0.2, 0.3),
            "standard deviation, pixel values of [-1, 1]",
            lambda clips, level, generators: add_noise(clips, _all(level, clips), generators),
        ),
        "blur": Corruption(
            (0.5, 0.75, 1.0, 1.5, 2.0),
            "standard deviation, pixels",
            lambda clips, level, _: blur(clips, _all(level, clips)),
        ),
        "flicker": Corruption((0.02, 0.05, 0.1, 0.2, 0.4), "standard deviation of the brightness", _flickered),
        "jitter": Corruption((0.5, 1.0, 2.0, 4.0, 8.0), "standard deviation, pixels", _jittered),
        "shuffle": Corruption((0.125, 0.25, 0.5, 0.75, 1.0), "share of the frames", _shuffled, temporal=True),
        "freeze": Corruption(
            (0.25, 0.5, 0.625, 0.75, 1.0),
            "share of the frames",
            lambda clips, level, _: _ordered(clips, [freeze_order(clips.shape[2], level)] * len(clips)),
            temporal=True,
        ),
        "reversal": Corruption(
            (1.0,),
            "",
            lambda clips, *_: clips.flip(2),
            temporal=True,
            control=True,
        ),
        "flip": Corruption((1.0,), "", lambda clips, *_: clips.flip(4), control=True),
    }
)
"""By name. Dropped modes are damage to a set and not to a video: see ``kept_colours``."""


def corrupt(
    clips: Float[Tensor, "b 3 f h w"], name: str, level: int | float, seeds: Sequence[int]
) -> Float[Tensor, "b 3 f h w"]:
    """Return damaged clips, with pixels in [-1, 1]; the same for the same seeds, in any batch.

    Args:
        clips: pixels in [-1, 1].
        name: one of ``CORRUPTIONS``.
        level: how much, in the corruption's unit, 0 or more; its ``levels`` are the ones reported.
        seeds: one per clip.

    Raises:
        UnknownNameError: there is no such corruption.
        InvalidArgumentError: a negative level, or not one seed per clip.
    """
    if name not in CORRUPTIONS:
        raise UnknownNameError("corruption", name, CORRUPTIONS)
    if level < 0 or len(seeds) != len(clips):
        raise InvalidArgumentError(
            f"level {level} and {len(seeds)} seeds were given for {len(clips)} clips; give a level of 0 or "
            "more and one seed per clip."
        )
    keys = [int.from_bytes(digest("vidgen.classifier.corrupt", name, int(seed)), "little") for seed in seeds]
    generators = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
    return CORRUPTIONS[name].apply(clips, level, generators).clamp(-1, 1)
