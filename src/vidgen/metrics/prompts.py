"""Whether videos show what their captions say: shape, colour and motion, read by a classifier.

The captions are those of the shapes data (``vidgen.shapes.phrases``), and so is what the bundled classifier
can read. Single frames (``f = 1``) have no motion: shape and colour are judged alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.shapes.phrases import describe, parse_caption
from vidgen.shapes.scene import COLOURS, MOTIONS, SHAPES, ShapeSpec
from vidgen.shapes.synthetic import held_out_combinations
from vidgen.video.checks import check_name
from vidgen.video.draws import Draws

__all__ = [
    "ATTRIBUTES",
    "Confusion",
    "PromptAccuracy",
    "PromptCounter",
    "Readable",
    "Share",
    "expected_spec",
    "prompt_accuracy",
    "prompt_set",
    "share_of",
]

ATTRIBUTES = {"shape": SHAPES, "colour": tuple(COLOURS), "motion": MOTIONS}
"""What is judged, with the classes of each in the order of the classifier's logits."""

WHICH = ("trained", "held_out", "all")


@runtime_checkable
class Readable(Protocol):
    """What a classifier says of ``b`` videos: logits in the order of ``ATTRIBUTES``.

    Besides these it has ``motion``, ``b 7``, unless single frames were read.
    """

    @property
    def shape(self) -> Float[Tensor, "b 3"]:
        """Logits of ``SHAPES``."""

    @property
    def colour(self) -> Float[Tensor, "b 6"]:
        """Logits of ``COLOURS``."""


@dataclass(frozen=True)
class Share:
    """``correct`` of ``n`` videos, with Wilson's interval (1927) at 95%.

    Attributes:
        low, high: the interval's ends, within [0, 1]; it never has zero width, even at 0% or 100%.
    """

    correct: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share itself."""
        return self.correct / self.n

    def to_json(self) -> dict[str, Any]:
        """Return value, counts and interval in plain values."""
        return {"value": self.value, "correct": self.correct, "n": self.n, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Confusion:
    """How often each class that a caption asked for (row) was read as each class (column)."""

    classes: tuple[str, ...]
    counts: Int64[np.ndarray, "k k"]

    def per_class(self) -> dict[str, float]:
        """Return the share of each class that was read right; classes never asked for are left out."""
        asked = self.counts.sum(axis=1)
        return {name: float(self.counts[i, i] / asked[i]) for i, name in enumerate(self.classes) if asked[i]}

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return the counts that are not zero, by asked and read class."""
        return {
            wanted: {name: int(count) for name, count in zip(self.classes, row, strict=True) if count}
            for wanted, row in zip(self.classes, self.counts, strict=True)
            if row.any()
        }


@dataclass(frozen=True)
class PromptAccuracy:
    """How many videos show what their captions say.

    Attributes:
        shares: by attribute (``"shape"``, ``"colour"``, and ``"motion"`` unless frames were judged), and
            ``"all"``: videos in which every one of them is right.
        confusion: by attribute.
    """

    shares: dict[str, Share]
    confusion: dict[str, Confusion]

    def to_json(self) -> dict[str, Any]:
        """Return shares and confusions in plain values."""
        return {
            "shares": {name: share.to_json() for name, share in self.shares.items()},
            "confusion": {name: table.to_json() for name, table in self.confusion.items()},
        }


class PromptCounter:
    """Collects readings and captions, batch after batch; keeps counts alone."""

    def __init__(self, motion: bool = True) -> None:
        """Judge shape and colour, and ``motion`` too unless single frames are read."""
        self.attributes = tuple(name for name in ATTRIBUTES if motion or name != "motion")
        self._counts = {
            name: np.zeros((len(ATTRIBUTES[name]),) * 2, dtype=np.int64) for name in self.attributes
        }
        self._all = 0

    def update(self, reading: Readable, captions: Sequence[str]) -> None:
        """Take in what a classifier read and what it should have.

        Raises:
            InvalidArgumentError: unequal numbers, logits of another number of classes, or a caption that is
                not of the shapes data or has several objects.
        """
        specs = [expected_spec(caption) for caption in captions]
        right = np.ones(len(specs), dtype=bool)
        found = {name: _classes(getattr(reading, name), name, len(specs)) for name in self.attributes}
        for name, read in found.items():
            wanted = np.array([ATTRIBUTES[name].index(getattr(spec, name)) for spec in specs], dtype=np.int64)
            np.add.at(self._counts[name], (wanted, read), 1)
            right &= wanted == read
        self._all += int(right.sum())

    def result(self) -> PromptAccuracy:
        """Return the accuracy over all videos so far.

        Raises:
            InvalidArgumentError: there are none yet.
        """
        number = int(self._counts["shape"].sum())
        if not number:
            raise InvalidArgumentError("no video was counted yet; update with one or more first.")
        correct = {name: int(np.trace(counts)) for name, counts in self._counts.items()} | {"all": self._all}
        return PromptAccuracy(
            shares={name: share_of(count, number) for name, count in correct.items()},
            confusion={name: Confusion(ATTRIBUTES[name], c.copy()) for name, c in self._counts.items()},
        )


