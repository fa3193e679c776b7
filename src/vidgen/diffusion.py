"""diffusers' schedulers behind one adapter: noising, training targets and the solver loop.

vidgen writes no scheduler. What it adds is that all noise is handed in, so that a frame prior is
respected from the first noise to the last stochastic step.

A *process* is how data turn into noise: ``"variance_preserving"`` (DDPM and its kin) or ``"flow"``
(flow matching, ``x_t = (1 - sigma) x_0 + sigma eps``). Schedulers are exchangeable within one process.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from vidgen.conditioning import Conditioning
from vidgen.errors import InvalidArgumentError, SchedulerError, UnknownNameError
from vidgen.shapes import Latents

__all__ = ["Denoiser", "Diffusion", "Source", "StepCallback", "scheduler_from_name"]

Process = Literal["variance_preserving", "flow"]
StepCallback = Callable[[int, Tensor, Latents], Latents]
"""``(step index, timestep, latents) -> latents``, called after every solver step."""

_DETERMINISTIC = {
    "DEISMultistepScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
}
_TAKES_NOISE = {"DDIMScheduler", "DDIMParallelScheduler", "DPMSolverMultistepScheduler"}
_CANNOT_PREDICT = {
    "HeunDiscreteScheduler": {"sample"},
    "KDPM2DiscreteScheduler": {"sample"},
    "PNDMScheduler": {"sample"},
}
_SDE = "DPMSolverMultistepScheduler with algorithm_type='sde-dpmsolver++'"
_EQUIVALENT = {
    "DDPMScheduler": "DDIMScheduler with eta=1",
    "DDPMParallelScheduler": "DDIMParallelScheduler with eta=1",
    "EulerAncestralDiscreteScheduler": _SDE,
    "KDPM2AncestralDiscreteScheduler": _SDE,
    "DPMSolverSDEScheduler": _SDE,
    "DPMSolverSinglestepScheduler": "DPMSolverMultistepScheduler",
    "SASolverScheduler": _SDE,
    "CogVideoXDPMScheduler": _SDE,
    "LCMScheduler": "DDIMScheduler with eta=1",
    "TCDScheduler": "DDIMScheduler with eta set to its gamma",
}


Denoiser = Callable[[Latents, Tensor, Conditioning], Latents]
"""A guided network: ``(x_t b c f h w, t (b,), conditions) -> prediction b c f h w``."""


def scheduler_from_name(name: str, config: Any) -> SchedulerMixin:
    """Build diffusers' scheduler ``name`` (``"DDIM"`` or ``"DDIMScheduler"``) from another's ``config``.

    Raises:
        UnknownNameError: diffusers has no such scheduler that vidgen can use.
        SchedulerError: the scheduler draws noise of its own (its equivalent is named).
    """
    known = _DETERMINISTIC | _TAKES_NOISE | set(_EQUIVALENT)
    full = {short: long for long in known for short in _short_names(long)}.get(name, name)
    if full not in known:
        raise UnknownNameError("scheduler", name, {_short_names(long)[1] for long in known})
    # from_config takes fields marked as default from the new class instead; the process must not change.
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    scheduler = getattr(diffusers, full).from_config(plain)
    _check_noise(scheduler)
    return scheduler


def _short_names(name: str) -> tuple[str, str]:
    bare = name.removesuffix("Scheduler")
    return bare, bare.removesuffix("Multistep").removesuffix("Discrete")


def _check_noise(scheduler: Any) -> None:
    """Refuse a scheduler whose step draws noise that cannot be handed in."""
    name = type(scheduler).__name__
    if name in _EQUIVALENT:
        raise SchedulerError(
            f"{name} draws its own noise in step() and cannot be handed the prior's. "
            f"Use {_EQUIVALENT[name]} instead."
        )
    if scheduler.config.get("stochastic_sampling"):
        raise SchedulerError(
            f"{name} with stochastic_sampling=True draws its own noise in step(). "
            "Set stochastic_sampling=False, or use a variance-preserving model with DDIMScheduler."
        )
    if name in _DETERMINISTIC | _TAKES_NOISE:
        return
    arguments = inspect.signature(scheduler.step).parameters
    if "generator" in arguments and "variance_noise" not in arguments:
        raise SchedulerError(
            f"{name}.step() takes a generator but no variance_noise, so it may draw noise that the prior "
            f"does not know. Use one of {', '.join(sorted(_DETERMINISTIC | _TAKES_NOISE))}."
        )


def _process_of(scheduler: Any) -> Process:
    config = scheduler.config
    flow = type(scheduler).__name__.startswith("FlowMatch") or config.get("use_flow_sigmas")
    return "flow" if flow or config.get("prediction_type") == "flow_prediction" else "variance_preserving"


def _prediction_of(scheduler: Any) -> str:
    if _process_of(scheduler) == "flow":
        return "flow_prediction"
    return str(scheduler.config.prediction_type)


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
        _check_noise(scheduler)
        self.scheduler: Any = scheduler
        self.process: Process = _process_of(scheduler)
        if self.process == "variance_preserving" and not hasattr(scheduler, "alphas_cumprod"):
            raise SchedulerError(
                f"{type(scheduler).__name__} has no alphas_cumprod: it is neither variance preserving nor "
                "flow matching. Use a scheduler of one of these two processes, such as DDIMScheduler."
            )
        self.prediction_type: str = _prediction_of(scheduler)
        if self.prediction_type in _CANNOT_PREDICT.get(type(scheduler).__name__, ()):
            raise SchedulerError(
                f"{type(scheduler).__name__} cannot solve for a model that predicts {self.prediction_type!r}. "
                "Use DDIMScheduler, DPMSolverMultistepScheduler or UniPCMultistepScheduler."
            )
        self.num_train_timesteps = int(scheduler.config.num_train_timesteps)

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
        fix = f"Use {name}.from_config(model_scheduler.config) with a solver of the same process."
        if other.process != self.process:
            raise SchedulerError(
                f"{name} solves a {other.process} process; the model was trained on a {self.process} "
                f"process. {fix}"
            )
        if other.prediction_type != self.prediction_type:
            raise SchedulerError(
                f"{name} expects {other.prediction_type}; the model predicts {self.prediction_type}. {fix}"
            )
        if self.process == "variance_preserving" and not _same_schedule(self.scheduler, scheduler):
            raise SchedulerError(f"{name} has another noise schedule than the model's. {fix}")
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

        Raises:
            InvalidArgumentError: ``t`` has another shape.
        """
        if t.ndim not in (1, 2):
            raise InvalidArgumentError(f"timesteps have shape {tuple(t.shape)}; expected (b,) or (b, f).")
        if self.process == "flow":
            noise = t.to(like.device, torch.float32) / self.num_train_timesteps
            signal = 1 - noise
        else:
            alphas = self.scheduler.alphas_cumprod.to(like.device, torch.float32)[t.to(like.device)]
            signal, noise = alphas.sqrt(), (1 - alphas).sqrt()
        shape = (-1, 1, 1, 1, 1) if t.ndim == 1 else (t.shape[0], 1, t.shape[1], 1, 1)
        return Coefficients(signal.reshape(shape).to(like.dtype), noise.reshape(shape).to(like.dtype))

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
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(self._checked_steps(num_inference_steps))
        return len(scheduler.timesteps) - _skipped(scheduler, num_inference_steps, strength)

    def _checked_steps(self, count: int) -> int:
        least = 4 if type(self.scheduler).__name__ == "PNDMScheduler" else 1  # its Runge-Kutta start
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
        if name.startswith("DDIM"):
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
        scheduler = copy.deepcopy(self.scheduler)
        arguments = self._step_arguments(eta)
        scheduler.set_timesteps(self._checked_steps(num_inference_steps), device=start.device)
        skipped = 0 if source is None else _skipped(scheduler, num_inference_steps, source.strength)
        x = start * getattr(scheduler, "init_noise_sigma", 1.0)
        if source is not None and skipped:
            if hasattr(scheduler, "set_begin_index"):  # those that count their steps
                scheduler.set_begin_index(skipped)
            x = _noised_to(scheduler, source.latents.to(x.dtype), start, scheduler.timesteps[skipped])
        for i, t in enumerate(scheduler.timesteps[skipped:]):
            for kept, clean in _kept(cond, source):
                x = torch.where(kept, _noised_to(scheduler, clean.to(x.dtype), start, t), x)
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            prediction = denoise(scaled, t.expand(x.shape[0]), cond)
            if self._is_stochastic(eta):
                arguments["variance_noise"] = step_noise(i)
            x = scheduler.step(prediction, t, x, **arguments, return_dict=False)[0]
            if on_step is not None:
                x = on_step(i, t, x)
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


