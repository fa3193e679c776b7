"""What strategies share that denoise clips: their settings, their stage of training, their usual answers."""

from vidgen.denoising.config import ClipConfig
from vidgen.denoising.given import GivenFrames, mark_given, sample_known
from vidgen.denoising.stage import DenoisingStage
from vidgen.denoising.strategy import DenoisingStrategy

__all__ = [
    "ClipConfig",
    "DenoisingStage",
    "DenoisingStrategy",
    "GivenFrames",
    "mark_given",
    "sample_known",
]
