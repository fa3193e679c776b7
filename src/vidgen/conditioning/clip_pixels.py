"""Pictures as a CLIP image tower wants them: resized, cropped, normalised, all on tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

__all__ = ["ClipPixels"]


@dataclass(frozen=True)
class ClipPixels:
    """open_clip's evaluation transform, differentiable and for whole batches.

    open_clip resizes 8-bit pictures with Pillow. This uses PyTorch's antialiased filters, which have the
    same kernels, and rounds to 8 bits where Pillow does. 8-bit pictures so come out equal up to float
    rounding, whether they fit or are resized in proportion (a few values may be one of the 255 levels
    off). Where ``"squash"`` changes the proportions, Pillow may resize columns before rows, which can
    differ by six levels at sharp edges. Pictures that fit are not rounded.

    Args:
        size: ``(h, w)`` of the network.
        mean, std: of the channels, for pixels in [0, 1].
        interpolation: ``"bilinear"``, else bicubic.
        resize_mode: ``"shortest"`` scales to cover and crops the centre, ``"longest"`` scales to fit and
            pads, ``"squash"`` changes the proportions.
        fill_color: 0 to 255, what ``"longest"`` pads with.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 y x"]:
        """Return ``images`` in [-1, 1] at the network's size, normalised, in float32."""
        pixels = self._resized((images.float() + 1) / 2)
        pixels = _centered(pixels, self.size, self.fill_color / 255)
        mean, std = (
            torch.tensor(v, device=pixels.device, dtype=pixels.dtype)[:, None, None]
            for v in (self.mean, self.std)
        )
        return (pixels - mean) / std

    def _resized(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 y x"]:
        height, width = pixels.shape[-2:]
        size = self._scaled(height, width)
        if size == (height, width):
            return pixels
        mode = "bilinear" if self._linear else "bicubic"
        for stage in ((height, size[1]), size):  # along rows, then columns, in 8 bits after each, as Pillow
            pixels = _in_8_bits(functional.interpolate(pixels, stage, mode=mode, antialias=True))
        return pixels

    @property
    def _linear(self) -> bool:
        # open_clip resizes to cover a size that is not square with bicubic, whatever it is told.
        uneven = self.resize_mode == "shortest" and self.size[0] != self.size[1]
        return self.interpolation == "bilinear" and not uneven

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """The size before cropping or padding, rounded as torchvision and open_clip round it."""
        if self.resize_mode == "squash":
            return self.size
        if self.resize_mode == "shortest" and self.size[0] == self.size[1]:
            side = self.size[0]  # the short side is exact, the long one rounded down
            if height <= width:
                return side, int(side * width / height)
            return int(side * height / width), side
        ratios = (height / self.size[0], width / self.size[1])
        ratio = max(ratios) if self.resize_mode == "longest" else min(ratios)
        return round(height / ratio), round(width / ratio)


def _in_8_bits(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Clipped and rounded to 256 levels; gradients pass the rounding as if it were not there."""
    pixels = pixels.clamp(0, 1)  # the bicubic kernel overshoots at edges
    levels = (pixels * 255 + (0.5 + 1e-4)).floor()  # halves go up, also those a rounding error below
    return pixels + (levels / 255 - pixels).detach()


def _centered(pixels: Float[Tensor, "b 3 h w"], size: tuple[int, int], fill: float) -> Float[Tensor, "b 3 y x"]:
    """Pad, then crop the middle to ``size``; the odd pixel goes where torchvision puts it."""
    short = [max(want - have, 0) for want, have in zip(size, pixels.shape[-2:], strict=True)]
    if any(short):
        top, left = short[0] // 2, short[1] // 2
        pixels = functional.pad(pixels, (left, short[1] - left, top, short[0] - top), value=fill)
    top, left = (round((have - want) / 2.0) for want, have in zip(size, pixels.shape[-2:], strict=True))
    return pixels[..., top : top + size[0], left : left + size[1]]
