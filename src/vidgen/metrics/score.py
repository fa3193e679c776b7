"""A measured number that carries how it was made, what chance alone gives, what is best, and its caveats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.protocol import Protocol, ProtocolMismatchError, check_comparable

__all__ = ["Score", "best"]

BARE = frozenset({"avg_fid", "b_fvd", "clipsim", "fd", "fid", "frechet", "fvd", "is", "kid", "kvd", "rfvd"})
"""Keys that say nothing of the network: the same name with another extractor is another metric."""

FORMAT = 2
READABLE = (1, FORMAT)
"""Format 1 had no goal, and a direction for every metric."""


@dataclass(frozen=True)
class Score:
    """One number of one metric. ``<`` and its kin compare values, and refuse unequal protocols.

    Attributes:
        key: the metric and its extractor: ``fvd_shapes_v1``, never a bare ``fvd``.
        value: the number, in the metric's unit; never NaN.
        protocol: how it was made.
        null: what two halves of the real set give, where that is defined. With ``N`` real videos each
            half has ``N / 2``, so that a distance whose bias falls as 1/N is about twice as far from 0 in
            it as between two sets of ``N``: a cautious bound.
        num_real: real videos behind it.
        num_generated: generated videos behind it.
        notes: caveats in whole sentences, such as ``sample_size_notes`` gives.
        higher_is_better: the direction of ``best``; None where no direction is better.
        goal: the value that is best, where neither direction is: what the real videos have, or 1 of a ratio
            to them. None where it is not known, or where there is a direction.

    Raises:
        InvalidArgumentError: a bare key, NaN, a count below 1, a goal that is not finite, or one beside a
            direction.
    """

    key: str
    value: float
    protocol: Protocol
    null: float | None = None
    num_real: int | None = None
    num_generated: int | None = None
    notes: tuple[str, ...] = ()
    higher_is_better: bool | None = False
    goal: float | None = None

    def __post_init__(self) -> None:
        if not self.key or self.key in BARE:
            raise InvalidArgumentError(
                f"a score's key is {self.key!r}; expected the metric with its extractor, such as "
                f"'{self.key or 'fvd'}_shapes_v1': the same metric on other features is another one."
            )
        for name in ("value", "null"):
            number = getattr(self, name)
            if number is None and name == "null":
                continue
            if isinstance(number, bool) or math.isnan(number):
                raise InvalidArgumentError(
                    f"{name} of the score {self.key!r} is {number!r}; expected a number."
                )
            object.__setattr__(self, name, float(number))
        for name in ("num_real", "num_generated"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InvalidArgumentError(f"{name} of the score {self.key!r} is {count}; expected 1 or more.")
        if self.goal is not None and (self.higher_is_better is not None or not math.isfinite(self.goal)):
            raise InvalidArgumentError(
                f"the score {self.key!r} has the goal {self.goal!r} and higher_is_better="
                f"{self.higher_is_better}; expected a finite goal and higher_is_better=None, or no goal."
            )
        # A list would make the score unhashable.
        object.__setattr__(self, "notes", tuple(self.notes))

    def check_comparable(self, other: Score) -> None:
        """Refuse another metric, or the same one measured otherwise.

        Raises:
            ProtocolMismatchError: the keys, the protocols or the directions differ.
        """
        if self.key == other.key:
            check_comparable(self.protocol, other.protocol)
        # The same protocol gives the same goal, up to rounding.
        kinds = [(score.key, score.higher_is_better, score.goal is None) for score in (self, other)]
        if kinds[0] != kinds[1]:
            raise ProtocolMismatchError(
                f"{self.key} {self._direction} and {other.key} {other._direction} are different metrics and "
                "cannot be compared. Measure both in one way."
            )

    def difference(self, other: Score) -> float:
        """Return ``self.value - other.value``; 0 for equal ones, of which infinity is one.

        Raises:
            ProtocolMismatchError: the keys or the protocols differ.
        """
        self.check_comparable(other)
        return 0.0 if self.value == other.value else self.value - other.value

    def improves_on(self, other: Score) -> bool | None:
        """Say whether this value is better than ``other``'s: higher, lower, or nearer to the goal.

        None where neither is: equally good values, or a metric with neither direction nor goal.

        Raises:
            ProtocolMismatchError: the keys or the protocols differ.
        """
        self.check_comparable(other)
        mine, theirs = self._loss(self.value), self._loss(other.value)
        return None if mine is None or theirs is None or mine == theirs else mine < theirs

    def _loss(self, value: float) -> float | None:
        """How bad ``value`` is in this metric, for comparisons alone; None where nothing says so."""
        if self.higher_is_better is not None:
            return -value if self.higher_is_better else value
        return None if self.goal is None else abs(value - self.goal)

    def __lt__(self, other: Score) -> bool:
        self.check_comparable(other)
        return self.value < other.value

    def __le__(self, other: Score) -> bool:
        self.check_comparable(other)
        return self.value <= other.value

    def __gt__(self, other: Score) -> bool:
        self.check_comparable(other)
        return self.value > other.value

    def __ge__(self, other: Score) -> bool:
        self.check_comparable(other)
        return self.value >= other.value

    @property
    def _direction(self) -> str:
        if self.higher_is_better is not None:
            return "(higher is better)" if self.higher_is_better else "(lower is better)"
        return "(without a goal)" if self.goal is None else f"(nearest to {self.goal:.4g} is best)"

    def __str__(self) -> str:
        """``fvd_shapes_v1 12.3 (null 4.1, 512 vs 512 videos)``, then a line for each note."""
        beside = [] if self.null is None else [f"null {self.null:.4g}"]
        counts = [str(count) for count in (self.num_real, self.num_generated) if count is not None]
        if counts:
            beside.append(f"{' vs '.join(counts)} videos")
        line = f"{self.key} {self.value:.4g}" + (f" ({', '.join(beside)})" if beside else "")
        return "\n".join([line, *(f"  note: {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; ``from_json`` gives an equal score back. Infinity becomes text."""
        return {
            "format": FORMAT,
            "key": self.key,
            "value": _number_out(self.value),
            "null": None if self.null is None else _number_out(self.null),
            "num_real": self.num_real,
            "num_generated": self.num_generated,
            "higher_is_better": self.higher_is_better,
            "goal": self.goal,
            "notes": list(self.notes),
            "protocol": self.protocol.to_json(),
            "fingerprint": self.protocol.fingerprint,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Score:
        """Build the score that ``to_json`` described.

        Raises:
            InvalidArgumentError: a field is missing or of the wrong kind, the format is another one, or the
                protocol does not have the fingerprint beside it (it was edited).
        """
        if not isinstance(data, Mapping) or data.get("format") not in READABLE:
            given = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise InvalidArgumentError(
                f"a score of format {given!r} was given; this vidgen reads formats 1 to {FORMAT}. Measure it "
                "again."
            )
        try:
            protocol = Protocol.from_json(data["protocol"])
            if protocol.fingerprint != data["fingerprint"]:
                raise InvalidArgumentError(
                    f"the score {data['key']!r} has the fingerprint {data['fingerprint']!r}, but its protocol "
                    f"gives {protocol.fingerprint!r}: one of them was edited. Measure it again."
                )
            return cls(
                key=data["key"],
                value=float(data["value"]),
                protocol=protocol,
                null=None if data["null"] is None else float(data["null"]),
                num_real=data["num_real"],
                num_generated=data["num_generated"],
                notes=tuple(data["notes"]),
                higher_is_better=data["higher_is_better"],
                goal=None if data["format"] == 1 or data["goal"] is None else float(data["goal"]),
            )
        except (KeyError, TypeError) as error:
            raise InvalidArgumentError(
                f"{dict(data)!r} is no score: {error!r}. Expected what Score.to_json wrote."
            ) from error


def best(scores: Iterable[Score]) -> Score:
    """Return the best of comparable scores, in their metric's direction; of equal ones the first.

    Raises:
        InvalidArgumentError: there is none, or the metric has neither direction nor goal.
        ProtocolMismatchError: any two differ in key or protocol.
    """
    candidates = list(scores)
    if not candidates:
        raise InvalidArgumentError("no scores were given; expected at least one.")
    for other in candidates[1:]:
        candidates[0].check_comparable(other)
    first = candidates[0]
    if first._loss(first.value) is None:
        raise InvalidArgumentError(
            f"{first.key} has no best value without real videos to be near to; evaluate against a real set."
        )
    return min(candidates, key=lambda score: first._loss(score.value) or 0.0)


def _number_out(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no infinity
