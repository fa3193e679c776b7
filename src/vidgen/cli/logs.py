"""What vidgen says while it works, on stderr."""

from __future__ import annotations

import logging

import typer

__all__ = ["is_quiet", "shift", "start"]

_logger = logging.getLogger("vidgen")


class _Stderr(logging.Handler):
    """Writes to what is stderr now, and not to what it was when the handler was made."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(self.format(record), err=True)


def start() -> None:
    """Show messages from INFO on: what a generation will cost, say."""
    if not any(isinstance(handler, _Stderr) for handler in _logger.handlers):
        _logger.addHandler(_Stderr())
    _logger.setLevel(logging.INFO)


def shift(steps: int) -> None:
    """Show less, by ``steps`` levels (INFO, WARNING, ERROR), or more where negative (DEBUG)."""
    _logger.setLevel(min(logging.CRITICAL, max(logging.DEBUG, _logger.level + 10 * steps)))


def is_quiet() -> bool:
    """Whether less than usual is shown: progress bars are then hidden too."""
    return _logger.level > logging.INFO
