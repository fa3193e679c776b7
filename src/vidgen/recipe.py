"""Recipes: a Python function that returns everything a training run needs, as one typed value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vidgen.video.dataset import DataConfig

__all__ = ["Recipe", "StageConfig", "TrainingConfig"]


@dataclass(frozen=True)
class TrainingConfig:
    """How to train, whatever is trained.

    Args:
        steps: optimisation steps of each stage.
        batch_size: clips per step over all processes and accumulation steps together.
        micro_batch_size: clips per forward pass on one process; None is the whole share of a process. The
            gradients are those of the whole batch, except that batch normalisation sees one micro-batch (of
            all processes) at a time.
        gradient_checkpointing: recompute activations in the backward pass, in the components that can.
        learning_rate: AdamW's, after warm-up.
        lr_schedule: one of diffusers' schedules: ``"linear"``, ``"cosine"``, ``"cosine_with_restarts"``,
            ``"polynomial"``, ``"constant"`` or ``"constant_with_warmup"``.
        warmup_steps: steps over which the learning rate rises from 0.
        weight_decay, betas: AdamW's; 0 or more, and two numbers in [0, 1).
        max_grad_norm: gradients are scaled down to this norm, more than 0; None leaves them.
        ema_decay: decay, in [0, 1), of the averaged weights that are sampled from; None keeps none.
        mixed_precision: ``"no"``, ``"bf16"``, ``"fp16"`` (CUDA only) or ``"auto"``: bf16 where every device of
            the training computes it itself, else ``"no"``; a run keeps the one it was begun with. Networks run
            in it; weights, losses and optimisers stay in float32. Where bf16 is emulated it is slow.
        seed: 0 to 2^63 - 1; of the initial weights, the order of the data and the training noise.
        checkpoint_every, log_every: in steps, 1 or more, as all that counts steps, batches or clips here.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
        num_workers: processes that read clips; 0 reads in the training process.
        cache_latents: keep the codec's latents on disk, for data without random views.
        validation: share of the sources, in [0, 1), that is held out of training, chosen by their content.
        validate_every: steps from one validation to the next (and one at the end of each stage).
        validation_batches: batches of a validation; always the same clips and the same noise.
        sample_every: in the last stage, steps from one set of sample videos to the next (and one at the
            end); None makes none.
        sample_prompts: what the samples show; by default the first captions of the data.
        trackers: where values go besides the log: ``"tensorboard"``, or a name that accelerate knows, such
            as ``"wandb"``.
    """

    steps: int = 1000
    batch_size: int = 8
    micro_batch_size: int | None = None
    gradient_checkpointing: bool = False
    learning_rate: float = 1e-4
    lr_schedule: str = "constant_with_warmup"
    warmup_steps: int = 100
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float | None = 1.0
    ema_decay: float | None = 0.999
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    seed: int = 0
    checkpoint_every: int = 500
    log_every: int = 50
    keep_checkpoints: int = 2
    num_workers: int = 0
    cache_latents: bool = False
    validation: float = 0.0
    validate_every: int = 500
    validation_batches: int = 4
    sample_every: int | None = None
    sample_prompts: tuple[str, ...] = ()
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageConfig:
    """What one stage does otherwise than the recipe says for all; None is as for all.

    Args:
        steps, batch_size, micro_batch_size, learning_rate, lr_schedule, warmup_steps, weight_decay, betas,
            max_grad_norm, ema_decay, cache_latents: see ``TrainingConfig``.
        clip_length, stride, size: of its clips, see ``DataConfig``.
    """

    steps: int | None = None
    batch_size: int | None = None
    micro_batch_size: int | None = None
    learning_rate: float | None = None
    lr_schedule: str | None = None
    warmup_steps: int | None = None
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    max_grad_norm: float | None = None
    ema_decay: float | None = None
    cache_latents: bool | None = None
    clip_length: int | None = None
    stride: int | None = None
    size: int | tuple[int, int] | None = None


_OF_DATA = ("clip_length", "stride", "size")


@dataclass(frozen=True)
class Recipe:
    """A whole training run.

    Args:
        strategy: the name of the strategy (entry point group ``vidgen.strategies``).
        model: an instance of that strategy's ``Config``.
        data: which clips.
        training: how to train, in every stage.
        stages: what a stage does otherwise, by its name.
    """

    strategy: str
    model: Any
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    stages: dict[str, StageConfig] = field(default_factory=dict)

    def training_of(self, stage: str) -> TrainingConfig:
        """Return how the stage of this name is trained."""
        own = {name: value for name, value in self._own(stage).items() if name not in _OF_DATA}
        return replace(self.training, **own)

    def data_of(self, stage: str) -> DataConfig:
        """Return which clips the stage of this name learns from."""
        return replace(self.data, **{n: value for n, value in self._own(stage).items() if n in _OF_DATA})

    def _own(self, stage: str) -> dict[str, Any]:
        own = vars(self.stages.get(stage, StageConfig()))
        return {name: value for name, value in own.items() if value is not None}
