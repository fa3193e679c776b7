"""The exceptions vidgen raises, as one tree, and the sentences they are made of.

Every message says what was given, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CheckpointError",
    "CheckpointNotFoundError",
    "GenerationInterruptedError",
    "InvalidArgumentError",
    "MissingDependencyError",
    "PlanError",
    "RunFolderError",
    "SchedulerError",
    "TrainingError",
    "UnknownNameError",
    "VideoError",
    "VideoNotFoundError",
    "VidgenError",
    "shown",
]


def shown(value: object, most: int = 200) -> str:
    """Return ``repr(value)`` for a message, cut where a stranger's file made it endless."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


class VidgenError(Exception):
    """Base of every error that vidgen raises on purpose."""


class InvalidArgumentError(VidgenError, ValueError):
    """An argument or a configuration field has a value that cannot be used."""


class UnknownNameError(VidgenError, LookupError):
    """A name (strategy, scheduler, field, word, ...) that nothing answers to."""

    def __init__(self, kind: str, given: str, known: Iterable[str], advice: str = "") -> None:
        """Say which ``kind`` of name was ``given``, the nearest known one, all known ones, and ``advice``."""
        names = sorted(known)
        near = get_close_matches(given, names, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        more = f" {advice}" if advice else ""
        super().__init__(f"unknown {kind} {given!r}.{hint} Known: {', '.join(names) or 'none'}.{more}")
        self.kind, self.given, self.known = kind, given, names
        self.nearest: str | None = near[0] if near else None


class PlanError(InvalidArgumentError):
    """A plan is inconsistent, or a strategy cannot run it; the first bad call is named."""


class SchedulerError(InvalidArgumentError):
    """A scheduler cannot serve this model or cannot be handed the prior's noise."""


class VideoError(VidgenError, OSError):
    """A video file or folder cannot be read or written."""


class VideoNotFoundError(VideoError, InvalidArgumentError):
    """No video file or folder is at the place that was named."""


class CheckpointError(VidgenError):
    """A checkpoint folder is missing, incomplete, of a foreign format, or unsafe."""


class RunFolderError(CheckpointError, InvalidArgumentError):
    """A folder was given for a training run that it cannot be: it holds something else, or is in use."""


class CheckpointNotFoundError(CheckpointError, InvalidArgumentError):
    """No checkpoint is at the place, or of the name, that was given."""


class GenerationInterruptedError(VidgenError, RuntimeError):
    """Generation was stopped on request before it was done."""


class TrainingError(VidgenError, RuntimeError):
    """Training cannot go on (a loss that is not finite, data that ran out)."""


class MissingDependencyError(VidgenError, ImportError):
    """An optional package is needed; the message gives the command that installs it."""
