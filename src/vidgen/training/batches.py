"""Which clips make up which step: a pure function of (seed, step), so that a resumed run sees the same."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vidgen.errors import InvalidArgumentError
from vidgen.noise import NoiseKey
from vidgen.training.latents import LatentCache, LatentSample, LatentStore
from vidgen.video.dataset import ClipBatch, ClipDataset, collate

__all__ = ["StepSampler", "batches", "micro_batches", "share_of"]

logger = logging.getLogger("vidgen")

Key = tuple[int, int]
"""(index of the clip, number of the draw): what ``ClipDataset`` is asked for."""


class StepSampler(Sampler[list[Key]]):
    """Yields the keys of one process's share of every step.

    The clips of all steps form one endless sequence: epoch after epoch, each shuffled by (seed, epoch).

    Args:
        length: clips in the dataset.
        seed: of the order.
        batch_size: of the global batch.
        steps: range of global steps to yield.
        rank, world: this process and how many there are.

    Raises:
        InvalidArgumentError: the batch cannot be shared equally.
    """

    def __init__(self, length: int, seed: int, batch_size: int, steps: range, rank: int, world: int) -> None:
        share = share_of(batch_size, world)
        self.length, self.seed, self.batch_size, self.steps = length, seed, batch_size, steps
        self.positions = tuple(range(rank * share, (rank + 1) * share))
        self._orders: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Key]]:
        for step in self.steps:
            yield [self.key(step, position) for position in self.positions]

    def key(self, step: int, position: int) -> Key:
        """Return (index, draw) of the clip at ``position`` of the global batch of ``step``."""
        epoch, offset = divmod(step * self.batch_size + position, self.length)
        if epoch not in self._orders:
            generator = NoiseKey(self.seed, "order", "data").generator(epoch)
            self._orders = {**self._orders, epoch: generator.permutation(self.length)}
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
        return int(self._orders[epoch][offset]), epoch


def share_of(batch_size: int, world: int) -> int:
    """Return how many clips of a batch each of ``world`` processes takes.

    Raises:
        InvalidArgumentError: the batch cannot be shared equally.
    """
    if batch_size < 1 or batch_size % world:
        raise InvalidArgumentError(
            f"batch_size is {batch_size}; expected a positive multiple of the {world} process(es)."
        )
    return batch_size // world


def batches(
    dataset: ClipDataset, sampler: StepSampler, num_workers: int, cache: LatentCache | None = None
) -> Iterable[ClipBatch]:
    """Return the batches of ``sampler``'s steps, in order, on the CPU.

    With ``cache``, batches carry latents and no pixels (``LatentCache.batch``): workers read only clips
    whose latents are not all there, and this process encodes what is missing. A trainer asks for the
    cache when a stage begins, after its frozen components were put into evaluation mode::

        cache = LatentCache.for_stage(stage, strategy.codec, recipe.data.cache_dir)
        for batch in batches(dataset, sampler, num_workers, cache):
            batch = batch.to(device)  # the latents too

    Args:
        dataset: the clips.
        sampler: says which clips make up which step.
        num_workers: processes that read; 0 reads in this one.
        cache: keeps latents; None gives batches of pixels.
    """
    if cache is None:
        return _loader(dataset, sampler, num_workers, collate)
    return _cached(dataset, sampler, num_workers, cache)


def _loader(dataset: Any, sampler: StepSampler, num_workers: int, join: Callable[..., Any]) -> Iterable[Any]:
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=join,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_heedless,
        generator=torch.Generator(),  # else every start of the loader draws from the ambient state
    )
    return loader


def _heedless(_: int) -> None:
    """Leave Ctrl-C and SIGTERM, which reach all processes of a terminal or a job, to the one that trains.

    It ends its step and saves; a worker ends with it.
    """
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)


def _cached(
    dataset: ClipDataset, sampler: StepSampler, num_workers: int, cache: LatentCache
) -> Iterator[ClipBatch]:
    try:
        for samples in _loader(_Stored(dataset, cache.store), sampler, num_workers, list):
            yield cache.batch(samples)
    finally:
        logger.info("latents: %s", cache)
        cache.store.close()


class _Stored(Dataset[LatentSample]):
    """A dataset as workers read it where latents are kept: they need the store, never the codec."""

    def __init__(self, dataset: ClipDataset, store: LatentStore) -> None:
        self.dataset, self.store = dataset, store

    def __getitem__(self, key: Key) -> LatentSample:
        return LatentSample.of(self.dataset, self.store, *key)


def micro_batches(batch: ClipBatch, size: int | None) -> Iterator[tuple[slice, ClipBatch]]:
    """Split ``batch`` into pieces of at most ``size`` clips (None: one piece)."""
    total = batch.clip.shape[0]
    for start in range(0, total, size or total):
        stop = min(start + (size or total), total)
        yield slice(start, stop), batch.select(range(start, stop))
