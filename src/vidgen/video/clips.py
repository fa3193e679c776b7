"""What training reads: clips with captions, the same for the same key in any process.

A key is ``(index, draw)``: which video (or captioned part of one) and which of its endlessly many
random clips. ``draw`` keys all randomness, so a trainer that uses its epoch or step as the draw
resumes exactly, whatever the number of workers.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.utils.data import Dataset

from vidgen.errors import InvalidArgumentError, VideoError
from vidgen.video.checks import printable
from vidgen.video.draws import digest

__all__ = ["ClipBatch", "ClipDataset", "ClipSample", "ClipSubset", "ClipView", "collate", "split"]

logger = logging.getLogger("vidgen.video")


@dataclass(frozen=True)
class ClipView:
    """What a clip shows, known without reading a pixel; fields as in ``ClipSample``.

    ``size`` is the clip's height and width in pixels.
    """

    caption: str
    label: int
    fps: float
    index: int
    draw: int
    frames: tuple[int, ...]
    size: tuple[int, int]
    content: str | None

    def sample(self, clip: Float[Tensor, "c f h w"]) -> ClipSample:
        """Return the sample of this view with the pixels ``clip``."""
        return ClipSample(
            clip, self.caption, self.label, self.fps, self.index, self.draw, self.frames, self.content
        )


@dataclass(frozen=True)
class ClipSample:
    """One clip: pixels in [-1, 1] and what is known of it.

    ``label`` is -1 without classes; ``fps`` is the clip's own rate (the source's over the stride);
    ``frames`` are the absolute frame indices in the source; ``index`` and ``draw`` are the key that
    the clip belongs to, which differs from the one asked for where that could not be read.
    ``content`` names what the pixels are made of (the source's content, size, crop, mirroring):
    where it is equal, frames of equal number have equal pixels, in any run and under any file name.
    It is None where that cannot be said or is not worth remembering, as of random crops.
    """

    clip: Float[Tensor, "c f h w"]
    caption: str
    label: int
    fps: float
    index: int
    draw: int
    frames: tuple[int, ...]
    content: str | None = None


@dataclass(frozen=True)
class ClipBatch:
    """Clips of equal size, stacked; fields as in ``ClipSample``, ``frames`` as ``(b, n)``.

    ``latents`` are the codec's, where a trainer has them at hand; ``clip`` may then hold no frames
    (``b c 0 h w``), because no pixels were read.
    """

    clip: Float[Tensor, "b c f h w"]
    captions: list[str]
    labels: Int64[Tensor, " b"]
    fps: Float32[Tensor, " b"]
    index: Int64[Tensor, " b"]
    draw: Int64[Tensor, " b"]
    frames: Int64[Tensor, "b n"]  # not "f": a batch of latents keeps no pixels and yet knows its frames
    latents: Float[Tensor, "b lc lf lh lw"] | None = None

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.captions)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ClipBatch:
        """Return the batch with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ClipBatch:
        """Return the batch in page-locked memory (called by a ``DataLoader`` that pins)."""
        return self._map(Tensor.pin_memory)

    def select(self, rows: Sequence[int]) -> ClipBatch:
        """Return a batch of the clips at ``rows``, in that order."""
        chosen = torch.tensor(rows, dtype=torch.int64)
        batch = self._map(lambda tensor: tensor[chosen.to(tensor.device)])
        return replace(batch, captions=[self.captions[i] for i in rows])

    def _map(self, change: Callable[[Tensor], Tensor]) -> ClipBatch:
        tensors: dict[str, Any] = {k: change(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


def collate(samples: Sequence[ClipSample]) -> ClipBatch:
    """Stack ``samples`` into a batch: the ``collate_fn`` of a ``DataLoader``.

    Raises InvalidArgumentError for no samples or clips of different shapes.
    """
    shapes = {tuple(sample.clip.shape) for sample in samples}
    if len(shapes) != 1:
        raise InvalidArgumentError(
            f"cannot stack {len(samples)} clips of the shapes {sorted(shapes)}; give one or more "
            "clips of one size and length."
        )
    return ClipBatch(
        clip=torch.stack([sample.clip for sample in samples]),
        captions=[sample.caption for sample in samples],
        labels=torch.tensor([sample.label for sample in samples]),
        fps=torch.tensor([sample.fps for sample in samples], dtype=torch.float32),
        index=torch.tensor([sample.index for sample in samples]),
        draw=torch.tensor([sample.draw for sample in samples]),
        frames=torch.tensor([sample.frames for sample in samples]),
    )


class ClipDataset(Dataset[ClipSample], ABC):
    """Clips by key. A subclass says how many there are, reads one, and names its content."""

    def __init__(self) -> None:
        """Start with no classes and nothing known to be broken."""
        self.broken: dict[str, str] = {}
        """What could not be read so far, with the reason."""
        self.classes: tuple[str, ...] = ()
        """Class names in the order of the labels; empty without classes."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of indices."""

    @abstractmethod
    def read(self, index: int, draw: int) -> ClipSample:
        """Return the clip of ``(index, draw)``, a pure function of the two.

        Raises VideoError if that clip cannot be read.
        """

    def locate(self, index: int, draw: int) -> ClipView | None:
        """Say what ``read`` would return for ``(index, draw)``, without reading a pixel.

        None, which is the default, means that it cannot be said; then nothing that is computed
        from the clip is kept for later. Where there is an answer, ``read`` agrees with it.
        """
        del index, draw
        return None

    @abstractmethod
    def content_key(self, index: int) -> str:
        """Name the source behind ``index``; clips of one file share the name."""

    @abstractmethod
    def texts(self) -> list[str]:
        """Return every caption that a clip may have, without reading one; they may repeat."""

    def summary(self) -> dict[str, Any]:
        """Return what there is in plain values, for people and for JSON."""
        return {"items": len(self), "broken": dict(self.broken), "classes": list(self.classes)}

    def __getitem__(self, key: int | tuple[int, int]) -> ClipSample:
        """Return the clip of ``(index, draw)``; an index alone means draw 0.

        A clip that cannot be read is replaced by that of the next index that can, with the same
        draw. Raises IndexError outside the dataset, VideoError when nothing can be read.
        """
        index, draw = key if isinstance(key, tuple) else (key, 0)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} items")
        # No blacklist: what a key gives must not depend on what was read before it.
        for step in range(len(self)):
            try:
                return self.read((index + step) % len(self), draw)
            except VideoError as error:
                last = error
        raise VideoError(
            f"none of the {len(self)} items can be read any more (last: {last}); check the files."
        ) from last

    def __iter__(self) -> Iterator[ClipSample]:
        """Yield draw 0 of every index once."""
        return (self[index] for index in range(len(self)))

    def report_broken(self, name: str, reason: str) -> None:
        """Count ``name`` as broken and say so, once."""
        name, reason = printable(name), printable(reason)
        if name not in self.broken:
            self.broken[name] = reason
            logger.warning("skipping %s: %s", name, reason)


class ClipSubset(ClipDataset):
    """Some indices of a dataset. Samples keep the ``index`` they have in the whole."""

    def __init__(self, whole: ClipDataset, indices: Sequence[int]) -> None:
        """Take ``indices`` of ``whole``, in this order."""
        super().__init__()
        self.whole, self.indices = whole, tuple(indices)
        self.broken, self.classes = whole.broken, whole.classes

    def __len__(self) -> int:
        """Return the number of indices taken."""
        return len(self.indices)

    def read(self, index: int, draw: int) -> ClipSample:
        """Return the clip of ``(index, draw)``, ``index`` counting within the subset."""
        return self.whole.read(self.indices[index], draw)

    def locate(self, index: int, draw: int) -> ClipView | None:
        """Say what ``read`` would return, ``index`` counting within the subset."""
        return self.whole.locate(self.indices[index], draw)

    def content_key(self, index: int) -> str:
        """Name the source behind ``index``."""
        return self.whole.content_key(self.indices[index])

    def texts(self) -> list[str]:
        """Return the captions of the whole dataset, so that both sides of a split share them."""
        return self.whole.texts()


def split(dataset: ClipDataset, fraction: int | float, seed: int = 0) -> tuple[ClipSubset, ClipSubset]:
    """Split into ``(train, held_out)`` by a hash of the content, all clips of a file on one side.

    ``fraction`` in [0, 1) of the sources is held out (at least one, if above 0 and there are two or
    more; never all). The split does not depend on the order or the names of the files.
    Raises InvalidArgumentError for a fraction out of range.
    """
    if not 0 <= fraction < 1:
        raise InvalidArgumentError(f"fraction={fraction}; it must be at least 0 and below 1.")
    keys = [dataset.content_key(index) for index in range(len(dataset))]
    ranked = sorted(set(keys), key=lambda key: digest("vidgen.split", seed, key))
    count = min(round(fraction * len(ranked)) or fraction > 0, len(ranked) - 1)
    held = set(ranked[:count])
    train = [index for index, key in enumerate(keys) if key not in held]
    rest = [index for index, key in enumerate(keys) if key in held]
    return ClipSubset(dataset, train), ClipSubset(dataset, rest)
