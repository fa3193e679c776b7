"""Which settings of a training can be, whatever is trained."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

from diffusers.optimization import SchedulerType

from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.recipe import TrainingConfig

__all__ = ["check_training"]

_AT_LEAST_ONE = (
    "steps",
    "batch_size",
    "micro_batch_size",
    "checkpoint_every",
    "log_every",
    "keep_checkpoints",
    "validate_every",
    "validation_batches",
    "sample_every",
)
_MAY_BE_NONE = ("micro_batch_size", "sample_every", "max_grad_norm", "ema_decay")
# The one left out needs rules that a recipe does not hold.
_SCHEDULES = [kind.value for kind in SchedulerType if kind is not SchedulerType.PIECEWISE_CONSTANT]


def check_training(config: TrainingConfig) -> None:
    """Check every setting that has a range or a list of names.

    Raises:
        InvalidArgumentError: a number is out of range or not finite.
        UnknownNameError: no such learning-rate schedule or precision.
    """
    values = {
        name: value for name, value in vars(config).items() if value is not None or name not in _MAY_BE_NONE
    }
    for name in _AT_LEAST_ONE:
        if name in values:
            _check_count(name, values[name], 1)
    for name in ("warmup_steps", "num_workers", "seed"):
        _check_count(name, values[name], 0)
    if config.seed >= 1 << 63:
        raise InvalidArgumentError(f"training.seed is {config.seed}; expected 0 to 2^63 - 1.")
    for name in ("learning_rate", "max_grad_norm"):
        if name in values and not (_finite(values[name]) and values[name] > 0):
            hint = " (None: gradients are not clipped)" if name == "max_grad_norm" else ""
            raise InvalidArgumentError(f"training.{name} is {values[name]}; expected a number above 0{hint}.")
    if not (_finite(config.weight_decay) and config.weight_decay >= 0):
        raise InvalidArgumentError(f"training.weight_decay is {config.weight_decay}; expected 0 or more.")
    for name in ("ema_decay", "validation"):
        if name in values and not _share(values[name]):
            raise InvalidArgumentError(f"training.{name} is {values[name]}; expected 0 <= {name} < 1.")
    betas = config.betas if isinstance(config.betas, tuple | list) else ()
    if len(betas) != 2 or not all(_share(beta) for beta in betas):
        raise InvalidArgumentError(f"training.betas is {config.betas}; expected two numbers, 0 <= beta < 1.")
    if config.lr_schedule not in _SCHEDULES:
        raise UnknownNameError("training.lr_schedule", config.lr_schedule, _SCHEDULES)
    precisions = get_args(get_type_hints(TrainingConfig)["mixed_precision"])
    if config.mixed_precision not in precisions:
        raise UnknownNameError("training.mixed_precision", config.mixed_precision, precisions)


def _check_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, Integral) or value < least:
        raise InvalidArgumentError(f"training.{name} is {value}; expected a whole number, {least} or more.")


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _share(value: Any) -> bool:
    return _finite(value) and 0 <= value < 1
