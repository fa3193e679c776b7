"""vidgen: video diffusion strategies behind one sampler.

Everything here is imported when it is first used, so ``import vidgen`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

_HOMES = {
    "Call": "plans",
    "ClipBatch": "video.dataset",
    "Conditioning": "conditioning",
    "DataConfig": "video.dataset",
    "Diffusion": "diffusion",
    "NoisePrior": "noise",
    "Plan": "plans",
    "Recipe": "recipe",
    "Sampler": "sampling",
    "SamplerOutput": "sampling",
    "Stage": "trainable",
    "StageConfig": "recipe",
    "Strategy": "strategy",
    "Trainer": "training",
    "TrainingConfig": "recipe",
    "TrainingStep": "trainable",
    "Video": "video",
    "load": "sampling",
    "open_dataset": "video.dataset",
    "train": "training",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vidgen' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vidgen.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
