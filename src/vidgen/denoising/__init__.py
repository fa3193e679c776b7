"""What strategies share that denoise clips: their settings, their stage of training, their usual answers."""

from vidgen.denoising.config import ClipConfig
from vidgen.denoising.given import GivenFrames, mark_given, sample_known
from vidgen.denoising.image_model import ImageModel
from vidgen.denoising.stage import DenoisingStage
from vidgen.denoising.strategy import DenoisingStrategy
from vidgen.denoising.unet import UNetConfig

__all__ = [
    "ClipConfig",
    "DenoisingStage",
    "DenoisingStrategy",
    "GivenFrames",
    "ImageModel",
    "UNetConfig",
    "mark_given",
    "sample_known",
]
