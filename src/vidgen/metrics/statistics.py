"""Streaming mean and covariance of features, exact enough for distances between near-equal sets.

Kept are the number of items, their mean, and the factor R of a QR decomposition of the centred features
(covariance = R^T R / (n - 1)). Unlike a covariance matrix, R keeps the small directions: the nuclear norm
of R1 R2^T is right to rounding where eigenvalues of a product of covariances are not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vidgen.errors import CheckpointError, InvalidArgumentError
from vidgen.metrics.protocol import Protocol
from vidgen.weights import read_tensors, write_tensors

__all__ = ["HalvedStatistics", "Statistics"]

FORMAT = "vidgen.statistics"
VERSION = "1"
_SMALLEST_BLOCK = 64
"""Rows that are decomposed together where there are few features."""


class Statistics:
    """Count, mean and covariance of rows of features, in float64 and constant memory.

    Rows are folded in blocks of a fixed length, so that the result is the same, bit for bit, in whatever
    batches they arrive. At most ``3 d`` rows are held (``d`` of at least 64), however many were seen.

    Args:
        dim: features ``d`` of an item.

    Raises:
        InvalidArgumentError: ``dim`` is below 1.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise InvalidArgumentError(f"dim is {dim}; expected the number of features of an item, 1 or more.")
        self.dim = dim
        self._block = max(dim, _SMALLEST_BLOCK)
        self._folded = _Moments(0, _zeros(dim), _zeros(0, dim))
        self._pending = torch.empty(self._block, dim, dtype=torch.float64, device="cpu")
        self._rows = 0  # of those pending
        self._settled: _Moments | None = None

    def update(self, values: Float[Tensor, "n d"]) -> None:
        """Take the features of ``n`` more items, of any float dtype and device; they are not changed.

        Raises:
            InvalidArgumentError: another number of features, or values that are not finite.
        """
        if values.ndim != 2 or values.shape[1] != self.dim or not values.is_floating_point():
            raise InvalidArgumentError(
                f"features of shape {tuple(values.shape)} and dtype {values.dtype} were given; expected n rows "
                f"of {self.dim} floats."
            )
        finite = torch.isfinite(values).all(dim=1)
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            raise InvalidArgumentError(
                f"row {bad} of the features holds NaN or infinity; one such item would spoil the whole set. "
                "Look at the video it comes from, or at the extractor's precision."
            )
        rows = values.detach()
        while len(rows):
            self._settled = None
            taken = rows[: self._block - self._rows]
            self._pending[self._rows : self._rows + len(taken)] = taken
            self._rows += len(taken)
            rows = rows[len(taken) :]
            if self._rows == self._block:
                self._folded = _merged(self._folded, _moments(self._pending))
                self._rows = 0

    @property
    def _now(self) -> _Moments:
        """The moments of all rows; what is folded stays as it is, so that looking changes nothing."""
        if self._settled is None:
            self._settled = self._folded
            if self._rows:
                self._settled = _merged(self._folded, _moments(self._pending[: self._rows]))
        return self._settled

    @property
    def n(self) -> int:
        """Items seen."""
        return self._folded.n + self._rows

    @property
    def mean(self) -> Float64[Tensor, " d"]:
        """Mean of the items; a copy.

        Raises:
            InvalidArgumentError: no item was seen.
        """
        self._need(1, "a mean")
        return self._now.mean.clone()

    @property
    def factor(self) -> Float64[Tensor, "*shape"]:
        """``R`` with ``R^T R`` the scatter matrix of the centred items, at most ``d`` rows; a copy."""
        return self._now.factor.clone()

    def covariance(self) -> Float64[Tensor, "*shape"]:
        """Return the unbiased covariance ``R^T R / (n - 1)``.

        Raises:
            InvalidArgumentError: fewer than 2 items were seen.
        """
        self._need(2, "a covariance")
        factor = self._now.factor
        return factor.T @ factor / (self.n - 1)

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets together; neither of the two changes.

        Raises:
            InvalidArgumentError: the two have different numbers of features.
        """
        if self.dim != other.dim:
            raise InvalidArgumentError(
                f"statistics of {self.dim} and of {other.dim} features were to be merged; they come from "
                "different extractors."
            )
        return _of(_merged(self._now, other._now))

    def _need(self, count: int, what: str) -> None:
        if self.n < count:
            raise InvalidArgumentError(f"{what} of {self.n} items was asked for; it needs {count} or more.")

    def save(self, path: str | Path, protocol: Protocol) -> None:
        """Write a safetensors file with ``protocol`` in its metadata: to a temporary name, then renamed.

        Raises:
            InvalidArgumentError: no item was seen.
            OSError: it cannot be written; nothing half-written stays.
        """
        _write(Path(path), {"all": self}, protocol)

    @classmethod
    def load(cls, path: str | Path) -> tuple[Statistics, Protocol]:
        """Read what ``save`` wrote; of a file of ``HalvedStatistics``, both halves together.

        Raises:
            CheckpointError: the file is missing, truncated, of another format or version, or its parts do
                not fit each other.
        """
        parts, protocol, _ = _read(Path(path))
        whole, *rest = parts.values()
        for part in rest:
            whole = whole.merge(part)
        return whole, protocol


class HalvedStatistics:
    """Statistics of a set and, from the same pass over it, of two disjoint halves.

    The distance between the halves is the null: what the metric gives for two samples of one distribution.
    Videos ``2 k`` and ``2 k + 1`` go to different halves, which of them to the first being decided by a
    hash of ``k`` and ``seed``: the halves have equal sizes, whatever the order of the videos or the batches.
    Halves of ``N`` videos have ``N / 2`` each, so a distance whose bias falls as 1/N is about twice as far
    from 0 between them as between two sets of ``N``; for sets of ``N`` and ``M`` videos the bias goes
    as ``1/N + 1/M``, for the halves as ``4/N``.

    Args:
        dim: features ``d`` of an item.
        seed: another one splits the set in another way.
    """

    def __init__(self, dim: int, seed: int = 0) -> None:
        self.seed = seed
        self.halves = (Statistics(dim), Statistics(dim))
        self._seen = 0

    @property
    def n(self) -> int:
        """Items seen."""
        return self.halves[0].n + self.halves[1].n

    @property
    def dim(self) -> int:
        """Features of an item."""
        return self.halves[0].dim

    def update(self, values: Float[Tensor, "n d"], videos: Sequence[int] | None = None) -> None:
        """Take the features of ``n`` more items, each to one half.

        Args:
            values: see ``Statistics.update``.
            videos: index within the set of the video that each item comes from, since the items of one
                video (its frames) belong in one half; None counts on, an item a video.

        Raises:
            InvalidArgumentError: not one index for each item, a negative one, or values as in
                ``Statistics.update``.
        """
        if videos is None:
            videos = range(self._seen, self._seen + len(values))
        if len(videos) != len(values) or min(videos, default=0) < 0:
            raise InvalidArgumentError(
                f"{len(videos)} video indices were given for {len(values)} items, the lowest being "
                f"{min(videos, default=None)}; expected an index of 0 or more for each."
            )
        self._seen = max(self._seen, max(videos, default=-1) + 1)
        second = torch.tensor([half_of(video, self.seed) for video in videos], dtype=torch.bool)
        for half, chosen in zip(self.halves, (~second, second), strict=True):
            half.update(values[chosen.to(values.device)])

    def whole(self) -> Statistics:
        """Return the statistics of all items; the halves stay as they are."""
        return self.halves[0].merge(self.halves[1])

    def save(self, path: str | Path, protocol: Protocol) -> None:
        """Write both halves to one safetensors file, as ``Statistics.save`` does.

        Raises:
            InvalidArgumentError: a half has no item.
            OSError: it cannot be written; nothing half-written stays.
        """
        parts = {"first": self.halves[0], "second": self.halves[1]}
        _write(Path(path), parts, protocol, seed=self.seed, seen=self._seen)

    @classmethod
    def load(cls, path: str | Path) -> tuple[HalvedStatistics, Protocol]:
        """Read what ``save`` wrote.

        Raises:
            CheckpointError: as ``Statistics.load``, or the file holds one set without halves.
        """
        parts, protocol, metadata = _read(Path(path))
        if set(parts) != {"first", "second"}:
            raise CheckpointError(
                f"{path} holds the statistics of one set, without its halves, so that no null can be had from "
                "it. Compute it again as HalvedStatistics, or read it with Statistics.load."
            )
        halved = cls(parts["first"].dim, metadata["seed"])
        halved.halves = (parts["first"], parts["second"])
        halved._seen = metadata["seen"]
        return halved, protocol


def half_of(video: int, seed: int) -> int:
    """Return 0 or 1: the half that video ``video`` of a set belongs to; see ``HalvedStatistics``."""
    key = np.array([seed % 2**64, video // 2], dtype=np.uint64)  # of a list NumPy would make floats
    words = np.random.Philox(key=key).random_raw(1)
    return (int(words[0]) >> 63) ^ (video % 2)


class _Moments:
    """Count, mean and factor of some rows."""

    __slots__ = ("factor", "mean", "n")

    def __init__(self, n: int, mean: Float64[Tensor, " d"], factor: Float64[Tensor, "k d"]) -> None:
        self.n, self.mean, self.factor = n, mean, factor


def _zeros(*shape: int) -> Float64[Tensor, "*shape"]:
    return torch.zeros(shape, dtype=torch.float64, device="cpu")


def _moments(rows: Float64[Tensor, "n d"]) -> _Moments:
    mean = rows.mean(dim=0)
    return _Moments(len(rows), mean, _triangle(rows - mean))


def _merged(a: _Moments, b: _Moments) -> _Moments:
    if not a.n or not b.n:
        return b if b.n else a
    n = a.n + b.n
    # The scatter of the union is both scatters and that of the two means about the common one.
    between = math.sqrt(a.n / n * b.n) * (b.mean - a.mean)
    factor = _triangle(torch.cat([a.factor, b.factor, between[None]]))
    return _Moments(n, a.mean + (b.mean - a.mean) * (b.n / n), factor)


def _triangle(rows: Float64[Tensor, "n d"]) -> Float64[Tensor, "*shape"]:
    factor: Tensor = torch.linalg.qr(rows, mode="r").R
    return factor


def _of(moments: _Moments) -> Statistics:
    statistics = Statistics(moments.factor.shape[1])
    statistics._folded = moments
    return statistics


def _write(path: Path, parts: dict[str, Statistics], protocol: Protocol, **numbers: int) -> None:
    tensors = {}
    for name, part in parts.items():
        if not part.n:
            raise InvalidArgumentError(
                f"statistics without items ({name}) were to be saved to {path}; update them first."
            )
        tensors[f"{name}.n"] = torch.tensor(part.n)
        tensors[f"{name}.mean"] = part.mean
        tensors[f"{name}.factor"] = part.factor.contiguous()
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "protocol": json.dumps(protocol.to_json()),
        **{name: str(number) for name, number in numbers.items()},
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_tensors(temporary, tensors, metadata)
        temporary.replace(path)
    except SafetensorError as error:  # how it reports a folder that is missing or full
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Statistics], Protocol, dict[str, int]]:
    tensors = read_tensors(path)  # a missing, truncated or foreign file is refused here
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is safetensors but holds no statistics (format {metadata.get('format')!r}; expected "
            f"{FORMAT!r}). Give a file that Statistics.save wrote."
        )
    if metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {metadata.get('version')!r} of {FORMAT}; this vidgen reads version {VERSION}. "
            "Compute the statistics again, or install the vidgen that wrote them."
        )
    try:
        names = sorted({name.partition(".")[0] for name in tensors})
        parts = {name: _part(tensors, name) for name in names}
        if names not in (["all"], ["first", "second"]) or len({part.dim for part in parts.values()}) != 1:
            raise ValueError(f"parts {names}")
        numbers = {name: int(metadata[name]) for name in ("seed", "seen") if names != ["all"]}
        return parts, Protocol.from_json(json.loads(metadata["protocol"])), numbers
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged: its tensors or metadata do not fit each other ({error}). Compute it again."
        ) from error


def _part(tensors: dict[str, Tensor], name: str) -> Statistics:
    n, mean, factor = (tensors[f"{name}.{field}"] for field in ("n", "mean", "factor"))
    fits = mean.ndim == 1 and factor.ndim == 2 and factor.shape[1] == len(mean) and n.numel() == 1
    if not fits or mean.dtype != torch.float64 or factor.dtype != torch.float64 or int(n) < 1:
        raise ValueError(f"{name}: mean {tuple(mean.shape)}, factor {tuple(factor.shape)}")
    return _of(_Moments(int(n), mean, factor))