def _skipped(scheduler: Any, steps: int, strength: float) -> int:
    """Return how many of the scheduler's timesteps ``strength`` leaves out, whole steps only."""
    if not 0 < strength <= 1:
        raise InvalidArgumentError(f"strength is {strength}; expected more than 0 and at most 1.")
    taken = max(1, min(steps, int(steps * strength + 1e-6)))
    if taken < steps and type(scheduler).__name__ == "PNDMScheduler":
        raise SchedulerError(
            f"PNDMScheduler cannot begin in the middle of its steps (strength is {strength}): its start is of "
            "another kind. Use DDIMScheduler, DPMSolverMultistepScheduler or UniPCMultistepScheduler."
        )
    return (steps - taken) * int(getattr(scheduler, "order", 1))


def _same_schedule(one: Any, other: Any) -> bool:
    a, b = getattr(one, "alphas_cumprod", None), getattr(other, "alphas_cumprod", None)
    return a is not None and b is not None and a.shape == b.shape and torch.allclose(a, b)


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


def _noised_to(scheduler: Any, clean: Latents, noise: Latents, t: Tensor) -> Latents:
    """Return ``clean`` noised to ``t``, in the scheduler's own scale."""
    if _process_of(scheduler) == "flow":
        sigma: Tensor = t.to(clean) / scheduler.config.num_train_timesteps
        return clean.lerp(noise, sigma)
    if getattr(scheduler, "sigmas_interpol", None) is not None and not scheduler.state_in_first_order:
        # KDPM2's second evaluation of a step is between two sigmas; its add_noise knows only these.
        between: Tensor = scheduler.sigmas_interpol[scheduler.step_index].to(clean)
        return clean + noise * between
    noised: Tensor = scheduler.add_noise(clean, noise, t.expand(clean.shape[0]))
    return noised
