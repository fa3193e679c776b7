"""The arguments of a generation, checked and resolved into what the engine runs."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen import config as configs
from vidgen.devices import best_device
from vidgen.errors import InvalidArgumentError, PlanError, UnknownNameError
from vidgen.noise import NoisePrior, seeds_from
from vidgen.plans import Call, Plan, Slot
from vidgen.request import Defaults, LevelSettings, Prompt, Request, by_level
from vidgen.sampling.checks import MOST_FRAMES, by_frame, checked_plain, checked_types, prior_of, prompts_of
from vidgen.sampling.cost import Cost, Pace
from vidgen.sampling.decoding import spans
from vidgen.sampling.given import Given, Picture, Pictures, each
from vidgen.sampling.given import resolve as resolve_given
from vidgen.sampling.levels import BY_LEVEL, settings_of
from vidgen.strategy import Strategy
from vidgen.weights import digest_of

__all__ = ["MOST_PIXELS", "MOST_VIDEOS", "Arguments", "Generation"]

MOST_VIDEOS = 100_000
MOST_PIXELS = 16_384

logger = logging.getLogger("vidgen")


@dataclass(frozen=True)
class Generation:
    """A generation, ready to run.

    Args:
        requests: one per video.
        plan: the calls that are needed.
        targets: the video frames to deliver, ascending.
        given: what is given of every video.
        paste_given: whether its pixels are shown as they were given.
        latents: start noise, ``b c f h w``, or None.
        disk_bytes: what a work folder would hold.
        call_evaluations: of the network, by call, for one video and one branch of guidance.
        evaluations: the same over all calls and videos.
        network_evaluations: the same, each counted once for every branch of guidance.
    """

    requests: tuple[Request, ...]
    plan: Plan
    targets: tuple[int, ...]
    given: tuple[Given, ...]
    paste_given: bool
    latents: Tensor | None
    disk_bytes: int
    call_evaluations: Mapping[str, int]
    evaluations: int
    network_evaluations: int

    @property
    def guided(self) -> float:
        """Network evaluations of one of the solver's: 2 under guidance, the mean where calls differ."""
        return self.network_evaluations / self.evaluations if self.evaluations else 1.0

    @property
    def kind(self) -> tuple[Any, ...]:
        """What makes the network evaluations of two generations take the same time."""
        request, longest = self.requests[0], max((len(c.frames) for c in self.plan.calls), default=0)
        return (request.height, request.width, longest)

    def cost(self, pace: Pace) -> Cost:
        """Return what it will cost, in time too where ``pace`` has measured its kind."""
        evaluations = self.network_evaluations
        seconds = pace.expected(self.kind, evaluations)
        videos, waves = len(self.requests), self.plan.critical_path
        return Cost(videos, self.plan.num_calls, waves, evaluations, self.disk_bytes, seconds)

    def settings(self) -> dict[str, Any]:
        """Return what decides the pixels besides requests and plan, as plain values."""
        return {
            **by_level(self.requests[0].levels, _solver),
            **self._given_settings(),
            "latents": None if self.latents is None else digest_of(self.latents),
        }

    def _given_settings(self) -> dict[str, Any]:
        first = self.given[0]
        if all(given is first for given in self.given):
            return _digests(first)
        return {"given": [_digests(given) for given in self.given]}

    def metadata(self, strategy: Strategy) -> tuple[dict[str, Any], ...]:
        """Return the settings that a result carries, one mapping per video."""
        common: dict[str, Any] = {"generator": "vidgen", "strategy": strategy.name}
        levels = self.requests[0].levels
        if any(settings.prior != strategy.levels[name].prior for name, settings in levels.items()):
            common |= by_level(levels, lambda settings: {"noise_prior": settings.prior.to_dict()})
        return tuple({**common, **request.settings()} for request in self.requests)


