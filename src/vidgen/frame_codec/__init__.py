"""Training of a frame codec on clips of any kind: the trainable ``frame_codec``."""

from vidgen.frame_codec.task import FrameCodecConfig, FrameCodecTask, normalise_latents

__all__ = ["FrameCodecConfig", "FrameCodecTask", "normalise_latents"]