def prompt_accuracy(
    classifier: Callable[[Tensor], Readable],
    clips: Iterable[Float[Tensor, "_ 3 _ _ _"]],
    captions: Iterable[Sequence[str]],
) -> PromptAccuracy:
    """Read videos (batch after batch, with the captions of each) and compare with their captions.

    Args:
        classifier: such as ``vidgen.shapes.classifier``'s; it is given each batch as it is, or, where it has a
            method ``read_images``, the pictures of a batch of single frames.
        clips: pixels in [-1, 1]; batches of one frame are judged by shape and colour.
        captions: one for each video of a batch.

    Raises:
        InvalidArgumentError: no batch, batches and captions that do not pair, single frames among videos, or
            a caption that is not of the shapes data or has several objects.
    """
    counter: PromptCounter | None = None
    single = False
    for batch, texts in zip(clips, captions, strict=True):
        if counter is None:
            single = batch.shape[2] == 1
            counter = PromptCounter(motion=not single)
        if single != (batch.shape[2] == 1):
            raise InvalidArgumentError(
                "got single frames and videos together; judge them apart, since frames have no motion."
            )
        pictures = getattr(classifier, "read_images", None) if single else None
        counter.update(pictures(batch[:, :, 0]) if pictures else classifier(batch), texts)
    if counter is None:
        raise InvalidArgumentError("got no batch of videos to read; give one or more.")
    return counter.result()


def expected_spec(caption: str) -> ShapeSpec:
    """Return what the video of ``caption`` should show.

    Raises:
        InvalidArgumentError: it is not of the shapes data, or has several objects.
    """
    specs, _ = parse_caption(caption)
    if len(specs) != 1:
        raise InvalidArgumentError(
            f"the caption {caption!r} has {len(specs)} objects; the classifier reads one. Give captions of one "
            "object."
        )
    return specs[0]


def prompt_set(n: int, hold_out: int | float = 0.0, which: str = "trained", seed: int = 0) -> list[str]:
    """Return ``n`` captions in short style, as evenly over the combinations as ``n`` allows.

    Args:
        n: how many captions; no combination occurs twice more than another.
        hold_out: the share of colour x shape x motion combinations that training left out, as in
            ``DataConfig``.
        which: ``"trained"`` combinations, the ``"held_out"`` ones, or ``"all"``.
        seed: shuffles; another one chooses other combinations where ``n`` is no multiple of their number.

    Raises:
        InvalidArgumentError: ``n`` below 1, ``hold_out`` out of range, or no combination of that kind.
        UnknownNameError: another ``which``.
    """
    check_name("set of combinations", which, WHICH)
    if n < 1:
        raise InvalidArgumentError(f"n={n} captions were asked for; ask for 1 or more.")
    held = held_out_combinations(hold_out)
    triples = [(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS]
    chosen = [triple for triple in triples if which == "all" or (triple in held) == (which == "held_out")]
    if not chosen:
        raise InvalidArgumentError(
            f"which={which!r} with hold_out={hold_out}: there is no such combination; give the hold_out that "
            "the model was trained with."
        )
    captions = []
    for turn in range(math.ceil(n / len(chosen))):
        for colour, shape, motion in _shuffled(chosen, Draws("vidgen.prompts", seed, turn)):
            captions.append(describe([ShapeSpec(shape, colour, motion)], "black"))
    return captions[:n]


def share_of(correct: int, n: int) -> Share:
    """Return the share with Wilson's 95% interval.

    With z the normal quantile of 97.5% and p the share, its ends are
    ``(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)``.

    Raises:
        InvalidArgumentError: ``n`` below 1, or ``correct`` outside 0 to ``n``.
    """
    if not 0 <= correct <= n or n < 1:
        raise InvalidArgumentError(f"{correct} of {n} is no share; give 0 <= correct <= n and n of 1 or more.")
    p, z = correct / n, NormalDist().inv_cdf(0.975)
    middle, scale = p + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounding must not put a share of 0 or 1 outside its own interval.
    return Share(correct, n, min((middle - half) / scale, p), max((middle + half) / scale, p))


def _classes(logits: Tensor, name: str, number: int) -> Int64[np.ndarray, " b"]:
    expected = (number, len(ATTRIBUTES[name]))
    if tuple(logits.shape) != expected:
        raise InvalidArgumentError(
            f"the classifier's logits for {name} have the shape {tuple(logits.shape)} for {number} captions; "
            f"expected {expected}: one row per caption and one column per class."
        )
    return logits.detach().argmax(dim=1).cpu().numpy()


def _shuffled(items: Sequence[tuple[str, str, str]], draws: Draws) -> list[tuple[str, str, str]]:
    keyed = [(draws.uniform(), item) for item in items]
    return [item for _, item in sorted(keyed)]