@dataclass(frozen=True)
class Arguments:
    """A generation as it was asked for; see ``Sampler.__call__`` for every field."""

    prompt: Prompt | int | Sequence[Prompt | int] = ""
    negative_prompt: str | Sequence[str] | None = ""
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    num_inference_steps: int | Mapping[str, int] | None = None
    guidance_scale: float | Mapping[str, float] | None = None
    num_videos_per_prompt: int = 1
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    seed: int | None = None
    latents: Tensor | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    frames: Iterable[int] | None = None
    plan: Plan | None = None
    image: Picture | Sequence[Picture] | None = None
    last_image: Picture | Sequence[Picture] | None = None
    video: Any = None
    mask: Any = None
    strength: float | None = None
    pins: Mapping[int | Slot, Picture | Sequence[Picture]] | None = None
    paste_given: bool = True
    scheduler: Any = None
    eta: float | Mapping[str, float] = 0.0
    noise_prior: NoisePrior | str | Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Bring plain values into Python's own types, and refuse those of none."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        checked_types(given)
        for name, value in checked_plain(given).items():
            object.__setattr__(self, name, value)

    def resolve(self, strategy: Strategy) -> Generation:
        """Check everything against ``strategy`` and fill in its defaults.

        Raises:
            InvalidArgumentError, PlanError, SchedulerError, UnknownNameError: an argument does not fit.
        """
        size = self._size(strategy.defaults)
        strategy.codec.latent_shape(*size)  # refuses sizes that do not fit
        pictures = each(Pictures(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Pictures)}), size)
        requests = self._requests(strategy, size, pictures)
        first = requests[0]
        plan = self._plan(strategy, first)
        given = self._given(pictures, strategy, requests, plan)
        if given[0].pins:
            plan = plan.with_pins(given[0].pins)
            strategy.check_plan(plan)
        targets = self._targets(first.num_frames)
        streams = spans(strategy.codec, targets)
        wanted = {latent for span in streams for latent in range(span.begin, span.last + 1)}
        if len(wanted) < plan.num_frames:
            plan = plan.subplan(wanted)
        counts = _evaluations(strategy, plan, first, given[0])
        branches = [strategy.levels[call.level].branches(first) for call in plan.calls]
        guided = sum(n * k for n, k in zip(counts, branches, strict=True))
        return Generation(
            requests=requests,
            plan=plan,
            targets=targets,
            given=given,
            paste_given=self.paste_given,
            latents=self._latents(strategy, first, len(requests)),
            disk_bytes=len(requests) * sum(4 * _kept_values(strategy, plan, c, first) for c in plan.calls),
            call_evaluations={call.id: n for call, n in zip(plan.calls, counts, strict=True)},
            evaluations=len(requests) * sum(counts),
            network_evaluations=len(requests) * guided,
        )

    def _given(
        self, pictures: Sequence[Pictures], strategy: Strategy, requests: Sequence[Request], plan: Plan
    ) -> tuple[Given, ...]:
        """Return what is given of every video, as latents."""
        found = [resolve_given(one, strategy, requests[0], plan) for one in pictures]
        if len(found) == 1:
            return tuple(found * len(requests))
        return tuple(given for given in found for _ in range(self.num_videos_per_prompt))

    def _requests(
        self, strategy: Strategy, size: tuple[int, int], pictures: Sequence[Pictures]
    ) -> tuple[Request, ...]:
        defaults = strategy.defaults
        embeds = self._embeds(strategy)
        prompts = self._prompts(len(embeds), len(pictures))
        seeds = self._seeds(len(prompts))
        negatives = self._negatives(len(prompts))
        video: Tensor | None = pictures[0].video
        num_frames = _positive(
            "num_frames", self.num_frames, defaults.num_frames if video is None else video.shape[1]
        )
        _check_amount(num_frames, prompts)
        texts = [by_frame(prompt, num_frames) for prompt in prompts]
        shared: dict[str, Any] = {
            "num_frames": num_frames,
            "height": size[0],
            "width": size[1],
            "fps": float(_positive("fps", self.fps, strategy.frame_rate(num_frames))),
            "levels": self._levels(strategy, guided=bool(embeds) or texts != negatives),
            "encoded": {},
            "options": self._options(strategy),
        }
        rows: list[dict[str, Any]] = embeds or [{}] * len(prompts)
        requests = tuple(
            Request(prompt=prompt, negative_prompt=negative, seed=seed, **row, **shared)
            for prompt, negative, seed, row in zip(texts, negatives, seeds, rows, strict=True)
        )
        if strategy.text_encoder is not None:
            # All of them now, and not after hours when their frame comes.
            strategy.text_encoder.check(sorted({text for request in requests for text in request.texts}))
        return requests

    def _levels(self, strategy: Strategy, *, guided: bool) -> dict[str, LevelSettings]:
        """Return how each level is answered; between equal prompts (not ``guided``) without guidance."""
        chosen = {name: getattr(self, name) for name in BY_LEVEL}
        prior = None if self.noise_prior is None else prior_of(self.noise_prior)
        levels = settings_of(strategy, chosen, prior)
        return levels if guided else _without_guidance(strategy, levels)

    def _embeds(self, strategy: Strategy) -> list[dict[str, Any]]:
        """Return the given prompt embeddings, one mapping per video; empty if none were given."""
        names = ("prompt_embeds", "negative_prompt_embeds")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if not given:
            return []
        encoder = strategy.text_encoder
        if encoder is None:
            raise InvalidArgumentError(
                f"{' and '.join(given)} given; strategy {strategy.name!r} has no text encoder to stand in for."
            )
        if self.prompt_embeds is None or self.prompt:
            raise InvalidArgumentError(
                "negative_prompt_embeds go with prompt_embeds, and prompt_embeds without a prompt; "
                f"prompt={self.prompt!r} was given. Give either texts or embeddings."
            )
        for name, tensor in given.items():
            if tensor.ndim != 3 or tensor.shape[2] != encoder.width:
                raise InvalidArgumentError(
                    f"{name} have shape {tuple(tensor.shape)}; expected (b, n, {encoder.width}), as "
                    "strategy.text_encoder.encode gives."
                )
        _check_like(given, encoder.encode([""]).shape[1] if len(given) == 1 else None)
        count = len(self.prompt_embeds)
        rows = {name: tensor.expand(count, -1, -1) for name, tensor in given.items()}
        return [
            {name: tensor[i].float().cpu() for name, tensor in rows.items()}
            for i in range(count)
            for _ in range(self.num_videos_per_prompt)
        ]

    def _options(self, strategy: Strategy) -> Any:
        own = {f.name for f in dataclasses.fields(strategy.Options)}
        for name in self.options:
            if name not in own:
                known = own | {f.name for f in dataclasses.fields(Arguments)} - {"options"}
                raise UnknownNameError(f"argument of sampling {strategy.name!r}", name, known)
        options: Any = configs.from_dict(strategy.Options, self.options)
        for name, value in self.options.items():  # as strict as the sampler's own numbers
            if isinstance(value, str | bool) and type(getattr(options, name)) in (int, float):
                raise InvalidArgumentError(f"{name} is {value!r} ({type(value).__name__}); expected a number.")
        return options

    def _size(self, defaults: Defaults) -> tuple[int, int]:
        height = _positive("height", self.height, defaults.height)
        size = int(height), int(_positive("width", self.width, defaults.width))
        if max(size) > MOST_PIXELS:
            raise InvalidArgumentError(
                f"{size[0]} x {size[1]} pixels (height x width) were asked for; expected at most {MOST_PIXELS} "
                "on a side, which is also the most that H.264 and its kin store."
            )
        if size != (defaults.height, defaults.width):
            logger.warning(
                "the model was trained on %d x %d pixels (height x width), and %d x %d were asked for: what it "
                "makes of other sizes may be worse",
                *(defaults.height, defaults.width, *size),
            )
        return size

    def _prompts(self, embedded: int, given: int) -> list[Prompt]:
        """Return one prompt per video.

        Args:
            embedded: so many are empty, standing beside embeddings.
            given: lists of pictures have so many entries, 1 where there are none.
        """
        if not embedded and self.num_videos_per_prompt > MOST_VIDEOS:
            raise InvalidArgumentError(
                f"num_videos_per_prompt is {self.num_videos_per_prompt}; expected at most {MOST_VIDEOS}."
            )
        prompts = [""] * (embedded // self.num_videos_per_prompt) if embedded else prompts_of(self.prompt)
        if len(prompts) == 1 and not embedded:
            prompts *= given
        if given not in (1, len(prompts)):
            raise InvalidArgumentError(
                f"{given} pictures or videos were given in a list for {len(prompts)} prompts; give one for "
                "all, or one for each."
            )
        if not prompts or self.num_videos_per_prompt < 1:
            raise InvalidArgumentError(
                f"{len(prompts)} prompt(s) and num_videos_per_prompt={self.num_videos_per_prompt} ask for no "
                "video; expected at least one of each."
            )
        return [prompt for prompt in prompts for _ in range(self.num_videos_per_prompt)]

    def _seeds(self, count: int) -> list[int]:
        per_prompt = self.num_videos_per_prompt
        if isinstance(self.generator, Sequence):
            return _of_first_process(list(seeds_from(self.generator, self.seed, count)))
        # Every prompt uses the same seeds s, s + 1, ..., so that prompts can be compared.
        seeds = _of_first_process(list(seeds_from(self.generator, self.seed, per_prompt)))
        return seeds * (count // per_prompt)

    def _negatives(self, count: int) -> list[str]:
        given = prompts_of("" if self.negative_prompt is None else self.negative_prompt)
        if any(isinstance(negative, Mapping) for negative in given):
            raise InvalidArgumentError("negative_prompt is one text for the whole video; a mapping was given.")
        if len(given) == 1:
            return given * count
        negatives = [n for n in given for _ in range(self.num_videos_per_prompt)]
        if len(negatives) != count:
            raise InvalidArgumentError(
                f"{len(given)} negative prompts were given for "
                f"{count // self.num_videos_per_prompt} prompts; give one, or one for each."
            )
        return negatives

    def _plan(self, strategy: Strategy, request: Request) -> Plan:
        num_frames = request.num_frames
        count = strategy.codec.latent_frames(num_frames)
        if self.plan is None:
            return strategy.plan_for(request)
        if self.plan.num_frames != count:
            raise PlanError(
                f"the plan covers {self.plan.num_frames} latent frames; num_frames={num_frames} needs "
                f"{count}. Make the plan for {count} frames, or leave it out."
            )
        strategy.check_plan(self.plan)
        return self.plan

    def _targets(self, num_frames: int) -> tuple[int, ...]:
        if self.frames is None:
            return tuple(range(num_frames))
        targets = tuple(sorted(set(self.frames)))
        if not targets or targets[0] < 0 or targets[-1] >= num_frames:
            raise InvalidArgumentError(
                f"frames asks for {_span(targets)} of a video of {num_frames} frames; expected frames in "
                f"0..{num_frames - 1}. Raise num_frames, or ask for fewer."
            )
        return targets

    def _latents(self, strategy: Strategy, request: Request, count: int) -> Tensor | None:
        if self.latents is None:
            return None
        frame = strategy.codec.latent_shape(request.height, request.width)
        expected = (count, frame[0], strategy.codec.latent_frames(request.num_frames), *frame[1:])
        if tuple(self.latents.shape) != expected:
            raise InvalidArgumentError(
                f"latents have shape {tuple(self.latents.shape)}; expected (b, c, f, h, w) = {expected}."
            )
        return self.latents


def _check_amount(num_frames: int, prompts: Sequence[Prompt]) -> None:
    """Refuse what would fill memory with plans alone, and prompts that nothing would be made of."""
    if num_frames > MOST_FRAMES:
        raise InvalidArgumentError(
            f"num_frames is {num_frames}; expected at most {MOST_FRAMES}. Make a longer video in parts: give "
            "the end of one as the video of the next."
        )
    if len(prompts) > MOST_VIDEOS:
        raise InvalidArgumentError(
            f"{len(prompts)} videos were asked for at once; expected at most {MOST_VIDEOS}. Ask in "
            "several calls."
        )
    starts = [start for prompt in prompts if isinstance(prompt, Mapping) for start in prompt]
    late = [start for start in starts if start >= num_frames]
    if late:
        raise InvalidArgumentError(
            f"a prompt begins at frame {min(late)}, and the video has {num_frames} frames, the last of them "
            f"{num_frames - 1}; raise num_frames, or leave that prompt out."
        )


def _digests(given: Given) -> dict[str, Any]:
    return {
        "pins": {f"{level}/{i}": digest_of(x) for (level, i), x in sorted(given.pins.items())},
        "source": None if given.source is None else digest_of(given.source),
        "kept": None if given.kept is None else digest_of(given.kept),
        "strength": given.strength,
    }


def _of_first_process(seeds: list[int]) -> list[int]:
    """Return the first process's seeds on all of them: each would draw its own where none is given."""
    if not (dist.is_available() and dist.is_initialized()):
        return seeds
    shared = torch.tensor(seeds, device=best_device() if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(shared, 0)
    return [int(seed) for seed in shared]


def _positive(name: str, value: float | None, default: float) -> Any:
    value = default if value is None else value
    if not (math.isfinite(value) and value > 0):
        raise InvalidArgumentError(f"{name} is {value}; expected more than 0, and finite.")
    return value


def _span(frames: Sequence[int]) -> str:
    return f"{frames[0]}..{frames[-1]}" if frames else "no frame"


def _kept_values(strategy: Strategy, plan: Plan, call: Call, request: Request) -> int:
    """Count the numbers that a call leaves in a work folder, for one video."""
    model = strategy.levels[call.level]
    frames = sum(level == call.level for level, _ in plan.kept(call))
    states = [model.state_shape(level, request) for level, _ in plan.kept(call) if level != call.level]
    return frames * math.prod(model.shape(request)) + sum(math.prod(shape) for shape in states)


def _evaluations(strategy: Strategy, plan: Plan, request: Request, given: Given) -> list[int]:
    """Return the network evaluations of each call of the plan for one video, without guidance."""
    solver = {}
    for name, settings in request.levels.items():
        strength = given.strength if name == plan.video.name else 1.0
        steps = settings.num_inference_steps
        solver[name] = 1 if settings.diffusion is None else settings.diffusion.num_evaluations(steps, strength)
    return [strategy.levels[call.level].evaluations(call, solver[call.level]) for call in plan.calls]


def _without_guidance(strategy: Strategy, levels: Mapping[str, LevelSettings]) -> dict[str, LevelSettings]:
    """Turn guidance off where it would mix two equal branches: it would cost double and change nothing."""
    return {
        name: dataclasses.replace(own, guidance_scale=1.0)
        if strategy.levels[name].guided_by_text_alone
        else own
        for name, own in levels.items()
    }


def _solver(settings: LevelSettings) -> dict[str, Any]:
    scheduler: Any = None if settings.diffusion is None else settings.diffusion.scheduler
    return {
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "scheduler_config": None if scheduler is None else dict(scheduler.config),
        "prior": settings.prior.to_dict(),
    }


def _check_like(embeds: Mapping[str, Tensor], own_tokens: int | None) -> None:
    """Both guidance branches share one batch: their embeddings need the same number of tokens."""
    counts = {name: tensor.shape[1] for name, tensor in embeds.items()}
    if own_tokens is not None:
        counts["the encoder's own"] = own_tokens
    batches = {tensor.shape[0] for tensor in embeds.values()} - {1, len(embeds["prompt_embeds"])}
    if len(set(counts.values())) > 1 or batches:
        raise InvalidArgumentError(
            f"prompt embeddings disagree: tokens per prompt {counts}, prompts "
            f"{ {name: len(tensor) for name, tensor in embeds.items()} }. Give both the same number of tokens, "
            "and one negative or one for each prompt."
        )
