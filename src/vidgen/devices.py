"""Device names, checked."""

from __future__ import annotations

import torch

from vidgen.errors import InvalidArgumentError, UnknownNameError

__all__ = ["best_device", "checked_device", "checked_dtype", "is_dtype_name"]

_DTYPES = ("float32", "float16", "bfloat16", "float64")
_SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16", "float": "float32"}


def best_device() -> torch.device:
    """Return CUDA where present, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def checked_device(name: str | torch.device | None) -> torch.device:
    """Return the device called ``name``; None is the best there.

    Raises:
        InvalidArgumentError: no such device, or not on this machine.
    """
    if name is None:
        return best_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidArgumentError(f"device {name!r} is unknown; expected cpu, cuda or cuda:1, say.") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InvalidArgumentError(
            f"device {str(device)!r} was asked for; this machine shows torch {count} CUDA device(s). Use cpu, "
            "or install a driver and a torch build that fit the GPU."
        )
    return device


def is_dtype_name(value: object) -> bool:
    """Say whether ``value`` is the name of a floating-point type."""
    return isinstance(value, str) and value.removeprefix("torch.") in {*_DTYPES, *_SHORT}


def checked_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the floating-point type called ``dtype``: ``"float16"``, ``"torch.float16"`` or ``"fp16"``, say.

    Raises:
        UnknownNameError: no floating-point type is called so.
        InvalidArgumentError: another kind of value, or a type that is not floating point.
    """
    if isinstance(dtype, str):
        if not is_dtype_name(dtype):
            raise UnknownNameError("dtype", dtype, _DTYPES)
        name = dtype.removeprefix("torch.")
        found: torch.dtype = getattr(torch, _SHORT.get(name, name))
        return found
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidArgumentError(
            f"dtype is {dtype!r}; expected a floating-point type, such as torch.float16 or 'float16'."
        )
    return dtype
