"""Published VAE layouts with untrained weights: for costs and sizes, where there are no weights at hand."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffusers import AutoencoderKL

from vidgen.codecs.images import ImageCodec
from vidgen.errors import UnknownNameError

__all__ = ["LAYOUTS", "is_layout", "untrained_codec"]

_PREFIX = "layout:"


def _kl(widths: tuple[int, ...], channels: int, scaling: float) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            "down_block_types": ("DownEncoderBlock2D",) * len(widths),
            "up_block_types": ("UpDecoderBlock2D",) * len(widths),
            "block_out_channels": widths,
            "layers_per_block": 2,
            "latent_channels": channels,
            "scaling_factor": scaling,
        }
    )


LAYOUTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # Rombach et al. 2022, table 8: f = 8 as Stable Diffusion took it, and f = 4
        "kl-f8": _kl((128, 256, 512, 512), 4, 0.18215),
        "kl-f4": _kl((128, 256, 512), 3, 1.0),
    }
)
"""Arguments of ``AutoencoderKL`` by name."""


def is_layout(source: str | None) -> bool:
    """Whether a codec's source names a layout (``"layout:kl-f8"``) instead of weights."""
    return source is not None and source.startswith(_PREFIX)


def untrained_codec(source: str) -> ImageCodec:
    """Return a codec of the layout ``source`` with fresh weights: right in size and cost alone.

    Raises:
        UnknownNameError: there is no such layout.
    """
    name = source.removeprefix(_PREFIX)
    if name not in LAYOUTS:
        raise UnknownNameError("VAE layout", name, LAYOUTS)
    return ImageCodec(AutoencoderKL(**LAYOUTS[name]).eval())
