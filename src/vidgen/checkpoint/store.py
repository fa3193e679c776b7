"""A strategy to and from a folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from torch import nn

from vidgen import config as configs
from vidgen import plugins
from vidgen.checkpoint.folder import readable, replaced_folder, settled, writable
from vidgen.checkpoint.index import INDEX, read_index, training_record, write_index
from vidgen.checkpoint.scheduler import SCHEDULER, load_schedulers, save_schedulers
from vidgen.checkpoint.source import locate
from vidgen.codecs import codec_class
from vidgen.components import (
    Reference,
    component_hash,
    load_module,
    locate_component,
    relative_source,
    repositories_allowed,
    save_component,
)
from vidgen.devices import checked_device
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError, VidgenError, shown
from vidgen.networks import network_of_class
from vidgen.paths import expanded
from vidgen.strategy import Strategy
from vidgen.trainable import Trainable
from vidgen.weights import follow_umask, newest_model

__all__ = ["build", "complete", "load_strategy", "save_strategy"]

_T = TypeVar("_T", bound=Trainable)
_logger = logging.getLogger(__name__)


def build(kind: type[_T], config: Any, *, seed: int = 0) -> _T:
    """Build a strategy, or another trainable, with weights drawn from ``seed``; ambient state is untouched."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return kind.create(config)


def complete(strategy: Trainable, *, seed: int = 0) -> None:
    """Give ``strategy`` networks, drawn from ``seed``, for what its checkpoint left out and training needs."""
    for name in strategy.training_only:
        if name in strategy.modules:
            continue
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            strategy.modules[name] = strategy.fresh(name)
        _logger.warning(
            "component %r of %r is for training only and was left out of the checkpoint: it starts untrained. "
            "To go on with a trained one, load the checkpoint of the run that made the model.",
            name,
            strategy.name,
        )


def save_strategy(strategy: Trainable, folder: str | Path, *, whole: bool = True) -> Path:
    """Write a strategy (or another trainable) to ``folder``, replaced if it exists; return the folder.

    Args:
        strategy: what to write.
        folder: made if need be.
        whole: write every component. False writes what is shared: components that hold the same values as
            those of a checkpoint that the strategy started from (one named in its configuration, or that it
            was loaded with) become references to it, and what only training needs is left out. Bundled models
            and hub ids are referred to by name, folders only where they lie beside ``folder`` or in it.

    Raises:
        CheckpointError: ``folder`` exists and is not a checkpoint, or cannot be written.
    """
    folder = expanded(folder)
    with writable(folder):
        _refuse_strangers(settled(folder))
    with replaced_folder(folder) as temporary:
        components: dict[str, str | Reference] = {}
        for name, module in strategy.modules.items():
            if not whole and name in strategy.training_only:
                continue
            save_component(module, temporary / name)
            reference = None if whole else _reference(strategy, name, temporary / name, folder)
            if reference is not None:
                shutil.rmtree(temporary / name)
            components[name] = reference or type(module).__name__
        process: dict[str, Any] = {}
        if isinstance(strategy, Strategy):
            process["process"] = save_schedulers(strategy.schedulers, temporary)
            if strategy.schedulers:
                follow_umask(temporary / SCHEDULER)
        write_index(strategy, temporary, components, process)
    return folder


def _refuse_strangers(there: Path) -> None:
    if there.is_dir() and any(there.iterdir()) and not (there / INDEX).is_file():
        raise CheckpointError(f"{there} exists and holds no {INDEX}; it is not overwritten. Give a new folder.")


def _reference(strategy: Trainable, name: str, saved: Path, folder: Path) -> Reference | None:
    """Return where the component that was ``saved`` lies already, as a checkpoint in ``folder`` may say it."""
    digest = component_hash(saved)
    for found in _origins(strategy, name):
        source = relative_source(found.source, folder)
        if source is not None and found.digest == digest:
            return Reference(source, digest)
    return None


def _origins(strategy: Trainable, name: str) -> Iterator[Reference]:
    """Yield where the component ``name`` of the checkpoints that ``strategy`` started from lies."""
    if name in strategy.references:
        yield strategy.references[name]
    for _, _, value in configs.fields_of(strategy.config):
        checkpoint = _checkpoint_of(value) if isinstance(value, str) else None
        if checkpoint is None:
            continue
        source = value if value in plugins.available(plugins.MODELS) else str(checkpoint.resolve())
        with suppress(CheckpointError):  # what cannot be found cannot be referred to
            located = locate_component(checkpoint, name)
            if located.folder.is_dir():
                yield located.reference or Reference(source, component_hash(located.folder))


def _checkpoint_of(value: str) -> Path | None:
    """Return the checkpoint that a setting names, if it names one on this machine."""
    if value in plugins.available(plugins.MODELS):
        return plugins.model_folder(value)
    with suppress(OSError, ValueError, RuntimeError):  # a text of any kind
        folder = newest_model(expanded(value))
        return folder if (folder / INDEX).is_file() else None
    return None


