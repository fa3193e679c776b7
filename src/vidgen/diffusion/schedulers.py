"""Which of diffusers' schedulers can serve, built from names, and the schedules they stand for."""

from __future__ import annotations

import copy
import inspect
from typing import Any, Literal

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from vidgen.errors import SchedulerError, UnknownNameError

__all__ = [
    "Process",
    "checked",
    "finite_alphas",
    "kind_of",
    "names_of",
    "other_schedule",
    "prediction_of",
    "process_of",
    "scheduler_from_name",
    "sigmas_of",
]

Process = Literal["variance_preserving", "flow"]

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
_SUPPORTED = _DETERMINISTIC | _TAKES_NOISE
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
_SCHEDULE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "rescale_betas_zero_snr")
_LEAST_ALPHA = 2.0**-24
"""What diffusers' solvers take for a last cumulative alpha of 0, where their sigma would be infinite."""


def scheduler_from_name(name: str, config: Any) -> SchedulerMixin:
    """Build diffusers' scheduler ``name`` (``"DDIM"`` or ``"DDIMScheduler"``) from another's ``config``.

    Raises:
        UnknownNameError: diffusers has no such scheduler that vidgen can use.
        SchedulerError: the scheduler draws noise of its own (its equivalent is named).
    """
    known = _SUPPORTED | set(_EQUIVALENT)
    full = {short: long for long in known for short in _short_names(long)}.get(name, name)
    if full not in known:
        raise UnknownNameError("scheduler", name, {_short_names(long)[1] for long in known})
    # from_config takes fields marked as default from the new class instead; the process must not change.
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    scheduler = getattr(diffusers, full).from_config(plain | _flow_settings(full, plain))
    _check_noise(scheduler)
    return scheduler


def _short_names(name: str) -> tuple[str, str]:
    bare = name.removesuffix("Scheduler")
    return bare, bare.removesuffix("Multistep").removesuffix("Discrete")


