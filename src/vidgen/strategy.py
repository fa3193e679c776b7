"""What a video diffusion strategy is: its components, its level models, its plan and its training stages.

A strategy says *what*; ``vidgen.sampling`` and ``vidgen.training`` do. To add one, subclass ``Strategy``
and name it in the entry point group ``vidgen.strategies``.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from vidgen.codecs import Codec
from vidgen.conditioning import TextEncoder, VocabularyEncoder
from vidgen.diffusion import Diffusion
from vidgen.errors import InvalidArgumentError, PlanError, SchedulerError, UnknownNameError
from vidgen.level_model import LevelModel
from vidgen.plans import Call, Plan, Slot
from vidgen.request import Defaults, Request
from vidgen.tensors import Latents, Tokens
from vidgen.trainable import Stage, Trainable
from vidgen.video.dataset import ClipBatch, ClipDataset

__all__ = ["Schedulers", "Strategy", "check_window"]

logger = logging.getLogger("vidgen")

Schedulers: TypeAlias = "SchedulerMixin | Mapping[str, SchedulerMixin] | None"
"""One scheduler for every level that has a noise process, or ``{level: scheduler}``, or none at all."""


@dataclass(frozen=True)
class NoOptions:
    """Options of a strategy that has none."""


class Strategy(Trainable):
    """Base of all strategies.

    A subclass sets ``name``, ``Config``, ``component_types`` and, where it has any, ``Options`` (a frozen
    dataclass of what may be chosen anew for every generation). It writes:

    - ``create``: builds it with fresh networks. It also runs under ``torch.device("meta")``, where tensors
      have shapes and no values, so it reads no values of tensors. A checkpoint does not call it: the
      components are loaded first and handed to ``__init__``, so ``__init__`` takes just what the base's does.
    - ``defaults``: what is generated if nothing else is asked for.
    - ``levels``: the level model of every level of its plans. They live as long as the strategy: a property
      that makes them anew each time loses what is set on them, such as another scheduler.
    - ``plan``: which frames are made in which calls.
    - ``stages``, if it learns: by default it has none, and training leaves it as it is.

    Args:
        config: an instance of the class's ``Config``.
        modules: trained and frozen networks by component name, one for each of ``component_types``; each
            is a diffusers ``ModelMixin``, so that it saves and loads alone.
        scheduler: the diffusers scheduler of the process that the networks are trained on, one for all levels
            or one by level; None where no level has one.

    Attributes:
        codec: the module called ``"codec"``.
        text_encoder: the module called ``"text_encoder"``, where there is one.

    Raises:
        InvalidArgumentError: a component is missing or of another class.
        SchedulerError: a scheduler that vidgen cannot use.
    """

    Options: ClassVar[type] = NoOptions

    def __init__(self, config: Any, modules: Mapping[str, nn.Module], scheduler: Schedulers = None) -> None:
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
        by_level = scheduler if isinstance(scheduler, Mapping) else {"": scheduler}
        self._diffusions = {name: Diffusion(each) for name, each in by_level.items() if each is not None}

    def diffusion_of(self, level: str) -> Diffusion:
        """Return the noise process that was given for ``level``, or for all levels.

        Raises:
            SchedulerError: none was.
        """
        found = self._diffusions.get(level, self._diffusions.get(""))
        if found is None:
            raise SchedulerError(
                f"level {level!r} of {self.name!r} has no scheduler; those given are for "
                f"{sorted(self._diffusions) or 'no level'}. Give the strategy one for it."
            )
        return found

    @property
    @abstractmethod
    def levels(self) -> Mapping[str, LevelModel]:
        """The level model of every level that its plans have calls of, the video's last."""

    def level(self, name: str) -> LevelModel:
        """Return the level model ``name``.

        Raises:
            UnknownNameError: there is none.
        """
        if name not in self.levels:
            raise UnknownNameError(f"level of {self.name!r}", name, list(self.levels))
        return self.levels[name]

    def slot_shape(self, call: Call, slot: Slot, request: Request) -> tuple[int, int, int]:
        """Return ``(c, h, w)`` of a slot that ``call`` emits: a frame of its level, or a state."""
        model = self.levels[call.level]
        return model.shape(request) if slot[0] == call.level else model.state_shape(slot[0], request)

    @property
    def video_level(self) -> LevelModel:
        """The last level, whose frames are the video."""
        return list(self.levels.values())[-1]

    @property
    def schedulers(self) -> dict[str, SchedulerMixin]:
        """The scheduler of each level that has a noise process, by the level's name."""
        return {name: m.diffusion.scheduler for name, m in self.levels.items() if m.diffusion is not None}

    @property
    def scheduler(self) -> SchedulerMixin | None:
        """The video level's scheduler, or None; set a compatible one to sample with it from now on.

        A scheduler, or its name, is set for every level that has a noise process; ``{level: scheduler}`` for
        single ones. SchedulerError tells that one cannot serve its model.
        """
        diffusion = self.video_level.diffusion
        return None if diffusion is None else diffusion.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: SchedulerMixin | str | Mapping[str, SchedulerMixin | str]) -> None:
        given = scheduler if isinstance(scheduler, Mapping) else dict.fromkeys(self.schedulers, scheduler)
        exchanged = {}
        for name, each in given.items():
            diffusion = self.level(name).diffusion
            if diffusion is None:
                raise SchedulerError(f"level {name!r} of {self.name!r} has no noise process, so no scheduler.")
            exchanged[name] = diffusion.exchange(each)
        for name, diffusion in exchanged.items():  # all or none
            self.levels[name].diffusion = diffusion

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

    def plan_for(self, request: Request) -> Plan:
        """Return the plan of a generation; override it where options or steps decide about calls."""
        return self.plan(self.codec.latent_frames(request.num_frames))

    def check_plan(self, plan: Plan) -> None:
        """Check that this strategy can run ``plan``; an override begins with this one.

        Raises:
            PlanError: names the first call that does not fit, and why.
        """
        for call in plan.calls:
            if call.level not in self.levels:
                raise PlanError(
                    f"call {call.id!r} is of level {call.level!r}; {self.name} has a model for "
                    f"{', '.join(map(repr, self.levels))} only. Use a plan of these levels."
                )

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of training, in order; by default none."""
        return ()

    def tokens(self, request: Request, frame: int) -> tuple[Tokens, Tokens]:
        """Return the embeddings of the prompt at video frame ``frame`` and of the negative one, each ``1 n d``.

        Every text is encoded once per generation.

        Raises:
            InvalidArgumentError: the strategy has no text encoder.
        """
        encoder = self.text_encoder
        if encoder is None:
            raise InvalidArgumentError(
                f"strategy {self.name!r} has no component 'text_encoder', so it has no prompt embeddings. Give "
                "it a TextEncoder of that name, or build its Conditioning without tokens."
            )
        texts = (request.prompt_at(frame), request.negative_prompt)
        given = (request.prompt_embeds, request.negative_prompt_embeds)
        wanted = [text for text, own in zip(texts, given, strict=True) if own is None]
        new = [text for text in dict.fromkeys(wanted) if text not in request.encoded]
        if new:
            request.encoded.update(zip(new, encoder.encode(new).split(1), strict=True))
        dtype = request.encoded[wanted[0]].dtype if wanted else torch.float32
        found = [
            request.encoded[text] if own is None else own[None].to(self.device, dtype)
            for text, own in zip(texts, given, strict=True)
        ]
        return found[0], found[1]

    def latents(self, batch: ClipBatch) -> Latents:
        """Return the codec's latents of a training batch, b c f h w, without gradients.

        Mixed precision does not reach the codec: cached latents and fresh ones are the same.
        """
        if batch.latents is not None:
            return batch.latents
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            encoded: Tensor = self.codec.encode(batch.clip)
            return encoded


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
        outside = sorted({frame for _, frame in call.given} - set(call.frames))
        if outside:
            raise PlanError(
                f"call {call.id!r} is given frame {outside[0]}, which is not among its frames; {strategy} "
                "reads given frames among its own. Add it to the call's frames, or use another plan."
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
