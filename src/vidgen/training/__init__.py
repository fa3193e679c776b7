"""Training: one loop on accelerate that runs any strategy's stages."""

from vidgen.training.trackers import AccelerateTracker, TensorBoardTracker, Tracker, VideoTracker
from vidgen.training.trainer import Trainer, resolve, train

__all__ = ["AccelerateTracker", "TensorBoardTracker", "Tracker", "Trainer", "VideoTracker", "resolve", "train"]
