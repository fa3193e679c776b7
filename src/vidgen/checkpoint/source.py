"""Where a checkpoint is: a folder, a run, a bundled name, the hub."""

from __future__ import annotations

import logging
import os
from difflib import get_close_matches
from pathlib import Path

from vidgen import plugins
from vidgen.checkpoint.folder import settled
from vidgen.components import INDEX, hub
from vidgen.errors import CheckpointError, CheckpointNotFoundError, InvalidArgumentError, UnknownNameError
from vidgen.paths import expanded
from vidgen.weights import newest_model

__all__ = ["find_checkpoint", "locate"]

_logger = logging.getLogger(__name__)


def locate(source: str | Path, *, revision: str | None = None) -> Path:
    """Return the local checkpoint folder that ``source`` means.

    A text is, in this order, an existing folder (of a checkpoint or a training run), the name of a bundled
    model (entry point group ``vidgen.models``), or a hub id ``user/repo[@revision]``, of which JSON and
    safetensors files are fetched (once: later calls and ``HF_HUB_OFFLINE=1`` use the cache). A ``Path``,
    and a text that begins with ``/``, ``.`` or ``~``, is a folder and nothing else.

    What looks like a mistyped bundled name is not looked for on the hub, unless a revision is given with it.

    Raises:
        CheckpointError: there is no checkpoint; the message lists what was tried.
        InvalidArgumentError: ``revision`` was given for something that is not on the hub.
    """
    if not isinstance(source, str | os.PathLike) or source == "":
        raise InvalidArgumentError(
            f"{source!r} ({type(source).__name__}) was given as a checkpoint; expected a folder, the name of a "
            "bundled model, or a hub id user/repo."
        )
    path = expanded(source)
    if isinstance(source, Path) or _is_path(source) or settled(path).is_dir():
        _refuse_revision(source, revision, "a folder")
        return find_checkpoint(path)
    if source in plugins.available(plugins.MODELS):
        _refuse_revision(source, revision, "a bundled model")
        return find_checkpoint(plugins.model_folder(source))
    remote = hub.parse(source)
    if remote is None:
        return find_checkpoint(path, _no_model(source))
    if revision is None and remote.revision is None and _is_mistyped(source):
        raise CheckpointNotFoundError(
            f"{source!r} was not found: there is no folder {path}, and {_no_model(source)}. A repository of "
            f"the hub that is called so is asked for by its revision: '{source}@main'."
        )
    if _nearest_model(source):  # a hub that cannot be reached takes long to say so
        _logger.warning("%s; looking on the hub", _no_model(source))
    try:
        folder = hub.snapshot(remote, revision)
    except CheckpointError as error:
        raise CheckpointError(
            f"{source!r} was not found: there is no folder {path}, {_no_model(source)}, and {error}"
        ) from error
    return find_checkpoint(folder)


def find_checkpoint(path: str | Path, tried: str = "") -> Path:
    """Return the checkpoint folder that ``path`` means: itself, or the newest of a training run.

    Args:
        path: the folder. One that a killed writer left set aside is found under its name.
        tried: what else was looked for, for the message.

    Raises:
        CheckpointError: there is none.
    """
    path = expanded(path)
    there = settled(path)
    if (there / INDEX).is_file():
        return there
    if (newest := newest_model(path)) != path:
        return newest
    if not path.exists():
        tried = f" ({tried})" if tried else ""
        raise CheckpointNotFoundError(
            f"there is no checkpoint at {path}: the folder does not exist{tried}. Train one with "
            f"`vidgen train vdm --data FOLDER --out {path}`."
        )
    raise CheckpointNotFoundError(
        f"{path} is no checkpoint: it holds neither {INDEX} nor checkpoints/step-*/model. Expected a folder "
        "written by vidgen."
    )


def _is_path(text: str) -> bool:
    return text.startswith((".", "~")) or os.sep == text[:1] or Path(text).is_absolute()


def _refuse_revision(source: str | Path, revision: str | None, what: str) -> None:
    if revision is not None:
        raise InvalidArgumentError(
            f"revision={revision!r} was given for {str(source)!r}, which is {what}; only hub ids have "
            "revisions. Leave it out."
        )


def _nearest_model(name: str) -> str | None:
    return UnknownNameError("model", name, plugins.available(plugins.MODELS)).nearest


def _is_mistyped(name: str) -> bool:
    """Whether ``name`` is meant as a bundled model's: it has the first part of one, or differs little."""
    known = {model.lower() for model in plugins.available(plugins.MODELS)}
    given = name.lower()
    first = given.partition("/")[0]
    return any(model.partition("/")[0] == first for model in known) or bool(
        get_close_matches(given, known, n=1, cutoff=0.8)
    )


def _no_model(name: str) -> str:
    """Say that no bundled model is called so, with the nearest name where there is one."""
    nearest = _nearest_model(name)
    hint = f" (did you mean {nearest!r}?)" if nearest else ""
    return f"no bundled model is called {name!r}{hint}"
