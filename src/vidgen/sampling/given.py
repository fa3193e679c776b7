"""What is given of a video (pictures, a video, a mask) as latents: pins, and what solving starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vidgen.codecs import Codec
from vidgen.conditioning import clip_of, mask_of, pixels_of
from vidgen.errors import InvalidArgumentError
from vidgen.plans import Plan, Slot
from vidgen.strategy import Canvas, Request, Strategy

__all__ = ["Given", "Picture", "Pictures", "clip_of_size", "resolve"]

Picture = Image.Image | np.ndarray[Any, Any] | Tensor

_STRENGTH = 0.8  # diffusers' default of re-rendering a video


@dataclass(frozen=True)
class Pictures:
    """What was handed over, as it came (``video`` as ``clip_of_size`` returns it); see ``Sampler.__call__``."""

    image: Any = None
    last_image: Any = None
    video: Any = None
    mask: Any = None
    strength: float | None = None
    pins: Mapping[int | Slot, Picture] | None = None


@dataclass(frozen=True)
class Given:
    """What is given, as latents; the same for every video of a generation.

    Args:
        pins: latents of frames that are wholly given.
        source: latents ``c f h w`` of the given video, where solving starts from them or keeps a part.
        kept: ``f h w``, True where the latents of ``source`` stay.
        strength: see ``diffusion.Source``.
    """

    pins: Canvas
    source: Tensor | None = None
    kept: Tensor | None = None
    strength: float = 1.0


def resolve(pictures: Pictures, strategy: Strategy, request: Request, plan: Plan) -> Given:
    """Encode what was given.

    Raises:
        InvalidArgumentError: arguments that contradict each other or do not fit the video.
    """
    _check(pictures, request)
    level = plan.video.name
    given = _from_video(pictures, strategy, request, level)
    given.pins.update(_from_pictures(_by_frame(pictures, request), strategy, request, level))
    given.pins.update(_from_tensors(pictures.pins or {}, strategy, request, plan))
    return given


def _from_tensors(
    pins: Mapping[int | Slot, Any], strategy: Strategy, request: Request, plan: Plan
) -> dict[Slot, Tensor]:
    """Return the slots that were given as they are."""
    found: dict[Slot, Tensor] = {}
    for slot, value in pins.items():
        if not isinstance(slot, tuple):
            continue
        call = plan.producer(slot)  # refuses slots that the plan does not have
        expected = None if call is None else strategy.slot_shape(call, request)
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if not isinstance(value, Tensor) or expected not in (None, got):
            raise InvalidArgumentError(f"pins gives {slot} as {got}; expected a tensor (c, h, w) = {expected}.")
        if not value.isfinite().all():
            raise InvalidArgumentError(f"pins gives {slot} with numbers that are not finite; give finite ones.")
        found[slot] = value.detach().float().cpu()
    return found


def clip_of_size(video: Any, size: tuple[int, int]) -> Tensor:
    """Return a given video as pixels ``c f h w``, scaled and cropped to ``size``."""
    return clip_of(video, size, "video", resize="crop")


def _check(pictures: Pictures, request: Request) -> None:
    for name in ("mask", "strength"):
        if getattr(pictures, name) is not None and pictures.video is None:
            raise InvalidArgumentError(f"{name} was given without a video; it says what of a video changes.")
    strength = pictures.strength
    if strength is not None and not 0 < strength <= 1:
        raise InvalidArgumentError(f"strength is {strength}; expected more than 0 and at most 1.")
    for name in ("image", "last_image"):
        if isinstance(getattr(pictures, name), list | tuple):
            raise InvalidArgumentError(
                f"{name} is a list; the same picture is given to every video. Call once per picture."
            )
    if pictures.last_image is not None and pictures.image is not None and request.num_frames == 1:
        raise InvalidArgumentError("image and last_image are the same frame of a video of 1 frame.")


def _by_frame(pictures: Pictures, request: Request) -> dict[int, Picture]:
    found = {frame: x for frame, x in (pictures.pins or {}).items() if isinstance(frame, int)}
    for name, frame in (("image", 0), ("last_image", request.num_frames - 1)):
        picture = getattr(pictures, name)
        if picture is not None and frame in found:
            raise InvalidArgumentError(f"frame {frame} is given twice: by {name} and by pins. Give it once.")
        if picture is not None:
            found[frame] = picture
    for frame in found:
        if not 0 <= frame < request.num_frames:
            raise InvalidArgumentError(
                f"pins gives a picture for frame {frame}; expected frames in 0..{request.num_frames - 1}."
            )
    return found


def _from_pictures(found: Mapping[int, Picture], strategy: Strategy, request: Request, level: str) -> Canvas:
    codec, size, pins = strategy.codec, (request.height, request.width), Canvas()
    clips = {
        frame: pixels_of(found[frame], size, f"the picture for frame {frame}", resize="crop")
        for frame in sorted(found)
    }
    if codec.time_factor == 1:
        for frame, pixels in clips.items():
            latents = codec.encode(pixels[None, :, None].to(strategy.device))
            pins[level, frame] = latents[0, :, 0].float().cpu()
    elif clips:
        if list(clips) != list(range(len(clips))):
            raise InvalidArgumentError(
                f"pictures are given for frames {list(clips)}; the codec of {strategy.name!r} joins "
                f"{codec.time_factor} frames in one latent, each seen with its past, so that only the first "
                "frames of a video can be given. Give frame 0 (image=), or the first frames without a gap."
            )
        latents = codec.encode(torch.stack(list(clips.values()), 1)[None].to(strategy.device))
        for i in range(latents.shape[2]):
            pins[level, i] = latents[0, :, i].float().cpu()
    return pins


def _from_video(pictures: Pictures, strategy: Strategy, request: Request, level: str) -> Given:
    """Pins of the frames that stay; the rest of the video as a source where it plays a part."""
    if pictures.video is None:
        return Given(Canvas())
    codec = strategy.codec
    clip: Tensor = pictures.video
    total, there = request.num_frames, clip.shape[1]
    if there > total:
        raise InvalidArgumentError(
            f"video has {there} frames and num_frames is {total}; leave num_frames out, or give fewer frames."
        )
    remade = pictures.mask is None and there == total
    strength = pictures.strength or (_STRENGTH if remade else 1.0)
    if strength < 1 and there < total:
        raise InvalidArgumentError(
            f"strength is {strength} and video has {there} of {total} frames; what is missing can only be made "
            "from noise. Leave strength out, or give a whole video."
        )
    source = _encoded(clip, strategy)
    stays = _stays(pictures.mask, clip, total, remade)
    kept = latent_mask(stays, codec)
    source = functional.pad(source, (0, 0, 0, 0, 0, kept.shape[0] - source.shape[1]))
    whole = kept.flatten(1).all(dim=1)
    pins = Canvas({(level, int(i)): source[:, i] for i in whole.nonzero().flatten()})
    partly = bool((kept.flatten(1).any(dim=1) & ~whole).any())
    if strength == 1 and not partly:
        return Given(pins)
    return Given(pins, source, kept if partly else None, strength)


def _encoded(clip: Tensor, strategy: Strategy) -> Tensor:
    """Latents ``c f h w`` of pixels ``c f h w``."""
    latents = strategy.codec.encode(clip[None].to(strategy.device))
    return latents[0].float().cpu()


def _stays(mask: Any, clip: Tensor, total: int, remade: bool) -> Tensor:
    """Return ``f h w`` over the whole video: True where the given pixels stay."""
    _, there, height, width = clip.shape
    stays = torch.zeros(total, height, width, dtype=torch.bool)
    if mask is not None:
        anew = mask_of(mask, total, (height, width), "mask", resize="crop")
        stays[:there] = ~anew[:there]
    elif not remade:
        stays[:there] = True
    return stays


def latent_mask(stays: Tensor, codec: Codec) -> Tensor:
    """Return ``f h w`` in latents: True where every pixel that a latent stands for stays."""
    factor, frames = codec.space_factor, stays.shape[0]
    blocks = -functional.max_pool2d(-stays.float()[:, None], factor)[:, 0]
    count = codec.latent_frames(frames)
    rows = [blocks[list(codec.frames_of_latent(i))].amin(dim=0) for i in range(count)]
    return torch.stack(rows) > 0.5
