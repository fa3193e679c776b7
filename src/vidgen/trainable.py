"""What can be trained: named components, a configuration, and the stages that train them.

Every ``Strategy`` is one; so is what only prepares the ground for strategies, such as a frame codec.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from vidgen.components import Reference
from vidgen.errors import InvalidArgumentError
from vidgen.noise import NoiseKey, NoisePrior
from vidgen.video.dataset import ClipBatch, ClipDataset

__all__ = [
    "Loss",
    "OptimizerGroup",
    "Stage",
    "StageRecord",
    "Trainable",
    "TrainingRecord",
    "TrainingStep",
]

_T = TypeVar("_T", bound="Trainable")


@dataclass(frozen=True)
class OptimizerGroup:
    """Parameters that one optimiser trains.

    Args:
        name: the optimiser's name within its stage; groups of the same name share one optimiser.
        parameters: the trained parameters, in a fixed order.
        lr_scale: factor on the recipe's learning rate.
        warmup_steps: steps over which that factor itself rises from 0, beside the recipe's warm-up.
        weight_decay: overrides the recipe's where given.
        betas: override the recipe's where given; adversarial stages often want ``(0.0, 0.9)``.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0
    warmup_steps: int = 0
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None


@dataclass(frozen=True)
class Loss:
    """One scalar to descend: by which optimiser, and what to log with it."""

    optimizer: str
    value: Tensor
    logs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingStep:
    """Names the randomness of one training step: nothing in a loss may come from ambient state.

    Args:
        seed: the run's seed.
        stage: the stage's name.
        index: step within the stage, counted from 0.
        samples: position of each sample of the batch within the step's global batch.
    """

    seed: int
    stage: str
    index: int
    samples: tuple[int, ...]

    def key(self, sample: int, stream: str) -> NoiseKey:
        """Return the key of ``stream`` for the ``sample``-th video of this batch."""
        return NoiseKey(self.seed, f"{stream}-{self.index}-{self.samples[sample]}", f"train/{self.stage}")

    def noise(
        self,
        prior: NoisePrior,
        like: Tensor,
        frames: Int[Tensor, "b f"] | None = None,
        *,
        stream: str = "noise",
    ) -> Tensor:
        """Return the prior's noise for a batch of clips.

        Args:
            prior: of the level.
            like: clips of the same shape, dtype and device, b c f h w.
            frames: absolute numbers of each clip's frames; by default they count from 0.
            stream: noise of another name is independent of this one.
        """
        b, c, f, h, w = like.shape
        keys = [self.key(i, stream) for i in range(b)]
        if frames is None:
            return prior.sample_batch(range(f), (c, h, w), keys).to(like)
        rows = [prior.sample(own, (c, h, w), key) for own, key in zip(frames.tolist(), keys, strict=True)]
        return torch.stack(rows).to(like)

    def uniforms(self, sample: int, stream: str, count: int) -> Tensor:
        """Return ``count`` numbers in [0, 1) for one sample, on the CPU in float64."""
        return torch.from_numpy(self.key(sample, stream).generator(0).random(count))

    def uniform(self, stream: str) -> Tensor:
        """Return one number in [0, 1) per sample, on the CPU in float64."""
        return torch.cat([self.uniforms(i, stream, 1) for i in range(len(self.samples))])


@dataclass(frozen=True)
class StageRecord:
    """How far one stage of training is: ``step`` of ``steps``."""

    name: str
    step: int
    steps: int

    def __str__(self) -> str:
        """Say it in words."""
        if self.step >= self.steps:
            return f"{self.step} steps"
        return f"{self.step} of {self.steps} steps" if self.step else "untrained"


