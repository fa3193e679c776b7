"""The text-to-image model's configuration."""

from __future__ import annotations

from dataclasses import dataclass

from vidgen.denoising import UNetConfig

__all__ = ["LDMConfig"]


@dataclass(frozen=True)
class LDMConfig(UNetConfig):
    """What an ``ldm`` is: ``UNetConfig``'s fields and no others."""
