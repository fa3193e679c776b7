"""The trainer's own state on disk: weights, optimisers and averages, exactly.

    state/
      trainer.json          stage, step, scalar state of optimisers and learning-rate schedules
      tensors.safetensors   every tensor, by path

accelerate's ``save_state`` pickles; this does not. There is no random state: all that is random is a function
of the seed and the step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vidgen import config as configs
from vidgen.errors import CheckpointError, shown
from vidgen.weights import write_tensors

__all__ = ["Progress", "flatten", "load_state", "progress_of", "restoring", "save_state", "unflatten"]

FORMAT = 2
_TENSOR = "__tensor__"


def flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` with every tensor moved to ``tensors`` under its path, fit for JSON."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        # JSON has text keys only; optimisers count their parameters with integers.
        items = [[key, flatten(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        return {"__items__": items}
    if isinstance(value, list | tuple):
        return [flatten(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"the state at {path} is a {type(value).__name__}, which is neither tensor nor JSON; an optimiser "
        "that keeps such state cannot be resumed exactly."
    )


def unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo ``flatten``."""
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: unflatten(item, tensors) for key, item in value["__items__"]}
    if isinstance(value, list):
        return [unflatten(item, tensors) for item in value]
    return value


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (nested mappings, lists, tensors, scalars) to the existing ``folder``."""
    tensors: dict[str, Tensor] = {}
    described = flatten(state, "", tensors)
    write_tensors(folder / "tensors.safetensors", tensors)
    configs.write_json(folder / "trainer.json", {"format": FORMAT, "state": described})


@dataclass(frozen=True)
class Progress:
    """How far a run is: in the ``step`` of the stage of this number, which began at step ``offset`` of all."""

    stage: int
    offset: int
    step: int

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Progress:
        """Read it off a trainer's state."""
        return cls(int(state["stage"]), int(state["offset"]), int(state["running"]["step"]))


def progress_of(folder: Path) -> Progress | None:
    """Return how far the state in ``folder`` is, without its tensors; None where it cannot be read."""
    try:
        described = configs.read_json(folder / "trainer.json")["state"]
        return Progress.of(unflatten(described, defaultdict(lambda: torch.empty(0))))
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError):
        return None


def load_state(folder: Path) -> dict[str, Any]:
    """Read what ``save_state`` wrote.

    Raises:
        CheckpointError: files are missing or damaged, or of another format.
    """
    try:
        index = configs.read_json(folder / "trainer.json")
        tensors = load_file(folder / "tensors.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} holds no complete training state ({error}). Delete this checkpoint to go on from the "
            "one before it."
        ) from error
    if index.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has state format {shown(index.get('format'))}; expected {FORMAT}. Resume with "
            "the vidgen that wrote it."
        )
    with restoring(folder):
        state: dict[str, Any] = unflatten(index["state"], tensors)
        Progress.of(state)
    return state


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Turn what goes wrong where a state is put back into an error that names its ``folder``."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} holds no training state of this run ({type(error).__name__}: {str(error)[:500]}). It "
            "was changed, or is damaged: delete this checkpoint to go on from the one before it."
        ) from error
