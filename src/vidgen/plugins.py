"""Entry points: how strategies, recipes and models are found, the built-in ones by the same door as all others.

Listing reads names from installed metadata and imports nothing. What an entry point of each group names:

- ``vidgen.strategies``: a subclass of ``vidgen.strategy.Strategy``;
- ``vidgen.trainables``: a subclass of ``vidgen.trainable.Trainable`` that trains something else;
- ``vidgen.priors``: a subclass of ``vidgen.noise.NoisePrior``, under its ``kind``;
- ``vidgen.recipes``: a function without arguments that returns a ``vidgen.recipe.Recipe``;
- ``vidgen.datasets``: a subclass of ``vidgen.video.dataset.DataSource``, data that ``--data NAME`` names;
- ``vidgen.codecs``: a subclass of ``vidgen.codecs.Codec``, by the name of its class;
- ``vidgen.networks``: a subclass of ``vidgen.networks.ClipDenoiser``, which strategies may take by its name;
- ``vidgen.commands``: a ``typer.Typer``, whose commands become ``vidgen NAME ...``;
- ``vidgen.models``: the folder of trained weights inside the package, as a path or as a function without
  arguments that returns one; the recipe of the same name, if there is one, trains it.
"""

from __future__ import annotations

import os
import re
from importlib.abc import Traversable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError, VidgenError

__all__ = [
    "CODECS",
    "COMMANDS",
    "DATASETS",
    "INSTALL",
    "MODELS",
    "NETWORKS",
    "PRIORS",
    "RECIPES",
    "STRATEGIES",
    "TRAINABLES",
    "available",
    "check",
    "load",
    "load_recipe",
    "load_trainable",
    "model_folder",
    "naming",
]

STRATEGIES = "vidgen.strategies"
TRAINABLES = "vidgen.trainables"
RECIPES = "vidgen.recipes"
PRIORS = "vidgen.priors"
MODELS = "vidgen.models"
DATASETS = "vidgen.datasets"
COMMANDS = "vidgen.commands"
CODECS = "vidgen.codecs"
NETWORKS = "vidgen.networks"
INSTALL = "If a package adds it, install that package."

_KIND = {
    STRATEGIES: "strategy",
    TRAINABLES: "trainable",
    RECIPES: "recipe",
    MODELS: "model",
    DATASETS: "dataset",
    COMMANDS: "command",
    CODECS: "codec",
    NETWORKS: "network",
    PRIORS: "noise prior",
}


def _points(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.setdefault(point.name, point)
        if other.value != point.value or _key(other) != _key(point):
            raise VidgenError(
                f"the name {point.name!r} is registered twice in {group!r}: by {_distribution(other)} "
                f"({other.value}) and by {_distribution(point)} ({point.value}). Uninstall one of them."
            )
    return dict(sorted(found.items()))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown distribution"


def _key(point: EntryPoint) -> str:
    """Return the distribution's name as indexes compare it: ``My_Plugin`` and ``my-plugin`` are one."""
    return re.sub(r"[-_.]+", "-", _distribution(point)).lower()


def available(group: str) -> dict[str, str]:
    """Return ``{name: distribution}`` of everything registered in ``group``, without importing it.

    A distribution that is installed and editable at once counts once.

    Raises:
        VidgenError: two packages register the same name.
    """
    return {name: _distribution(point) for name, point in _points(group).items()}


def naming(group: str, attribute: str) -> list[str]:
    """Return the names in ``group`` whose entry points name something called ``attribute``; imports nothing."""
    return [name for name, point in _points(group).items() if point.attr.rpartition(".")[2] == attribute]


def check(group: str, name: str) -> None:
    """Raise ``UnknownNameError`` unless ``name`` is registered in ``group``; imports nothing."""
    _point(group, name)


def _point(group: str, name: str) -> EntryPoint:
    points = _points(group)
    if name not in points:
        advice = INSTALL if group in (STRATEGIES, TRAINABLES) else ""
        raise UnknownNameError(_KIND.get(group, group), name, points, advice)
    return points[name]


def load(group: str, name: str) -> Any:
    """Import and return what is registered as ``name`` in ``group``.

    Raises:
        UnknownNameError: nothing is; the nearest name is suggested.
        ImportError: the plug-in's own, unchanged.
    """
    return _point(group, name).load()


def load_trainable(name: str) -> Any:
    """Import and return the strategy, or other trainable, that is called ``name``.

    Raises:
        UnknownNameError: nothing is; the nearest name is suggested.
        ImportError: the plug-in's own, unchanged.
    """
    group = _group_of(name)
    if name not in _points(group):
        known = {**_points(STRATEGIES), **_points(TRAINABLES)}
        raise UnknownNameError("strategy or trainable", name, known, INSTALL)
    return load(group, name)


def _group_of(name: str) -> str:
    return TRAINABLES if name in _points(TRAINABLES) else STRATEGIES


def load_recipe(strategy: str, name: str) -> Any:
    """Return the recipe ``name`` of ``strategy``: ``"tiny"`` and ``"vdm/tiny"`` are the same of ``"vdm"``.

    Raises:
        UnknownNameError: there is no such strategy (or other trainable) or recipe.
        InvalidArgumentError: the recipe trains another strategy, or ``strategy`` is the name of a recipe.
    """
    if strategy in _points(RECIPES) and strategy not in {**_points(STRATEGIES), **_points(TRAINABLES)}:
        trains = load(RECIPES, strategy)().strategy
        raise InvalidArgumentError(
            f"{strategy!r} is a recipe, where a strategy was expected. Give {trains!r} with it as the "
            f"recipe (`vidgen info {trains} --recipe {strategy}`)."
        )
    check(_group_of(strategy), strategy)
    recipe = load(RECIPES, name if "/" in name else f"{strategy}/{name}")()
    if recipe.strategy != strategy:
        raise InvalidArgumentError(
            f"recipe {name!r} trains {recipe.strategy!r}, not {strategy!r}. Give a recipe of {strategy!r}."
        )
    return recipe


def model_folder(name: str) -> Path:
    """Return the folder of the bundled model ``name``.

    Raises:
        UnknownNameError: there is none.
        CheckpointError: its package does not give a folder.
    """
    found: Any = load(MODELS, name)
    if callable(found) and not isinstance(found, str | os.PathLike | Traversable):
        found = found()
    folder = Path(str(found))
    if not isinstance(found, str | os.PathLike | Traversable) or not folder.is_dir():
        package = available(MODELS)[name]
        raise CheckpointError(
            f"the model {name!r} of package {package!r} is {found!r}; expected the folder of a checkpoint, or "
            "a function that returns one. Install the package unzipped, or tell its authors."
        )
    return folder
