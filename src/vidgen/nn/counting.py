"""Counting what networks compute, alike on every device and with every kernel and release of PyTorch.

PyTorch's counter knows operations by name, and one that it has no name for counts nothing. Which fused kernel
computes attention, say, depends on the machine and the release, and several have no name there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vidgen.nn.attention import any_backend_as_math

__all__ = ["flop_counter"]


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """PyTorch's counter of floating-point operations, with one count wherever a network runs.

    Matrix products, convolutions, attention and recurrent layers count, a multiplication and an addition as
    two. Attention is ``4 * b * h * n * m * d`` with any mask, in networks that call PyTorch's own too, and
    whichever of ``vidgen.nn.attend``'s backends was chosen, installed or not.

    Meant for an evaluation or two: plain products, which keep all scores of attention in memory, replace fused
    kernels where they can, by flags that hold for the whole process as long as the ``with`` block.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    try:
        with any_backend_as_math(), sdpa_kernel(SDPBackend.MATH), counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


_FUSED_ATTENTION = (
    "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)


def _formulas() -> dict[Any, Callable[..., int]]:
    """Operations that run fused all the same, where a network chose the kernel or the device has no other."""
    named: dict[str, Callable[..., int]] = dict.fromkeys(_FUSED_ATTENTION, _attention)
    named |= {"_cudnn_rnn": _recurrent, "miopen_rnn": _recurrent, "mkldnn_rnn_layer": _recurrent_layer}
    return {getattr(torch.ops.aten, name): f for name, f in named.items() if hasattr(torch.ops.aten, name)}


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(x: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    return 2 * prod(x[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


def _recurrent_layer(
    x: Sequence[int], to_gates: Sequence[int], from_state: Sequence[int], *_: Any, **__: Any
) -> int:
    return _recurrent(x, (to_gates, from_state))