def load_strategy(
    source: str | Path,
    *,
    device: Any = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    repositories: Collection[str] = (),
    strategy: str | None = None,
    **components: Any,
) -> Strategy:
    """Load a strategy.

    Args:
        source: a checkpoint folder, the folder of a training run (its newest checkpoint), the name of a
            bundled model, or a hub id ``user/repo`` or ``user/repo@revision``; see ``locate``.
        device: where to put it; None is CUDA where present, else the CPU.
        dtype: cast the weights; None keeps float32.
        revision: branch, tag or commit of a hub id.
        repositories: other repositories of the hub, ``user/repo``, that the checkpoint may have loaded, for
            components that it refers to and for open_clip models. By default there are none: what a checkpoint
            names, its author chose.
        strategy: the name of another strategy, of the same components, to run the checkpoint's weights: one
            that wraps it, say. Settings that the other one alone has are at their defaults.
        **components: ready modules to use instead of those of the checkpoint, whose files are then not
            read; ``scheduler`` may be another diffusers scheduler of the same process.

    Raises:
        CheckpointError: no checkpoint there, another format, missing, unsafe or unreadable files, weights or a
            noise process that do not fit the configuration.
        UnknownNameError: the strategy's package is not installed, or it has no such component.
        InvalidArgumentError: a component has another class than the strategy's.
        SchedulerError: the scheduler does not fit the model.
    """
    device = checked_device(device)
    with readable(source), repositories_allowed(repositories):
        loaded = _loaded(locate(source, revision=revision), components, strategy)
    return loaded.to(device, dtype)


def _loaded(folder: Path, components: dict[str, Any], other: str | None = None) -> Strategy:
    """Build what the checkpoint ``folder`` holds (as strategy ``other``, if named), but for what is given."""
    index = read_index(folder)
    _refuse_others(index["strategy"], folder)
    strategy_class = plugins.load(plugins.STRATEGIES, other or index["strategy"])
    _check_names(strategy_class, components)
    scheduler = components.pop(SCHEDULER, None)
    config = _config(strategy_class, index["config"], folder)
    modules, references = dict(components), {}
    for name, kinds in strategy_class.component_types.items():
        left_out = name in strategy_class.training_only and name not in index["components"]
        if name not in components and not left_out:
            located = locate_component(folder, name)
            wanted = index["components"].get(name)
            if located.reference is not None:
                references[name], wanted = located.reference, located.class_name
            modules[name] = _load_component(folder, name, kinds, located.folder, wanted)
    of_checkpoint = load_schedulers(folder, index)
    with _settings_of(strategy_class, folder):
        strategy: Strategy = strategy_class(config, modules, of_checkpoint)
    strategy.references.update(references)
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


def _config(strategy_class: type[Strategy], values: dict[str, Any], folder: Path) -> Any:
    with _settings_of(strategy_class, folder):
        try:
            return configs.from_dict(strategy_class.Config, values)
        except InvalidArgumentError as error:  # nobody gave an argument
            raise ValueError(str(error)) from error


@contextmanager
def _settings_of(strategy_class: type[Strategy], folder: Path) -> Iterator[None]:
    """Turn what values that fit nothing bring about into an error of the file that they stand in."""
    try:
        yield
    except VidgenError:
        raise
    except Exception as error:  # any value may stand in the file
        raise CheckpointError(
            f"{folder / INDEX} holds no configuration of {strategy_class.name!r} ({type(error).__name__}: "
            f"{str(error)[:500]}). The file was changed, or is of another vidgen: save the strategy again."
        ) from error


def _refuse_others(name: str, folder: Path) -> None:
    if name in plugins.available(plugins.TRAINABLES):
        raise CheckpointError(
            f"{folder} holds what trainable {name!r} trained, which generates no videos; expected a strategy. "
            f"Load its component instead: {', '.join(sorted(p.name for p in folder.iterdir() if p.is_dir()))}."
        )


def _check_names(strategy_class: type[Strategy], components: Iterable[str]) -> None:
    known = {*strategy_class.component_types, SCHEDULER}
    for name in components:
        if name not in known:
            raise UnknownNameError(f"component of {strategy_class.name!r}", name, known)


def _load_component(
    checkpoint: Path, name: str, kinds: tuple[type, ...], folder: Path, wanted: Any
) -> nn.Module:
    kind: Any = next((kind for kind in kinds if kind.__name__ == wanted), None)
    if kind is None and isinstance(wanted, str):
        # A plug-in's, where the strategy takes any of a kind.
        found = codec_class(wanted) or network_of_class(wanted)
        kind = found if found is not None and issubclass(found, kinds) else None
    if kind is None:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise CheckpointError(
            f"{checkpoint} names {shown(wanted) if wanted else 'nothing'} as its component {name!r}; expected "
            f"{expected}. The folder is incomplete or was written by another vidgen: save the strategy again."
        )
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is missing; expected the folder of a {wanted}. Fetch the checkpoint whole, or give the "
            f"component: {name}=..."
        )
    if issubclass(kind, ModelMixin):
        return load_module(kind, folder)
    # The fresh weights are all overwritten: their random numbers must not move the ambient state.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        wrapper: nn.Module = kind.from_pretrained(folder)  # around another library's network, in its layout
    return wrapper
