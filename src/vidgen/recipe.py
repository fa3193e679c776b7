"""Recipes: a Python function that returns everything a training run needs, as one typed value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vidgen.video.dataset import DataConfig

__all__ = ["Recipe", "TrainingConfig"]


@dataclass(frozen=True)
class TrainingConfig:
    """How to train, whatever is trained.

    Args:
        steps: optimisation steps of each stage.
        batch_size: clips per step over all processes and accumulation steps together.
        micro_batch_size: clips per forward pass on one process; None is the whole share of a process.
        learning_rate: AdamW's, after warm-up.
        lr_schedule: one of diffusers' schedules; ``"constant_with_warmup"`` or ``"cosine"``, say.
        warmup_steps: steps over which the learning rate rises from 0.
        weight_decay, betas: AdamW's.
        max_grad_norm: gradients are scaled down to this norm; None leaves them.
        ema_decay: decay of the averaged weights that are sampled from; None keeps none.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
        seed: of the initial weights, the order of the data and the training noise.
        checkpoint_every, log_every: in steps.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
        num_workers: processes that read clips; 0 reads in the training process.
    """

    steps: int = 1000
    batch_size: int = 8
    micro_batch_size: int | None = None
    learning_rate: float = 1e-4
    lr_schedule: str = "constant_with_warmup"
    warmup_steps: int = 100
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float | None = 1.0
    ema_decay: float | None = 0.999
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0
    checkpoint_every: int = 500
    log_every: int = 50
    keep_checkpoints: int = 2
    num_workers: int = 0


@dataclass(frozen=True)
class Recipe:
    """A whole training run.

    Args:
        strategy: the name of the strategy (entry point group ``vidgen.strategies``).
        model: an instance of that strategy's ``Config``.
        data: which clips.
        training: how to train.
    """

    strategy: str
    model: Any
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
