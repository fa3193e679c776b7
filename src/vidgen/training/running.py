"""One stage while it runs: its optimisers, schedules, averaged weights and step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vidgen.errors import InvalidArgumentError
from vidgen.nn.checkpointing import checkpoint
from vidgen.recipe import TrainingConfig
from vidgen.trainable import Stage, Trainable
from vidgen.training.latents import LatentCache
from vidgen.training.precision import Precision
from vidgen.training.processes import Processes

__all__ = ["Running", "begin_stage", "check_stage"]


@dataclass
class Running:
    """A stage and all that its training keeps from step to step."""

    strategy: Trainable
    stage: Stage
    optimizers: dict[str, torch.optim.Optimizer]
    schedules: dict[str, Any]
    parameters: list[nn.Parameter]
    ema: EMAModel | None
    precision: Precision
    config: TrainingConfig
    cache: LatentCache | None = None
    step: int = 0
    logs: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Sum and number of the values since the last line of the log."""

    def note(self, values: Mapping[str, float]) -> None:
        """Keep one step's values until the next line of the log."""
        for name, value in values.items():
            total, count = self.logs.get(name, (0.0, 0))
            self.logs[name] = (total + value, count + 1)

    def share_logs(self, processes: Processes) -> None:
        """Average the values kept over processes, so that each has what one alone would have."""
        totals = processes.mean({name: total for name, (total, _) in self.logs.items()})
        self.logs = {name: (totals[name], count) for name, (_, count) in self.logs.items()}

    def take_means(self) -> dict[str, float]:
        """Return the means of the values kept, with the learning rates, and forget them."""
        means = {name: total / count for name, (total, count) in self.logs.items()}
        self.logs.clear()
        return means | {f"lr/{name}": s.get_last_lr()[0] for name, s in self.schedules.items()}

    def advance(self, stepped: set[str]) -> None:
        """Move the schedules of the optimisers that stepped, and the averages if any did."""
        for name in sorted(stepped):
            self.schedules[name].step()
        if self.ema is not None and stepped:
            self.ema.step(self.parameters)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights in place for a while."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """The strategy as it will be used: averaged weights, evaluation mode.

        Training goes on afterwards as if nothing had happened; each of its steps sets torch's random state.
        """
        modes = [(m, m.training) for module in self.strategy.modules.values() for m in module.modules()]
        with self.averaged():
            for module in self.strategy.modules.values():
                module.eval()
            try:
                yield
            finally:
                for module, mode in modes:
                    module.training = mode

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the networks' weights."""
        return {
            "step": self.step,
            "logs": self.logs,
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "schedules": {name: s.state_dict() for name, s in self.schedules.items()},
            "ema": None if self.ema is None else self.ema.state_dict(),
            "precision": self.precision.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Put back what ``state_dict`` returned."""
        self.step = int(state["step"])
        self.logs = {name: (float(total), int(count)) for name, (total, count) in state["logs"].items()}
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, schedule in self.schedules.items():
            schedule.load_state_dict(state["schedules"][name])
            _set_rates(schedule)
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(device)
        self.precision.load_state_dict(state["precision"])


def begin_stage(strategy: Trainable, stage: Stage, config: TrainingConfig, device: torch.device) -> Running:
    """Make ``strategy`` ready for ``stage``: only its components train."""
    for name, module in strategy.modules.items():
        trained = name in stage.components
        module.train(trained).requires_grad_(trained)
        module.zero_grad()
    if config.gradient_checkpointing:
        for able in _checkpointing(strategy, stage):
            # Ours knows of attention backends; modules that are not diffusers' bring their own.
            able.enable_gradient_checkpointing(*((checkpoint,) if isinstance(able, ModelMixin) else ()))
    named: dict[str, list[dict[str, Any]]] = {}
    warmups: dict[str, list[int]] = {}
    parameters: list[nn.Parameter] = []
    for group in stage.optimizers():
        options: dict[str, Any] = {
            "params": list(group.parameters),
            "lr": config.learning_rate * group.lr_scale,
            "weight_decay": config.weight_decay if group.weight_decay is None else group.weight_decay,
            "betas": config.betas if group.betas is None else group.betas,
        }
        named.setdefault(group.name, []).append(options)
        warmups.setdefault(group.name, []).append(group.warmup_steps)
        parameters += group.parameters
    optimizers: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.AdamW(groups) for name, groups in named.items()
    }
    schedules = {name: _schedule(optimizer, config, warmups[name]) for name, optimizer in optimizers.items()}
    precision = Precision(config.mixed_precision, device, optimizers)
    ema = _average(parameters, config)
    return Running(strategy, stage, optimizers, schedules, parameters, ema, precision, config)


def check_stage(strategy: Trainable, stage: Stage, config: TrainingConfig) -> None:
    """Check that ``stage`` can be trained as ``config`` says.

    Raises:
        InvalidArgumentError: gradient checkpointing was asked for and none of its components knows it.
    """
    if config.gradient_checkpointing and not any(_checkpointing(strategy, stage)):
        raise InvalidArgumentError(
            f"training.gradient_checkpointing is on, and none of the components that stage {stage.name!r} "
            f"trains ({', '.join(stage.components)}) supports it. Turn it off."
        )


def _checkpointing(strategy: Trainable, stage: Stage) -> Iterator[Any]:
    """Yield the trained modules that can recompute activations instead of keeping them."""
    for name in stage.components:
        module = strategy.modules[name]
        # diffusers' models all have the method; only some can use it.
        able = getattr(module, "_supports_gradient_checkpointing", True)
        if able and hasattr(module, "enable_gradient_checkpointing"):
            yield module


def _schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, warmups: list[int]) -> LambdaLR:
    """The recipe's schedule for every group, times a rise over the group's own warm-up."""
    shared = get_scheduler(
        config.lr_schedule,
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=config.steps,
    ).lr_lambdas[0]

    def rising(steps: int) -> Callable[[int], float]:
        return lambda step: shared(step) * (min(1.0, step / steps) if steps else 1.0)

    return LambdaLR(optimizer, [rising(steps) for steps in warmups])


def _set_rates(schedule: LambdaLR) -> None:
    """Give the optimiser the rates of ``schedule`` where it stands.

    Those that were saved are of the schedule as it was: a longer run's next step has another rate.
    """
    rates = [
        base * factor(schedule.last_epoch)
        for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def _average(parameters: list[nn.Parameter], config: TrainingConfig) -> EMAModel | None:
    if config.ema_decay is None:
        return None
    # The warm-up lets the average forget the initial weights in short runs.
    return EMAModel(parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.75)
