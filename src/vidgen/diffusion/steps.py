"""The steps of a solution: diffusers' solvers, where needed with other timesteps and sigmas.

Taken as they come, diffusers' timesteps are wrong in places: a stride that does not divide the schedule, an
offset past its end, one timestep too many, sigmas whose timesteps are rounded, steps of no length. Here every
evaluation has the time whose noise the network's input has, and every step leads to where the next one begins.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidgen.diffusion.schedulers import finite_alphas, kind_of, prediction_of, process_of, sigmas_of
from vidgen.errors import InvalidArgumentError, SchedulerError
from vidgen.tensors import Latents

__all__ = ["Steps", "prepared"]

_Floats = NDArray[np.float64]

_INDEXED = {"DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler"}
_MULTISTEP = {"DEISMultistepScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"}
_TWICE = {"FlowMatchHeunDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"}
_SCALED = {"EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"}
_SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_CORRECTED = {"HeunDiscreteScheduler", "KDPM2DiscreteScheduler"}
_LARGEST_RATIO = 6.0
"""Between the sigmas of a step; beyond it a correction adds more error than it takes."""
_THIRD_ORDER = {"DPMSolverMultistepScheduler", "UniPCMultistepScheduler"}
_LARGEST_SHARE, _LARGEST_THIRD_SHARE, _LEAST_SHARE = 9.0, 5.0, 0.03
"""Of the way that one step may take: so many times an even step's; the last number is never too much."""
_LARGEST_NOISE_RATIO = 10.0
"""Between the first two sigmas of PNDM where the network predicts noise."""
_LARGEST_SNR = 0.5
"""Signal over noise, in power, where a solution may begin from noise alone."""


