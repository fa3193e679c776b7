"""Codecs: video to latents of unit variance and back."""

from vidgen.codecs.base import Codec, FrameCodec
from vidgen.codecs.pixels import PixelCodec, measure

__all__ = ["Codec", "FrameCodec", "PixelCodec", "measure"]
