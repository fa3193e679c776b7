"""Options that several commands share, how they are read, and what the shell completes them with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from vidgen import plugins
from vidgen.errors import InvalidArgumentError, VidgenError

__all__ = [
    "Assignments",
    "Device",
    "Json",
    "Quiet",
    "RecipeName",
    "StrategyName",
    "Verbose",
    "by_level",
    "dataset_names",
    "model_names",
    "recipe_names",
    "recipes_of_name",
    "span",
    "strategy_and_model_names",
]


def _names(group: str) -> list[str]:
    try:
        return list(plugins.available(group))
    except VidgenError:  # the command itself says it; the shell's line is no place for it
        return []


def _strategy_names() -> list[str]:
    return [*_names(plugins.STRATEGIES), *_names(plugins.TRAINABLES)]


def _recipe_names(context: typer.Context) -> list[str]:
    """Name the recipes of the strategy on the line as they may be written: ``tiny`` for ``vdm/tiny``."""
    # An option without its value ends the parsing: the strategy before it is then among the words left over.
    words = [context.params.get("strategy"), context.params.get("name"), *context.args]
    prefix = next((f"{word}/" for word in words if word in _strategy_names()), "")
    names = _names(plugins.RECIPES)
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def recipes_of_name(context: typer.Context) -> list[str]:
    """Return the recipes of the strategy on the line."""
    return _recipe_names(context)


def strategy_and_model_names() -> list[str]:
    """Return what ``vidgen info`` describes by name."""
    return [*_names(plugins.STRATEGIES), *model_names()]


def dataset_names() -> list[str]:
    """Return the registered datasets; folders are completed by the shell itself."""
    return _names(plugins.DATASETS)


def recipe_names() -> list[str]:
    """Return all recipes by their whole names."""
    return _names(plugins.RECIPES)


def model_names() -> list[str]:
    """Return the bundled models; folders are completed by the shell itself."""
    return _names(plugins.MODELS)


StrategyName = Annotated[
    str, typer.Argument(help="Which strategy, see `vidgen list`.", autocompletion=_strategy_names)
]
RecipeName = Annotated[str, typer.Option(help="Which recipe, see `vidgen list`.", autocompletion=_recipe_names)]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field of the recipe: NAME=VALUE. Repeatable.")
]
Device = Annotated[str | None, typer.Option(help="Where to run, such as cpu or cuda; default: the best there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[
    int,
    typer.Option("--quiet", "-q", count=True, show_default=False, help="Say less on stderr; -qq: errors only."),
]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Say more of what happens.")
]


def span(text: str | None, option: str) -> range | None:
    """Read frames ``START:STOP``, or one frame.

    Raises:
        InvalidArgumentError: ``text`` is neither; ``option`` names where it was given.
    """
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    try:
        return range(int(start), int(stop)) if colon else range(int(start), int(start) + 1)
    except ValueError as error:
        raise InvalidArgumentError(
            f"{option} was given {text!r}; expected START:STOP, such as 100:132, or one frame."
        ) from error


def by_level(texts: list[str] | None, flag: str, kind: Callable[[str], Any]) -> Any:
    """Read an option that is one value for all levels, or ``LEVEL=VALUE`` for each of some.

    Args:
        texts: as they were given.
        flag: the option's name, for messages.
        kind: reads a value: ``int``, ``float`` or ``str``.

    Raises:
        InvalidArgumentError: a value of another kind, one for all beside one for a level, or one given twice.
    """
    found: dict[str, Any] = {}
    for text in texts or ():
        level, equals, value = text.partition("=")
        level, value = (level, value) if equals else ("", text)
        if level in found:
            raise InvalidArgumentError(f"{flag} is given twice{f' for level {level!r}' if level else ''}.")
        try:
            found[level] = kind(value)
        except ValueError:
            name = "whole number" if kind is int else "number"
            raise InvalidArgumentError(
                f"{flag} was given {text!r}; expected a {name}, or LEVEL={name}."
            ) from None
    if "" in found and len(found) > 1:
        levels = ", ".join(name for name in found if name)
        raise InvalidArgumentError(f"{flag} is given for all levels and for {levels} too; give one of the two.")
    return found.get("", found) if found else None
