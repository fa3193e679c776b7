"""What a video diffusion strategy is: its components, plan, conditions and training stages.

A strategy says *what*; ``vidgen.sampling`` and ``vidgen.training`` do. To add one, subclass ``Strategy``
and name it in the entry point group ``vidgen.strategies``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from vidgen.codecs import Codec
from vidgen.conditioning import Conditioning, TextEncoder
from vidgen.diffusion import Denoiser, Diffusion
from vidgen.errors import InvalidArgumentError, PlanError
from vidgen.noise import NoiseKey, NoisePrior
from vidgen.plans import Call, Plan, Slot
from vidgen.shapes import Latents, Tokens
from vidgen.video.dataset import ClipBatch, ClipDataset
from vidgen.weights import digest_of

__all__ = [
    "Canvas",
    "Defaults",
    "Loss",
    "OptimizerGroup",
    "Prompt",
    "Request",
    "Solve",
    "Stage",
    "Strategy",
    "TrainingStep",
    "check_window",
]

Prompt = str | Mapping[int, str]
"""One text for the whole video, or ``{first frame: text}``: each text holds until the next begins."""


class Canvas(dict[Slot, Tensor]):
    """What is known of one video while it is made: ``(level, frame) -> tensor (c h w)``, on the CPU."""

    def stack(self, slots: tuple[Slot, ...]) -> Tensor:
        """Return the tensors of ``slots`` as one clip, ``c f h w``."""
        return torch.stack([self[slot] for slot in slots], dim=1)


@dataclass(frozen=True)
class Request:
    """What was asked for one video.

    Args:
        prompt: text, or texts by first frame.
        negative_prompt: what guidance moves away from; ``""`` is the unconditional prompt.
        seed: the 63-bit seed of all its noise.
        num_frames: video frames.
        height, width: in pixels.
        fps: frames per second of the result.
        guidance_scale: 1 turns guidance off.
        options: the strategy's own options, an instance of its ``Options``.
        prompt_embeds, negative_prompt_embeds: token embeddings ``n d`` that stand for the texts.
    """

    prompt: Prompt
    negative_prompt: str
    seed: int
    num_frames: int
    height: int
    width: int
    fps: float
    guidance_scale: float
    options: Any = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None

    def prompt_at(self, frame: int) -> str:
        """Return the text that holds at video frame ``frame``."""
        if isinstance(self.prompt, str):
            return self.prompt
        starts = [start for start in sorted(self.prompt) if start <= frame]
        return self.prompt[starts[-1] if starts else min(self.prompt)]

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that an encoder will be asked for."""
        own = () if self.prompt_embeds is not None else self._prompts
        return own if self.negative_prompt_embeds is not None else (*own, self.negative_prompt)

    @property
    def _prompts(self) -> tuple[str, ...]:
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt.values())

    def settings(self) -> dict[str, Any]:
        """Return the request in plain values; embeddings by their digest."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["options"] = asdict(self.options) if is_dataclass(self.options) else self.options  # type: ignore[arg-type]
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            tensor = values.pop(name)
            if tensor is not None:
                values[name] = digest_of(tensor)
        return values


@dataclass(frozen=True)
class OptimizerGroup:
    """Parameters that one optimiser trains.

    Args:
        name: the optimiser's name within its stage; groups of the same name share one optimiser.
        parameters: the trained parameters, in a fixed order.
        lr_scale: factor on the recipe's learning rate.
        weight_decay: overrides the recipe's where given.
        betas: override the recipe's where given; adversarial stages often want ``(0.0, 0.9)``.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0
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

    def noise(self, prior: NoisePrior, like: Tensor) -> Tensor:
        """Return the prior's noise for a batch of clips ``like`` b c f h w, frames counted from 0."""
        b, c, f, h, w = like.shape
        keys = [self.key(i, "noise") for i in range(b)]
        return prior.sample_batch(range(f), (c, h, w), keys).to(like)

    def uniforms(self, sample: int, stream: str, count: int) -> Tensor:
        """Return ``count`` numbers in [0, 1) for one sample, on the CPU in float64."""
        return torch.from_numpy(self.key(sample, stream).generator(0).random(count))

    def uniform(self, stream: str) -> Tensor:
        """Return one number in [0, 1) per sample, on the CPU in float64."""
        return torch.cat([self.uniforms(i, stream, 1) for i in range(len(self.samples))])


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
        of its own, the mean over the batch's clips, so that a batch may be cut anywhere.
        """


Solve = Callable[[Denoiser, Tensor, Conditioning], Tensor]
"""The sampler's diffusion solver with everything but its three inputs filled in."""


