"""A VAE's folder in diffusers' layout: configuration and safetensors, nothing else is ever read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vidgen.components import load_module
from vidgen.components.saving import save_module
from vidgen.config import read_json
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError

__all__ = ["CONFIG", "checked_format", "class_name", "read_module", "read_object", "write_module"]

CONFIG = "config.json"

_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""How diffusers named the layers of an image VAE's attention when the first ones were published."""

_NEVER_READ = {"AutoencoderTiny": ("block_out_channels",)}
"""What a class writes to its configuration and warns of when it is built from that."""


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in ``file``.

    Raises:
        CheckpointError: the file is missing or is no JSON object.
    """
    try:
        return read_json(file)
    except (OSError, InvalidArgumentError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}). Expected a VAE's folder as diffusers' save_pretrained writes it."
        ) from error


def class_name(folder: Path) -> str:
    """Return the class that ``folder``'s configuration names.

    Raises:
        CheckpointError: there is no configuration, or it names no class.
    """
    name = read_object(folder / CONFIG).get("_class_name")
    if not isinstance(name, str):
        raise CheckpointError(
            f"{folder / CONFIG} names no class under '_class_name'. Save the VAE again with diffusers' "
            "save_pretrained."
        )
    return name


def read_module(folder: Path, kinds: Iterable[Any]) -> Any:
    """Build the diffusers module in ``folder`` and load its weights, strictly and from safetensors only.

    Within ``torch.device("meta")`` it is built from its configuration alone. No random state moves.

    Raises:
        CheckpointError: files are missing, unsafe, damaged, or do not fit each other.
        UnknownNameError: its class is none of ``kinds``.
    """
    known = {kind.__name__: kind for kind in kinds}
    name = class_name(folder)
    if name not in known:
        raise UnknownNameError("VAE class", name, known)
    unread = _NEVER_READ.get(name, ())
    fields = read_object(folder / CONFIG).items()
    config = {key: value for key, value in fields if not key.startswith("_") and key not in unread}
    return load_module(known[name], folder, config, rename=_rename).eval()


def _rename(module: nn.Module, weights: dict[str, Any]) -> None:
    """Give weights under their old names their new ones, where ``module`` has those."""
    names = module.state_dict().keys()
    for old in [key for key in weights if key not in names]:
        new = old
        for before, after in _OLD_NAMES.items():
            new = new.replace(before, after)
        if new in names:
            weights[new] = weights.pop(old)


def write_module(module: Any, folder: Path) -> None:
    """Write a diffusers module's configuration and weights to ``folder``, each file by a rename."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".vae.", dir=folder) as temporary:
        save_module(module, Path(temporary))
        for file in sorted(Path(temporary).iterdir()):
            file.replace(folder / file.name)


def checked_format(data: Mapping[str, Any], file: Path, known: int) -> None:
    """Refuse a file of another format version.

    Raises:
        CheckpointError: it is not version ``known``.
    """
    if data.get("format") != known:
        raise CheckpointError(
            f"{file} has format {data.get('format')!r}; this vidgen reads format {known}. Install the vidgen "
            "that wrote it, or remove the file to take the VAE's own scaling."
        )
