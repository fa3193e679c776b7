"""One training step: every loss of the stage descended once, in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vidgen.errors import TrainingError, UnknownNameError
from vidgen.trainable import Loss, TrainingStep
from vidgen.training.batches import micro_batches
from vidgen.training.processes import Processes
from vidgen.training.running import Running
from vidgen.video.dataset import ClipBatch

__all__ = ["Descent", "add_logs", "pieces_of"]

Piece = tuple[float, Iterator[Loss]]
"""A micro-batch: its share of the process's batch, and its losses to come."""


def pieces_of(running: Running, batch: ClipBatch, where: TrainingStep, size: int | None) -> list[Piece]:
    """Return the micro-batches of ``batch``, of at most ``size`` clips, with the losses of each."""
    pieces: list[Piece] = []
    for piece, micro in micro_batches(batch, size):
        part = TrainingStep(where.seed, where.stage, where.index, where.samples[piece])
        pieces.append((len(micro) / len(batch), iter(running.stage.losses(micro, part))))
    return pieces


class Descent:
    """Descends the losses of a stage, step by step.

    Args:
        seed: of the run.
        processes: that share each batch.
        kept: says what is left if training cannot go on.
    """

    def __init__(self, seed: int, processes: Processes, kept: Callable[[], str]) -> None:
        self.seed, self.processes, self.kept = seed, processes, kept

    def __call__(self, running: Running, batch: ClipBatch, positions: tuple[int, ...]) -> dict[str, float]:
        """Do one step with this process's share of its batch and return what to log.

        Args:
            running: the stage; its step is counted up.
            batch: the clips of this process.
            positions: of these clips in the global batch.

        Raises:
            TrainingError: a loss or gradient is not finite; the weights are as before this loss.
        """
        where = TrainingStep(self.seed, running.stage.name, running.step, positions)
        # Dropout draws from torch's state: it too is a function of the step, on each process its own.
        torch.manual_seed(int(where.key(0, "torch").generator(0).integers(1 << 63)))
        pieces = pieces_of(running, batch.to(self.processes.device), where, running.config.micro_batch_size)
        logs: dict[str, float] = {"loss": 0.0}
        stepped: set[str] = set()
        while name := self._accumulate(running, pieces, logs):
            if self._step(running, name, logs):
                stepped.add(name)
        running.advance(stepped)
        running.step += 1
        return logs

    def _accumulate(self, running: Running, pieces: list[Piece], logs: dict[str, float]) -> str | None:
        """Add the gradients of the next loss of all micro-batches; return its optimiser, None at the end."""
        name = None
        for weight, losses in pieces:
            with running.precision.autocast():
                loss = next(losses, None)
            if loss is None:
                return None
            name = loss.optimizer
            if name not in running.optimizers:
                raise UnknownNameError(f"optimiser of stage {running.stage.name!r}", name, running.optimizers)
            running.precision.check_loss(name, loss.value)
            self._check_finite(running, loss.value, "loss")
            running.precision.backward(name, loss.value * weight)
            add_logs(logs, loss, weight)
        return name

    def _step(self, running: Running, name: str, logs: dict[str, float]) -> bool:
        """Step one optimiser with the gradients of all processes; False if it was skipped."""
        optimizer = running.optimizers[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.processes.average_gradients(parameters)  # the same everywhere from here on, an error too
        if all(p.grad is None for p in parameters):
            raise TrainingError(
                f"a loss of optimiser {name!r} in stage {running.stage.name!r} gave none of its parameters a "
                "gradient; expected a loss that depends on them. Name the optimiser that trains what the loss "
                "depends on."
            )
        running.precision.unscale(name, optimizer)
        most = running.config.max_grad_norm
        limit = math.inf if most is None else most
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        scales = running.precision.scales()
        if name not in scales:  # fp16 skips such steps
            self._check_finite(running, norm, "gradient norm")
        stepped = running.precision.step(name, optimizer)
        if stepped:
            logs[f"grad_norm/{name}"] = float(norm)
        if name in scales:
            logs[f"loss_scale/{name}"] = scales[name]
        for other in running.optimizers.values():  # a loss may reach what another optimiser trains
            other.zero_grad()
        return stepped

    def _check_finite(self, running: Running, value: Tensor, what: str) -> None:
        if torch.isfinite(value).all():
            return
        config = running.config
        raise TrainingError(
            f"the {what} of stage {running.stage.name!r} is {float(value.detach())} at step "
            f"{running.step}; expected a finite number. {self.kept()}. Lower learning_rate "
            f"({config.learning_rate}) or max_grad_norm ({config.max_grad_norm}), or train with "
            "mixed_precision='no', and start again."
        )


def add_logs(logs: dict[str, float], loss: Loss, weight: float) -> None:
    """Add a micro-batch's loss, alone and with those of its optimiser, and what it logs.

    Args:
        logs: what to add to: ``loss`` of all optimisers together, ``loss/<optimiser>``, and the loss's own.
        loss: of the micro-batch.
        weight: its share of the batch.
    """
    total = float(loss.value.detach())
    for key, value in {"loss": total, f"loss/{loss.optimizer}": total, **loss.logs}.items():
        logs[key] = logs.get(key, 0.0) + value * weight
