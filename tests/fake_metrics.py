"""Extractors and a judge that are plain functions of pixels, for tests of what is built on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.metrics.features import FeatureExtractor, Features
from vidgen.metrics.meters import Judge


class PixelExtractor(FeatureExtractor):
    """Features of a video: mean colour of its first and of its last frame, and how bright its left half is."""

    def __init__(self, name="pixels", scale=1.0, min_frames=1, with_logits=True):
        self.name, self.scale, self.min_frames, self.with_logits = name, scale, min_frames, with_logits
        self.seen: list[Tensor] = []

    def extract(self, clips: Tensor) -> Features:
        self.seen.append(clips.clone())
        first, last = clips[:, :, 0].mean(dim=(2, 3)), clips[:, :, -1].mean(dim=(2, 3))
        left = clips[..., : clips.shape[-1] // 2].mean(dim=(1, 2, 3, 4))[:, None]
        values = torch.cat([first, last, left], dim=1) * self.scale
        return Features(values, 50 * first if self.with_logits else None)

    @property
    def device(self):
        return torch.device("cpu")

    def to(self, device):
        return self

    def fingerprint(self):
        return {"name": self.name, "scale": self.scale}


class FrameExtractor(PixelExtractor):
    """Features of a frame: its mean colour."""

    per_frame = True

    def extract(self, clips: Tensor) -> Features:
        return Features(clips.mean(dim=(3, 4)).transpose(1, 2).flatten(0, 1) * self.scale)


@dataclass(frozen=True)
class Reading:
    shape: Tensor
    colour: Tensor
    motion: Tensor
    position: Tensor


def brightest(clips: Tensor) -> Tensor:
    """Where a bright object is in each frame, as shares of the sides."""
    light = clips.sum(dim=1).flatten(2).argmax(dim=2)
    height, width = clips.shape[-2:]
    return torch.stack([(light % width) / width, (light // width) / height], dim=-1)


def reader(shape=0, colour=0, motion=0):
    """A judge that always reads the same classes, and positions from the pixels."""

    def read(clips: Tensor) -> Reading:
        def logits(index, number):
            return F.one_hot(torch.full((len(clips),), index), number).float()

        return Reading(logits(shape, 3), logits(colour, 6), logits(motion, 7), brightest(clips))

    return Judge("fake", read, {"name": "fake", "reads": [shape, colour, motion]})
