"""The arguments of a generation, checked and resolved into what the engine runs."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from vidgen import config as configs
from vidgen.devices import best_device
from vidgen.diffusion import Diffusion
from vidgen.errors import InvalidArgumentError, PlanError, UnknownNameError
from vidgen.noise import seeds_from
from vidgen.plans import Plan
from vidgen.strategy import Canvas, Defaults, Prompt, Request, Strategy

__all__ = ["Arguments", "Cost", "Generation", "Picture"]

Picture = Image.Image | np.ndarray[Any, Any] | Tensor


@dataclass(frozen=True)
class Cost:
    """What a generation will cost, known before it starts.

    Args:
        videos: how many videos.
        calls: calls of the plan, for each video.
        waves: how many of them must wait for each other (the plan's critical path).
        evaluations: network evaluations over all videos, guidance counted twice.
    """

    videos: int
    calls: int
    waves: int
    evaluations: int

    def __str__(self) -> str:
        return (
            f"{self.videos} video(s) x {self.calls} call(s) in {self.waves} wave(s): "
            f"{self.evaluations} network evaluations"
        )


@dataclass(frozen=True)
class Generation:
    """A generation, ready to run.

    Args:
        requests: one per video.
        plan: the calls that are needed.
        targets: the video frames to deliver, ascending.
        diffusion: the solver.
        num_inference_steps, eta: its arguments.
        pins: latents of given pictures, by slot; the same for every video.
        latents: start noise, ``b c f h w``, or None.
    """

    requests: tuple[Request, ...]
    plan: Plan
    targets: tuple[int, ...]
    diffusion: Diffusion
    num_inference_steps: int
    eta: float
    pins: Canvas
    latents: Tensor | None

    @property
    def steps_per_call(self) -> int:
        """Solver steps of one call."""
        return self.diffusion.num_evaluations(self.num_inference_steps)

    @property
    def cost(self) -> Cost:
        """What it will cost."""
        videos, calls = len(self.requests), self.plan.num_calls
        guided = 2 if self.requests[0].guidance_scale != 1 else 1
        evaluations = videos * calls * self.steps_per_call * guided
        return Cost(videos, calls, self.plan.critical_path, evaluations)

    def settings(self) -> dict[str, Any]:
        """Return what decides the pixels besides requests and plan, as plain values."""
        scheduler: Any = self.diffusion.scheduler
        return {
            "scheduler": type(scheduler).__name__,
            "scheduler_config": dict(scheduler.config),
            "num_inference_steps": self.num_inference_steps,
            "eta": self.eta,
            "pins": {f"{level}/{i}": digest_of(x) for (level, i), x in sorted(self.pins.items())},
            "latents": None if self.latents is None else digest_of(self.latents),
        }

    def metadata(self, strategy: Strategy) -> tuple[dict[str, Any], ...]:
        """Return the settings that a result carries, one mapping per video."""
        scheduler: Any = self.diffusion.scheduler
        common = {
            "generator": "vidgen",
            "strategy": strategy.name,
            "scheduler": type(scheduler).__name__,
            "num_inference_steps": self.num_inference_steps,
            "eta": self.eta,
        }
        return tuple({**common, **dataclasses.asdict(request)} for request in self.requests)


@dataclass(frozen=True)
class Arguments:
    """A generation as it was asked for; see ``Sampler.__call__`` for every field."""

    prompt: Prompt | Sequence[Prompt] = ""
    negative_prompt: str | Sequence[str] = ""
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    num_videos_per_prompt: int = 1
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    seed: int | None = None
    latents: Tensor | None = None
    frames: Iterable[int] | None = None
    plan: Plan | None = None
    pins: Mapping[int, Picture] | None = None
    scheduler: Any = None
    eta: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def resolve(self, strategy: Strategy) -> Generation:
        """Check everything against ``strategy`` and fill in its defaults.

        Raises:
            InvalidArgumentError, PlanError, SchedulerError, UnknownNameError: an argument does not fit.
        """
        if strategy.codec.time_factor != 1:
            raise InvalidArgumentError(
                f"the codec of {strategy.name!r} compresses time by {strategy.codec.time_factor}; the sampler "
                "decodes frame by frame. Use a codec with time_factor 1."
            )
        diffusion = strategy.diffusion
        if self.scheduler is not None:
            diffusion = diffusion.exchange(self.scheduler)
        requests = self._requests(strategy)
        first = requests[0]
        plan = self._plan(strategy, first.num_frames)
        pins = self._pins(strategy, first, plan.levels[-1].name)
        if pins:
            plan = plan.with_pins(pins)
            strategy.accepts(plan)
        targets = self._targets(first.num_frames)
        wanted = {strategy.codec.latent_of_frame(frame) for frame in targets}
        if len(wanted) < plan.num_frames:
            plan = plan.subplan(wanted)
        steps = self.num_inference_steps
        return Generation(
            requests,
            plan,
            targets,
            diffusion,
            strategy.defaults.num_inference_steps if steps is None else steps,
            self.eta,
            pins,
            self._latents(strategy, first, len(requests)),
        )

    def _requests(self, strategy: Strategy) -> tuple[Request, ...]:
        defaults = strategy.defaults
        prompts = self._prompts()
        seeds = self._seeds(len(prompts))
        negatives = self._negatives(len(prompts))
        options: Any = self._options(strategy)
        size = self._size(defaults)
        strategy.codec.latent_shape(*size)  # refuses sizes that do not fit
        scale = defaults.guidance_scale if self.guidance_scale is None else self.guidance_scale
        if not math.isfinite(scale):
            raise InvalidArgumentError(f"guidance_scale is {scale}; expected a finite number.")
        if prompts == negatives:
            scale = 1.0  # both branches are the same: guidance would cost double and change nothing
        shared: dict[str, Any] = {
            "num_frames": _positive("num_frames", self.num_frames, defaults.num_frames),
            "height": size[0],
            "width": size[1],
            "fps": float(_positive("fps", self.fps, defaults.fps)),
            "guidance_scale": float(scale),
            "options": options,
        }
        return tuple(
            Request(prompt=prompt, negative_prompt=negative, seed=seed, **shared)
            for prompt, negative, seed in zip(prompts, negatives, seeds, strict=True)
        )

    def _options(self, strategy: Strategy) -> Any:
        own = {f.name for f in dataclasses.fields(strategy.Options)}
        for name in self.options:
            if name not in own:
                known = own | {f.name for f in dataclasses.fields(Arguments)} - {"options"}
                raise UnknownNameError(f"argument of sampling {strategy.name!r}", name, known)
        return configs.from_dict(strategy.Options, self.options)

    def _size(self, defaults: Defaults) -> tuple[int, int]:
        height = _positive("height", self.height, defaults.height)
        return int(height), int(_positive("width", self.width, defaults.width))

    def _prompts(self) -> list[Prompt]:
        many = isinstance(self.prompt, Sequence) and not isinstance(self.prompt, str)
        prompts: list[Any] = list(self.prompt) if many else [self.prompt]
        if not prompts or self.num_videos_per_prompt < 1:
            raise InvalidArgumentError(
                f"{len(prompts)} prompt(s) and num_videos_per_prompt={self.num_videos_per_prompt} ask for no "
                "video; expected at least one of each."
            )
        for prompt in prompts:
            if isinstance(prompt, Mapping) and not prompt:
                raise InvalidArgumentError("a prompt is an empty mapping; expected {first frame: text}.")
        return [prompt for prompt in prompts for _ in range(self.num_videos_per_prompt)]

    def _seeds(self, count: int) -> list[int]:
        per_prompt = self.num_videos_per_prompt
        if isinstance(self.generator, Sequence):
            return _of_first_process(list(seeds_from(self.generator, self.seed, count)))
        # Every prompt uses the same seeds s, s + 1, ..., so that prompts can be compared.
        seeds = _of_first_process(list(seeds_from(self.generator, self.seed, per_prompt)))
        return seeds * (count // per_prompt)

    def _negatives(self, count: int) -> list[str]:
        if isinstance(self.negative_prompt, str):
            return [self.negative_prompt] * count
        negatives = [n for n in self.negative_prompt for _ in range(self.num_videos_per_prompt)]
        if len(negatives) != count:
            raise InvalidArgumentError(
                f"{len(self.negative_prompt)} negative prompts were given for "
                f"{count // self.num_videos_per_prompt} prompts; give one, or one for each."
            )
        return negatives

    def _plan(self, strategy: Strategy, num_frames: int) -> Plan:
        count = strategy.codec.latent_frames(num_frames)
        if self.plan is None:
            return strategy.plan(count)
        if self.plan.num_frames != count:
            raise PlanError(
                f"the plan covers {self.plan.num_frames} latent frames; num_frames={num_frames} needs "
                f"{count}. Make the plan for {count} frames, or leave it out."
            )
        strategy.accepts(self.plan)
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

    def _pins(self, strategy: Strategy, request: Request, level: str) -> Canvas:
        pins = Canvas()
        for frame, picture in (self.pins or {}).items():
            if not 0 <= frame < request.num_frames:
                raise InvalidArgumentError(
                    f"pins gives a picture for frame {frame}; expected frames in 0..{request.num_frames - 1}."
                )
            pixels = _pixels(picture, frame, (request.height, request.width)).to(strategy.device)
            latents = strategy.codec.encode(pixels[None, :, None])
            pins[level, frame] = latents[0, :, 0].float().cpu()
        return pins

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


def _of_first_process(seeds: list[int]) -> list[int]:
    """Return the first process's seeds on all of them: each would draw its own where none is given."""
    if not (dist.is_available() and dist.is_initialized()):
        return seeds
    shared = torch.tensor(seeds, device=best_device() if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(shared, 0)
    return [int(seed) for seed in shared]


def digest_of(tensor: Tensor) -> str:
    """Return a digest of all of a tensor's values."""
    values = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
    return hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()


def _positive(name: str, value: float | None, default: float) -> Any:
    value = default if value is None else value
    if value <= 0:
        raise InvalidArgumentError(f"{name} is {value}; expected more than 0.")
    return value


def _span(frames: Sequence[int]) -> str:
    return f"{frames[0]}..{frames[-1]}" if frames else "no frame"


def _pixels(picture: Picture, frame: int, size: tuple[int, int]) -> Tensor:
    """Return ``picture`` as pixels c h w in [-1, 1]."""
    if isinstance(picture, Tensor):
        pixels = picture.float()
        if not picture.is_floating_point() or not (pixels.abs() <= 1).all():
            raise InvalidArgumentError(
                f"the picture for frame {frame} is a tensor of {picture.dtype} with values outside [-1, 1]; "
                "expected floating point in [-1, 1], or a uint8 array (h, w, 3)."
            )
    else:
        array = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
        if array.dtype != np.uint8 or array.ndim != 3:
            raise InvalidArgumentError(
                f"the picture for frame {frame} is an array of {array.dtype} {array.shape}; expected uint8 "
                "(h, w, 3)."
            )
        pixels = torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 127.5 - 1
    if tuple(pixels.shape) != (3, *size):
        raise InvalidArgumentError(
            f"the picture for frame {frame} has shape {tuple(pixels.shape)}; expected (3, {size[0]}, "
            f"{size[1]}), the size of the video. Resize it."
        )
    return pixels
