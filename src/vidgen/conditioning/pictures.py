"""Pictures and videos given as conditions, turned into pixels of the size that is generated.

Ranges are diffusers': floating point is [0, 1], as results are; ``uint8`` is 0 to 255. Floating point with
values below 0 is taken as [-1, 1] with a warning, as its ``VaeImageProcessor`` does. Arrays have their
channels last, tensors before height and width.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence
from torch import Tensor
from torch.nn import functional

from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.paths import expanded
from vidgen.video import Video, VideoReader
from vidgen.video.color import to_rgb
from vidgen.video.transforms import scaled_size

__all__ = ["RESIZES", "clip_of", "cover", "is_signed", "pixels_of", "read_pictures", "unsigned"]

RESIZES = ("refuse", "crop")

_ROUNDING = 0.002  # half of an 8-bit step: what sums in low precision miss [0, 1] by

logger = logging.getLogger("vidgen")


def pixels_of(
    picture: Any, size: tuple[int, int], what: str, *, resize: str = "refuse", signed: bool | None = None
) -> Float[Tensor, "3 h w"]:
    """Return a picture as pixels in [-1, 1], float32.

    Args:
        picture: a PIL image (what is transparent becomes white), the path of a picture file, an array
            ``(h, w, 3)`` of ``uint8`` or floating point in [0, 1], or a tensor ``(3, h, w)`` in [0, 1].
        size: ``(h, w)`` to return.
        what: what the picture is, for messages, such as ``"the picture for frame 3"``.
        resize: ``"refuse"`` another size, or ``"crop"``: scale to cover ``size`` (Lanczos; antialiased
            bicubic for floating point) and crop the centre.
        signed: whether floating point is in [-1, 1]; None looks at the values, see ``is_signed``.

    Raises:
        InvalidArgumentError: another type, dtype, shape or size, values out of range, or a file that is
            missing or is no picture.
        UnknownNameError: ``resize`` is neither.
    """
    if resize not in RESIZES:
        raise UnknownNameError("resize", resize, RESIZES)
    if isinstance(picture, Tensor | np.ndarray):
        picture = _checked(picture, what)
    if isinstance(picture, Tensor) and picture.is_floating_point():
        signed = is_signed([picture], what) if signed is None else signed
        pixels = (picture if signed else 2 * picture - 1).clamp(-1, 1)
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


def is_signed(pictures: Iterable[Any], what: str) -> bool:
    """Say whether the floating-point ones of ``pictures`` are in [-1, 1] instead of [0, 1]; warn if so.

    They are judged together: a bright one among several of [-1, 1] has no value below 0.

    Args:
        pictures: tensors and arrays of any shape; what is of another type or dtype does not count.
        what: what they are, for messages.

    Raises:
        InvalidArgumentError: values outside both ranges, or that are not finite.
    """
    floats = [p for p in pictures if _is_floating(p) and 0 not in p.shape]
    if not floats:
        return False
    # NumPy's, and not Python's min: it hands NaN on.
    low = float(np.min([float(p.min()) for p in floats]))
    high = float(np.max([float(p.max()) for p in floats]))
    if not (low >= -1 - _ROUNDING and high <= 1 + _ROUNDING):  # NaN included
        raise InvalidArgumentError(
            f"{what}: floating-point values from {low:.4g} to {high:.4g}; expected [0, 1]. Values in 0..255 "
            "are brought there by x / 255, or given as uint8."
        )
    signed = low < -_ROUNDING
    if signed:
        logger.warning(
            "%s: floating-point values from %.4g to %.4g are taken as [-1, 1]. Expected is [0, 1]; (x + 1) / 2 "
            "brings them there without this warning.",
            what,
            low,
            high,
        )
    return signed


def read_pictures(path: str | os.PathLike[str], what: str) -> list[Image.Image]:
    """Read a picture file, turned upright as its EXIF data say; an animation has several.

    Raises:
        InvalidArgumentError: the file is missing, or is no picture that can be read.
    """
    path = expanded(path)
    if not path.exists():
        raise InvalidArgumentError(f"{what} is {path}, which does not exist. Give another file.")
    try:
        with Image.open(path) as picture:
            return [ImageOps.exif_transpose(frame) for frame in ImageSequence.Iterator(picture)]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidArgumentError(
            f"{what} is {path}, which is no picture that can be read: {error}. Give a PNG or JPEG file, say."
        ) from error


def unsigned(image: Image.Image, what: str) -> Image.Image:
    """Return ``image`` with floating point in [0, 1], if it has any.

    Raises:
        InvalidArgumentError: floating-point values outside [0, 1] and [-1, 1].
    """
    if image.mode == "F" and is_signed([np.asarray(image)], what):
        return Image.fromarray((np.asarray(image) + 1) / 2)
    return image


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
            of pictures as ``pixels_of`` takes them, an array ``(f, h, w, 3)`` of ``uint8`` or floating point in
            [0, 1], or a tensor ``(f, 3, h, w)`` or ``(3, f, h, w)`` in [0, 1]; the last two also as a batch of
            one.
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
    if isinstance(video, str | os.PathLike):
        video = expanded(video)
    if isinstance(video, Path) and not video.is_dir():
        with VideoReader(video) as reader:  # frame by frame: a file may be far larger than the clip
            return _stacked(islice(reader, num_frames), size, what, resize, signed=False)
    frames = _frames(video, what)
    signed = is_signed(frames, what)
    return _stacked(islice(frames, num_frames), size, what, resize, signed=signed)


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


def _is_floating(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)


def _checked(picture: Tensor | NDArray[Any], what: str) -> Any:
    """Return a float32 tensor ``(3, h, w)`` of a tensor or an array, or a uint8 array as it is."""
    array = isinstance(picture, np.ndarray)
    eight_bits = array and picture.dtype == np.uint8
    good = picture.ndim == 3 and picture.shape[2 if array else 0] == 3 and 0 not in picture.shape
    if not good or not (_is_floating(picture) or eight_bits):
        raise InvalidArgumentError(
            f"{what} is {'an array' if array else 'a tensor'} of {picture.dtype} and shape "
            f"{tuple(picture.shape)}; expected {'(height, width, 3)' if array else '(3, height, width)'} of "
            f"floating point in [0, 1]{' or uint8' if array else ', or a uint8 array (height, width, 3)'}."
        )
    if isinstance(picture, np.ndarray):
        # a copy: PyTorch takes no negative strides, and warns of read-only arrays such as PIL's
        return (
            picture if eight_bits else torch.from_numpy(np.array(picture, order="C")).permute(2, 0, 1).float()
        )
    return picture.detach().float()


def _image(picture: Any, what: str) -> Image.Image:
    """Return a PIL image, a path or a uint8 array as an RGB image."""
    if isinstance(picture, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(picture))
    if isinstance(picture, str | os.PathLike):
        picture = read_pictures(picture, what)[0]
    if not isinstance(picture, Image.Image):
        raise InvalidArgumentError(
            f"{what} is a {type(picture).__name__}; expected a PIL image, the path of a picture, an array "
            "(height, width, 3) of uint8 or floating point in [0, 1], or a tensor (3, height, width) in [0, 1]."
        )
    return to_rgb(unsigned(picture, what))


def _frames(video: Any, what: str) -> Sequence[Any]:
    """The frames of a video that is in memory, or in a folder."""
    if isinstance(video, Path):
        video = Video.load(video)
    if isinstance(video, Video):
        return list(video.frames)
    if isinstance(video, Tensor | np.ndarray):
        if video.ndim == 5 and len(video) == 1:
            video = video[0]
        if video.ndim == 4:
            return list(video) if isinstance(video, np.ndarray) else _unbound(video, what)
    elif isinstance(video, Sequence) and not isinstance(video, bytes):
        return video
    given = (
        f"{type(video).__name__} of shape {tuple(video.shape)}"
        if hasattr(video, "shape")
        else type(video).__name__
    )
    raise InvalidArgumentError(
        f"{what} is a {given}; expected a Video, a path, a sequence of pictures, an array (frames, height, "
        "width, 3) of uint8 or floating point in [0, 1], or a tensor (frames, 3, height, width) in [0, 1]."
    )


def _unbound(video: Tensor, what: str) -> Sequence[Tensor]:
    """The frames of a tensor ``(f, 3, h, w)``, as results are, or ``(3, f, h, w)``, as clips are."""
    if video.shape[0] != 3 or (video.shape[1] == 3 and not is_signed([video], what)):
        return video.unbind(0)
    if video.shape[1] != 3:
        return video.unbind(1)
    # Results, which are in [0, 1], have frames first; what is in [-1, 1] may be a clip of this library.
    raise InvalidArgumentError(
        f"{what} is a tensor of shape {tuple(video.shape)} in [-1, 1], of which either side could be the "
        "frames. Give (frames, 3, height, width) in [0, 1]."
    )


def _stacked(
    frames: Iterable[Any], size: tuple[int, int], what: str, resize: str, *, signed: bool
) -> Float[Tensor, "3 f h w"]:
    clip = [
        pixels_of(frame, size, f"frame {i} of {what}", resize=resize, signed=signed)
        for i, frame in enumerate(frames)
    ]
    if not clip:
        raise InvalidArgumentError(f"{what} has no frames; give at least one.")
    return torch.stack(clip, dim=1)
