"""Weights on disk: safetensors only, copied into fresh parameters, told apart by a hash."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidgen.errors import CheckpointError

__all__ = [
    "WEIGHTS",
    "digest_of",
    "follow_umask",
    "load_weights",
    "newest_model",
    "read_shapes",
    "read_tensors",
    "take_weights",
    "weight_hash",
    "write_tensors",
]

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The name of a component's weights, as diffusers has it."""

_SHOWN = 600
"""Characters of PyTorch's list of all that does not fit."""


def newest_model(folder: Path) -> Path:
    """Return the newest checkpoint's model of a training run, and any other folder as it is."""
    steps = sorted((folder / "checkpoints").glob("step-[0-9]*/model"), key=lambda p: p.parent.name)
    return steps[-1] if steps else folder


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        CheckpointError: the file is missing or is not safetensors.
    """
    _check_there(file)
    try:
        return load_file(file)
    except SafetensorError as error:
        raise _foreign(file, error) from error


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a safetensors file, from its header alone.

    Raises:
        CheckpointError: the file is missing or is not safetensors.
    """
    _check_there(file)
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _foreign(file, error) from error


def _check_there(file: Path) -> None:
    if not file.is_file():
        others = sorted(p.name for p in file.parent.glob("*"))
        raise CheckpointError(
            f"{file} is missing (found: {', '.join(others) or 'nothing'}). Expected weights in safetensors; "
            "other formats are never loaded, since reading them can run code."
        )


def _foreign(file: Path, error: SafetensorError) -> CheckpointError:
    return CheckpointError(
        f"{file} is not a safetensors file ({error}). It may be truncated, or a pickle under a false "
        "name; it is not loaded."
    )


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that is as readable as any other new file.

    Names that share memory (tied weights) are each written whole, so that every name is read back.

    Raises:
        SafetensorError: it cannot be written.
    """
    seen: set[tuple[torch.device, int]] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        memory = (tensor.device, tensor.untyped_storage().data_ptr())
        apart[name] = (tensor.clone() if memory in seen else tensor).detach().contiguous()
        seen.add(memory)
    save_file(apart, file, metadata=None if metadata is None else dict(metadata))
    follow_umask(file)


def follow_umask(path: Path) -> None:
    """Give a file, or all files of a folder, the mode that a new file has here.

    Some libraries write through temporary files, which nobody else may read.
    """
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if not files:
        return
    # Asking for the umask means setting it, for all threads.
    with tempfile.TemporaryDirectory(prefix=".mode.", dir=files[0].parent) as folder:
        plain = Path(folder, "plain")
        plain.touch()
        mode = plain.stat().st_mode
    for file in files:
        file.chmod(mode)


def load_weights(module: nn.Module, file: Path) -> None:
    """Copy the weights in ``file`` into ``module``.

    Raises:
        CheckpointError: the file is missing, is not safetensors, or belongs to another network.
    """
    take_weights(module, read_tensors(file), file)


def take_weights(module: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    """Copy ``weights``, which ``file`` held, into ``module``.

    Raises:
        CheckpointError: they belong to another network, hold NaN or infinity where a fresh one does not, or
            are of a kind of number (whole, real, complex) that copying would change.
    """
    _check_kinds(module, weights, file)
    finite = {name for name, value in _values(module).items() if _is_finite(value)}
    try:
        # Copied into fresh parameters: bitwise equal outputs, whatever the file's alignment.
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = str(error)
        shown = reason if len(reason) <= _SHOWN else f"{reason[:_SHOWN]} ..."
        raise CheckpointError(f"{file} does not fit {type(module).__name__}: {shown}") from error
    broken = [name for name, value in _values(module).items() if name in finite and not _is_finite(value)]
    if broken:
        raise CheckpointError(
            f"{file} holds NaN or infinite values in {len(broken)} of {len(weights)} tensors ({broken[0]!r} is "
            "one); such a network gives no video. The training diverged, or half precision overflowed: "
            "use an earlier checkpoint, or fetch the file again."
        )


def _check_kinds(module: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    """Refuse whole or complex numbers for real ones, say, which PyTorch would cast without a word.

    A counter may be stored as a real number, as it is where all of a checkpoint has one dtype.
    """
    wrong = {
        name: (weights[name].dtype, value.dtype)
        for name, value in _values(module).items()
        if name in weights and not _is_kind(weights[name], value)
    }
    if wrong:
        name, (given, expected) = next(iter(wrong.items()))
        raise CheckpointError(
            f"{file} holds {name!r} as {given}; {type(module).__name__} has {expected} there ({len(wrong)} of "
            f"{len(weights)} tensors are of another kind of number). Quantised weights are not read: save "
            "them as float16, bfloat16 or float32."
        )


def _is_kind(given: Tensor, wanted: Tensor) -> bool:
    if wanted.is_floating_point() or wanted.is_complex() or given.is_complex():
        return (
            given.is_floating_point() == wanted.is_floating_point()
            and given.is_complex() == wanted.is_complex()
        )
    return not given.is_floating_point() or given.is_meta or bool((given == given.round()).all())


def _values(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _is_finite(tensor: Tensor) -> bool:
    return tensor.is_meta or bool(torch.isfinite(tensor).all())


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
