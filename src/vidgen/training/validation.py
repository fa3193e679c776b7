"""Validation: the stage's own losses on clips that training never sees."""

from __future__ import annotations

import torch

from vidgen.errors import InvalidArgumentError
from vidgen.recipe import TrainingConfig
from vidgen.trainable import TrainingStep
from vidgen.training.batches import StepSampler, batches
from vidgen.training.descent import add_logs, pieces_of
from vidgen.training.processes import Processes
from vidgen.training.running import Running
from vidgen.video.dataset import ClipDataset, split

__all__ = ["Validation", "hold_out"]


def hold_out(dataset: ClipDataset, share: float) -> tuple[ClipDataset, ClipDataset | None]:
    """Return what to train on and what to validate on, split by content and whatever the seed.

    Raises:
        InvalidArgumentError: the share is out of range, or the data has one source only.
    """
    if not 0 <= share < 1:
        raise InvalidArgumentError(f"training.validation is {share}; expected 0 <= share < 1.")
    if share == 0:
        return dataset, None
    train, held_out = split(dataset, share)
    if not len(held_out):
        raise InvalidArgumentError(
            f"training.validation is {share}, and the data has a single source, of which nothing can be held "
            "out. Give more videos, or validation=0."
        )
    return train, held_out


class Validation:
    """Measures the averaged weights on held-out clips.

    The clips, their noise and all else that is random are the same at every validation, so that its values
    compare from step to step. The stage yields its losses as in training, one after the other, but no
    optimiser steps in between; a stage must not change anything of its own while it does. Losses that take
    gradients themselves (penalties) may.

    Args:
        held_out: the clips.
        config: how many batches of which size.
        processes: that share each batch.
    """

    def __init__(self, held_out: ClipDataset, config: TrainingConfig, processes: Processes) -> None:
        self.held_out, self.config, self.processes = held_out, config, processes

    def __call__(self, running: Running) -> dict[str, float]:
        """Return ``validation/loss`` and the means of what the losses log; training is left as it is."""
        config, processes = self.config, self.processes
        steps = range(config.validation_batches)
        sampler = StepSampler(
            len(self.held_out), config.seed, config.batch_size, steps, processes.rank, processes.world
        )
        logs: dict[str, float] = {}
        with running.at_rest():
            torch.manual_seed(config.seed)
            for index, batch in enumerate(batches(self.held_out, sampler, config.num_workers, running.cache)):
                name = f"validation/{running.stage.name}"
                where = TrainingStep(config.seed, name, index, sampler.positions)
                pieces = pieces_of(running, batch.to(processes.device), where, config.micro_batch_size)
                for weight, losses in pieces:
                    while True:
                        with running.precision.autocast():
                            loss = next(losses, None)
                        if loss is None:
                            break
                        add_logs(logs, loss, weight / len(steps))
        return {f"validation/{key}": value for key, value in processes.mean(logs).items()}
