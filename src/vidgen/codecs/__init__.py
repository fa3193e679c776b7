"""Codecs: video to latents of unit variance and back."""

from vidgen.codecs.base import Codec, FrameCodec, FrameStream
from vidgen.codecs.images import ImageCodec
from vidgen.codecs.layouts import is_layout
from vidgen.codecs.pixels import PixelCodec, measure
from vidgen.codecs.pretrained import load_codec
from vidgen.codecs.registry import codec_class
from vidgen.codecs.vae import VaeCodec
from vidgen.codecs.videos import VideoCodec

__all__ = [
    "Codec",
    "FrameCodec",
    "FrameStream",
    "ImageCodec",
    "PixelCodec",
    "VaeCodec",
    "VideoCodec",
    "codec_class",
    "is_layout",
    "load_codec",
    "measure",
]
