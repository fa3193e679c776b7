"""Gradient checkpointing that recomputes with the attention backend of the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint as torch_checkpoint

from vidgen.nn.attention import attention_backend, current_backend

__all__ = ["checkpoint"]


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)``, keeping no activations: the backward pass computes them again.

    The backward pass may run outside the ``attention_backend`` that the forward pass ran in, or on
    a thread of its own; the recomputation uses the forward pass's backend wherever it runs. Hand
    this function to ``model.enable_gradient_checkpointing(checkpoint)`` of any diffusers model.
    """
    backend = current_backend()

    def recompute(*inputs: Any, **named: Any) -> Any:
        with attention_backend(backend):
            return function(*inputs, **named)

    return torch_checkpoint(recompute, *args, use_reentrant=False, **kwargs)