@dataclass(frozen=True)
class Steps:
    """A scheduler ready for one solution.

    Args:
        scheduler: diffusers', its timesteps set.
        times: of every evaluation of the network, in training timesteps, integer or real.
        labels: the same as the scheduler names them.
        sigmas: noise of every evaluation in the scheduler's own scale; None where it goes by labels alone.
        starts: evaluation with which each whole step begins.
        first_order: evaluations after which a second-order solver goes on without its second one.
    """

    scheduler: Any
    times: Tensor
    labels: Tensor
    sigmas: Tensor | None
    starts: tuple[int, ...]
    first_order: frozenset[int] = field(default_factory=frozenset)

    def __len__(self) -> int:
        """Evaluations of the network."""
        return len(self.times)

    def first(self, strength: float) -> int:
        """Return the first evaluation that ``strength`` leaves, whole steps only.

        Raises:
            InvalidArgumentError: ``strength`` is not in (0, 1].
            SchedulerError: the solver cannot begin in the middle.
        """
        if not 0 < strength <= 1:
            raise InvalidArgumentError(f"strength is {strength}; expected more than 0 and at most 1.")
        whole = len(self.starts)
        taken = max(1, min(whole, int(whole * strength + 1e-6)))
        if taken < whole and kind_of(self.scheduler) == "PNDMScheduler":
            raise SchedulerError(
                f"PNDMScheduler cannot begin in the middle of its steps (strength is {strength}): its start is "
                "of another kind. Use DDIMScheduler, DPMSolverMultistepScheduler or UniPCMultistepScheduler."
            )
        return self.starts[whole - taken]

    def begin(self, evaluation: int) -> None:
        """Let the scheduler count its steps from ``evaluation``: by time it takes the second of equal ones."""
        if self.sigmas is not None:
            self.scheduler.set_begin_index(evaluation)

    def noised(self, clean: Latents, noise: Latents, evaluation: int) -> Latents:
        """Return ``clean`` noised to an evaluation, in the scheduler's own scale."""
        if self.sigmas is None:
            label = self.labels[evaluation].expand(clean.shape[0])
            noised: Tensor = self.scheduler.add_noise(clean, noise, label)
            return noised
        sigma = self.sigmas[evaluation].to(clean)
        if process_of(self.scheduler) == "flow":
            return clean.lerp(noise, sigma)
        if kind_of(self.scheduler) in _SCALED:
            return clean + noise * sigma
        signal = 1 / (sigma**2 + 1).sqrt()
        return signal * clean + sigma * signal * noise

    def scaled(self, x: Latents, evaluation: int) -> Latents:
        """Return ``x`` as the network takes it, of unit variance."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return x
        scaled: Tensor = self.scheduler.scale_model_input(x, self.labels[evaluation])
        return scaled

    def taken(self, prediction: Latents, x: Latents, evaluation: int, **arguments: Any) -> Latents:
        """Return ``x`` after the evaluation that gave ``prediction``."""
        label = self.labels[evaluation]
        following: Tensor = self.scheduler.step(prediction, label, x, **arguments, return_dict=False)[0]
        if evaluation in self.first_order:
            # Heun's and KDPM2's schedulers go on to the next step once they have none to correct.
            self.scheduler.dt = self.scheduler.prev_derivative = self.scheduler.sample = None
        return following


def prepared(scheduler: Any, count: int, device: torch.device | None = None) -> Steps:
    """Return a copy of ``scheduler``, ready for ``count`` steps (fewer where some would have no length).

    Raises:
        SchedulerError: under these settings no solution can be right; the message says what to change.
    """
    own = copy.deepcopy(scheduler)
    steps = _by_label(own, count) if kind_of(own) in _INDEXED else _by_sigma(own, count)
    _check_start(scheduler, float(steps.times[0]), count)
    return Steps(own, steps.times.to(device), steps.labels, steps.sigmas, steps.starts, steps.first_order)


def _by_label(scheduler: Any, count: int) -> Steps:
    """Respace a scheduler that finds the step before by counting back one stride (DDIM, PNDM).

    Its schedule becomes that of the chosen timesteps alone (Nichol & Dhariwal 2021, sec. 4): the stride is 1
    whatever the number of steps.
    """
    config = scheduler.config
    grid = _timesteps(config.timestep_spacing, count, config.num_train_timesteps, config.get("steps_offset", 0))
    points = grid
    if kind_of(scheduler) == "PNDMScheduler" and not config.skip_prk_steps:
        # The Runge-Kutta steps at its start also ask in the middle between two timesteps.
        middles = np.append(grid[1:] - np.diff(grid) // 2, grid[-1])
        points = np.stack([grid, middles], axis=1).flatten()
    sigmas, alphas = sigmas_of(scheduler)[torch.from_numpy(grid[::-1].copy())].numpy(), scheduler.alphas_cumprod
    _check_lengths(scheduler, np.append(sigmas, 0.0))
    if kind_of(scheduler) == "PNDMScheduler":
        _check_noise_ratio(scheduler, sigmas)
        alphas = finite_alphas(alphas)  # it divides by them
    scheduler.alphas_cumprod = alphas[torch.from_numpy(points)]
    scheduler.register_to_config(num_train_timesteps=len(points), timestep_spacing="leading", steps_offset=0)
    scheduler.set_timesteps(len(grid))
    times = torch.from_numpy(points)[scheduler.timesteps]
    return Steps(scheduler, times, scheduler.timesteps, None, tuple(range(len(grid))))


def _check_noise_ratio(scheduler: Any, sigmas: _Floats) -> None:
    """Refuse a first step over which a scheduler that extrapolates the noise would multiply its error."""
    if prediction_of(scheduler) == "epsilon" and sigmas[0] > _LARGEST_NOISE_RATIO * sigmas[1]:
        raise SchedulerError(
            f"{type(scheduler).__name__} extrapolates the predicted noise, and its first step leads from sigma "
            f"{sigmas[0]:.4g} to {sigmas[1]:.4g}: errors grow as much. Use timestep_spacing='leading', "
            "DPMSolverMultistepScheduler or UniPCMultistepScheduler."
        )


def _timesteps(spacing: str, count: int, train: int, offset: int) -> NDArray[np.int64]:
    """Return ``count`` training timesteps, ascending (Lin et al. 2024, table 2); fewer where two are one."""
    if spacing == "linspace":
        found = np.linspace(0, train - 1, count).round()
    elif spacing == "trailing":
        found = np.round(np.arange(train, 0, -train / count))[:count] - 1
    else:
        found = _leading(count, train, offset)
    return np.unique(found.clip(0, train - 1)).astype(np.int64)


def _leading(count: int, train: int, offset: int) -> _Floats:
    """Return ascending leading timesteps; whole strides, as diffusers', where these reach near the noise."""
    stride = float(train // count) if _reaches(count, train) else train / count
    found: _Floats = np.floor(np.arange(count) * stride) + offset
    return found


def _reaches(count: int, train: int) -> bool:
    """Return whether ``count`` whole strides end within two of them below the noise."""
    return train - (count - 1) * (train // count) <= 2 * train / count


def _by_sigma(scheduler: Any, count: int) -> Steps:
    """Set the sigmas of a scheduler that counts its steps, and the time that belongs to each."""
    kind, flow = kind_of(scheduler), process_of(scheduler) == "flow"
    if not flow:
        scheduler.alphas_cumprod = finite_alphas(scheduler.alphas_cumprod)
    scheduler.set_timesteps(count)
    table = None if flow else sigmas_of(scheduler).numpy()
    least = 1 / scheduler.config.num_train_timesteps if table is None else float(table[0])
    sigmas, last = _own_sigmas(scheduler, kind, count)
    if table is not None and scheduler.config.timestep_spacing == "leading" and not _is_spaced(scheduler):
        sigmas = _leading_sigmas(scheduler, kind, count, sigmas, table)
    last = _end(scheduler, kind, last, least)
    sigmas = sigmas[np.append(sigmas[1:], last) < sigmas]  # in steps of no length multistep solvers divide by 0
    _check_sigmas(scheduler, sigmas, table)
    _check_lengths(scheduler, np.append(sigmas, last))
    starts, first_order = tuple(range(len(sigmas))), frozenset[int]()
    if kind in _CORRECTED:
        sigmas, starts, first_order = _corrected(sigmas)
    elif kind == "FlowMatchHeunDiscreteScheduler":
        starts = tuple(range(0, 2 * len(sigmas) - 1, 2))
        sigmas = np.append(sigmas[:1], sigmas[1:].repeat(2))
    scheduler.sigmas = torch.from_numpy(np.append(sigmas, last))
    if kind != "DEISMultistepScheduler" or scheduler.config.solver_order < 3:
        scheduler.sigmas = scheduler.sigmas.float()  # as diffusers'; third differences need more digits
    if kind == "KDPM2DiscreteScheduler":
        sigmas = _set_middles(scheduler, starts, first_order)
    scheduler.timesteps = times = _times(scheduler, sigmas, table)
    return Steps(scheduler, times, times, torch.from_numpy(sigmas), starts, first_order)


def _end(scheduler: Any, kind: str, last: float, least: float) -> float:
    """Return the sigma at which the last step ends, and choose the order in which it gets there.

    Args:
        scheduler: its configuration is changed where the last step needs another order.
        kind: its class.
        last: as diffusers has it.
        least: the smallest that the network was trained on.
    """
    config = scheduler.config
    if kind == "DPMSolverMultistepScheduler" and last > 0:
        scheduler.register_to_config(euler_at_final=True)  # a long way: two steps do not tell how it goes on
    if kind == "UniPCMultistepScheduler" and config.solver_type == "bh1" and last == 0:
        return least  # at 0 its coefficients are infinite
    if kind == "UniPCMultistepScheduler" and last == 0:
        scheduler.register_to_config(lower_order_final=True)
    return min(last, least)  # of a flow some end where their last step begins, or above it


def _is_spaced(scheduler: Any) -> bool:
    return any(scheduler.config.get(name) for name in _SPACED)


def _own_sigmas(scheduler: Any, kind: str, count: int) -> tuple[_Floats, float]:
    """Return the sigma at which each of diffusers' steps begins, and the one at which the last ends.

    Rounding can give its trailing timesteps one more than ``count``.
    """
    sigmas, evaluations = scheduler.sigmas.cpu().double().numpy(), len(scheduler.timesteps)
    if kind in _TWICE:  # two of each but the first
        return sigmas[::2][: min(count, (evaluations + 1) // 2)], 0.0
    return sigmas[: min(count, evaluations)], float(sigmas[evaluations])


def _leading_sigmas(scheduler: Any, kind: str, count: int, sigmas: _Floats, table: _Floats) -> _Floats:
    """Return ``sigmas``, or those of strides that are not whole where they begin far below the noise."""
    train, skipped = len(table), int(kind in _MULTISTEP)  # these do not stop at the first timestep
    if _reaches(count + skipped, train):
        return sigmas
    found = _leading(count + skipped, train, scheduler.config.get("steps_offset", 0))[skipped:]
    return np.interp(found[::-1], np.arange(train), table).astype(np.float64)


def _corrected(sigmas: _Floats) -> tuple[_Floats, tuple[int, ...], frozenset[int]]:
    """Return where a solver that corrects its steps asks the network.

    Returns:
        The sigma of every evaluation, those with which steps begin, and those that no second one corrects.

    The correction grows with the ratio of a step's sigmas: where a cosine schedule leads from 20,000 to 13 in
    one step, it would be hundreds of times the change of the clean estimate. Such steps stay in first order.
    """
    evaluated: list[float] = []
    starts, first_order = [], []
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        starts.append(len(evaluated))
        evaluated.append(sigma)
        if sigma <= _LARGEST_RATIO * following:
            evaluated.append(following)
        else:
            first_order.append(starts[-1])
    return np.array(evaluated), tuple(starts), frozenset(first_order)


def _set_middles(scheduler: Any, starts: tuple[int, ...], first_order: frozenset[int]) -> _Floats:
    """Write the sigmas to which KDPM2's steps go first, their middles; return that of every evaluation."""
    sigmas: Tensor = scheduler.sigmas
    # As diffusers has it, to the bit: the geometric mean.
    middles = sigmas[1:].log().lerp(sigmas[:-1].log(), 0.5).exp()
    evaluated, reached = sigmas.clone(), sigmas.clone()
    for start in starts:
        if start not in first_order:
            evaluated[start + 1] = reached[start + 1] = middles[start]
    scheduler.sigmas_interpol = reached
    return evaluated[:-1].double().numpy()


def _check_sigmas(scheduler: Any, sigmas: _Floats, table: _Floats | None) -> None:
    """Refuse sigmas that the network was not trained on."""
    name = type(scheduler).__name__
    if len(sigmas) == 0 or not np.isfinite(sigmas).all():
        raise SchedulerError(
            f"{name} finds no steps to take with these settings: {_settings(scheduler)}. Ask for more steps, "
            "or leave these settings out."
        )
    low, high = (0.0, 1.0) if table is None else (float(table[0]), float(table[-1]))
    if sigmas.max() > high * 1.01 or sigmas.min() < low * 0.99:
        raise SchedulerError(
            f"{name} has sigmas from {sigmas.max():.4g} to {sigmas.min():.4g}; the model was trained on "
            f"{high:.4g} to {low:.4g}. Leave sigma_max, sigma_min and what spaces sigmas "
            f"({', '.join(name for name in _SPACED)}) out, or stay within."
        )


def _check_lengths(scheduler: Any, sigmas: _Floats) -> None:
    """Refuse steps of which one takes most of the way, and an order that steps so uneven do not bear.

    The way is an angle, whose tangent is noise over signal: a quarter turn from noise to data.
    """
    flow = process_of(scheduler) == "flow"
    angles = np.arctan2(sigmas, 1 - sigmas if flow else 1.0)
    share, count = float((angles[:-1] - angles[1:]).max() / (np.pi / 2)), len(sigmas) - 1
    name = f"{type(scheduler).__name__} with {_settings(scheduler)}"
    if count > 1 and share > max(min(_LARGEST_SHARE / count, 0.9), _LEAST_SHARE):
        raise SchedulerError(
            f"{name} takes {share:.0%} of the way from noise to data in one of {count} steps: the others "
            "hardly count. Leave out what spaces the sigmas, such as use_beta_sigmas, or a large shift; "
            "timestep_spacing='trailing' is even."
        )
    third = kind_of(scheduler) in _THIRD_ORDER and scheduler.config.solver_order > 2
    if third and share > max(_LARGEST_THIRD_SHARE / count, 0.3):
        raise SchedulerError(
            f"{name} has solver_order={scheduler.config.solver_order} and takes {share:.0%} of the way from "
            f"noise to data in one of {count} steps: it overshoots. Use solver_order=2, more steps, or "
            "timestep_spacing='trailing' alone."
        )


def _times(scheduler: Any, sigmas: _Floats, table: _Floats | None) -> Tensor:
    """Return the training time of every evaluation: diffusers' own where its noise is right, else real ones."""
    own: Tensor = scheduler.timesteps.cpu()
    train = scheduler.config.num_train_timesteps
    if table is None:
        times, found = sigmas * train, own.double().numpy() / train
    else:
        # Between two timesteps sigma is linear, as in the sigmas of diffusers and in Diffusion.coefficients.
        times, found = np.interp(sigmas, table, np.arange(train)), np.interp(own, np.arange(train), table)
    inside = len(own) == len(sigmas) and own.min() >= 0 and own.max() <= (train if table is None else train - 1)
    if inside and np.allclose(found, sigmas, rtol=1e-4, atol=0):
        return own
    return torch.from_numpy(times).float()


def _settings(scheduler: Any) -> str:
    names = ("timestep_spacing", *_SPACED, "final_sigmas_type", "shift", "flow_shift", "shift_terminal")
    set_ = {name: scheduler.config.get(name) for name in names}
    return ", ".join(f"{name}={value!r}" for name, value in set_.items() if value)


def _check_start(scheduler: Any, time: float, count: int) -> None:
    """Refuse to begin from noise alone where the network was trained on more than noise, or on nothing else."""
    name, train = type(scheduler).__name__, scheduler.config.num_train_timesteps
    if process_of(scheduler) == "flow":
        sigma = time / (train - time) if time < train else np.inf
    else:
        sigma = np.interp(time, np.arange(train), sigmas_of(scheduler).numpy())
    if sigma**-2 > _LARGEST_SNR:
        raise SchedulerError(
            f"{name} with {_settings(scheduler)} begins {count} steps at timestep {time:.0f} of {train}, where "
            f"the signal-to-noise ratio is {sigma**-2:.2g}: there is more than noise to begin with. Use "
            "timestep_spacing='trailing', or more steps."
        )
    zero = process_of(scheduler) != "flow" and (
        scheduler.config.get("rescale_betas_zero_snr") or scheduler.alphas_cumprod[-1] == 0
    )
    if zero and prediction_of(scheduler) == "epsilon" and time > train - 2:
        raise SchedulerError(
            f"{name} begins where the schedule has no signal (rescale_betas_zero_snr), and the model predicts "
            "the noise: from it no clean latents follow there. Use timestep_spacing='leading', or train with "
            "prediction_type='v_prediction' or 'sample'."
        )
