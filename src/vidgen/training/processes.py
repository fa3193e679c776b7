"""The processes that train together: who this one is, and what they tell each other."""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn

from vidgen.devices import checked_device

__all__ = ["Processes"]


class Processes:
    """One of ``world`` processes started by ``accelerate launch`` or ``torchrun``, or the only one.

    Args:
        device: where to train; None leaves it to accelerate.

    Raises:
        InvalidArgumentError: no such device.

    Attributes:
        rank, world: this process and how many there are.
        main: whether this is the process that writes files.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        wanted = checked_device(device)
        # Not Accelerator: its mixed precision is fixed for the life of the process.
        joined = _in_group()
        state = PartialState(cpu=wanted.type == "cpu")
        if _in_group() and not joined:
            atexit.register(_leave_group)
        self.rank, self.world = int(state.process_index), int(state.num_processes)
        self.main = self.rank == 0
        alone = self.world == 1 and device is not None
        self.device: torch.device = wanted if alone else state.device
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)

    def wait(self) -> None:
        """Return when every process is here."""
        if self.world > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set anywhere: processes must stop at the same step."""
        return flag if self.world == 1 else self.mean({"": float(flag)})[""] > 0

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Average numbers of the same names over processes."""
        if self.world == 1:
            return dict(values)
        names = sorted(values)
        # GPUs of Apple and others know no float64.
        kind = torch.float64 if self.device.type in ("cpu", "cuda") else torch.float32
        total = torch.tensor([values[name] for name in names], dtype=kind, device=self.device)
        dist.all_reduce(total)
        means = dict(zip(names, (total / self.world).tolist(), strict=True))
        return {name: means[name] for name in values}

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average gradients, after the whole loss and so in any order of networks.

        A parameter that gets a gradient on some processes has 0 on the others; one that gets none anywhere
        is left without, as one process alone would leave it: an optimiser moves what has a gradient of 0.
        """
        if self.world == 1:
            return
        reached = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        dist.all_reduce(reached)
        # The same parameters on every process, so that the gradients lie alike.
        shared = [p for p, count in zip(parameters, reached.tolist(), strict=True) if count]
        if not shared:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared])
        dist.all_reduce(flat)
        flat /= self.world
        for parameter, mean in zip(shared, flat.split([p.numel() for p in shared]), strict=True):
            parameter.grad = mean.view_as(parameter)


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _leave_group() -> None:
    # As PyTorch asks: a group has threads of its own, which should not outlive Python.
    if _in_group():
        dist.destroy_process_group()
