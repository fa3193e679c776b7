"""Codecs from elsewhere: a diffusers VAE folder, a pipeline's folder, or the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import ModelMixin
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from vidgen import plugins
from vidgen.codecs.base import Codec
from vidgen.codecs.files import CONFIG, class_name, read_module
from vidgen.codecs.layouts import is_layout, untrained_codec
from vidgen.codecs.registry import codec_for
from vidgen.codecs.vae import SETTINGS
from vidgen.components import INDEX, find_component, is_reference
from vidgen.errors import CheckpointError
from vidgen.paths import expanded
from vidgen.weights import WEIGHTS, newest_model

__all__ = ["load_codec"]

PARTS = ("", "vae", "codec")
"""Where a VAE lies in what may be given: its own folder, a diffusers pipeline's, a checkpoint of vidgen's."""


def load_codec(source: str | Path, subfolder: str | None = None) -> Codec:
    """Load the codec at ``source`` in evaluation mode, in float32, on the CPU.

    Args:
        source: a folder saved by diffusers or by a codec's ``save_pretrained``, the folder of a
            diffusers pipeline (its ``vae`` is taken), of a checkpoint or a training run (its
            ``codec``), the name of a bundled model, or a hub id such as
            ``"owner/name"``, of which only the VAE's JSON files and safetensors are fetched; or
            ``"layout:kl-f8"``, an untrained VAE of a published layout, for costs.
        subfolder: the folder in ``source`` that holds the VAE.

    Within ``torch.device("meta")`` only configurations are read (and fetched).

    Raises:
        CheckpointError: nothing there, no access, or files that are missing, unsafe or damaged.
        UnknownNameError: no codec serves the class that the configuration names, or no such layout.
    """
    if isinstance(source, str) and is_layout(source):
        return untrained_codec(source)
    folder = _folder(source, subfolder)
    kind = codec_for(class_name(folder))
    codec: Codec
    codec = read_module(folder, [kind]) if issubclass(kind, ModelMixin) else kind.from_pretrained(folder)
    return codec


def _folder(source: str | Path, subfolder: str | None) -> Path:
    local = expanded(source)
    if local.exists():
        return _part(local, subfolder)
    if source in plugins.available(plugins.MODELS):
        return _part(plugins.model_folder(str(source)), subfolder)
    if isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith("."):
        return _fetched(source, subfolder)
    raise CheckpointError(
        f"there is no folder {local}, and it is no hub id ('owner/name'). Give the folder of a VAE or of a "
        "pipeline saved by diffusers."
    )


def _part(folder: Path, subfolder: str | None) -> Path:
    """The folder of the VAE inside ``folder``."""
    folder = newest_model(folder)
    parts = PARTS if subfolder is None else [subfolder]
    for part in parts:
        if (folder / part / CONFIG).is_file():
            return folder / part
        if part and is_reference(folder, part):
            return find_component(folder, part)
    looked = " or ".join(str(Path(part) / CONFIG) for part in parts)
    found = ", ".join(sorted(path.name for path in folder.glob("*"))) or "nothing"
    raise CheckpointError(
        f"{folder} holds no {looked} (found: {found}). Expected a VAE's folder as diffusers saves it; name "
        "another place in it with subfolder=."
    )


def _fetched(name: str, subfolder: str | None) -> Path:
    """Fetch the VAE of a hub repository; the configuration first, which tells where the weights are."""
    parts = PARTS if subfolder is None else [subfolder]
    files = [_join(part, file) for part in parts for file in (CONFIG, SETTINGS)]
    root = _snapshot(name, [INDEX, *files])
    folder = _part(root, subfolder)
    if torch.get_default_device().type == "meta" or not folder.is_relative_to(
        root
    ):  # another's, by a reference
        return folder
    part = folder.relative_to(root).as_posix()
    _snapshot(name, [_join("" if part == "." else part, WEIGHTS)])
    return folder


def _join(part: str, file: str) -> str:
    return f"{part}/{file}" if part else file


def _snapshot(name: str, files: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{name!r} on the Hugging Face hub asks for consent. Accept its terms on its page, log in with "
            "`hf auth login`, and try again."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is neither a folder {name!r} here nor such a repository on the Hugging Face hub. Check the "
            "spelling; a private one needs `hf auth login`."
        ) from error
    except (HFValidationError, OSError) as error:
        raise CheckpointError(
            f"there is no folder {name!r} here, and it could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {error}). Check the spelling and the connection (HF_HUB_OFFLINE unset), "
            "or download it elsewhere and give its folder."
        ) from error
