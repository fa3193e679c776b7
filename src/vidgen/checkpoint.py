"""Checkpoints: a folder of configurations and safetensors, one sub-folder per component.

    folder/
      vidgen.json                       format, strategy, its configuration, component names
      scheduler/scheduler_config.json   diffusers' own file
      <component>/config.json, diffusion_pytorch_model.safetensors

Every component also loads alone with its diffusers class. Nothing is ever unpickled.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin
from torch import nn

import vidgen
from vidgen import config as configs
from vidgen import plugins
from vidgen.devices import checked_device
from vidgen.errors import CheckpointError, UnknownNameError
from vidgen.strategy import Strategy
from vidgen.weights import WEIGHTS, load_weights

__all__ = [
    "FORMAT",
    "build",
    "find_checkpoint",
    "load_strategy",
    "replaced_folder",
    "save_strategy",
]

FORMAT = 1
INDEX = "vidgen.json"


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``folder`` when the block ends well, and vanishes otherwise."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_strategy(strategy: Strategy, folder: str | Path) -> Path:
    """Write ``strategy`` whole to ``folder`` (replaced if it exists) and return the folder.

    Raises:
        CheckpointError: ``folder`` exists and is not a checkpoint.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and any(folder.iterdir()) and not (folder / INDEX).is_file():
        raise CheckpointError(
            f"{folder} exists and holds no {INDEX}; it is not overwritten. Give a new folder."
        )
    with replaced_folder(folder) as temporary:
        for name, module in strategy.modules.items():
            module.save_pretrained(temporary / name, safe_serialization=True)  # type: ignore[operator]
        strategy.scheduler.save_pretrained(temporary / "scheduler")
        index = {
            "format": FORMAT,
            "vidgen": vidgen.__version__,
            "strategy": strategy.name,
            "config": configs.to_dict(strategy.config),
            "components": {name: type(module).__name__ for name, module in strategy.modules.items()},
        }
        configs.write_json(temporary / INDEX, index)
    return folder


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint folder that ``path`` means: itself, or the newest of a training run.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path).expanduser()
    if (path / INDEX).is_file():
        return path
    steps = sorted((path / "checkpoints").glob("step-[0-9]*/model"), key=lambda p: p.parent.name)
    if steps:
        return steps[-1]
    if not path.exists():
        raise CheckpointError(
            f"there is no checkpoint at {path}: the folder does not exist. Train one with "
            f"`vidgen train vdm --data FOLDER --out {path}`."
        )
    raise CheckpointError(
        f"{path} is no checkpoint: it holds neither {INDEX} nor checkpoints/step-*/model. Expected a folder "
        "written by vidgen."
    )


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = configs.read_json(folder / INDEX)
    except ValueError as error:
        raise CheckpointError(f"{folder / INDEX} cannot be read: {error}") from error
    found = index.get("format")
    if found != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {found!r}; this vidgen ({vidgen.__version__}) reads format "
            f"{FORMAT}. Install the vidgen that wrote it ({index.get('vidgen', 'unknown version')})."
        )
    return index


def load_strategy(path: str | Path, *, device: Any = None, dtype: torch.dtype | None = None) -> Strategy:
    """Load a strategy from a checkpoint folder or a training run's folder.

    Args:
        path: the folder.
        device: where to put it; None is CUDA where present, else the CPU.
        dtype: cast the weights; None keeps float32.

    Raises:
        CheckpointError: no checkpoint there, another format, missing or unsafe files.
        UnknownNameError: the strategy's package is not installed.
    """
    device = checked_device(device)
    folder = find_checkpoint(path)
    index = _read_index(folder)
    strategy_class = plugins.load(plugins.STRATEGIES, index["strategy"])
    config = configs.from_dict(strategy_class.Config, index["config"])
    modules = {
        name: _load_component(folder / name, kinds, index["components"].get(name))
        for name, kinds in strategy_class.component_types.items()
    }
    strategy: Strategy = strategy_class(config, modules, _load_scheduler(folder / "scheduler"))
    for module in modules.values():
        module.eval()
    return strategy.to(device, dtype)


def build(strategy_class: type[Strategy], config: Any, *, seed: int = 0) -> Strategy:
    """Build a strategy with fresh weights drawn from ``seed``; ambient random state is untouched."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return strategy_class.create(config)


def _load_component(folder: Path, kinds: tuple[type, ...], name: str | None) -> nn.Module:
    kind: Any = {kind.__name__: kind for kind in kinds}.get(name or "")
    if kind is None:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise CheckpointError(
            f"{folder.parent} names {name or 'nothing'} as its component {folder.name!r}; expected "
            f"{expected}. The folder is incomplete or was written by another vidgen: save the strategy again."
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder / 'config.json'} is missing; expected the configuration of a {name}.")
    if not issubclass(kind, ModelMixin):  # a wrapper around another library's network keeps its own layout
        wrapper: nn.Module = kind.from_pretrained(folder)
        return wrapper
    module: nn.Module = kind.from_config(kind.load_config(folder))
    load_weights(module, folder / WEIGHTS)
    return module


def _load_scheduler(folder: Path) -> Any:
    file = folder / "scheduler_config.json"
    try:
        name = str(configs.read_json(file)["_class_name"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} cannot be read as a scheduler's configuration: {error}") from error
    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if kind is None:
        known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
        raise UnknownNameError("diffusers scheduler", name, known)
    return kind.from_pretrained(folder)