@dataclass(frozen=True)
class Defaults:
    """What a generation uses where nothing is asked for: usually what the networks were trained on."""

    num_frames: int
    height: int
    width: int
    fps: float
    guidance_scale: float = 1.0
    num_inference_steps: int = 50


@dataclass(frozen=True)
class NoOptions:
    """Options of a strategy that has none."""


class Strategy(ABC):
    """Base of all strategies.

    A subclass sets ``name``, ``Config`` (a frozen dataclass), ``component_types`` and, where it has any,
    ``Options`` (a frozen dataclass of what may be chosen anew for every generation). ``create`` builds it
    with fresh networks; a checkpoint loads the components first and passes them to ``__init__``.

    Args:
        config: an instance of the class's ``Config``.
        modules: trained and frozen networks by component name, one for each of ``component_types``; each
            is a diffusers ``ModelMixin``, so that it saves and loads alone.
        scheduler: the diffusers scheduler of the process that the networks are trained on.
        prior: the noise prior over frames.

    Attributes:
        codec: the module called ``"codec"``.
        text_encoder: the module called ``"text_encoder"``, where there is one.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    Options: ClassVar[type] = NoOptions
    component_types: ClassVar[Mapping[str, tuple[type, ...]]]
    """The classes that each component may have; a checkpoint names one of them."""

    def __init__(
        self,
        config: Any,
        modules: Mapping[str, nn.Module],
        scheduler: SchedulerMixin,
        prior: NoisePrior,
    ) -> None:
        for component, kinds in self.component_types.items():
            if not isinstance(modules.get(component), kinds):
                raise InvalidArgumentError(
                    f"strategy {self.name!r} was given {type(modules.get(component)).__name__} as its "
                    f"component {component!r}; expected {' or '.join(kind.__name__ for kind in kinds)}."
                )
        codec = modules["codec"]
        if not isinstance(codec, Codec):
            raise InvalidArgumentError(
                f"strategy {self.name!r} was given {type(codec).__name__} as its component 'codec'; "
                "expected a vidgen Codec, such as PixelCodec()."
            )
        self.config = config
        self.modules = dict(modules)
        self.codec = codec
        encoder = modules.get("text_encoder")
        self.text_encoder = encoder if isinstance(encoder, TextEncoder) else None
        self.diffusion = Diffusion(scheduler)
        self.prior = prior

    @property
    def scheduler(self) -> SchedulerMixin:
        """The scheduler of the checkpoint; set a compatible one to sample with it from now on."""
        scheduler: SchedulerMixin = self.diffusion.scheduler
        return scheduler

    @scheduler.setter
    def scheduler(self, scheduler: SchedulerMixin) -> None:
        self.diffusion = self.diffusion.exchange(scheduler)

    @classmethod
    @abstractmethod
    def create(cls, config: Any) -> Strategy:
        """Return the strategy of ``config`` with fresh networks (or those that it says to start from)."""

    @classmethod
    def prepare(cls, config: Any, dataset: ClipDataset) -> Any:
        """Return ``config`` completed by what only the data tell (vocabulary, classes, ...)."""
        del dataset
        return config

    @property
    @abstractmethod
    def defaults(self) -> Defaults:
        """What to generate where the caller leaves it open."""

    @abstractmethod
    def plan(self, num_frames: int) -> Plan:
        """Return the default plan for ``num_frames`` frames **of latents**."""

    def accepts(self, plan: Plan) -> None:
        """Check that this strategy can run ``plan``.

        Raises:
            PlanError: names the first call that does not fit, and why.
        """
        del plan

    @abstractmethod
    def condition(self, call: Call, canvas: Canvas, request: Request) -> Conditioning:
        """Return the conditions of ``call`` for one video (batch size 1)."""

    @abstractmethod
    def denoiser(self, call: Call) -> Denoiser:
        """Return the guided network that answers ``call``."""

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of training, in order."""

    def tokens(self, call: Call, request: Request) -> tuple[Tokens, Tokens]:
        """Return the embeddings of ``call``'s prompt and negative prompt, each ``1 n d``.

        The prompt is the one that holds at the video frame where the call's first new slot begins.

        Raises:
            InvalidArgumentError: the strategy has no text encoder.
        """
        encoder, device = self.text_encoder, self.device
        if encoder is None:
            raise InvalidArgumentError(
                f"strategy {self.name!r} has no component 'text_encoder', so it has no prompt embeddings. Give "
                "it a TextEncoder of that name, or build its Conditioning without tokens."
            )
        first = min(frame for _, frame in call.emits) if call.emits else 0
        text = request.prompt_at(self.codec.frames_of_latent(first).start)
        found = [request.prompt_embeds, request.negative_prompt_embeds]
        wanted = [t for t, given in zip((text, request.negative_prompt), found, strict=True) if given is None]
        encoded = encoder.encode(wanted) if wanted else None
        dtype = torch.float32 if encoded is None else encoded.dtype
        made = iter(() if encoded is None else encoded.split(1))
        tokens, negative = (next(made) if x is None else x[None].to(device, dtype) for x in found)
        return tokens, negative

    def evaluations(self, call: Call, solver_evaluations: int) -> int:
        """Return how often the network is asked in ``call``, without guidance.

        ``solver_evaluations`` is what the solver needs; a strategy whose ``answer`` needs another number
        says so here.
        """
        del call
        return solver_evaluations

    def slot_shape(self, call: Call, request: Request) -> tuple[int, int, int]:
        """Return ``(c, h, w)`` of one slot of ``call``; by default the codec's latent."""
        del call
        return self.codec.latent_shape(request.height, request.width)

    def answer(self, call: Call, solve: Solve, start: Tensor, cond: Conditioning) -> Tensor:
        """Turn start noise ``b c f h w`` into the call's latents, in the order of ``call.frames``.

        The default runs the sampler's solver; a one-pass network (an adversarial level) overrides it.
        """
        return solve(self.denoiser(call), start, cond)

    def latents(self, batch: ClipBatch) -> Latents:
        """Return the codec's latents of a training batch, b c f h w, without gradients.

        Mixed precision does not reach the codec: cached latents and fresh ones are the same.
        """
        if batch.latents is not None:
            return batch.latents
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self.codec.encode(batch.clip)

    def batch_key(self, call: Call) -> tuple[Any, ...]:
        """Return what two calls must share to be answered in one batch."""
        return (call.level, len(call.frames), bool(call.given))

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Strategy:
        """Move every module; ``dtype`` casts floating-point weights. Returns the strategy itself."""
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


