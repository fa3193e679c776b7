"""Training: one loop on accelerate that runs any strategy's stages."""

from vidgen.training.trainer import Trainer, train

__all__ = ["Trainer", "train"]
