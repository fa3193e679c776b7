"""Names for the tensors that travel through vidgen, with their shapes.

Letters: ``b`` batch, ``f`` frames, ``c`` channels, ``h`` height, ``w`` width, ``n`` tokens,
``d`` features. The aliases are checked at run time under the tests only.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Clip", "FrameBatch", "KnownMask", "Latents", "Tokens"]

Clip = Float[Tensor, "b c f h w"]
"""Pixels in [-1, 1]."""

Latents = Float[Tensor, "b c f h w"]
"""A codec's latents: unit variance over the data."""

FrameBatch = Float[Tensor, "bf c h w"]
"""Frames of all clips in one batch, ``(b f)`` flattened with ``f`` fastest."""

KnownMask = Bool[Tensor, "b f"]
"""True where a frame is given instead of generated."""

Tokens = Float[Tensor, "b *f n d"]
"""Token embeddings for cross-attention: one text per video, ``b n d``, or one per frame, ``b f n d``."""