def check_window(strategy: str, plan: Plan, window: int, *, stride: int | None = 1) -> None:
    """Raise ``PlanError`` unless every call fits a network trained on ``window`` frames.

    Args:
        strategy: name used in the message.
        plan: what is to be run.
        window: the most frames a call may cover.
        stride: the spacing between a call's frames that the network was trained on; None allows any.
    """
    video = plan.levels[-1].name
    for call in plan.calls:
        foreign = {call.level, *(level for level, _ in call.given)} - {video}
        if foreign:
            raise PlanError(
                f"call {call.id!r} works on or is given level {sorted(foreign)[0]!r}; {strategy} knows frames "
                f"of the video ({video!r}) only. Use a plan of one level."
            )
        if len(call.frames) > window:
            raise PlanError(
                f"call {call.id!r} covers {len(call.frames)} frames; {strategy} was trained on clips of "
                f"{window}. Use a plan whose window is at most {window}."
            )
        gaps = {b - a for a, b in zip(call.frames, call.frames[1:], strict=False)}
        if stride is not None and gaps - {stride}:
            raise PlanError(
                f"call {call.id!r} covers frames {call.frames[0]}..{call.frames[-1]} at spacing "
                f"{sorted(gaps)}; {strategy} was trained on frames at spacing {stride}. Use a plan of "
                "consecutive frames (all_at_once, autoregressive, chunks)."
            )
