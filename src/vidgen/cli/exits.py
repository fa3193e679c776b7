"""How a command ends."""

from __future__ import annotations

import functools
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import typer

from vidgen.errors import InvalidArgumentError, UnknownNameError, VidgenError

__all__ = ["exits"]

P = ParamSpec("P")
T = TypeVar("T")

_logger = logging.getLogger("vidgen")
_WRONG_USE = (InvalidArgumentError, UnknownNameError)


def exits(command: Callable[P, T]) -> Callable[P, T]:
    """Turn vidgen's and the system's errors into one line on stderr and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with _terminable():
                return command(*args, **kwargs)
        except VidgenError as error:
            typer.echo(f"vidgen: {error}", err=True)
            raise typer.Exit(2 if isinstance(error, _WRONG_USE) else 1) from error
        except BrokenPipeError:  # whoever read stdout has enough: nothing to say, and typer knows
            raise
        except OSError as error:
            _logger.debug("where it happened:", exc_info=True)
            typer.echo(f"vidgen: {_sentence(error)}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            said = f". {error}" if str(error) else ""
            typer.echo(f"vidgen: interrupted{said}", err=True)
            raise typer.Exit(130) from error

    return wrapped


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM, as batch systems send it, end a command as Ctrl-C does; the second one is immediate."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _sentence(error: OSError) -> str:
    """Say in one line what the system said, of which file, and what to do."""
    said = error.strerror or " ".join(str(error).split()) or type(error).__name__
    place = f" ({error.filename})" if error.filename else ""
    return f"the system reports: {said.rstrip('.')}{place}. Check that place; `vidgen -v` shows where it arose."
