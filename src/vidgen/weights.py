"""Weights on disk: safetensors only, copied into fresh parameters, told apart by a hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vidgen.errors import CheckpointError

__all__ = ["WEIGHTS", "digest_of", "load_weights", "newest_model", "read_tensors", "weight_hash"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The name of a component's weights, as diffusers has it."""


def newest_model(folder: Path) -> Path:
    """Return the newest checkpoint's model of a training run, and any other folder as it is."""
    steps = sorted((folder / "checkpoints").glob("step-[0-9]*/model"), key=lambda p: p.parent.name)
    return steps[-1] if steps else folder


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        CheckpointError: the file is missing or is not safetensors.
    """
    if not file.is_file():
        others = sorted(p.name for p in file.parent.glob("*"))
        raise CheckpointError(
            f"{file} is missing (found: {', '.join(others) or 'nothing'}). Expected weights in safetensors; "
            "other formats are never loaded, since reading them can run code."
        )
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is not a safetensors file ({error}). It may be truncated, or a pickle under a false "
            "name; it is not loaded."
        ) from error


def load_weights(module: nn.Module, file: Path) -> None:
    """Copy the weights in ``file`` into ``module``.

    Raises:
        CheckpointError: the file is missing, is not safetensors, or belongs to another network.
    """
    weights = read_tensors(file)
    try:
        # Copied into fresh parameters: bitwise equal outputs, whatever the file's alignment.
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not fit {type(module).__name__}: {error}") from error


def weight_hash(module: nn.Module) -> str:
    """Return a digest of every value of ``module``'s state, whatever its device and dtype's layout."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def digest_of(tensor: Tensor) -> str:
    """Return a digest of all of a tensor's values, in float32."""
    values = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
    return hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()
