"""Full float32, whatever the process was set to: a score must not hang on a trainer's switches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

__all__ = ["full_precision"]

_KINDS = ("cpu", "cuda", "xpu", "mps")


@contextmanager
def full_precision() -> Iterator[None]:
    """Without gradients, autocast, TF32 or bfloat16 products, which move features by parts in a thousand.

    The process's settings are as before afterwards. Also a decorator.
    """
    switches = _switches()
    before = [switch.fp32_precision for switch in switches]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in _KINDS:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            for switch in switches:
                switch.fp32_precision = "ieee"
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value


def _switches() -> list[Any]:
    """What decides how float32 products are computed, in each of PyTorch's libraries."""
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    return [backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]
