"""``vidgen.json``: what a checkpoint folder holds, and the versions of its format."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import vidgen
from vidgen import config as configs
from vidgen.components import INDEX, Reference
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError, shown
from vidgen.trainable import Trainable, TrainingRecord

__all__ = ["FORMAT", "INDEX", "read_index", "training_record", "write_index"]

_logger = logging.getLogger(__name__)

FORMAT = 2

_Migration = Callable[[dict[str, Any], Path], dict[str, Any]]

_MIGRATIONS: dict[int, _Migration] = {
    1: lambda index, _: {**index, "format": 2},  # had no references, and no record of the noise process
}
"""``{n: function(index, folder) -> index}`` turns format ``n`` into ``n + 1``; files stay as they are."""

_FIELDS = {"strategy": str, "config": dict, "components": dict}


def write_index(
    strategy: Trainable,
    folder: Path,
    components: Mapping[str, str | Reference],
    process: Mapping[str, Any] | None = None,
) -> None:
    """Describe ``strategy`` in ``folder``: each of ``components`` by its class, or where else it lies.

    ``process`` is written as it is: ``{"process": ...}`` with what ``save_schedulers`` returned.
    """
    index = {
        "format": FORMAT,
        "vidgen": vidgen.__version__,
        "strategy": strategy.name,
        "config": configs.to_dict(strategy.config),
        "components": {
            name: entry.to_json() if isinstance(entry, Reference) else entry
            for name, entry in components.items()
        },
    }
    if strategy.training_record is not None:
        index["training"] = configs.to_dict(strategy.training_record)
    configs.write_json(folder / INDEX, {**index, **(process or {})})


def training_record(index: Mapping[str, Any], folder: Path) -> TrainingRecord | None:
    """Return what the description of the checkpoint in ``folder`` says of its training, if it does."""
    if "training" not in index:
        return None
    try:
        record = configs.from_dict(TrainingRecord, index["training"])
    except (AttributeError, TypeError, InvalidArgumentError, UnknownNameError) as error:
        _logger.warning("%s: what it says of its training cannot be read (%s)", folder, error)
        return None
    return record


def read_index(folder: Path) -> dict[str, Any]:
    """Return the description of the checkpoint in ``folder``, in today's format.

    Raises:
        CheckpointError: it cannot be read, is of a format that this version does not know, or incomplete.
    """
    try:
        index = configs.read_json(folder / INDEX)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / INDEX} cannot be read: {error}") from error
    index = _migrated(index, folder)
    for name, kind in _FIELDS.items():
        if not isinstance(index.get(name), kind):
            raise CheckpointError(
                f"{folder / INDEX} gives {shown(index.get(name))} as its {name!r}; expected a "
                f"{kind.__name__}. The file was changed or is of another program: save the strategy again."
            )
    return index


def _migrated(index: dict[str, Any], folder: Path) -> dict[str, Any]:
    found = index.get("format")
    version = found
    while type(version) is int and version in _MIGRATIONS and version < FORMAT:
        index = _MIGRATIONS[version](index, folder)
        version += 1
    if type(version) is int and version == FORMAT:
        return index
    known = ", ".join(str(n) for n in sorted({*_MIGRATIONS, FORMAT}))
    raise CheckpointError(
        f"{folder} has checkpoint format {shown(found)}; this vidgen ({vidgen.__version__}) "
        f"reads format {known}. {_advice(found, index.get('vidgen'))}"
    )


def _advice(found: Any, writer: Any) -> str:
    if not isinstance(found, int) or not isinstance(writer, str):
        return "It was not written by vidgen, or was changed: save the strategy again."
    relation = ">=" if found > FORMAT else "=="
    return f"It was written by vidgen {writer}; install that: pip install 'vidgen{relation}{writer}'."
