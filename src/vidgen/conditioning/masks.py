"""Masks that say which frames, or which pixels, are generated anew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from vidgen.conditioning.pictures import RESIZES, cover, read_pictures, unsigned
from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.paths import expanded
from vidgen.video import Video
from vidgen.video.color import eight_bit, opaque

__all__ = ["mask_of", "read_mask"]

_EXPECTED = (
    "expected one value per frame, one picture (height, width) for all frames, or one picture per frame: "
    "booleans, 0 and 1, floating point in [0, 1], or uint8 pictures; true or white is generated anew"
)


def mask_of(
    mask: Any, num_frames: int, size: tuple[int, int], what: str, *, resize: str = "refuse"
) -> Bool[Tensor, "f h w"]:
    """Return which pixels of a video are generated anew: True, or white, as in diffusers' inpainting.

    Args:
        mask: one value per frame; or one picture for all frames (a PIL image or ``(h, w)``); or a picture
            per frame (a sequence of them, or ``(f, h, w)``). Arrays and tensors are boolean, integers 0
            and 1, or floating point in [0, 1], of which 0.5 and more is true. PIL images, and ``uint8``
            arrays with a value above 1, are white from 128; what is transparent is black. Or the path of a
            picture, an animation, a folder of pictures in the order of their names, or a video.
        num_frames: frames ``f`` of the video.
        size: ``(h, w)`` of the video.
        what: what the mask is, for messages, such as ``"the mask"``.
        resize: ``"refuse"`` pictures of another size, or ``"crop"``: scale to cover ``size`` by the
            nearest pixel and crop the centre, as the pictures beside it.

    Raises:
        InvalidArgumentError: another type, shape, number of frames or size, values that are no mask, or a
            path at which nothing is.
        UnknownNameError: ``resize`` is neither.
        VideoError: a file that is neither picture nor video.
    """
    if resize not in RESIZES:
        raise UnknownNameError("resize", resize, RESIZES)
    values = _booleans(mask, what)
    if values.ndim == 1:
        values = values[:, None, None].expand(-1, *size)
    elif values.ndim == 2:
        values = values[None].expand(num_frames, -1, -1)
    if values.ndim != 3 or values.shape[0] != num_frames:
        raise InvalidArgumentError(
            f"{what} has shape {tuple(values.shape)} for a video of {num_frames} frames; {_EXPECTED}."
        )
    if resize == "crop":
        values = cover(values.float(), size, _nearest) > 0.5
    if tuple(values.shape[1:]) != size:
        raise InvalidArgumentError(
            f"{what} has {values.shape[1]} x {values.shape[2]} pixels (height x width); expected {size[0]} x "
            f"{size[1]}, the size of the video. Resize it, or ask for resize='crop'."
        )
    return values.contiguous()


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(values, size, mode="nearest-exact")


def _booleans(mask: Any, what: str) -> Tensor:
    """A boolean tensor of whatever shape the mask has."""
    if isinstance(mask, str | os.PathLike):
        mask = read_mask(mask, what)
    if isinstance(mask, Image.Image):
        grey = opaque(eight_bit(unsigned(mask, what)), 0).convert("L")
        return torch.from_numpy(np.array(grey) >= 128)
    if isinstance(mask, Tensor | np.ndarray | np.generic | bool | int | float):
        return _thresholded(torch.as_tensor(mask if isinstance(mask, Tensor) else np.array(mask)), what)
    if isinstance(mask, Sequence) and not isinstance(mask, bytes):
        parts = [_booleans(part, f"entry {i} of {what}") for i, part in enumerate(mask)]
        shapes = {tuple(part.shape) for part in parts}
        if len(shapes) == 1:
            return torch.stack([part.cpu() for part in parts])
        raise InvalidArgumentError(f"{what} has entries of {len(shapes)} shapes {sorted(shapes)}; {_EXPECTED}.")
    raise InvalidArgumentError(f"{what} is a {type(mask).__name__}; {_EXPECTED}.")


def read_mask(path: str | os.PathLike[str], what: str) -> Image.Image | list[Image.Image]:
    """Read one picture for all frames, or a picture per frame from a folder, an animation or a video.

    Raises:
        InvalidArgumentError: nothing is there, or no picture that can be read.
        VideoError: a file that is neither picture nor video.
    """
    path = expanded(path)
    if not path.exists():
        raise InvalidArgumentError(f"{what} is {path}, which does not exist. Give another file.")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in Image.registered_extensions())
        if not files:
            raise InvalidArgumentError(f"{what} is {path}, which holds no picture. Give another folder.")
        return [read_pictures(file, what)[0] for file in files]
    try:
        with Image.open(path):
            pass
    except UnidentifiedImageError:  # no picture, so perhaps a video
        return [Image.fromarray(frame) for frame in Video.load(path).frames]
    found = read_pictures(path, what)
    return found[0] if len(found) == 1 else found


def _thresholded(values: Tensor, what: str) -> Tensor:
    if values.dtype == torch.bool or values.numel() == 0:
        return values.bool()
    if values.dtype == torch.uint8 and values.ndim >= 2 and values.max() > 1:
        return values >= 128
    low, high = values.min().item(), values.max().item()
    whole = values.is_floating_point() or high <= 1
    if not (whole and low >= 0 and high <= 1 and not values.isnan().any()):
        raise InvalidArgumentError(f"{what} holds values from {low:g} to {high:g}; {_EXPECTED}.")
    return values >= 0.5
