"""Device names, checked."""

from __future__ import annotations

import torch

from vidgen.errors import InvalidArgumentError

__all__ = ["best_device", "checked_device"]


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
