"""Batch normalisation over the whole batch of a training that several processes share.

PyTorch's own ``SyncBatchNorm`` runs on GPUs only; this one runs wherever ``torch.distributed``
does, and is plain batch normalisation in a single process.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from vidgen.errors import InvalidArgumentError

__all__ = ["SyncBatchNorm1d", "SyncBatchNorm2d", "SyncBatchNorm3d", "convert"]

_Module = TypeVar("_Module", bound=nn.Module)


class _Synchronised(nn.modules.batchnorm._BatchNorm):
    """``forward`` of the classes below."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # PyTorch's name
        """Normalise ``b c ...``; in training by the statistics of all processes' batches."""
        if not self.training or _num_processes() == 1:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        mean, variance, count = _global_statistics(input)
        if self.track_running_stats:
            self._update(mean.detach(), variance.detach() * (count / (count - 1)))
        broadcast = (1, -1, *[1] * (input.ndim - 2))
        output = (input - mean.view(broadcast)) * torch.rsqrt(variance + self.eps).view(broadcast)
        if self.affine:
            output = output * self.weight.view(broadcast) + self.bias.view(broadcast)
        return output.to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        # Without a momentum the running statistics are plain averages over all batches.
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), share)


class SyncBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` over the batches of all processes; see ``convert``."""


class SyncBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the batches of all processes; see ``convert``."""


class SyncBatchNorm3d(_Synchronised, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` over the batches of all processes; see ``convert``."""


_SYNCHRONISED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SyncBatchNorm1d,
    nn.BatchNorm2d: SyncBatchNorm2d,
    nn.BatchNorm3d: SyncBatchNorm3d,
}


def convert(module: _Module) -> _Module:
    """Turn every batch normalisation inside ``module`` (or itself) into a synchronised one, in place.

    In training the values, the gradients and the running statistics are those of one process with
    the global batch, whatever share of it each process holds, provided that the gradients of all
    processes' losses are added or averaged afterwards. Every process must then make the same calls
    in the same order. In evaluation, and in a single process, nothing changes. Parameters, buffers
    and hooks stay the same objects, so optimisers and saved checkpoints do not notice. Subclasses
    of PyTorch's three classes are left alone.

    Returns:
        ``module``.
    """
    for child in module.modules():
        # A new class and not a new module: whoever holds this one keeps holding the right one.
        child.__class__ = _SYNCHRONISED.get(type(child), type(child))
    return module


def _global_statistics(batch: Float[Tensor, "b c *sizes"]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of values per channel over all processes."""
    channels = batch.transpose(0, 1).flatten(1)
    channels = channels.to(torch.promote_types(batch.dtype, torch.float32))
    count = channels.new_full((1,), channels.shape[1])
    mean = channels.sum(1) / count.clamp(min=1)
    squares = (channels - mean[:, None]).square().sum(1)
    counts, means, all_squares = _gather(torch.cat([count, mean, squares])).split(
        [1, len(mean), len(mean)], dim=1
    )
    total = counts.sum()
    if total < 2:
        raise InvalidArgumentError(
            f"batch normalisation in training needs two values per channel or more, and all processes together "
            f"have {int(total)} (this one has a batch of {tuple(batch.shape)}); use a larger batch, or eval()."
        )
    global_mean = (counts * means).sum(0) / total
    # Chan et al. 1979, eq. 2.1, for any number of parts: exact, where E[x^2] - E[x]^2 cancels.
    spread = all_squares.sum(0) + (counts * (means - global_mean).square()).sum(0)
    return global_mean, spread / total, total


def _gather(row: Float[Tensor, " k"]) -> Float[Tensor, "processes k"]:
    """The rows of all processes, as a function of this process's row."""
    rows = row.new_zeros(_num_processes(), len(row))
    return _Sum.apply(rows.index_put((torch.tensor(distributed.get_rank()),), row))  # type: ignore[no-any-return]


class _Sum(torch.autograd.Function):
    """The sum over processes, whose gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ARG004
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total


def _num_processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
