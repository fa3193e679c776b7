"""A strategy to and from a folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from vidgen import config as configs
from vidgen import plugins
from vidgen.checkpoint.folder import readable, replaced_folder, settled, writable
from vidgen.checkpoint.index import INDEX, read_index, training_record, write_index
from vidgen.checkpoint.source import locate
from vidgen.devices import checked_device
from vidgen.errors import CheckpointError, UnknownNameError
from vidgen.strategy import Strategy
from vidgen.trainable import Trainable
from vidgen.weights import WEIGHTS, load_weights, read_tensors

__all__ = ["build", "load_strategy", "save_strategy"]

_T = TypeVar("_T", bound=Trainable)
_logger = logging.getLogger(__name__)

_SCHEDULER = "scheduler"


def build(kind: type[_T], config: Any, *, seed: int = 0) -> _T:
    """Build a strategy, or another trainable, with weights drawn from ``seed``; ambient state is untouched."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return kind.create(config)


def save_strategy(strategy: Trainable, folder: str | Path) -> Path:
    """Write a strategy (or another trainable) to ``folder``, replaced if it exists; return the folder.

    Raises:
        CheckpointError: ``folder`` exists and is not a checkpoint, or cannot be written.
    """
    folder = Path(folder).expanduser()
    with writable(folder):
        _refuse_strangers(settled(folder))
    with replaced_folder(folder) as temporary:
        for name, module in strategy.modules.items():
            _save_component(module, temporary / name)
        if isinstance(strategy, Strategy):
            strategy.scheduler.save_pretrained(temporary / _SCHEDULER)
        write_index(strategy, temporary)
    return folder


def _refuse_strangers(there: Path) -> None:
    if there.is_dir() and any(there.iterdir()) and not (there / INDEX).is_file():
        raise CheckpointError(f"{there} exists and holds no {INDEX}; it is not overwritten. Give a new folder.")


def _save_component(module: Any, folder: Path) -> None:
    if isinstance(module, ModelMixin):
        module.save_pretrained(folder, safe_serialization=True)
    else:
        module.save_pretrained(folder)


def load_strategy(
    source: str | Path,
    *,
    device: Any = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    **components: Any,
) -> Strategy:
    """Load a strategy.

    Args:
        source: a checkpoint folder, the folder of a training run (its newest checkpoint), the name of a
            bundled model, or a hub id ``user/repo`` or ``user/repo@revision``; see ``locate``.
        device: where to put it; None is CUDA where present, else the CPU.
        dtype: cast the weights; None keeps float32.
        revision: branch, tag or commit of a hub id.
        **components: ready modules to use instead of those of the checkpoint, whose files are then not
            read; ``scheduler`` may be another diffusers scheduler of the same process.

    Raises:
        CheckpointError: no checkpoint there, another format, missing, unsafe or unreadable files.
        UnknownNameError: the strategy's package is not installed, or it has no such component.
        InvalidArgumentError: a component has another class than the strategy's.
        SchedulerError: the scheduler does not fit the model.
    """
    device = checked_device(device)
    with readable(source):
        strategy = _loaded(locate(source, revision=revision), components)
    return strategy.to(device, dtype)


def _loaded(folder: Path, components: dict[str, Any]) -> Strategy:
    """Build what the checkpoint ``folder`` holds, but for what is given ready."""
    index = read_index(folder)
    _refuse_others(index["strategy"], folder)
    strategy_class = plugins.load(plugins.STRATEGIES, index["strategy"])
    _check_names(strategy_class, components)
    scheduler = components.pop(_SCHEDULER, None)
    config = configs.from_dict(strategy_class.Config, index["config"])
    modules = {
        name: components[name] if name in components else _load_component(folder, name, kinds, index)
        for name, kinds in strategy_class.component_types.items()
    }
    strategy: Strategy = strategy_class(config, modules, _load_scheduler(folder / _SCHEDULER))
    if scheduler is not None:
        strategy.scheduler = scheduler
    for module in modules.values():
        module.eval()
    strategy.training_record = record = training_record(index, folder)
    if record is not None and not record.finished:
        _logger.warning(
            "the training of %s is %s. What it generates may be noise; start the training again to go on.",
            folder,
            record,
        )
    return strategy


def _refuse_others(name: str, folder: Path) -> None:
    if name in plugins.available(plugins.TRAINABLES):
        raise CheckpointError(
            f"{folder} holds what trainable {name!r} trained, which generates no videos; expected a strategy. "
            f"Load its component instead: {', '.join(sorted(p.name for p in folder.iterdir() if p.is_dir()))}."
        )


def _check_names(strategy_class: type[Strategy], components: Iterable[str]) -> None:
    known = {*strategy_class.component_types, _SCHEDULER}
    for name in components:
        if name not in known:
            raise UnknownNameError(f"component of {strategy_class.name!r}", name, known)


def _load_component(
    checkpoint: Path, name: str, kinds: tuple[type, ...], index: Mapping[str, Any]
) -> nn.Module:
    folder, wanted = checkpoint / name, index["components"].get(name)
    kind: Any = {kind.__name__: kind for kind in kinds}.get(wanted)
    if kind is None:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise CheckpointError(
            f"{checkpoint} names {wanted or 'nothing'} as its component {name!r}; expected {expected}. The "
            "folder is incomplete or was written by another vidgen: save the strategy again."
        )
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is missing; expected the folder of a {wanted}. Fetch the checkpoint whole, or give the "
            f"component: {name}=..."
        )
    # The fresh weights are all overwritten: their random numbers must not move the ambient state.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if issubclass(kind, ModelMixin):
            return _load_module(kind, folder)
        wrapper: nn.Module = kind.from_pretrained(folder)  # around another library's network, in its layout
        return wrapper


def _load_module(kind: Any, folder: Path) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder / 'config.json'} is missing; expected the configuration of a {kind.__name__}. Fetch the "
            "checkpoint whole."
        )
    module = _from_config(kind, folder)
    _load_weights(module, folder)
    return module


def _from_config(kind: Any, folder: Path) -> nn.Module:
    try:
        module: nn.Module = kind.from_config(kind.load_config(folder))
    except (OSError, TypeError) as error:  # no JSON, or arguments missing
        raise CheckpointError(
            f"{folder / 'config.json'} is no configuration of a {kind.__name__}: {error}. Fetch it again."
        ) from error
    return module


def _load_weights(module: nn.Module, folder: Path) -> None:
    shards = folder / f"{WEIGHTS}.index.json"
    if not shards.is_file():
        load_weights(module, folder / WEIGHTS)
        return
    weights: dict[str, Tensor] = {}
    for name in sorted(_shard_names(shards)):
        weights |= read_tensors(folder / name)
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{shards} does not fit {type(module).__name__}: {error}") from error


def _shard_names(index: Path) -> set[str]:
    """Return the files that diffusers cut large weights into."""
    try:
        names = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{index} cannot be read as diffusers' index of weights: {error!r}. Fetch the file again."
        ) from error
    outside = sorted(name for name in names if Path(name).name != name)
    if outside:
        raise CheckpointError(f"{index} names {outside[0]!r}; expected files beside it. It is not followed.")
    return names


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
