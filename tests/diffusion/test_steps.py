"""Every solver, spacing and schedule: the timesteps are consistent, and Gaussian data come out right."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from vidgen.conditioning import Conditioning
from vidgen.diffusion import Diffusion, Source
from vidgen.diffusion.steps import prepared
from vidgen.errors import InvalidArgumentError, SchedulerError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def table():
    """The benchmark of all solvers, of which these tests run a part."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("solvers_benchmark", BENCHMARKS / "solvers.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))
        sys.modules.pop("solvers_benchmark", None)


SOLVERS = [
    *(
        "DDIM",
        "DDIM, eta=1",
        "DPM++ 1",
        "DPM++ 2M",
        "DPM++ 2M, heun",
        "DPM++ 3M",
        "SDE-DPM++ 1",
        "SDE-DPM++ 2M",
    ),
    *("UniPC", "UniPC 3, bh1", "DEIS", "DEIS 3", "Euler", "Heun", "KDPM2", "PNDM", "PNDM, no Runge-Kutta"),
]


def test_the_table_names_all_solvers(table):
    assert list(table.SOLVERS) == SOLVERS


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("spacing", ["trailing", "leading + 1", "Karras", "Karras to sigma_min"])
def test_gaussian_data_come_out_right(table, solver, spacing):
    """30 does not divide the 1,000 timesteps."""
    for schedule in ("squaredcos_cap_v2", "scaled_linear, zero SNR"):
        cell = table.Cell(solver, schedule, spacing, "v_prediction")
        if cell.exists:
            assert table.error(cell, 30) < table.tolerance(cell, 30)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_prediction_type_comes_out_right(table, solver, prediction):
    cell = table.Cell(solver, "linear", "linspace", prediction)
    if prediction == "sample" and solver in ("Heun", "KDPM2", "PNDM", "PNDM, no Runge-Kutta"):
        with pytest.raises(SchedulerError, match="cannot solve for a model that predicts 'sample'"):
            table.error(cell, 20)
    else:
        assert table.error(cell, 20) < table.tolerance(cell, 20)


@pytest.mark.parametrize("spacing", ["shift 3", "exponential", "to sigma_min"])
def test_gaussian_data_come_out_right_of_a_flow(table, spacing):
    for solver in table.FLOW_SOLVERS:
        cell = table.Cell(solver, "flow", spacing, "flow_prediction")
        if not cell.exists:
            continue
        if spacing == "exponential" and not solver.startswith("Flow"):
            with pytest.raises(SchedulerError, match="model was trained on 1 to 0"):
                table.error(cell, 20)
        else:
            assert table.error(cell, 20) < table.tolerance(cell, 20)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(
    "solver", ["DDIM", "DDIM, eta=1", "DPM++ 3M", "UniPC", "DEIS", "Euler", "Heun", "KDPM2"]
)
def test_few_steps_are_blurred_at_worst(table, solver, count):
    """Too few steps lose deviation; they do not add noise of their own, as KDPM2's 20 for 0.5 did."""
    for spacing in ("trailing", "linspace"):
        model = table.Cell(solver, "linear", spacing, "epsilon").diffusion()
        if spacing == "linspace" and count == 2 and not solver.startswith(("DPM", "Uni", "DEIS")):
            with pytest.raises(
                SchedulerError, match=r"takes 99% of the way from noise to data in one of 2 steps"
            ):
                model.num_evaluations(count)
            continue
        mean, deviation = table.moments(model, count, table.SOLVERS[solver][2])
        assert abs(mean - table.MEAN) < 0.05
        assert 0 <= deviation < 1.1 * table.STD


