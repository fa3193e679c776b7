"""Blocks, and models of them, whose activations the backward pass can compute again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from vidgen.nn.checkpointing import checkpoint

__all__ = ["Recomputed", "RecomputingModel"]


class Recomputed(nn.Module, ABC):
    """A block that keeps its activations or, with gradient checkpointing, computes them again.

    A subclass writes ``run`` and is called as any module.
    """

    def __init__(self) -> None:
        super().__init__()
        # diffusers' names: `enable_gradient_checkpointing` of the owning model sets both.
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Tensor] = checkpoint

    def forward(self, *args: Any) -> Tensor:
        """``run(*args)``."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self.run, *args)
        return self.run(*args)

    @abstractmethod
    def run(self, *args: Any) -> Tensor:
        """The block's output."""


class RecomputingModel(ModelMixin):  # type: ignore[misc]  # diffusers: untyped
    """A diffusers model made of ``Recomputed`` blocks."""

    _supports_gradient_checkpointing = True

    def enable_gradient_checkpointing(
        self, gradient_checkpointing_func: Callable[..., Any] = checkpoint
    ) -> None:
        """Recompute the blocks in the backward pass, by default with the backend of the forward pass.

        Args:
            gradient_checkpointing_func: called with a function and its arguments, as diffusers does.
        """
        super().enable_gradient_checkpointing(gradient_checkpointing_func)
