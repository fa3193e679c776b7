"""Pictures and videos given as conditions, turned into pixels of the size that is generated."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.video import Video, VideoReader
from vidgen.video.color import to_rgb
from vidgen.video.transforms import scaled_size

__all__ = ["RESIZES", "clip_of", "cover", "pixels_of"]

RESIZES = ("refuse", "crop")


def pixels_of(
    picture: Any, size: tuple[int, int], what: str, *, resize: str = "refuse"
) -> Float[Tensor, "3 h w"]:
    """Return a picture as pixels in [-1, 1], float32.

    Args:
        picture: a PIL image, a ``uint8`` array ``(h, w, 3)``, or a floating-point tensor ``(3, h, w)`` in
            [-1, 1].
        size: ``(h, w)`` to return.
        what: what the picture is, for messages, such as ``"the picture for frame 3"``.
        resize: ``"refuse"`` another size, or ``"crop"``: scale to cover ``size`` (Lanczos; antialiased
            bicubic for tensors) and crop the centre.

    Raises:
        InvalidArgumentError: another type, dtype, shape or size, or values outside [-1, 1].
        UnknownNameError: ``resize`` is neither.
    """
    if resize not in RESIZES:
        raise UnknownNameError("resize", resize, RESIZES)
    if isinstance(picture, Tensor):
        pixels = _tensor(picture, what)
        if resize == "crop":
            pixels = cover(pixels, size, _bicubic)
    else:
        image = _image(picture, what)
        if resize == "crop" and (image.height, image.width) != size:
            height, width = scaled_size((image.height, image.width), size, "center")
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
        if resize == "crop":
            pixels = _center(pixels, size)
    if tuple(pixels.shape[1:]) != size:
        raise InvalidArgumentError(
            f"{what} has {pixels.shape[1]} x {pixels.shape[2]} pixels (height x width); expected {size[0]} x "
            f"{size[1]}, the size of the video. Resize it, or ask for resize='crop'."
        )
    return pixels.contiguous()


def clip_of(
    video: Any,
    size: tuple[int, int],
    what: str,
    *,
    num_frames: int | None = None,
    resize: str = "refuse",
) -> Float[Tensor, "3 f h w"]:
    """Return a video as a clip in [-1, 1], float32.

    Args:
        video: a ``Video``, the path of a video file (or of a folder that ``Video.save`` wrote), a sequence
            of pictures as ``pixels_of`` takes them, a ``uint8`` array ``(f, h, w, 3)``, or a floating-point
            tensor ``(3, f, h, w)`` in [-1, 1].
        size: ``(h, w)`` to return.
        what: what the video is, for messages, such as ``"the given video"``.
        num_frames: read no more than so many frames, from the first; None takes all.
        resize: what to do with frames of another size; see ``pixels_of``.

    Raises:
        InvalidArgumentError: another type, no frames, or frames that ``pixels_of`` refuses.
        UnknownNameError: ``resize`` is neither ``"refuse"`` nor ``"crop"``.
        VideoError: the file is missing or broken.
    """
    if num_frames is not None and num_frames < 1:
        raise InvalidArgumentError(f"{what}: num_frames={num_frames} was given; expected 1 or more.")
    if isinstance(video, str | os.PathLike) and not Path(video).is_dir():
        with VideoReader(Path(video)) as reader:  # frame by frame: a file may be far larger than the clip
            return _stacked(islice(reader, num_frames), size, what, resize)
    return _stacked(islice(_frames(video, what), num_frames), size, what, resize)


def cover(
    pixels: Float[Tensor, "c y x"],
    size: tuple[int, int],
    scale: Callable[[Tensor, tuple[int, int]], Tensor],
) -> Float[Tensor, "c h w"]:
    """Scale ``pixels`` to cover ``size`` by ``scale``, which gets one batch, and crop the centre."""
    source = (pixels.shape[1], pixels.shape[2])
    if source != size:
        pixels = scale(pixels[None], scaled_size(source, size, "center"))[0]
    return _center(pixels, size)


def _bicubic(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    scaled = functional.interpolate(pixels, size, mode="bicubic", antialias=True)
    return scaled.clamp(-1, 1)  # the kernel overshoots at edges


def _center(pixels: Float[Tensor, "c y x"], size: tuple[int, int]) -> Float[Tensor, "c h w"]:
    top, left = ((have - want) // 2 for have, want in zip(pixels.shape[1:], size, strict=True))
    return pixels[:, top : top + size[0], left : left + size[1]]


def _tensor(picture: Tensor, what: str) -> Float[Tensor, "3 h w"]:
    good = picture.is_floating_point() and picture.ndim == 3 and picture.shape[0] == 3 and picture.numel() > 0
    if not good:
        raise InvalidArgumentError(
            f"{what} is a tensor of {picture.dtype} and shape {tuple(picture.shape)}; expected floating point "
            "in [-1, 1] of shape (3, height, width), or a uint8 array (height, width, 3)."
        )
    pixels = picture.detach().float()
    if not (pixels.abs() <= 1).all():  # NaN included
        raise InvalidArgumentError(
            f"{what} is a tensor with values from {pixels.min():.4g} to {pixels.max():.4g}; expected [-1, 1]. "
            "Pixels in [0, 1] are brought there by 2 * x - 1, in 0..255 by x / 127.5 - 1."
        )
    return pixels


def _image(picture: Any, what: str) -> Image.Image:
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if not isinstance(picture, np.ndarray):
        raise InvalidArgumentError(
            f"{what} is a {type(picture).__name__}; expected a PIL image, a uint8 array (height, width, 3) or "
            "a floating-point tensor (3, height, width) in [-1, 1]."
        )
    good = picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size > 0
    if not good:
        raise InvalidArgumentError(
            f"{what} is an array of {picture.dtype} and shape {picture.shape}; expected uint8 of shape "
            "(height, width, 3)."
        )
    return Image.fromarray(np.ascontiguousarray(picture))


def _frames(video: Any, what: str) -> Sequence[Any] | Tensor:
    """The frames of a video that is in memory, or in a folder."""
    if isinstance(video, str | os.PathLike):
        video = Video.load(video)
    if isinstance(video, Video):
        return list(video.frames)
    if isinstance(video, Tensor | np.ndarray):
        if video.ndim == 4:
            return video.unbind(1) if isinstance(video, Tensor) else list(video)
    elif isinstance(video, Sequence) and not isinstance(video, bytes):
        return video
    given = (
        f"{type(video).__name__} of shape {tuple(video.shape)}"
        if hasattr(video, "shape")
        else type(video).__name__
    )
    raise InvalidArgumentError(
        f"{what} is a {given}; expected a Video, a path, a sequence of pictures, a uint8 array (frames, "
        "height, width, 3) or a floating-point tensor (3, frames, height, width) in [-1, 1]."
    )


def _stacked(frames: Any, size: tuple[int, int], what: str, resize: str) -> Float[Tensor, "3 f h w"]:
    clip = [pixels_of(frame, size, f"frame {i} of {what}", resize=resize) for i, frame in enumerate(frames)]
    if not clip:
        raise InvalidArgumentError(f"{what} has no frames; give at least one.")
    return torch.stack(clip, dim=1)
