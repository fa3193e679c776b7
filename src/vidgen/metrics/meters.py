"""What ``evaluate`` collects while videos stream by: meters, and those of distances between features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.blocks import BlockStatistics, FrameStatistics, average_fid, block_frechet_distance
from vidgen.metrics.distances import (
    frechet_distance,
    inception_score,
    inception_size_notes,
    kernel_distance,
    kernel_size_notes,
    null_distance,
    sample_size_notes,
)
from vidgen.metrics.exact import full_precision
from vidgen.metrics.features import FeatureExtractor, Features
from vidgen.metrics.protocol import Protocol
from vidgen.metrics.score import Score
from vidgen.metrics.sources import Batch
from vidgen.metrics.statistics import HalvedStatistics

__all__ = [
    "BlockMeter",
    "Context",
    "FidMeter",
    "FrechetMeter",
    "InceptionMeter",
    "Judge",
    "KernelMeter",
    "Meter",
    "Seen",
]


@dataclass(frozen=True)
class Judge:
    """A classifier of the shapes data, for prompt accuracy and positions.

    Attributes:
        name: part of every key.
        read: videos in [-1, 1] to logits and positions, see ``vidgen.shapes.classifier``'s ``Reading``.
        fingerprint: name and weights in plain JSON values.
        motion_frames: frames of a clip from which on it tells motions apart; in shorter ones shape and colour
            alone are judged.
    """

    name: str
    read: Callable[[Tensor], Any]
    fingerprint: dict[str, Any]
    motion_frames: int = 2


@dataclass
class Seen:
    """A batch as meters look at it: what a network says of it is computed once.

    Attributes:
        side: ``"real"``, ``"generated"`` or ``"pairs"``.
        batch: the videos.
        kept: which of them are among those whose features are kept.
        reference: what each video should be, where videos are paired.
        places: of these within the real set.
    """

    side: str
    batch: Batch
    kept: Bool[Tensor, " b"]
    reference: Float[Tensor, "b 3 f h w"] | None = None
    places: list[int] | None = None
    _features: dict[int, Features] = field(default_factory=dict)
    _readings: dict[int, Any] = field(default_factory=dict)

    def features(self, extractor: FeatureExtractor) -> Features:
        """Return the features of the batch."""
        if id(extractor) not in self._features:
            with full_precision():
                self._features[id(extractor)] = extractor.extract(self.batch.clips)
        return self._features[id(extractor)]

    def reading(self, judge: Judge) -> Any:
        """Return what ``judge`` reads in the batch."""
        if id(judge) not in self._readings:
            with full_precision():
                self._readings[id(judge)] = judge.read(self.batch.clips)
        return self._readings[id(judge)]


@dataclass(frozen=True)
class Context:
    """What every protocol of an evaluation shares.

    Attributes:
        view: frames, size, crop, stride and rate: the one asked for, else those of the judged videos.
        real: digest of the real set; None without one.
        num_real: its videos.
        num_generated: videos that are judged.
        seed: of every split and choice.
        captions: digest of the generated videos' captions.
        pairing: where videos are compared one by one, by what they are paired (``"name"`` or ``"order"``),
            and a digest of the real one of each pair, in order.
        real_rates: frames per second of the real videos, as ``VideoSet.seen_rates``.
    """

    view: dict[str, Any]
    real: str | None
    num_real: int | None
    num_generated: int
    seed: int
    captions: str
    pairing: dict[str, str] | None = None
    real_rates: list[int | float] | None = None

    def protocol(self, metric: str, *, real: bool = True, **fields: Any) -> Protocol:
        """Return the protocol of ``metric``; ``real`` says whether the real set decides its value."""
        against = {"real": self.real, "num_real": self.num_real} if real else {}
        return Protocol(metric, **self.view, **against, **fields)

    @property
    def counts(self) -> dict[str, Any]:
        """The numbers of videos, as ``Score`` has them."""
        return {"num_real": self.num_real, "num_generated": self.num_generated}


class Meter(ABC):
    """Collects what one metric needs.

    Attributes:
        takes: which sides it is shown: ``"real"``, ``"generated"``, or ``"pairs"``, generated videos with
            what each should be.
    """

    takes: tuple[str, ...] = ("real", "generated")

    @abstractmethod
    def take(self, seen: Seen) -> None:
        """Take in some videos of a side.

        Raises:
            InvalidArgumentError: videos or captions that the metric cannot be had of.
        """

    @abstractmethod
    def scores(self, context: Context) -> Iterator[Score]:
        """Yield what was measured, with what to know of it noted.

        Raises:
            InvalidArgumentError: too few videos, or the metric has no value for them.
        """


class FrechetMeter(Meter):
    """``fvd_<extractor>``: Frechet distance of the features of videos."""

    def __init__(self, extractor: FeatureExtractor, seed: int, stored: HalvedStatistics | None = None) -> None:
        """Measure against the real videos to come, or against ``stored`` statistics of them."""
        self.extractor, self.seed = extractor, seed
        self.sides = {"real": stored, "generated": None}
        if stored is not None:
            self.takes = ("generated",)

    def take(self, seen: Seen) -> None:
        """See ``Meter.take``."""
        values = seen.features(self.extractor).values
        statistics = self.sides[seen.side] or HalvedStatistics(values.shape[1], self.seed)
        statistics.update(values, seen.batch.indices)
        self.sides[seen.side] = statistics

    def scores(self, context: Context) -> Iterator[Score]:
        """See ``Meter.scores``."""
        real, generated = _both(self.sides)
        key = f"fvd_{self.extractor.name}"
        yield Score(
            key,
            frechet_distance(real.whole(), generated.whole()),
            context.protocol(key, extractor=self.extractor.fingerprint(), num_generated=generated.n),
            null=_null(real),
            num_real=real.n,
            num_generated=generated.n,
            notes=sample_size_notes(real.n, generated.n, real.dim),
        )


class KernelMeter(Meter):
    """``kvd_<extractor>``: kernel distance of the features of at most ``kept`` videos of each set."""

    def __init__(self, extractor: FeatureExtractor, kept: int, seed: int) -> None:
        self.extractor, self.kept, self.seed = extractor, kept, seed
        self.sides: dict[str, list[Tensor]] = {"real": [], "generated": []}

    def take(self, seen: Seen) -> None:
        """See ``Meter.take``."""
        self.sides[seen.side].append(seen.features(self.extractor).values[seen.kept])

    def scores(self, context: Context) -> Iterator[Score]:
        """See ``Meter.scores``."""
        real, generated = torch.cat(self.sides["real"]), torch.cat(self.sides["generated"])
        key = f"kvd_{self.extractor.name}"
        fields: dict[str, Any] = {
            "extractor": self.extractor.fingerprint(),
            "kept": self.kept,
            "seed": self.seed,
        }
        yield Score(
            key,
            kernel_distance(real, generated),
            context.protocol(key, **fields),
            null=null_distance(real, kernel_distance, self.seed) if len(real) >= 4 else None,
            num_real=len(real),
            num_generated=len(generated),
            notes=kernel_size_notes(len(real), len(generated)),
        )


class InceptionMeter(Meter):
    """``is_<extractor>``: inception score, from the logits of the generated videos."""

    takes = ("generated",)

    def __init__(self, extractor: FeatureExtractor, splits: int, seed: int) -> None:
        self.extractor, self.splits, self.seed = extractor, splits, seed
        self.logits: list[Tensor] = []

    def take(self, seen: Seen) -> None:
        """See ``Meter.take``."""
        logits = seen.features(self.extractor).logits
        if logits is None:
            raise InvalidArgumentError(
                f"{self.extractor.name} has no classes, and the inception score needs some; leave 'is' out, or "
                "give an extractor with logits, such as I3D or C3D."
            )
        self.logits.append(logits)

    def scores(self, context: Context) -> Iterator[Score]:
        """See ``Meter.scores``."""
        logits = torch.cat(self.logits)
        found = inception_score(logits, self.splits, self.seed)
        key = f"is_{self.extractor.name}"
        fields: dict[str, Any] = {
            "extractor": self.extractor.fingerprint(),
            "splits": self.splits,
            "seed": self.seed,
        }
        yield Score(
            key,
            found.mean,
            context.protocol(key, real=False, num_generated=len(logits), **fields),
            num_generated=len(logits),
            notes=(
                f"standard deviation {found.std:.3g} over {found.splits} split(s).",
                *inception_size_notes(len(logits), logits.shape[1], found.splits),
            ),
            higher_is_better=True,
        )


class BlockMeter(Meter):
    """``b_fvd_<n>_<extractor>``: Frechet distance per block of ``n`` frames, averaged."""

    def __init__(self, extractor: FeatureExtractor, size: int, seed: int) -> None:
        self.extractor, self.size = extractor, size
        self.sides = {side: BlockStatistics(extractor, size, seed) for side in ("real", "generated")}

    def take(self, seen: Seen) -> None:
        """See ``Meter.take``."""
        self.sides[seen.side].update(seen.batch.clips)

    def scores(self, context: Context) -> Iterator[Score]:
        """See ``Meter.scores``."""
        found = block_frechet_distance(self.sides["real"], self.sides["generated"])
        key = f"b_fvd_{self.size}_{self.extractor.name}"
        fields: dict[str, Any] = {"extractor": self.extractor.fingerprint(), "block": self.size}
        line = ", ".join(f"{value:.4g}" for value in found.distances)
        yield Score(
            key,
            found.value,
            context.protocol(key, num_generated=context.num_generated, **fields),
            null=found.null,
            notes=(f"by block: {line}.", *found.notes),
            **context.counts,
        )


class FidMeter(Meter):
    """``avg_fid_<extractor>``: Frechet distance of all frames, pooled."""

    def __init__(self, extractor: FeatureExtractor, seed: int) -> None:
        self.extractor = extractor
        self.sides = {side: FrameStatistics(extractor, seed) for side in ("real", "generated")}

    def take(self, seen: Seen) -> None:
        """See ``Meter.take``."""
        self.sides[seen.side].update(seen.batch.clips)

    def scores(self, context: Context) -> Iterator[Score]:
        """See ``Meter.scores``."""
        value = average_fid(self.sides["real"], self.sides["generated"])
        real = self.sides["real"].statistics
        assert real is not None  # average_fid has refused empty sets
        videos, others = (self.sides[side].num_videos for side in ("real", "generated"))
        key = f"avg_fid_{self.extractor.name}"
        yield Score(
            key,
            value,
            context.protocol(key, extractor=self.extractor.fingerprint(), num_generated=context.num_generated),
            null=_null(real),
            notes=sample_size_notes(videos, others, real.dim, frames=real.n // videos),
            **context.counts,
        )


def _null(real: HalvedStatistics) -> float | None:
    return null_distance(real) if min(half.n for half in real.halves) > 1 else None


def _both(sides: dict[str, HalvedStatistics | None]) -> tuple[HalvedStatistics, HalvedStatistics]:
    real, generated = sides["real"], sides["generated"]
    assert real is not None  # sets are never empty
    assert generated is not None
    return real, generated
