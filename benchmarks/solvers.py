"""Every solver on data whose denoiser is known exactly: does it reach their mean and deviation?

Run ``python benchmarks/solvers.py --out benchmarks/results/solvers.json``. The data are Gaussian, so a solver
maps noise to data by an affine function: two start values tell its mean and deviation without sampling error,
and one impulse per step those of a stochastic solver. Each cell is a solver under a noise schedule, a spacing
of its steps, a prediction type and a number of steps. It is right within a tolerance that falls with the number
of steps, or refused with a message.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import record
import torch
from diffusers.utils import is_scipy_available
from torch import Tensor

from vidgen.conditioning import Conditioning
from vidgen.diffusion import Diffusion
from vidgen.errors import VidgenError

MEAN, STD = 0.7, 0.5
COUNTS = (2, 3, 5, 10, 20, 30, 61, 100)  # of 61, diffusers' trailing spacing gives one too many
LONG_COUNTS = (150, 600, 1000)  # of 600, whole leading strides would begin at timestep 599
LONG_SCHEDULES = ("squaredcos_cap_v2", "scaled_linear, zero SNR", "flow")

# Solver: its class, its own settings, its eta.
SOLVERS: dict[str, tuple[str, dict[str, Any], float]] = {
    "DDIM": ("DDIM", {}, 0.0),
    "DDIM, eta=1": ("DDIM", {}, 1.0),
    "DPM++ 1": ("DPMSolverMultistep", {"solver_order": 1}, 0.0),
    "DPM++ 2M": ("DPMSolverMultistep", {}, 0.0),
    "DPM++ 2M, heun": ("DPMSolverMultistep", {"solver_type": "heun"}, 0.0),
    "DPM++ 3M": ("DPMSolverMultistep", {"solver_order": 3}, 0.0),
    "SDE-DPM++ 1": ("DPMSolverMultistep", {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}, 0.0),
    "SDE-DPM++ 2M": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, 0.0),
    "UniPC": ("UniPCMultistep", {}, 0.0),
    "UniPC 3, bh1": ("UniPCMultistep", {"solver_order": 3, "solver_type": "bh1"}, 0.0),
    "DEIS": ("DEISMultistep", {}, 0.0),
    "DEIS 3": ("DEISMultistep", {"solver_order": 3}, 0.0),
    "Euler": ("EulerDiscrete", {}, 0.0),
    "Heun": ("HeunDiscrete", {}, 0.0),
    "KDPM2": ("KDPM2Discrete", {}, 0.0),
    "PNDM": ("PNDM", {}, 0.0),
    "PNDM, no Runge-Kutta": ("PNDM", {"skip_prk_steps": True}, 0.0),
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"trained_betas": diffusers.DDPMScheduler(beta_schedule="sigmoid").betas.tolist()},
    "linear, zero SNR": {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
    "scaled_linear, zero SNR": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "rescale_betas_zero_snr": True,
    },
}
SPACINGS: dict[str, dict[str, Any]] = {
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "leading + 1": {"timestep_spacing": "leading", "steps_offset": 1},
    "trailing to sigma_min": {"timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"},
    "Karras": {"timestep_spacing": "trailing", "use_karras_sigmas": True},
    "Karras to sigma_min": {
        "timestep_spacing": "trailing",
        "use_karras_sigmas": True,
        "final_sigmas_type": "sigma_min",
    },
    "exponential": {"timestep_spacing": "trailing", "use_exponential_sigmas": True},
    "beta": {"timestep_spacing": "trailing", "use_beta_sigmas": True},
    "Lu": {"timestep_spacing": "trailing", "use_lu_lambdas": True},
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
FLOW_SOLVERS = {
    "Flow Euler": ("FlowMatchEulerDiscrete", {}, 0.0),
    "Flow Heun": ("FlowMatchHeunDiscrete", {}, 0.0),
    **{name: entry for name, entry in SOLVERS.items() if "Multistep" in entry[0]},
}
FLOW_SPACINGS: dict[str, dict[str, Any]] = {
    "shift 1": {"shift": 1.0},
    "shift 3": {"shift": 3.0},
    "Karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "to sigma_min": {"final_sigmas_type": "sigma_min"},
}


@dataclass(frozen=True)
class Cell:
    """What is measured.

    Args:
        solver, schedule, spacing: names in the tables above; a ``schedule`` of ``"flow"`` is flow matching.
        prediction: prediction type of the network.
    """

    solver: str
    schedule: str
    spacing: str
    prediction: str

    def diffusion(self) -> Diffusion:
        """Return the model's process under the cell's solver.

        Raises:
            SchedulerError: it is refused.
        """
        if self.schedule == "flow":
            name, own, _ = FLOW_SOLVERS[self.solver]
            spacing = FLOW_SPACINGS[self.spacing]
            shift = spacing.get("shift", 1.0)
            model = Diffusion(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift))
            settings = {**own, **{key: value for key, value in spacing.items() if key != "shift"}}
            if not name.startswith("FlowMatch"):
                settings |= {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": self.prediction}
            else:
                settings["shift"] = shift
        else:
            name, own, _ = SOLVERS[self.solver]
            schedule = {**SCHEDULES[self.schedule], "prediction_type": self.prediction, "clip_sample": False}
            model = Diffusion(diffusers.DDIMScheduler(**schedule))
            settings = {**model.scheduler.config, **own, **SPACINGS[self.spacing]}
        plain = {key: value for key, value in settings.items() if not key.startswith("_")}
        return model.exchange(getattr(diffusers, f"{name}Scheduler").from_config(plain))

    @property
    def eta(self) -> float:
        return (FLOW_SOLVERS if self.schedule == "flow" else SOLVERS)[self.solver][2]

    @property
    def stochastic(self) -> bool:
        return self.eta > 0 or self.solver.startswith("SDE")

    @property
    def exists(self) -> bool:
        """Whether diffusers' class knows the spacing; elsewhere it would be another cell again."""
        flow = self.schedule == "flow"
        name = (FLOW_SOLVERS if flow else SOLVERS)[self.solver][0]
        known = inspect.signature(getattr(diffusers, f"{name}Scheduler")).parameters
        spacing = (FLOW_SPACINGS if flow else SPACINGS)[self.spacing]
        if "use_beta_sigmas" in spacing and not is_scipy_available():
            return False
        return all(key in known for key in spacing if key != "shift")


