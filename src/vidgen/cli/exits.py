"""How a command ends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from vidgen.errors import InvalidArgumentError, UnknownNameError, VidgenError

__all__ = ["exits"]

P = ParamSpec("P")
T = TypeVar("T")

_WRONG_USE = (InvalidArgumentError, UnknownNameError)


def exits(command: Callable[P, T]) -> Callable[P, T]:
    """Turn vidgen's errors into one line on stderr and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except VidgenError as error:
            typer.echo(f"vidgen: {error}", err=True)
            raise typer.Exit(2 if isinstance(error, _WRONG_USE) else 1) from error
        except KeyboardInterrupt as error:
            typer.echo("vidgen: interrupted", err=True)
            raise typer.Exit(130) from error

    return wrapped
