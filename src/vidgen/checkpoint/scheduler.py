"""The schedulers of a checkpoint: of the noise processes that the networks were trained on, or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from vidgen import config as configs
from vidgen.components import described
from vidgen.diffusion import Diffusion
from vidgen.errors import CheckpointError, UnknownNameError, VidgenError, shown

__all__ = ["SCHEDULER", "load_schedulers", "process_of", "save_schedulers"]

SCHEDULER = "scheduler"
_FILE = "scheduler_config.json"

_MOST_TIMESTEPS = 100_000
"""Schedulers make tables of so many entries when they are built; trained processes have 1,000."""

_PROCESS = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)
"""What training fixes of a noise process, as schedulers call it; the rest is the solver's."""


def process_of(scheduler: Any) -> dict[str, Any]:
    """Return the noise process of a scheduler in plain values."""
    diffusion = Diffusion(scheduler)
    names = _PROCESS if diffusion.process == "variance_preserving" else _PROCESS[:1]
    fields = {name: scheduler.config[name] for name in names if name in scheduler.config}
    found = {"kind": diffusion.process, "prediction_type": diffusion.prediction_type, **fields}
    return json.loads(json.dumps(found, default=_plain))  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    return value.tolist()  # betas may be an array


def save_schedulers(schedulers: Mapping[str, Any], checkpoint: Path) -> Any:
    """Write a scheduler for each level: one for all that agree, else a folder for each.

    Returns:
        Their noise processes in plain values, for ``load_schedulers``: one, or ``{level: process}``, or None
        where no level has a scheduler.
    """
    if not schedulers:
        return None
    configs_of = [(type(each).__name__, dict(each.config)) for each in schedulers.values()]
    if all(one == configs_of[0] for one in configs_of):
        first = next(iter(schedulers.values()))
        first.save_pretrained(checkpoint / SCHEDULER)
        return process_of(first)
    for level, scheduler in schedulers.items():
        scheduler.save_pretrained(checkpoint / SCHEDULER / level)
    return {level: process_of(scheduler) for level, scheduler in schedulers.items()}


def load_schedulers(checkpoint: Path, index: Mapping[str, Any]) -> Any:
    """Load what ``save_schedulers`` wrote: one scheduler, ``{level: scheduler}``, or None.

    Args:
        checkpoint: its folder.
        index: its description, whose ``"process"`` is what ``save_schedulers`` returned; one without it, as
            older versions wrote, has a scheduler of a process that was not kept.

    Raises:
        CheckpointError: a file is missing or damaged, or describes another process.
        UnknownNameError: diffusers has no such scheduler.
    """
    process = index.get("process", {})
    if process is None:
        return None
    folder = checkpoint / SCHEDULER
    by_level = isinstance(process, Mapping) and all(isinstance(own, Mapping) for own in process.values())
    if not (by_level and process):
        return _load_scheduler(folder / _FILE, process)
    for level in process:
        if Path(level).name != level or level in ("", ".", "..") or "\\" in level:
            raise CheckpointError(
                f"{checkpoint} has a scheduler for level {shown(level)}; expected the plain name of a level. "
                "The file was changed: fetch it again."
            )
    return {level: _load_scheduler(folder / level / _FILE, own) for level, own in process.items()}


def _load_scheduler(file: Path, process: Any) -> Any:
    try:
        fields = configs.read_json(file)
        name = str(fields["_class_name"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} cannot be read as a scheduler's configuration: {error}") from error
    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if kind is None:
        known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
        raise UnknownNameError("diffusers scheduler", name, known)
    _check_timesteps(fields, file)
    with described(file, name):
        scheduler = kind.from_config({key: value for key, value in fields.items() if key[:1] != "_"})
        _check_table(scheduler, file)
    _check_process(scheduler, process, file)
    return scheduler


def _check_timesteps(fields: Mapping[str, Any], file: Path) -> None:
    count = fields.get("num_train_timesteps", 1000)
    if type(count) is not int or not 1 <= count <= _MOST_TIMESTEPS:
        raise CheckpointError(
            f"{file} has num_train_timesteps={shown(count)}; expected a number from 1 to "
            f"{_MOST_TIMESTEPS:,}. The file was changed: fetch it again."
        )


def _check_table(scheduler: Any, file: Path) -> None:
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(alphas, torch.Tensor) and not ((alphas >= 0) & (alphas <= 1)).all():
        raise CheckpointError(
            f"{file} describes noise levels that are not in [0, 1] (from its betas). The file was changed: "
            "fetch it again."
        )


def _check_process(scheduler: Any, process: Any, file: Path) -> None:
    if not isinstance(process, Mapping):
        return
    try:
        found = process_of(scheduler)
    except VidgenError as error:
        raise CheckpointError(f"{file} cannot be used: {error}") from error
    other = [name for name, value in found.items() if name in process and process[name] != value]
    if other:
        detail = ", ".join(f"{name} {shown(found[name], 50)}, was {shown(process[name], 50)}" for name in other)
        raise CheckpointError(
            f"{file} describes another noise process than the networks were trained on "
            f"({detail}): they would give noise. Put back the scheduler that was saved; to sample with "
            "another solver, give it to the sampler: scheduler=..."
        )