@pytest.mark.parametrize("spacing", ["trailing", "leading + 1"])
@pytest.mark.parametrize("solver", ["DDIM", "DPM++ 2M", "UniPC", "DEIS", "Euler", "Heun", "KDPM2", "PNDM"])
def test_numbers_of_steps_that_do_not_divide_the_schedule(table, solver, spacing):
    """61: one trailing timestep too many; 600: whole leading strides would begin at timestep 599."""
    for count in (61, 600):
        model = table.Cell(solver, "squaredcos_cap_v2", spacing, "v_prediction").diffusion()
        steps = prepared(model.scheduler, count)
        assert len(steps.starts) == count
        assert float(steps.times[0]) > 1000 - 2.2 * 1000 / count
        assert float(steps.times.min()) >= 0


def test_a_thousand_steps_with_an_offset(table):
    """The offset would lead past the end of the schedule."""
    for solver in ("DDIM", "Euler", "DPM++ 2M", "PNDM"):
        model = table.Cell(solver, "squaredcos_cap_v2", "leading + 1", "v_prediction").diffusion()
        steps = prepared(model.scheduler, 1000)
        assert float(steps.times.max()) == 999
        assert len(steps.starts) >= 999
    assert table.error(table.Cell("DDIM", "squaredcos_cap_v2", "leading + 1", "v_prediction"), 1000) < 0.01


def test_every_evaluation_has_the_noise_of_its_time(table):
    """What the network is told and what it is given agree, at real times too."""
    for solver in ("DPM++ 2M", "UniPC", "DEIS", "Euler", "Heun", "KDPM2"):
        for spacing in ("Karras", "linspace"):
            for schedule in ("squaredcos_cap_v2", "linear, zero SNR"):
                model = table.Cell(solver, schedule, spacing, "v_prediction").diffusion()
                steps = prepared(model.scheduler, 12)
                k = model.coefficients(steps.times, torch.zeros(1, dtype=torch.float64))
                found = (k.noise / k.signal).flatten()
                np.testing.assert_allclose(found, steps.sigmas, rtol=2e-3, err_msg=f"{solver}, {spacing}")
                assert bool((steps.sigmas[1:] <= steps.sigmas[:-1]).all())


