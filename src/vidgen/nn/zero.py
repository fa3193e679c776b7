"""Layers that add nothing until they are trained."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

__all__ = ["zeroed"]

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)


def zeroed(layer: _Layer) -> _Layer:
    """``layer``, its weight and bias set to zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