def cells() -> Iterator[Cell]:
    """Yield all cells."""
    for names in itertools.product(SOLVERS, SCHEDULES, SPACINGS, PREDICTIONS):
        if (cell := Cell(*names)).exists:
            yield cell
    for solver, spacing in itertools.product(FLOW_SOLVERS, FLOW_SPACINGS):
        if (cell := Cell(solver, "flow", spacing, "flow_prediction")).exists:
            yield cell


def exact(model: Diffusion) -> Any:
    """Return the network that predicts exactly what data of one mean and deviation imply."""

    whole = torch.arange(model.num_train_timesteps)
    table = model.coefficients(whole, torch.zeros(1, dtype=torch.float64))
    known = list(zip(table.signal.flatten().tolist(), table.noise.flatten().tolist(), strict=True))

    def coefficients(t: float) -> tuple[float, float]:
        if t.is_integer() and t < len(known):
            return known[int(t)]
        k = model.coefficients(torch.tensor([t]), torch.zeros(1, dtype=torch.float64))
        return float(k.signal), float(k.noise)

    def denoise(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        del cond
        signal, noise = coefficients(float(t[0]))
        x = x.double()
        clean = MEAN + STD**2 * signal / (STD**2 * signal**2 + noise**2) * (x - signal * MEAN)
        if model.prediction_type == "sample":
            return clean.float()
        eps = (x - signal * clean) / noise
        if model.prediction_type == "epsilon":
            return eps.float()
        if model.prediction_type == "flow_prediction":
            return (eps - clean).float()
        return (signal * eps - noise * clean).float()

    return denoise


def moments(model: Diffusion, count: int, eta: float = 0.0) -> tuple[float, float]:
    """Return mean and deviation of what ``count`` steps make of standard normal noise."""
    evaluations = model.num_evaluations(count)
    # Element 0 starts from 0, element 1 from 1; each of the others has one step's noise alone.
    start = torch.zeros(1, 1, 1, 1, 2 + evaluations)
    start[..., 1] = 1.0

    def impulse(step: int) -> Tensor:
        noise = torch.zeros_like(start)
        noise[..., 2 + step] = 1.0
        return noise

    options: dict[str, Any] = {"num_inference_steps": count, "step_noise": impulse, "eta": eta}
    out = model.solve(exact(model), start, Conditioning(), **options).flatten().double()
    return float(out[0]), float(((out[1:] - out[0]) ** 2).sum().sqrt())


def expected(model: Diffusion, stochastic: bool) -> tuple[float, float]:
    """Return mean and deviation of a perfect solution.

    A schedule that ends with some signal has its own share: there noise alone is not quite where data go.
    """
    if stochastic:
        return MEAN, STD
    last = model.num_train_timesteps - (0 if model.process == "flow" else 1)
    k = model.coefficients(torch.tensor([last]), torch.zeros(1, dtype=torch.float64))
    deviation = float((STD**2 * k.signal**2 + k.noise**2).sqrt())
    return MEAN - STD * float(k.signal) * MEAN / deviation, STD / deviation


def error(cell: Cell, count: int, model: Diffusion | None = None) -> float:
    """Return the largest error of mean and deviation.

    Raises:
        SchedulerError, InvalidArgumentError: the cell is refused.
    """
    model = cell.diffusion() if model is None else model
    found = moments(model, count, cell.eta)
    right = expected(model, cell.stochastic)
    return max(abs(a - b) for a, b in zip(found, right, strict=True))


def tolerance(cell: Cell, count: int) -> float:
    """Return the error that ``count`` steps may leave: that of a first-order solver, whatever the spacing."""
    return 0.01 + (8 if cell.stochastic else 4) / count


def counts(cell: Cell) -> tuple[int, ...]:
    """Return the numbers of steps of a cell: all of them where it does not repeat what another cell shows."""
    if cell.prediction in ("epsilon", "sample"):
        return COUNTS[1::3]
    long = LONG_COUNTS if cell.spacing.startswith("leading") else LONG_COUNTS[::2]
    return COUNTS + long if cell.schedule in LONG_SCHEDULES else COUNTS


def measure(cell: Cell) -> tuple[dict[int, float], dict[int, str]]:
    """Return errors, and why others are refused, by number of steps."""
    errors, refused = {}, {}
    try:
        model = cell.diffusion()
    except VidgenError as error_:
        return {}, dict.fromkeys(counts(cell), str(error_))
    for count in counts(cell):
        try:
            errors[count] = error(cell, count, model)
        except VidgenError as error_:
            refused[count] = str(error_)
    return errors, refused


def wrong(cell: Cell, errors: dict[int, float]) -> list[int]:
    """Return the numbers of steps that come out wrong; what is no number is wrong."""
    return [count for count, found in errors.items() if not found <= tolerance(cell, count)]


def kind(message: str) -> str:
    """Return a message without what differs from cell to cell: its class, and all numbers."""
    return re.sub(r"[0-9.]*[0-9]", "N", re.sub(r"^\w+Scheduler", "X", message)).split(". ")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON record goes; else printed")
    parser.add_argument("--solver", choices=[*SOLVERS, *FLOW_SOLVERS], help="this one alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of versions to come
    totals: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    table: dict[str, Any] = {}
    faults = []
    for cell in cells():
        if args.solver not in (None, cell.solver):
            continue
        errors, refused = measure(cell)
        bad = wrong(cell, errors)
        faults += [f"{cell}: {count} steps, {errors[count]}" for count in bad]
        totals.update(right=len(errors) - len(bad), refused=len(refused), wrong=len(bad))
        reasons.update(kind(message) for message in refused.values())
        row = " ".join(
            f"{count}:{errors[count]:.4f}" if count in errors else f"{count}:-" for count in counts(cell)
        )
        spacings = table.setdefault(cell.solver, {}).setdefault(cell.schedule, {})
        spacings.setdefault(cell.spacing, {})[cell.prediction] = row if errors else "-"
    result = record.header(
        "solvers", record.cpu(), "float32", torch=torch.__version__, diffusers=diffusers.__version__
    )
    result |= {
        "data": f"N({MEAN}, {STD}^2), exact denoiser",
        "tolerance": "0.01 + 4 / steps; 0.01 + 8 / steps of a stochastic solver",
        "cells": dict(totals),
        "faults": faults,
        "refused": dict(reasons.most_common()),
        "errors": table,
    }
    record.write(result, args.out)


if __name__ == "__main__":
    main()