def test_coefficients_at_real_times():
    model = Diffusion(diffusers.DDIMScheduler())
    zeros = torch.zeros(1)
    whole = model.coefficients(torch.tensor([0, 500, 999]), zeros)
    real = model.coefficients(torch.tensor([0.0, 500.0, 999.0]), zeros)
    assert torch.equal(whole.signal, real.signal)
    assert torch.equal(whole.noise, real.noise)
    sigma = [float(model.coefficients(torch.tensor([[t]]), zeros).noise) for t in (500.0, 500.25, 501.0)]
    ratio = [s / (1 - s**2) ** 0.5 for s in sigma]
    assert ratio[1] == pytest.approx(0.75 * ratio[0] + 0.25 * ratio[2], rel=1e-5)
    for t in (-0.5, 999.5, float("nan")):
        with pytest.raises(InvalidArgumentError, match="expected 0 to 999"):
            model.coefficients(torch.tensor([t]), zeros)
    zero = Diffusion(diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    k = zero.coefficients(torch.tensor([998.5, 999.0]), zeros)
    assert 0 < float(k.signal[0]) < 1e-3
    assert float(k.signal[1]) == 0
    assert torch.isfinite(k.noise).all()


def test_times_are_whole_where_the_sigmas_are(table):
    steps = prepared(table.Cell("DPM++ 2M", "linear", "trailing", "epsilon").diffusion().scheduler, 25)
    assert steps.times.dtype == torch.int64
    assert steps.times.tolist() == list(range(999, 0, -40))


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistep", "UniPC", "DEIS", "Euler", "Heun", "KDPM2", "PNDM", "DDIM"]
)
def test_models_of_zero_terminal_snr_take_every_solver(name, tmp_path):
    model = Diffusion(diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    by_name = model.exchange(name)
    config = {key: value for key, value in model.scheduler.config.items() if key != "_use_default_values"}
    own = type(by_name.scheduler).from_config(config)
    own.save_pretrained(tmp_path)
    read = type(own).from_pretrained(tmp_path)  # as in a checkpoint
    for scheduler in (own, read):
        model.exchange(scheduler)
        assert float(Diffusion(scheduler).coefficients(torch.tensor([999]), torch.zeros(1)).signal) < 3e-4
    plain = type(own).from_config({**config, "rescale_betas_zero_snr": False})
    with pytest.raises(SchedulerError, match=r"another noise schedule.*rescale_betas_zero_snr=False for True"):
        model.exchange(plain)


def test_noise_prediction_where_there_is_no_signal_is_refused(table):
    for solver in ("DDIM", "DPM++ 2M", "Euler", "Heun"):
        cell = table.Cell(solver, "linear, zero SNR", "trailing", "epsilon")
        with pytest.raises(SchedulerError, match=r"predicts the noise.*timestep_spacing='leading'"):
            table.error(cell, 10)
        assert table.error(table.Cell(solver, "linear, zero SNR", "leading", "epsilon"), 30) < 0.1


def test_a_start_with_more_than_noise_is_refused():
    model = Diffusion(diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace"))
    for name in ("DDIM", "Euler", "Heun", "KDPM2"):
        with pytest.raises(SchedulerError, match=r"begins 1 steps at timestep 0 of 1000.*trailing"):
            model.exchange(name).num_evaluations(1)


def test_sigmas_that_the_model_does_not_know_are_refused():
    model = Diffusion(diffusers.DDIMScheduler())
    for settings in ({"sigma_max": 1000.0}, {"sigma_min": 0.001}):
        scheduler = diffusers.EulerDiscreteScheduler.from_config(
            model.scheduler.config, use_karras_sigmas=True, **settings
        )
        with pytest.raises(SchedulerError, match=r"has sigmas from .* the model was trained on 157.4 to 0.01"):
            model.exchange(scheduler).num_evaluations(10)


def test_steps_of_which_one_takes_all_the_way_are_refused():
    """Beta sigmas are even between 20,291 and 0.006: no step but the last would be where data are."""
    pytest.importorskip("scipy")
    model = Diffusion(diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2"))
    for name in ("EulerDiscrete", "UniPCMultistep"):
        own = getattr(diffusers, f"{name}Scheduler").from_config(model.scheduler.config, use_beta_sigmas=True)
        with pytest.raises(
            SchedulerError, match=r"use_beta_sigmas=True.* takes 9\d% of the way .* of 50 steps"
        ):
            model.exchange(own).num_evaluations(50)


@pytest.mark.parametrize("solver", ["DPM++ 3M", "UniPC 3, bh1"])
def test_the_third_order_is_refused_where_steps_are_uneven(table, solver):
    cell = table.Cell(solver, "squaredcos_cap_v2", "Karras", "v_prediction")
    with pytest.raises(SchedulerError, match=r"solver_order=3 .* Use solver_order=2"):
        table.error(cell, 20)
    assert table.error(cell, 61) < 0.02


def test_the_third_order_has_enough_digits_for_many_steps(table):
    """In float32 the third differences of 600 steps are rounding: the deviation was off by 0.15."""
    for spacing in ("trailing", "leading + 1"):
        assert table.error(table.Cell("DEIS 3", "squaredcos_cap_v2", spacing, "v_prediction"), 600) < 0.005


def test_the_last_of_many_steps_to_the_smallest_sigma_is_first_order(table):
    """From 15 steps on diffusers extrapolated there: 20 were worse than 10."""
    for solver, most in (("DPM++ 2M", 0.03), ("SDE-DPM++ 2M", 0.03)):
        cell = table.Cell(solver, "linear", "trailing to sigma_min", "v_prediction")
        assert table.error(cell, 20) < most


def test_extrapolated_noise_is_refused_over_a_cosine_schedules_first_step(table):
    for solver in ("PNDM", "PNDM, no Runge-Kutta"):
        cell = table.Cell(solver, "squaredcos_cap_v2", "trailing", "epsilon")
        with pytest.raises(
            SchedulerError, match=r"leads from sigma 2.029e\+04 to .*timestep_spacing='leading'"
        ):
            table.error(cell, 20)
        assert table.error(table.Cell(solver, "squaredcos_cap_v2", "leading", "epsilon"), 20) < 0.05


def test_a_flow_ends_at_its_smallest_sigma_however_many_steps(table):
    for solver in ("DPM++ 2M", "UniPC", "SDE-DPM++ 2M"):
        model = table.Cell(solver, "flow", "to sigma_min", "flow_prediction").diffusion()
        ends = prepared(model.scheduler, 1000).scheduler.sigmas
        assert bool((ends[1:] < ends[:-1]).all())


def test_a_shift_that_leaves_all_to_the_last_step_is_refused():
    model = Diffusion(diffusers.FlowMatchEulerDiscreteScheduler(shift=100.0))
    with pytest.raises(
        SchedulerError, match=r"shift=100.0 takes \d\d% of the way from noise to data in one of 20"
    ):
        model.num_evaluations(20)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, "invert_sigmas=False"),
        ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}, "use_dynamic_shifting=False"),
        ("DPMSolverMultistep", {"use_flow_sigmas": True}, "prediction_type='flow_prediction'"),
        ("UniPCMultistep", {"prediction_type": "flow_prediction"}, "use_flow_sigmas=True"),
    ],
)
def test_settings_that_describe_another_flow_are_refused(name, settings, message):
    with pytest.raises(SchedulerError, match=message):
        Diffusion(getattr(diffusers, f"{name}Scheduler")(**settings))


