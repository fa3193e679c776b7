"""The noise process of a model: noising, training targets and the loop over a solver's steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from vidgen.conditioning import Conditioning
from vidgen.diffusion.schedulers import (
    Process,
    checked,
    kind_of,
    names_of,
    other_schedule,
    prediction_of,
    process_of,
    scheduler_from_name,
    sigmas_of,
)
from vidgen.diffusion.steps import prepared
from vidgen.errors import InvalidArgumentError, SchedulerError
from vidgen.tensors import Latents

__all__ = ["CLEAN", "Denoiser", "Diffusion", "Source", "StepCallback"]

CLEAN = -1
"""The timestep of frames without noise, where times are per frame (b f)."""

StepCallback = Callable[[int, Tensor, Latents], Latents]
"""``(step index, timestep, latents) -> latents``, called after every solver step."""

Denoiser = Callable[[Latents, Tensor, Conditioning], Latents]
"""A guided network: ``(x_t b c f h w, t (b,), conditions) -> prediction b c f h w``."""


@dataclass(frozen=True)
class Coefficients:
    """``x_t = signal x_0 + noise eps``, each broadcastable to ``b c f h w``."""

    signal: Tensor
    noise: Tensor


class Diffusion:
    """One scheduler of diffusers as vidgen uses it.

    Args:
        scheduler: a diffusers scheduler; never modified (``solve`` works on a copy).

    Raises:
        SchedulerError: the scheduler draws noise that cannot be handed in.
    """

    def __init__(self, scheduler: SchedulerMixin) -> None:
        self.scheduler: Any = checked(scheduler)
        self.process: Process = process_of(self.scheduler)
        self.prediction_type: str = prediction_of(self.scheduler)
        self.num_train_timesteps = int(self.scheduler.config.num_train_timesteps)

    def exchange(self, scheduler: SchedulerMixin | str) -> Diffusion:
        """Return this process under another solver (a scheduler, or its name).

        Raises:
            SchedulerError: the other scheduler describes another process, prediction type or noise
                schedule than the model was trained with.
            UnknownNameError: no such scheduler.
        """
        if isinstance(scheduler, str):
            scheduler = scheduler_from_name(scheduler, self.scheduler.config)
        other = Diffusion(scheduler)
        name = type(scheduler).__name__
        fix = (
            f"Give the name of one of {names_of(self.process)}; or build one by "
            "CLASS.from_config(sampler.scheduler.config), with those settings that it does not take from there."
        )
        if other.process != self.process:
            raise SchedulerError(
                f"{name} solves a {other.process} process; the model was trained on a {self.process} "
                f"process. {fix}"
            )
        if other.prediction_type != self.prediction_type:
            raise SchedulerError(
                f"{name} expects {other.prediction_type}; the model predicts {self.prediction_type}. {fix}"
            )
        if self.process == "variance_preserving" and (found := other_schedule(self.scheduler, other.scheduler)):
            raise SchedulerError(f"{name} has another noise schedule than the model's: {found}. {fix}")
        if other.num_train_timesteps != self.num_train_timesteps:
            raise SchedulerError(
                f"{name} has num_train_timesteps={other.num_train_timesteps}; the model knows the times "
                f"0 to {self.num_train_timesteps}. {fix}"
            )
        return other

    def sample_timesteps(self, uniform: Tensor, noise_bias: float = 0.0) -> Tensor:
        """Turn ``uniform`` numbers in [0, 1) into training timesteps (integer, or real for a flow).

        Their density grows with the ``noise_bias``-th power of the timestep: above 0, noisy ones are seen more
        often.
        """
        power = 1 / (1 + noise_bias)
        if self.process == "flow":
            return (1 - uniform) ** power * self.num_train_timesteps
        return (uniform**power * self.num_train_timesteps).long()

    def coefficients(self, t: Tensor, like: Tensor) -> Coefficients:
        """Return signal and noise coefficients at ``t`` of shape (b,) or (b, f), for ``like`` b c f h w.

        ``CLEAN`` (-1) is the time of what has no noise: signal 1 and noise 0, in every process.

        Raises:
            InvalidArgumentError: ``t`` has another shape, or a real one lies outside the schedule.
        """
        if t.ndim not in (1, 2):
            raise InvalidArgumentError(f"timesteps have shape {tuple(t.shape)}; expected (b,) or (b, f).")
        clean = (t == CLEAN).to(like.device)
        t = t.masked_fill(t == CLEAN, 0)
        if self.process == "flow":
            noise = t.to(like.device, torch.float32) / self.num_train_timesteps
            signal = 1 - noise
        else:
            alphas = self._alphas(t).to(like.device, torch.float32)
            signal, noise = alphas.sqrt(), (1 - alphas).sqrt()
        signal, noise = signal.masked_fill(clean, 1.0), noise.masked_fill(clean, 0.0)
        shape = (-1, 1, 1, 1, 1) if t.ndim == 1 else (t.shape[0], 1, t.shape[1], 1, 1)
        return Coefficients(signal.reshape(shape).to(like.dtype), noise.reshape(shape).to(like.dtype))

    def _alphas(self, t: Tensor) -> Tensor:
        """Return cumulative alphas; between two timesteps sigma is linear, as in diffusers' solvers."""
        table: Tensor = self.scheduler.alphas_cumprod
        if not t.is_floating_point():
            return table.to(t.device)[t]
        t, last = t.cpu().double(), len(table) - 1
        if not bool(((t >= 0) & (t <= last)).all()):
            raise InvalidArgumentError(f"timesteps are {t.tolist()}; expected 0 to {last}.")
        low = t.floor().long()
        sigmas = sigmas_of(self.scheduler)
        sigma = sigmas[low].lerp(sigmas[t.ceil().long()], t - low)
        return torch.where(t == low, table.cpu().double()[low], 1 / (1 + sigma**2))

    def noised(self, clean: Latents, noise: Latents, t: Tensor) -> Latents:
        """Return ``x_t`` of ``clean`` at training timesteps ``t`` (b,) or (b, f)."""
        k = self.coefficients(t, clean)
        return k.signal * clean + k.noise * noise  # DDPM eq. 4; flow matching: (1-s) x + s eps

    def target(self, clean: Latents, noise: Latents, t: Tensor) -> Latents:
        """Return what the network should predict at ``t``, in the scheduler's prediction type."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        if self.prediction_type == "flow_prediction":
            return noise - clean  # d x_t / d sigma
        k = self.coefficients(t, clean)
        return k.signal * noise - k.noise * clean  # v, Salimans & Ho 2022 eq. 11

    def clean_estimate(self, prediction: Latents, x_t: Latents, t: Tensor) -> Latents:
        """Return the estimate of the clean latents that ``prediction`` at ``x_t`` implies."""
        if self.prediction_type == "sample":
            return prediction
        k = self.coefficients(t, x_t)
        if self.prediction_type == "epsilon":
            return (x_t - k.noise * prediction) / k.signal
        if self.prediction_type == "flow_prediction":
            return x_t - k.noise * prediction
        return k.signal * x_t - k.noise * prediction

    def min_snr_weight(self, t: Tensor, like: Tensor, gamma: float) -> Tensor:
        """Return the loss weight at ``t``, broadcastable to ``like`` b c f h w (Hang et al. 2023, sec. 3.4).

        In terms of the clean latents it is ``min(SNR, gamma)``; for the other prediction types it is the
        same objective, divided by what their error counts in terms of the clean latents.
        """
        k = self.coefficients(t, like)
        snr = (k.signal / k.noise.clamp_min(1e-6)) ** 2
        capped = snr.clamp_max(gamma)
        if self.prediction_type == "sample":
            return capped
        if self.prediction_type == "epsilon":
            return capped / snr.clamp_min(1e-6)
        if self.prediction_type == "flow_prediction":
            return capped * k.noise**2  # x_0 error = sigma times flow error
        return capped / (snr + 1)

    def num_evaluations(self, num_inference_steps: int, strength: float = 1.0) -> int:
        """Return how often the solver asks the denoiser (second-order solvers ask more than once a step)."""
        steps = prepared(self.scheduler, self._checked_steps(num_inference_steps))
        return len(steps) - steps.first(strength)

    def _checked_steps(self, count: int) -> int:
        least = 4 if kind_of(self.scheduler) == "PNDMScheduler" else 1  # its Runge-Kutta start
        if not least <= count <= self.num_train_timesteps:
            raise InvalidArgumentError(
                f"num_inference_steps is {count}; expected {least} to {self.num_train_timesteps}, the steps of "
                "the model's noise schedule."
            )
        return count

    def _step_arguments(self, eta: float) -> dict[str, Any]:
        name, config = type(self.scheduler).__name__, self.scheduler.config
        if not 0 <= eta <= 1:
            raise InvalidArgumentError(f"eta is {eta}; expected a value in [0, 1].")
        if kind_of(self.scheduler).startswith("DDIM"):
            # At 1 rounding can make the rest of the variance negative, and its root no number.
            eta = min(eta, 1 - 1e-6)
            # A clipped x_0 estimate needs its noise recomputed, or the two no longer add up to x_t.
            return {"eta": eta, "use_clipped_model_output": bool(config.get("clip_sample"))}
        if eta:
            raise SchedulerError(f"{name} knows no eta ({eta} was given). Use DDIMScheduler, or eta=0.")
        return {}

    def _is_stochastic(self, eta: float) -> bool:
        return eta > 0 or str(self.scheduler.config.get("algorithm_type", "")).startswith("sde")

    def solve(
        self,
        denoise: Denoiser,
        start: Latents,
        cond: Conditioning,
        *,
        num_inference_steps: int,
        step_noise: Callable[[int], Latents],
        eta: float = 0.0,
        source: Source | None = None,
        on_step: StepCallback | None = None,
    ) -> Latents:
        """Turn noise into latents.

        Args:
            denoise: the guided network.
            start: unit-variance noise, ``b c f h w``; also the noise of frames given to the replacement
                method, so that their path is the one the solver would take to them.
            cond: conditions; its known frames come back exactly as given.
            num_inference_steps: solver steps, at least 1.
            step_noise: the prior's noise for step ``i``; asked for by stochastic solvers only.
            eta: DDIM's share of fresh noise in [0, 1].
            source: latents to start from or to keep in part.
            on_step: called after every step; what it returns replaces the latents.
        """
        arguments = self._step_arguments(eta)
        steps = prepared(self.scheduler, self._checked_steps(num_inference_steps), start.device)
        first = 0 if source is None else steps.first(source.strength)
        steps.begin(first)
        x = start * getattr(steps.scheduler, "init_noise_sigma", 1.0)
        if source is not None and first:
            x = steps.noised(source.latents.to(x.dtype), start, first)
        for i in range(first, len(steps)):
            for kept, clean in _kept(cond, source):
                x = torch.where(kept, steps.noised(clean.to(x.dtype), start, i), x)
            t = steps.times[i]
            prediction = denoise(steps.scaled(x, i), t.expand(x.shape[0]), cond)
            if self._is_stochastic(eta):
                arguments["variance_noise"] = step_noise(i - first)
            x = steps.taken(prediction, x, i, **arguments)
            if on_step is not None:
                x = on_step(i - first, t, x)
        return _with_known(x, cond, source)


@dataclass(frozen=True)
class Source:
    """Latents that a solution starts from, or keeps in part.

    Args:
        latents: clean latents ``b c f h w``, the same shape as the start noise.
        kept: ``b 1 f h w``, True where they stay as they are: overwritten by their noised selves before
            every step (Lugmayr et al. 2022, RePaint, eq. 8, without its resampling); None keeps nothing.
        strength: in (0, 1]: share of the steps that are taken, from the latents noised to where these begin
            (Meng et al. 2022, SDEdit, algorithm 1); 1 starts from noise alone.
    """

    latents: Latents
    kept: Tensor | None = None
    strength: float = 1.0


def _with_known(x: Latents, cond: Conditioning, source: Source | None) -> Latents:
    if cond.known is not None and cond.clean is not None:
        x = torch.where(cond.known[:, None, :, None, None], cond.clean.to(x.dtype), x)
    if source is not None and source.kept is not None:
        x = torch.where(source.kept, source.latents.to(x.dtype), x)
    return x


def _kept(cond: Conditioning, source: Source | None) -> list[tuple[Tensor, Tensor]]:
    """Return (mask, latents) of what the solver itself holds in place at every step."""
    kept: list[tuple[Tensor, Tensor]] = []
    if source is not None and source.kept is not None:
        kept.append((source.kept, source.latents))
    if cond.replace and cond.known is not None and cond.clean is not None:
        # Video Diffusion Models sec. 3.1
        kept.append((cond.known[:, None, :, None, None], cond.clean))
    return kept
