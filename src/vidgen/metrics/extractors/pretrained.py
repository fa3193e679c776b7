"""Networks of transformers from a folder or a hub id: safetensors only, whole, and in float32."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vidgen.errors import CheckpointError
from vidgen.paths import expanded

__all__ = ["key_of", "local", "pixel_moments", "read_config", "read_network"]

_ERRORS = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)


def read_config(kind: Any, source: str) -> Any:
    """Return the configuration in ``source``, of the configuration class ``kind``.

    Raises:
        CheckpointError: it is missing, out of reach, or of another architecture.
    """
    try:
        config = kind.from_pretrained(source)
        found, _ = kind.get_config_dict(source)
    except _ERRORS as error:
        raise CheckpointError(_unreadable(source, f"a {kind.__name__}", error)) from error
    given = found.get("model_type")
    if given != kind.model_type:
        raise CheckpointError(
            f"{source} holds a model of type {given!r}; expected {kind.model_type!r}. Name "
            "another folder or hub id."
        )
    return config


def read_network(kind: Any, source: str) -> Any:
    """Return the network of class ``kind`` in ``source``, in float32, frozen and in evaluation mode.

    transformers would fill what a file lacks with random numbers; here that is an error.

    Raises:
        CheckpointError: the weights are missing, no safetensors, or not all of the network's.
    """
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            network, info = kind.from_pretrained(source, use_safetensors=True, output_loading_info=True)
    except _ERRORS as error:
        raise CheckpointError(_unreadable(source, f"{kind.__name__} in safetensors", error)) from error
    odd = sorted(str(name) for name in [*info["missing_keys"], *info["mismatched_keys"]])
    if odd:
        raise CheckpointError(
            f"{source} has no fitting weights for {', '.join(odd[:6])}{' ...' if len(odd) > 6 else ''} of "
            f"{kind.__name__}, which would stay random. Expected a whole checkpoint of that network."
        )
    return network.float().requires_grad_(False).eval()


def pixel_moments(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of the channels, for pixels in [0, 1], from ``source``'s image processor.

    Raises:
        CheckpointError: ``source`` does not say.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(source)
        mean, std = (tuple(float(v) for v in found[key]) for key in ("image_mean", "image_std"))
    except (*_ERRORS, TypeError) as error:
        raise CheckpointError(
            f"{source} does not say with which mean and std its pixels are normalised ({error}); expected "
            "preprocessor_config.json with image_mean and image_std. Put it there, or give `preprocessing`."
        ) from error
    return mean, std


def key_of(source: str, family: str) -> str:
    """Return the last part of a path or hub id as it stands in a metric's key: ``family_...``."""
    last = re.sub(r"[^a-z0-9]+", "_", Path(source).name.lower()).strip("_")
    return last if last.startswith(family) else f"{family}_{last}"


def local(source: str | Path) -> str:
    """Return ``source`` as transformers takes it: the user's home spelled out where it is a folder."""
    folder = expanded(source)
    return str(folder) if folder.exists() else str(source)


def _unreadable(source: str, what: str, error: Exception) -> str:
    return (
        f"{source} cannot be loaded as {what} ({type(error).__name__}: {error}). Expected a folder or hub id "
        "as transformers' save_pretrained writes it, with model.safetensors; pickled weights "
        "(pytorch_model.bin) are never loaded."
    )