def _flow_settings(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return what makes the class ``name`` solve the flow that ``config`` describes, if it does."""
    shift = config.get("shift", config.get("flow_shift") if config.get("use_flow_sigmas") else None)
    if shift is None:
        return {}
    if name.startswith("FlowMatch"):
        return {"shift": shift}
    if "use_flow_sigmas" not in inspect.signature(getattr(diffusers, name)).parameters:
        return {}
    return {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}


def kind_of(scheduler: Any) -> str:
    """Return the name of diffusers' class that ``scheduler`` is of, or derives from."""
    names = [cls.__name__ for cls in type(scheduler).__mro__]
    return next((name for name in names if name in _SUPPORTED), names[0])


def process_of(scheduler: Any) -> Process:
    """Return which process ``scheduler`` solves."""
    config = scheduler.config
    flow = kind_of(scheduler).startswith("FlowMatch") or config.get("use_flow_sigmas")
    return "flow" if flow or config.get("prediction_type") == "flow_prediction" else "variance_preserving"


def prediction_of(scheduler: Any) -> str:
    """Return what the network of ``scheduler`` predicts."""
    if process_of(scheduler) == "flow":
        return "flow_prediction"
    return str(scheduler.config.prediction_type)


def checked(scheduler: SchedulerMixin) -> Any:
    """Return ``scheduler``, or a copy with the schedule of its configuration where its class forgets it.

    Raises:
        SchedulerError: vidgen cannot use it; the message names another.
    """
    _check_noise(scheduler)
    name, process = type(scheduler).__name__, process_of(scheduler)
    if process == "variance_preserving" and not hasattr(scheduler, "alphas_cumprod"):
        raise SchedulerError(
            f"{name} has no alphas_cumprod: it is neither variance preserving nor "
            "flow matching. Use a scheduler of one of these two processes, such as DDIMScheduler."
        )
    if kind_of(scheduler) not in _SUPPORTED:
        raise SchedulerError(
            f"{name} is none of the solvers that vidgen knows: {names_of(process)}. Use one of them."
        )
    if prediction_of(scheduler) in _CANNOT_PREDICT.get(kind_of(scheduler), ()):
        raise SchedulerError(
            f"{name} cannot solve for a model that predicts {prediction_of(scheduler)!r}. "
            "Use DDIMScheduler, DPMSolverMultistepScheduler or UniPCMultistepScheduler."
        )
    _check_flow(scheduler)
    return _with_zero_snr(scheduler) if process == "variance_preserving" else scheduler


def names_of(process: Process) -> str:
    """Return the solvers of a process, as one text."""
    flow = {"DEISMultistepScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"}
    names = {name for name in _SUPPORTED if name.startswith("FlowMatch") == (process == "flow")}
    return ", ".join(sorted(names | flow))


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
    if kind_of(scheduler) in _SUPPORTED:
        return
    arguments = inspect.signature(scheduler.step).parameters
    if "generator" in arguments and "variance_noise" not in arguments:
        raise SchedulerError(
            f"{name}.step() takes a generator but no variance_noise, so it may draw noise that the prior "
            f"does not know. Use one of {', '.join(sorted(_SUPPORTED))}."
        )


def _check_flow(scheduler: Any) -> None:
    """Refuse settings of flow matching under which a scheduler solves another flow than it was trained on."""
    config, name = scheduler.config, type(scheduler).__name__
    if config.get("invert_sigmas"):
        raise SchedulerError(
            f"{name} with invert_sigmas=True runs from data to noise. Set invert_sigmas=False: sigma is the "
            "share of noise."
        )
    if config.get("use_dynamic_shifting"):
        raise SchedulerError(
            f"{name} with use_dynamic_shifting=True needs a shift (mu) for every size of picture, which a "
            "generation does not give. Set use_dynamic_shifting=False and one shift (flow_shift)."
        )
    if kind_of(scheduler).startswith("FlowMatch"):
        return
    sigmas, prediction = bool(config.get("use_flow_sigmas")), config.get("prediction_type")
    if sigmas != (prediction == "flow_prediction"):
        raise SchedulerError(
            f"{name} has use_flow_sigmas={sigmas} and prediction_type={prediction!r}; a flow needs "
            "use_flow_sigmas=True and prediction_type='flow_prediction', another process neither."
        )


def _with_zero_snr(scheduler: Any) -> Any:
    """Return a copy that ends without signal, if the configuration asks for it and the class does not."""
    alphas = scheduler.alphas_cumprod
    if not scheduler.config.get("rescale_betas_zero_snr") or alphas[-1] == 0:
        return scheduler
    if alphas[-1] != _LEAST_ALPHA:  # the class forgets it
        plain = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        alphas = diffusers.DDIMScheduler.from_config(plain).alphas_cumprod
    fixed = copy.deepcopy(scheduler)
    fixed.alphas_cumprod = finite_alphas(alphas)
    return fixed


def finite_alphas(alphas: Tensor) -> Tensor:
    """Return cumulative alphas that end with some signal, so that all sigmas are finite and rise.

    Where a schedule ends without signal, diffusers takes 2^-24, which can be more than the timestep before has.
    """
    if alphas[-1] not in (0, _LEAST_ALPHA):
        return alphas
    last = torch.minimum(alphas[-2] / 4, alphas.new_tensor(_LEAST_ALPHA))
    return torch.cat([alphas[:-1], last[None]])


def sigmas_of(scheduler: Any) -> Tensor:
    """Return noise over signal at every training timestep of a variance-preserving scheduler, float64."""
    alphas = finite_alphas(scheduler.alphas_cumprod.cpu()).double()
    return ((1 - alphas) / alphas).sqrt()


def other_schedule(wanted: Any, given: Any) -> str | None:
    """Return what makes the noise schedule of ``given`` another one; None where it is the same."""
    a, b = finite_alphas(wanted.alphas_cumprod), finite_alphas(given.alphas_cumprod)
    if a.shape == b.shape and torch.allclose(a, b, rtol=1e-4):
        return None
    pairs = {name: (given.config.get(name), wanted.config.get(name)) for name in _SCHEDULE}
    found = [f"{name}={mine} for {its}" for name, (mine, its) in pairs.items() if mine != its]
    return ", ".join(found) or "its betas"
