"""What is given of a video (pictures, a video, a mask) as latents: pins, and what solving starts from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vidgen.codecs import Codec
from vidgen.conditioning import clip_of, mask_of, pixels_of
from vidgen.conditioning.pictures import is_signed
from vidgen.errors import InvalidArgumentError
from vidgen.plans import Plan, Slot
from vidgen.request import Canvas, Request
from vidgen.strategy import Strategy
from vidgen.video import Video

__all__ = ["Given", "Picture", "Pictures", "Shown", "each", "pasted", "resolve"]

Picture = Image.Image | str | os.PathLike[str] | np.ndarray[Any, Any] | Tensor

Shown = Mapping[int, tuple[Tensor, Tensor | None]]
"""``{frame: (pixels c h w in [-1, 1], which of them are given h w, or None for all)}``."""

_STRENGTH = 0.8  # diffusers' default of re-rendering a video


@dataclass(frozen=True)
class Pictures:
    """What was handed over for one video, or for several as lists; see ``Sampler.__call__``."""

    image: Any = None
    last_image: Any = None
    video: Any = None
    mask: Any = None
    strength: float | None = None
    pins: Mapping[int | Slot, Picture] | None = None


@dataclass(frozen=True)
class Given:
    """What is given of one video, as latents.

    Args:
        pins: latents of frames that are wholly given.
        source: latents ``c f h w`` of the given video, where solving starts from them or keeps a part.
        kept: ``f h w``, True where the latents of ``source`` stay.
        strength: see ``diffusion.Source``.
        shown: the given pixels themselves.
    """

    pins: Canvas
    source: Tensor | None = None
    kept: Tensor | None = None
    strength: float = 1.0
    shown: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)


def each(pictures: Pictures, size: tuple[int, int]) -> tuple[Pictures, ...]:
    """Part what was given as lists into what each prompt gets: one entry per prompt, or one for all.

    Videos come out as pixels ``c f h w``, scaled and cropped to ``size``.

    Raises:
        InvalidArgumentError: lists of different lengths, an empty one, or videos that cannot be used.
        VideoError: a file cannot be read.
    """
    pins = pictures.pins or {}
    lists = {name: _apart(getattr(pictures, name), 3, name) for name in ("image", "last_image")}
    lists |= {
        f"pins[{frame}]": _apart(x, 3, f"pins[{frame}]") for frame, x in pins.items() if isinstance(frame, int)
    }
    videos = [] if pictures.video is None else _videos(pictures.video, size)
    lists["video"] = videos or [None]
    counts = {name: len(values) for name, values in lists.items() if len(values) != 1}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise InvalidArgumentError(
            f"lists give one picture or video per prompt, and there are {counts}. Give all the same number."
        )
    count = max(counts.values(), default=1)
    rows = [{name: values[i % len(values)] for name, values in lists.items()} for i in range(count)]
    return tuple(
        replace(
            pictures,
            image=row["image"],
            last_image=row["last_image"],
            video=row["video"],
            pins={frame: row.get(f"pins[{frame}]", x) for frame, x in pins.items()},
        )
        for row in rows
    )


def _apart(value: Any, ndim: int, name: str) -> list[Any]:
    """Return the entries of a list, or of a tensor or array of one dimension more than ``ndim``."""
    if isinstance(value, Tensor | np.ndarray):
        if value.ndim != ndim + 1:
            return [value]
        value = list(value)
    if not isinstance(value, list | tuple):
        return [value]
    # together: a bright picture of a batch in [-1, 1] has no value below 0
    if len(value) > 1 and is_signed(value, name):
        floats = (Tensor, np.ndarray)
        return [(x + 1) / 2 if isinstance(x, floats) and "float" in str(x.dtype) else x for x in value]
    return list(value)


def _videos(video: Any, size: tuple[int, int]) -> list[Tensor]:
    """Return the clips of one video, or of one for each prompt: a list of videos, a batch, or a result."""
    video = getattr(video, "videos", video)  # of a sampler's output
    batch = isinstance(video, Tensor | np.ndarray) and video.ndim == 5
    several = batch or (isinstance(video, list | tuple) and bool(video) and all(map(_is_video, video)))
    videos = _apart(video, 4, "video") if several else [video]
    clips = [clip_of(one, size, "video", resize="crop") for one in videos]
    lengths = sorted({clip.shape[1] for clip in clips})
    if len(lengths) > 1:
        raise InvalidArgumentError(
            f"the given videos have {' and '.join(map(str, lengths))} frames; all videos of a generation have "
            "the same number. Give them one by one, or cut them."
        )
    return clips


def _is_video(value: Any) -> bool:
    """Say whether an entry of a list is itself a video, and no picture of one."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 4
    return isinstance(value, Video) or (isinstance(value, Sequence) and not isinstance(value, str | bytes))


def pasted(clip: Tensor, frames: Sequence[int], shown: Shown) -> Tensor:
    """Return ``clip`` (c f h w, of these video frames) with the given pixels in their places."""
    for place, frame in enumerate(frames):
        if frame in shown:
            pixels, where = shown[frame]
            clip[:, place] = pixels if where is None else torch.where(where, pixels, clip[:, place])
    return clip


def resolve(pictures: Pictures, strategy: Strategy, request: Request, plan: Plan) -> Given:
    """Encode what was given.

    Raises:
        InvalidArgumentError: arguments that contradict each other or do not fit the video.
    """
    _check(pictures, request)
    level = plan.video.name
    given = _from_video(pictures, strategy, request, level)
    found = _by_frame(pictures, request)
    signed = is_signed(found.values(), "the given pictures")
    size = (request.height, request.width)
    clips = {
        frame: pixels_of(found[frame], size, f"the picture for frame {frame}", resize="crop", signed=signed)
        for frame in sorted(found)
    }
    given.shown.update({frame: (pixels, None) for frame, pixels in clips.items()})
    given.pins.update(_from_pictures(clips, strategy, level))
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
        expected = None if call is None else strategy.slot_shape(call, slot, request)
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if not isinstance(value, Tensor) or expected not in (None, got):
            raise InvalidArgumentError(f"pins gives {slot} as {got}; expected a tensor (c, h, w) = {expected}.")
        if not value.isfinite().all():
            raise InvalidArgumentError(f"pins gives {slot} with numbers that are not finite; give finite ones.")
        found[slot] = value.detach().float().cpu()
    return found


def _check(pictures: Pictures, request: Request) -> None:
    for name in ("mask", "strength"):
        if getattr(pictures, name) is not None and pictures.video is None:
            raise InvalidArgumentError(f"{name} was given without a video; it says what of a video changes.")
    strength = pictures.strength
    if strength is not None and not 0 < strength <= 1:
        raise InvalidArgumentError(f"strength is {strength}; expected more than 0 and at most 1.")
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


def _from_pictures(clips: Mapping[int, Tensor], strategy: Strategy, level: str) -> Canvas:
    """Return the latents of pictures ``c h w``, frames ascending."""
    codec, pins = strategy.codec, Canvas()
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
    shown: dict[int, tuple[Tensor, Tensor | None]] = {
        frame: (clip[:, frame], None if bool(stays[frame].all()) else stays[frame])
        for frame in range(there)
        if bool(stays[frame].any())
    }
    if strength == 1 and not partly:
        return Given(pins, shown=shown)
    return Given(pins, source, kept if partly else None, strength, shown)


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
