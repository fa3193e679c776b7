"""What a video diffusion strategy is: its components, plan, conditions and training stages.

A strategy says *what*; ``vidgen.sampling`` and ``vidgen.training`` do. To add one, subclass ``Strategy``
and name it in the entry point group ``vidgen.strategies``.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from vidgen.codecs import Codec
from vidgen.conditioning import Conditioning, TextEncoder, VocabularyEncoder
from vidgen.diffusion import Denoiser, Diffusion
from vidgen.errors import InvalidArgumentError, PlanError
from vidgen.noise import NoisePrior
from vidgen.plans import Call, Plan, Slot
from vidgen.tensors import Latents, Tokens
from vidgen.trainable import Trainable
from vidgen.video.dataset import ClipBatch, ClipDataset
from vidgen.weights import digest_of

__all__ = [
    "Canvas",
    "Defaults",
    "Prompt",
    "Request",
    "Solve",
    "Strategy",
    "check_window",
]

logger = logging.getLogger("vidgen")

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


class Strategy(Trainable):
    """Base of all strategies.

    A subclass sets what a ``Trainable`` does and, where it has any, ``Options`` (a frozen dataclass of what
    may be chosen anew for every generation). ``create`` builds it with fresh networks; a checkpoint loads the
    components first and passes them to ``__init__``.

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

    Options: ClassVar[type] = NoOptions

    def __init__(
        self,
        config: Any,
        modules: Mapping[str, nn.Module],
        scheduler: SchedulerMixin,
        prior: NoisePrior,
    ) -> None:
        super().__init__(config, modules)
        codec = modules["codec"]
        if not isinstance(codec, Codec):
            raise InvalidArgumentError(
                f"strategy {self.name!r} was given {type(codec).__name__} as its component 'codec'; "
                "expected a vidgen Codec, such as PixelCodec()."
            )
        self.codec = codec
        encoder = modules.get("text_encoder")
        self.text_encoder = encoder if isinstance(encoder, TextEncoder) else None
        self.diffusion = Diffusion(scheduler)
        self.prior = prior

    def adapt(self, dataset: ClipDataset) -> None:
        """Let a text encoder of words learn those of the captions that are new to it."""
        encoder = self.text_encoder
        if not isinstance(encoder, VocabularyEncoder):
            return
        new = encoder.grow(dataset.texts())
        if new and not getattr(self.config, "learns_words", True):
            raise InvalidArgumentError(
                f"the captions have words that this {self.name} never learnt ({', '.join(new)}), and its text "
                "encoder is not trained. Set train_text=true, or leave these words out of the captions."
            )
        if new:
            logger.info("the vocabulary grows by %d words: %s", len(new), ", ".join(new))
        if hasattr(self.config, "words"):
            words, longest = tuple(encoder.words), encoder.max_words
            self.config = replace(self.config, words=words, max_words=longest)

    @property
    def scheduler(self) -> SchedulerMixin:
        """The scheduler of the checkpoint; set a compatible one to sample with it from now on."""
        scheduler: SchedulerMixin = self.diffusion.scheduler
        return scheduler

    @scheduler.setter
    def scheduler(self, scheduler: SchedulerMixin | str) -> None:
        self.diffusion = self.diffusion.exchange(scheduler)

    @property
    @abstractmethod
    def defaults(self) -> Defaults:
        """What to generate where the caller leaves it open."""

    def frame_rate(self, num_frames: int) -> float:
        """Return the rate at which a video of ``num_frames`` frames plays where the caller names none."""
        del num_frames
        return self.defaults.fps

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

    def branches(self, call: Call, request: Request) -> int:
        """Return how many branches of guidance an evaluation of ``call`` has: 1, or 2 where it is guided."""
        del call
        return 2 if request.guidance_scale != 1 else 1

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

    def halves(self, call: Call) -> tuple[Call, Call] | None:
        """Return two calls that together make what ``call`` does, or None where its frames need each other.

        The sampler asks where memory is too small for the whole call.
        """
        del call
        return None

    def batch_key(self, call: Call) -> tuple[Any, ...]:
        """Return what two calls must share to be answered in one batch."""
        return (call.level, len(call.frames), bool(call.given))


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