@dataclass(frozen=True)
class TrainingRecord:
    """What training lies behind a model; checkpoints keep it.

    Args:
        stages: all of them, in order.
        finished: whether all is done that the recipe says.
        data: what was trained on, in plain values: its ``name``, and how many ``videos`` it has.
    """

    stages: tuple[StageRecord, ...]
    finished: bool
    data: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Say in one line how far the training is."""
        stages = ", ".join(f"{stage.name} {stage}" for stage in self.stages)
        return f"{'finished' if self.finished else 'not finished'}: {stages}"


class Stage(ABC):
    """One stage of training.

    A later stage may use what an earlier one trained and never changes it: only ``components`` train.
    """

    name: str
    components: tuple[str, ...]
    needs_pixels: bool = True
    """False where ``losses`` uses ``Strategy.latents(batch)`` and never ``batch.clip``: the trainer may
    then hand it latents from a cache."""

    @abstractmethod
    def optimizers(self) -> tuple[OptimizerGroup, ...]:
        """Return the parameter groups of this stage's optimisers."""

    @abstractmethod
    def losses(self, batch: ClipBatch, step: TrainingStep) -> Iterator[Loss]:
        """Yield losses in the order in which they are descended.

        After each one the trainer steps its optimiser, so a generator that goes on after ``yield`` sees
        the updated weights (in validation no optimiser steps). Each loss is a float32 scalar with a graph
        of its own, the mean over the batch's clips, so that a batch may be cut anywhere. A batch norm in
        training mode is the one exception (``check_strategy`` looks in evaluation mode): it sees a
        micro-batch, of all processes. A stage that has one says so.
        """


class Trainable(ABC):
    """Base of all that the trainer trains.

    A subclass sets ``name``, ``Config`` (a frozen dataclass) and ``component_types``. ``create`` builds it
    with fresh networks.

    Args:
        config: an instance of the class's ``Config``.
        modules: trained and frozen networks by component name, one for each of ``component_types`` (those
            of ``training_only`` may be missing); each is a diffusers ``ModelMixin``, or saves and loads by
            itself as one does.

    Raises:
        InvalidArgumentError: a component is missing or of another class.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    component_types: ClassVar[Mapping[str, tuple[type, ...]]]
    """The classes that each component may have; a checkpoint names one of them."""
    training_record: TrainingRecord | None = None
    """How it was trained, where that is known: the trainer sets it, checkpoints keep it."""
    training_only: ClassVar[tuple[str, ...]] = ()
    """Components that only training needs, such as a discriminator: what is shared may leave them out, and
    ``fresh`` makes them where training begins again."""

    def __init__(self, config: Any, modules: Mapping[str, nn.Module]) -> None:
        for component, kinds in self.component_types.items():
            if component in self.training_only and component not in modules:
                continue
            if not isinstance(modules.get(component), kinds):
                raise InvalidArgumentError(
                    f"{self.name!r} was given {type(modules.get(component)).__name__} as its "
                    f"component {component!r}; expected {' or '.join(kind.__name__ for kind in kinds)}."
                )
        self.config = config
        self.modules = dict(modules)
        self.references: dict[str, Reference] = {}
        """Where components came from that the checkpoint does not hold itself; filled in when it is loaded."""

    def fresh(self, component: str) -> nn.Module:
        """Return an untrained network for one of ``training_only``, as ``create`` would make it."""
        raise NotImplementedError(f"{type(self).__name__} makes no {component!r}; override fresh().")

    @classmethod
    @abstractmethod
    def create(cls: type[_T], config: Any) -> _T:
        """Build ``config`` with fresh networks (or those that it says to start from)."""

    @classmethod
    def prepare(cls, config: Any, dataset: ClipDataset) -> Any:
        """Return ``config`` completed by what only the data tell (vocabulary, classes, ...)."""
        del dataset
        return config

    def adapt(self, dataset: ClipDataset) -> None:
        """Make ready for other data what is trained already: for new words in captions, say.

        Training that goes on from a given model begins with it. By default nothing changes.
        """
        del dataset

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of training, in order."""

    def finish(self, dataset: ClipDataset) -> None:
        """Complete the trained components once after the last stage, by a pure function of them and the data.

        Training then ends with a checkpoint of the result. By default there is nothing left to do.
        """
        del dataset

    def to(self: _T, device: Any = None, dtype: torch.dtype | None = None) -> _T:
        """Move every module; ``dtype`` casts floating-point weights. Returns the object itself."""
        for module in self.modules.values():
            if device is not None:
                module.to(device)
            if dtype is not None:
                nn.Module.to(module, dtype)  # diffusers' own warns of fp32 modules even where it has none
        return self

    @property
    def device(self) -> torch.device:
        """Where the first parameter lives."""
        return next((p.device for m in self.modules.values() for p in m.parameters()), torch.device("cpu"))

    def parameters_of(self, *components: str) -> tuple[nn.Parameter, ...]:
        """Return the parameters of the named components, in order."""
        return tuple(p for name in components for p in self.modules[name].parameters())

    def num_parameters(self) -> dict[str, int]:
        """Return the number of parameters of every component."""
        return {name: sum(p.numel() for p in m.parameters()) for name, m in self.modules.items()}
