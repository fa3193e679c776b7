"""What strategies share that denoise clips: their settings, their stage of training, their usual answers."""

from vidgen.denoising.config import ClipConfig
from vidgen.denoising.given import GivenFrames, mark_given, sample_known
from vidgen.denoising.image_model import ImageModel
from vidgen.denoising.level import DenoisingLevel
from vidgen.denoising.stage import Denoised, DenoisingStage, Example
from vidgen.denoising.strategy import DenoisingStrategy
from vidgen.denoising.unet import UNetConfig

__all__ = [
    "ClipConfig",
    "Denoised",
    "DenoisingLevel",
    "DenoisingStage",
    "DenoisingStrategy",
    "Example",
    "GivenFrames",
    "ImageModel",
    "UNetConfig",
    "mark_given",
    "sample_known",
]