def test_a_flow_takes_solvers_by_name(table):
    model = Diffusion(diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0))
    for name in ("DPMSolverMultistep", "UniPC", "DEIS", "FlowMatchHeunDiscrete"):
        other = model.exchange(name)
        assert other.process == "flow"
        mean, deviation = table.moments(other, 30)
        assert (mean, deviation) == pytest.approx((table.MEAN, table.STD), abs=0.03)
    assert model.exchange("UniPC").exchange("FlowMatchEulerDiscrete").scheduler.config.shift == 2.0
    with pytest.raises(SchedulerError, match=r"Give the name of one of DEISMultistepScheduler.*FlowMatchHeun"):
        model.exchange("Euler")
    with pytest.raises(SchedulerError, match="num_train_timesteps=500"):
        model.exchange(diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500))


@pytest.mark.parametrize("spacing", ["Karras", "trailing"])
@pytest.mark.parametrize("solver", ["DDIM", "DPM++ 2M", "Euler", "Heun", "KDPM2"])
def test_a_given_video_is_noised_to_where_the_solver_begins(table, solver, spacing):
    """Beginning in the middle, with strides that do not divide and steps in first order."""
    cell = table.Cell(solver, "squaredcos_cap_v2", spacing, "v_prediction")
    if not cell.exists:
        pytest.skip("DDIM has no sigmas to space")
    model = cell.diffusion()
    clean = torch.full((1, 1, 1, 1, 2), 0.9)
    start = torch.tensor([0.0, 1.0]).reshape(clean.shape)
    seen = []

    def denoise(x, t, cond):
        seen.append((x.flatten(), t))
        return table.exact(model)(x, t, cond)

    options = {"num_inference_steps": 30, "step_noise": lambda i: start, "source": Source(clean, None, 0.6)}
    model.solve(denoise, start, Conditioning(), **options)
    x, t = seen[0]
    k = model.coefficients(t, torch.zeros(1, dtype=torch.float64))
    assert x.tolist() == pytest.approx([float(k.signal * 0.9), float(k.signal * 0.9 + k.noise)], abs=2e-3)
    assert len(seen) == model.num_evaluations(30, 0.6)


def test_a_class_derived_from_a_solver_is_that_solver():
    class Own(diffusers.HeunDiscreteScheduler):
        pass

    config = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing").config
    assert Diffusion(Own.from_config(config)).num_evaluations(20) == 38
    with pytest.raises(SchedulerError, match="predicts 'sample'"):
        Diffusion(Own.from_config(config, prediction_type="sample"))
