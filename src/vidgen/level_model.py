"""What answers the calls of one level of a strategy's plans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidgen.conditioning import Conditioning
from vidgen.diffusion import Denoiser, Diffusion, Source, StepCallback
from vidgen.errors import InvalidArgumentError, SchedulerError
from vidgen.noise import Independent, NoiseKey, NoisePrior
from vidgen.plans import Call
from vidgen.request import Canvas, LevelSettings, Request
from vidgen.tensors import Latents

__all__ = ["CallBatch", "LevelModel"]


class LevelModel(ABC):
    """Answers the calls of one level: what its slots are, what a call is told, and how noise becomes latents.

    ``denoising.DenoisingLevel`` is the usual one. A level of your own says ``shape`` and ``condition``, and
    either ``denoise`` (the solver then runs it) or ``answer`` (a network that answers in one pass, or a loop
    of its own). The same object serves all calls of its level, in any order: it keeps nothing of a call.

    Args:
        name: of the level in the strategy's plans.
        diffusion: the noise process that its network is trained on; None for a network without one.
        prior: noise over its frames.
        guidance_scale: default of generations; 1 is no guidance.
        num_inference_steps: default of generations.
        frame_stride: latent frames of the video for each frame of this level: 2 at half the rate.

    Attributes:
        guided_by_text_alone: whether guidance mixes prompts and nothing else, so that it is left out between
            equal prompts. False where an image embedding, say, has a negative counterpart too.
    """

    guided_by_text_alone: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        diffusion: Diffusion | None = None,
        *,
        prior: NoisePrior | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        frame_stride: int = 1,
    ) -> None:
        self.name, self.diffusion = name, diffusion
        self.prior: NoisePrior = Independent() if prior is None else prior
        self.guidance_scale, self.frame_stride = guidance_scale, frame_stride
        self.num_inference_steps = num_inference_steps

    def settings(self) -> LevelSettings:
        """Return how its calls are answered if nothing else is asked for."""
        return LevelSettings(self.diffusion, self.prior, self.num_inference_steps, self.guidance_scale)

    @abstractmethod
    def shape(self, request: Request) -> tuple[int, int, int]:
        """Return ``(c, h, w)`` of one slot of this level."""

    def state_shape(self, state: str, request: Request) -> tuple[int, int, int]:
        """Return ``(c, h, w)`` of a slot of the state level ``state`` that its calls emit."""
        del request
        raise InvalidArgumentError(
            f"a plan has calls of level {self.name!r} that emit the state {state!r}; {type(self).__name__} has "
            "no such state. Override state_shape(), or use a plan without it."
        )

    @abstractmethod
    def condition(self, call: Call, canvas: Canvas, request: Request) -> Conditioning:
        """Return what ``call`` is told, for one video (batch size 1), on any device."""

    def noise(self, call: Call, request: Request, stream: str) -> Tensor:
        """Return the noise ``c f h w`` of the call's frames in ``stream``, on the CPU.

        By default it is the prior's, by absolute frame: the same for a frame whichever call covers it.
        """
        key = NoiseKey(request.seed, stream, self.name)
        return request.levels[self.name].prior.sample(call.frames, self.shape(request), key)

    def denoise(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """Return the guided prediction for ``x_t`` b c f h w at ``t`` (b,), in float32."""
        del x_t, t, cond
        raise InvalidArgumentError(
            f"{type(self).__name__} of level {self.name!r} has no denoise(); override it, or override answer()."
        )

    def answer(self, batch: CallBatch) -> Latents:
        """Return the latents ``b c f h w`` of a batch of calls, in the order of their ``frames``.

        By default the solver runs ``denoise``. A level that does otherwise finds what it needs in ``batch``.
        """
        return batch.solve(self.denoise)

    def evaluations(self, call: Call, solver_evaluations: int) -> int:
        """Return how often ``call`` asks the network, without guidance; by default as often as the solver.

        ``solver_evaluations`` is 1 for a level without a noise process. Override it with ``answer``.
        """
        del call
        return solver_evaluations

    def branches(self, request: Request) -> int:
        """Return how many branches of guidance an evaluation has: 1, or 2 where it is guided."""
        return 2 if request.levels[self.name].guidance_scale != 1 else 1

    def halves(self, call: Call) -> tuple[Call, Call] | None:
        """Return two calls that together make what ``call`` does, or None where its frames need each other.

        The sampler asks where memory is too small for the whole call.
        """
        del call
        return None

    def batch_key(self, call: Call) -> tuple[Any, ...]:
        """Return what two calls of this level must share to be answered in one batch.

        By default: how many frames they have, which of these are given, and how many slots are given besides,
        by level. Calls of equal keys must get conditions of equal structure.
        """
        own = {frame for level, frame in call.given if level == self.name}
        places = tuple(i for i, frame in enumerate(call.frames) if frame in own)
        covered = {(self.name, frame) for frame in call.frames}
        besides = Counter(level for level, frame in call.given if (level, frame) not in covered)
        return (len(call.frames), places, tuple(sorted(besides.items())))


@dataclass(eq=False)
class CallBatch:
    """Calls of one level that are answered together, one for each entry of the batch.

    Args:
        level: whose calls they are.
        calls: one per entry; all have one ``batch_key``.
        requests: of each entry's video. They agree in all but prompts, seed and embeddings.
        cond: the conditions of all of them, on ``device``.
        device: where the networks are.
        latents: start noise ``{frame: c h w}`` that was given, one mapping per entry.
        source: latents that solving starts from, or keeps in part.
        on_step: called after every solver step; what it returns replaces the latents.
    """

    level: LevelModel
    calls: tuple[Call, ...]
    requests: tuple[Request, ...]
    cond: Conditioning
    device: torch.device
    latents: Sequence[dict[int, Tensor]] = ()
    source: Source | None = None
    on_step: StepCallback | None = None
    states: dict[str, Tensor] = field(default_factory=dict)
    steps_taken: int = 0
    _solved: bool = False

    def __len__(self) -> int:
        """Entries of the batch."""
        return len(self.calls)

    @property
    def settings(self) -> LevelSettings:
        """Solver, steps, guidance and prior of the level in this generation."""
        return self.requests[0].levels[self.level.name]

    @property
    def solved(self) -> bool:
        """Whether the solver ran, which is what a source needs."""
        return self._solved

    def noise(self, stream: str = "start") -> Latents:
        """Return the noise ``b c f h w`` of the calls in any stream, on ``device``.

        ``"start"`` is what solving begins with; ``"step-0"``, ``"step-1"``, ... is that of stochastic steps.
        """
        rows = [self.level.noise(c, r, stream) for c, r in zip(self.calls, self.requests, strict=True)]
        if stream == "start":
            for row, call, given in zip(rows, self.calls, self.latents, strict=False):
                for place, frame in enumerate(call.frames):
                    if frame in given:
                        row[:, place] = given[frame].to(row)
        return torch.stack(rows).to(self.device)

    def solve(
        self, denoise: Denoiser, start: Latents | None = None, cond: Conditioning | None = None
    ) -> Latents:
        """Run the level's solver from ``start`` (by default the start noise) to clean latents ``b c f h w``.

        Raises:
            SchedulerError: the level has no noise process.
        """
        settings = self.settings
        if settings.diffusion is None:
            raise SchedulerError(
                f"level {self.level.name!r} has no noise process to solve; give its level model a Diffusion, "
                "or answer in one pass."
            )
        self._solved = True
        return settings.diffusion.solve(
            denoise,
            self.noise("start") if start is None else start,
            self.cond if cond is None else cond,
            num_inference_steps=settings.num_inference_steps,
            step_noise=lambda i: self.noise(f"step-{i}"),
            eta=settings.eta,
            source=self.source,
            on_step=self.step,
        )

    def step(self, index: int, t: Tensor, latents: Latents) -> Latents:
        """Report an evaluation of the network, for progress, callbacks and interruption.

        A loop of the level's own calls it after each one; the solver does by itself.

        Args:
            index: of the evaluation, from 0.
            t: its timestep.
            latents: after it.

        Returns:
            The latents to go on with: a callback may replace them.
        """
        self.steps_taken += 1
        return latents if self.on_step is None else self.on_step(index, t, latents)

    def emit(self, state: str, value: Tensor) -> None:
        """Hand out the slots of a state level: ``value`` b c h w, one for each call, kept for later calls."""
        self.states[state] = value
