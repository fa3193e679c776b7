"""The adapter against diffusers' own loops and against closed forms."""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from vidgen.conditioning import Conditioning
from vidgen.diffusion import CLEAN, Diffusion, Source, scheduler_from_name
from vidgen.errors import InvalidArgumentError, SchedulerError, UnknownNameError
from vidgen.noise import Decomposed, Independent, NoiseKey

VP = ["DDIM", "DDIMParallel", "DPMSolverMultistep", "UniPC", "Euler", "Heun", "DEIS", "KDPM2", "PNDM"]


def ddim(**kwargs):
    settings = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False, "timestep_spacing": "trailing"}
    return DDIMScheduler(**{**settings, **kwargs})


def network(x, t, cond=None):
    """A smooth function of x and t that stands for a network."""
    t = torch.as_tensor(t, dtype=torch.float32).reshape(-1, 1, 1, 1, 1) / 1000
    return 0.7 * torch.tanh(x) + 0.2 * t * x.roll(1, 2)


def no_noise(i):
    raise AssertionError("a deterministic solver asked for noise")


def noise_like(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def diffusers_loop(scheduler, start, steps, **step_arguments):
    """The loop of diffusers' pipelines."""
    scheduler.set_timesteps(steps)
    x = start * getattr(scheduler, "init_noise_sigma", 1.0)
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        extra = {k: v(i) if callable(v) else v for k, v in step_arguments.items()}
        x = scheduler.step(network(scaled, t), t, x, **extra).prev_sample
    return x


@pytest.mark.parametrize("name", VP)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_solver_equals_diffusers_own_loop(name, prediction_type):
    if prediction_type == "sample" and name in ("Heun", "KDPM2", "PNDM"):
        with pytest.raises(SchedulerError, match="cannot solve for a model that predicts 'sample'"):
            Diffusion(ddim(prediction_type=prediction_type)).exchange(name)
        return
    # Where diffusers' own timesteps are right: strides that divide the schedule, and no first step from 20,000.
    model = Diffusion(ddim(prediction_type=prediction_type, beta_schedule="linear")).exchange(name)
    start = noise_like((2, 3, 4, 8, 8))
    ours = model.solve(network, start, Conditioning(), num_inference_steps=10, step_noise=no_noise)
    theirs = diffusers_loop(copy.deepcopy(model.scheduler), start, 10)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    again = model.solve(network, start, Conditioning(), num_inference_steps=10, step_noise=no_noise)
    torch.testing.assert_close(again, ours, rtol=0, atol=0)  # the scheduler keeps no state


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_flow_matching_equals_diffusers_own_loop(kind):
    model = Diffusion(getattr(diffusers, kind)(shift=2.0))
    start = noise_like((1, 3, 4, 8, 8))
    ours = model.solve(network, start, Conditioning(), num_inference_steps=7, step_noise=no_noise)
    torch.testing.assert_close(ours, diffusers_loop(model.scheduler, start, 7), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("scheduler", "arguments", "eta"),
    [
        (ddim(), {"eta": 0.6}, 0.6),
        (diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), {}, 0.0),
    ],
    ids=["ddim-eta", "sde-dpmsolver++"],
)
def test_stochastic_solver_uses_the_noise_it_is_handed(scheduler, arguments, eta):
    start = noise_like((1, 3, 4, 8, 8))
    noises = [noise_like(start.shape, 10 + i) for i in range(5)]
    ours = Diffusion(scheduler).solve(
        network, start, Conditioning(), num_inference_steps=5, step_noise=noises.__getitem__, eta=eta
    )
    theirs = diffusers_loop(copy.deepcopy(scheduler), start, 5, variance_noise=noises.__getitem__, **arguments)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    other = Diffusion(scheduler).solve(
        network, start, Conditioning(), num_inference_steps=5, step_noise=lambda i: -noises[i], eta=eta
    )
    assert (other - ours).abs().max() > 0.1


class GaussianToy:
    """Frames with covariance ``data``, noise with covariance ``prior``: the denoiser is known exactly."""

    def __init__(self, model: Diffusion, prior, frames: int, size: int) -> None:
        index = torch.arange(frames)
        self.data = 0.25 * 0.6 ** (index[:, None] - index).abs().double()
        self.noise = torch.from_numpy(prior.covariance(range(frames), NoiseKey(0, "start", "video"))).double()
        self.model, self.prior, self.frames, self.size = model, prior, frames, size

    def denoise(self, x, t, cond):
        k = self.model.coefficients(t[:1].long(), x)
        a, s = float(k.signal), float(k.noise)
        # E[eps | x_t] = s R (a^2 S + s^2 R)^-1 x_t
        gain = s * self.noise @ torch.linalg.inv(a**2 * self.data + s**2 * self.noise)
        return torch.einsum("ij,bcjhw->bcihw", gain.float(), x)

    def draw(self, prior, stream):
        shape = (1, self.size, self.size)
        return prior.sample(range(self.frames), shape, NoiseKey(0, stream, "video"))[None]

    def error(self, steps: int, step_prior) -> float:
        """Relative error of the samples' covariance when the steps' noise comes from ``step_prior``."""
        out = self.model.solve(
            self.denoise,
            self.draw(self.prior, "start"),
            Conditioning(),
            num_inference_steps=steps,
            step_noise=lambda i: self.draw(step_prior, f"step-{i}"),
            eta=1.0 if isinstance(self.model.scheduler, DDIMScheduler) else 0.0,
        )
        flat = out[0, 0].reshape(self.frames, -1).double()
        found = flat @ flat.T / flat.shape[1]
        return float((found - self.data).norm() / self.data.norm())


@pytest.mark.parametrize("solver", ["ddim", "sde"])
def test_correlated_prior_reaches_the_right_marginal(solver):
    model = Diffusion(ddim())
    if solver == "sde":
        model = model.exchange(
            diffusers.DPMSolverMultistepScheduler.from_config(
                model.scheduler.config, algorithm_type="sde-dpmsolver++", solver_order=1
            )
        )
    prior = Decomposed(lam=0.8)
    toy = GaussianToy(model, prior, frames=3, size=128)
    coarse, fine = toy.error(10, prior), toy.error(160, prior)
    assert fine < 0.06  # 16384 samples leave about 0.01
    assert fine < coarse / 2  # it converges
    assert toy.error(160, Independent()) > 5 * fine  # independent noise does not


def test_training_identities():
    clean, noise = noise_like((2, 3, 4, 8, 8), 1), noise_like((2, 3, 4, 8, 8), 2)
    for t in (torch.tensor([10, 700]), torch.tensor([[5, 100, 500, 900]] * 2)):
        for kind in ("epsilon", "v_prediction", "sample"):
            model = Diffusion(ddim(prediction_type=kind))
            x_t = model.noised(clean, noise, t)
            estimate = model.clean_estimate(model.target(clean, noise, t), x_t, t)
            torch.testing.assert_close(estimate, clean, rtol=1e-4, atol=1e-3)
            if t.ndim == 1:
                theirs = model.scheduler.add_noise(clean, noise, t)
                torch.testing.assert_close(x_t, theirs)
                if kind == "v_prediction":
                    torch.testing.assert_close(
                        model.target(clean, noise, t), model.scheduler.get_velocity(clean, noise, t)
                    )
    flow = Diffusion(FlowMatchEulerDiscreteScheduler())
    t = torch.tensor([250.0, 1000.0])
    x_t = flow.noised(clean, noise, t)
    torch.testing.assert_close(x_t[0], 0.75 * clean[0] + 0.25 * noise[0])
    torch.testing.assert_close(x_t[1], noise[1])
    torch.testing.assert_close(flow.clean_estimate(flow.target(clean, noise, t), x_t, t), clean)


@pytest.mark.parametrize("scheduler", [ddim(), FlowMatchEulerDiscreteScheduler()])
@pytest.mark.parametrize("bias", [0.0, 1.0, 3.0])
def test_noisy_timesteps_are_seen_more_often(scheduler, bias):
    uniform = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    t = Diffusion(scheduler).sample_timesteps(uniform, bias).double() / 1000
    for limit in (0.25, 0.5, 0.9):  # a density that grows with t^bias has t^(bias + 1) below t
        assert float((t < limit).double().mean()) == pytest.approx(limit ** (bias + 1), abs=2e-3)


def test_timesteps_cover_the_schedule():
    uniform = torch.tensor([0.0, 0.5, 0.9999])
    assert Diffusion(ddim()).sample_timesteps(uniform).tolist() == [0, 500, 999]
    assert Diffusion(FlowMatchEulerDiscreteScheduler()).sample_timesteps(uniform)[0] == 1000
    with pytest.raises(InvalidArgumentError, match=r"expected \(b,\) or \(b, f\)"):
        Diffusion(ddim()).coefficients(torch.zeros(1, 2, 3).long(), torch.zeros(1))


@pytest.mark.parametrize("name", ["DDIM", "Euler", "UniPC"])
def test_replacement_returns_given_frames_and_steers_the_others(name):
    model = Diffusion(ddim()).exchange(name)
    start, clean = noise_like((1, 3, 4, 8, 8)), noise_like((1, 3, 4, 8, 8), 5)
    known = torch.tensor([[True, True, False, False]])
    seen = []

    def spy(x, t, cond):
        seen.append((x, t))
        return network(x, t)

    cond = Conditioning(known=known, clean=clean * known[:, None, :, None, None], replace=True)
    out = model.solve(spy, start, cond, num_inference_steps=5, step_noise=no_noise)
    torch.testing.assert_close(out[:, :, :2], clean[:, :, :2], rtol=0, atol=0)
    free = model.solve(network, start, Conditioning(), num_inference_steps=5, step_noise=no_noise)
    assert (out[:, :, 2:] - free[:, :, 2:]).abs().max() > 0.05
    if name == "DDIM":  # what the network saw of the given frames is their noised selves
        for x, t in seen:
            expected = model.noised(clean, start, t.long())
            torch.testing.assert_close(x[:, :, :2], expected[:, :, :2], rtol=1e-4, atol=1e-5)


def test_replacement_in_a_flow():
    model = Diffusion(FlowMatchEulerDiscreteScheduler())
    start, clean = noise_like((1, 3, 4, 8, 8)), noise_like((1, 3, 4, 8, 8), 5)
    known = torch.tensor([[True, False, False, False]])
    cond = Conditioning(known=known, clean=clean * known[:, None, :, None, None], replace=True)

    def spy(x, t, cond):
        expected = model.noised(clean, start, t)
        torch.testing.assert_close(x[:, :, :1], expected[:, :, :1], rtol=1e-4, atol=1e-4)
        return network(x, t)

    out = model.solve(spy, start, cond, num_inference_steps=5, step_noise=no_noise)
    assert torch.equal(out[:, :, :1], clean[:, :, :1])


def test_callback_may_replace_latents():
    model, start = Diffusion(ddim()), noise_like((1, 3, 2, 4, 4))
    steps = []

    def zero(i, t, x):
        steps.append((i, int(t)))
        return torch.zeros_like(x)

    out = model.solve(network, start, Conditioning(), num_inference_steps=3, step_noise=no_noise, on_step=zero)
    assert [i for i, _ in steps] == [0, 1, 2]
    assert steps[0][1] == 999
    assert out.abs().max() == 0


@pytest.mark.parametrize(
    ("name", "equivalent"),
    [
        ("DDPMScheduler", "DDIMScheduler with eta=1"),
        ("EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"),
        ("LCMScheduler", "DDIMScheduler"),
    ],
)
def test_schedulers_with_noise_of_their_own_are_refused(name, equivalent):
    with pytest.raises(SchedulerError, match=equivalent):
        Diffusion(getattr(diffusers, name)())
    with pytest.raises(SchedulerError, match=equivalent):
        scheduler_from_name(name, ddim().config)


def test_scheduler_of_another_process_or_schedule_is_refused():
    model = Diffusion(ddim())
    with pytest.raises(SchedulerError, match="variance_preserving"):
        model.exchange(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(SchedulerError, match="another noise schedule"):
        model.exchange(diffusers.EulerDiscreteScheduler())
    with pytest.raises(SchedulerError, match="model predicts epsilon"):
        model.exchange(ddim(prediction_type="v_prediction"))
    with pytest.raises(SchedulerError, match="stochastic_sampling"):
        Diffusion(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    with pytest.raises(SchedulerError, match="takes a generator but no variance_noise"):
        Diffusion(diffusers.EDMEulerScheduler())
    with pytest.raises(SchedulerError, match="neither variance preserving nor"):
        Diffusion(diffusers.IPNDMScheduler())
    with pytest.raises(SchedulerError, match=r"DDIMInverseScheduler is none of the solvers.*DDIMScheduler"):
        Diffusion(diffusers.DDIMInverseScheduler())


def test_any_schedule_can_be_exchanged_fresh_or_loaded():
    """diffusers' from_config takes values left at their default from the other class."""
    for name in VP:
        model = Diffusion(DDIMScheduler(beta_schedule="linear", clip_sample=False)).exchange(name)
        assert model.scheduler.config.beta_start == 0.0001


def test_wrong_arguments():
    with pytest.raises(UnknownNameError, match="Did you mean 'DDIM'"):
        Diffusion(ddim()).exchange("DDIN")
    start = noise_like((1, 3, 2, 4, 4))

    def solve(name, **kwargs):
        settings = {"num_inference_steps": 3, **kwargs}
        Diffusion(ddim()).exchange(name).solve(network, start, Conditioning(), step_noise=no_noise, **settings)

    with pytest.raises(SchedulerError, match="knows no eta"):
        solve("UniPC", eta=0.5)
    with pytest.raises(InvalidArgumentError, match="eta is 2"):
        solve("DDIM", eta=2.0)
    with pytest.raises(InvalidArgumentError, match="num_inference_steps is 0"):
        solve("DDIM", num_inference_steps=0)


def test_clipped_estimates_stay_consistent():
    """With clipping, eps is recomputed: x_t still splits into the clipped x_0 and its noise."""
    scheduler = ddim(clip_sample=True, clip_sample_range=0.5, prediction_type="sample")
    model, start, target = Diffusion(scheduler), noise_like((1, 3, 2, 8, 8)), noise_like((1, 3, 2, 8, 8), 9)
    seen = []

    def spy(x, t, cond):
        seen.append((x, int(t[0])))
        return target

    out = model.solve(spy, start, Conditioning(), num_inference_steps=4, step_noise=no_noise)
    clipped = target.clamp(-0.5, 0.5)
    torch.testing.assert_close(out, clipped)
    first = model.coefficients(torch.tensor([seen[0][1]]), start)
    noise = (start - first.signal * clipped) / first.noise
    for x, t in seen[1:]:
        torch.testing.assert_close(x, model.noised(clipped, noise, torch.tensor([t])), rtol=1e-3, atol=1e-3)


def test_number_of_evaluations():
    model = Diffusion(ddim())
    assert model.num_evaluations(10) == 10
    assert model.exchange("Heun").num_evaluations(10) == 18  # neither the first step nor the last is corrected
    assert Diffusion(ddim(beta_schedule="linear")).exchange("Heun").num_evaluations(10) == 19


MEAN, STD = 0.7, 0.5


def gaussian(model):
    """The exact network for data of one mean and standard deviation."""

    def denoise(x, t, cond):
        k = model.coefficients(t if model.process == "flow" else t.round().long(), x)
        gain = STD**2 * k.signal / (STD**2 * k.signal**2 + k.noise**2)
        clean = MEAN + gain * (x - k.signal * MEAN)
        flow = model.prediction_type == "flow_prediction"
        return (x - clean) / k.noise if flow else (x - k.signal * clean) / k.noise

    return denoise


@pytest.mark.parametrize("strength", [0.3, 0.6])
@pytest.mark.parametrize("name", [*VP[:-1], "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"])
def test_every_solver_may_begin_in_the_middle(name, strength):
    own = FlowMatchEulerDiscreteScheduler() if name.startswith("Flow") else ddim(beta_schedule="linear")
    model = Diffusion(own).exchange(name)
    clean = MEAN + STD * noise_like((2, 3, 4, 16, 16), seed=1)
    kept = torch.zeros(2, 1, 4, 16, 16, dtype=torch.bool)
    kept[..., :4] = True
    asked = []

    def denoise(x, t, cond):
        asked.append(float(t[0]))
        return gaussian(model)(x, t, cond)

    arguments = {"num_inference_steps": 20, "step_noise": no_noise, "source": Source(clean, kept, strength)}
    made = model.solve(denoise, noise_like(clean.shape), Conditioning(), **arguments)
    order = 2 if "Heun" in name or "KDPM2" in name else 1
    assert len(asked) == model.num_evaluations(20, strength)
    assert len(asked) == int(20 * strength) * order - (order - 1)  # whole steps, the last of first order
    assert asked[0] <= 1000 * strength + 1
    new = ~kept.expand_as(made)
    assert torch.equal(made[~new], clean[~new])
    assert abs(float(made[new].mean()) - MEAN) < 0.05
    assert abs(float(made[new].std()) - STD) < 0.08
    similar = float(torch.corrcoef(torch.stack([made[new], clean[new]]))[0, 1])
    # The flow is linear in its start a x_0 + b eps, so their correlation stays what it was there.
    t = torch.tensor([asked[0]])
    k = model.coefficients(t if model.process == "flow" else t.round().long(), clean)
    a, b = float(k.signal), float(k.noise)
    assert abs(similar - a * STD / (a**2 * STD**2 + b**2) ** 0.5) < 0.03


@pytest.mark.parametrize("held", ["source", "replace"])
@pytest.mark.parametrize("name", [*VP, "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"])
def test_what_is_held_is_noised_as_the_rest_at_every_evaluation(name, held):
    own = FlowMatchEulerDiscreteScheduler() if name.startswith("Flow") else ddim(beta_schedule="linear")
    model = Diffusion(own).exchange(name)
    clean, worst = noise_like((2, 3, 4, 16, 16), seed=1), []
    kept = torch.zeros(2, 1, 4, 16, 16, dtype=torch.bool)
    kept[:, :, :2] = True  # two frames of four
    known = torch.tensor([[True, True, False, False]] * 2)

    def denoise(x, t, cond):
        k = model.coefficients(t if model.process == "flow" else t.round().long(), x)
        expected = (k.signal**2 + k.noise**2).sqrt()  # of data and noise of unit variance
        worst.append(abs(float(x[:, :, :2].std()) - float(expected[0])))
        return network(x, t)

    cond = Conditioning(known=known, clean=clean, replace=True) if held == "replace" else Conditioning()
    source = Source(clean, kept) if held == "source" else None
    model.solve(
        denoise, noise_like(clean.shape), cond, num_inference_steps=8, step_noise=no_noise, source=source
    )
    assert len(worst) >= 8
    assert max(worst) < 0.03


def test_a_solver_that_cannot_begin_in_the_middle_is_refused():
    model = Diffusion(ddim(beta_schedule="linear")).exchange("PNDM")
    clean = torch.zeros(1, 1, 1, 2, 2)
    arguments = {"num_inference_steps": 10, "step_noise": no_noise}
    with pytest.raises(SchedulerError, match=r"PNDM.*strength is 0.5.*Use DDIM"):
        model.solve(network, clean, Conditioning(), source=Source(clean, None, 0.5), **arguments)
    with pytest.raises(SchedulerError, match="PNDM"):
        model.num_evaluations(10, 0.5)
    model.solve(network, clean, Conditioning(), source=Source(clean, None, 1.0), **arguments)


def test_min_snr_weight_is_one_objective_in_every_prediction_type():
    """An error of the clean latents weighs ``min(SNR, gamma)`` however it is predicted."""
    clean, noise = noise_like((3, 2, 2, 4, 4), 1), noise_like((3, 2, 2, 4, 4), 2)
    wrong = clean + 0.1 * noise_like((3, 2, 2, 4, 4), 3)
    weighted = {}
    for kind in ("sample", "epsilon", "v_prediction"):
        model, t = Diffusion(ddim(prediction_type=kind)), torch.tensor([50, 400, 800])
        x_t = model.noised(clean, noise, t)
        k = model.coefficients(t, clean)
        implied = (x_t - k.signal * wrong) / k.noise  # the noise that goes with the wrong estimate
        error = (model.target(wrong, implied, t) - model.target(clean, noise, t)) ** 2
        weighted[kind] = (error * model.min_snr_weight(t, clean, 5.0)).mean((1, 2, 3, 4))
        snr = (k.signal / k.noise).flatten() ** 2
        expected = snr.clamp_max(5.0) * ((wrong - clean) ** 2).mean((1, 2, 3, 4))
        torch.testing.assert_close(weighted[kind], expected, rtol=1e-3, atol=1e-7)
    flow, t = Diffusion(FlowMatchEulerDiscreteScheduler()), torch.tensor([100.0, 500.0, 900.0])
    x_t = flow.noised(clean, noise, t)
    k = flow.coefficients(t, clean)
    implied = (x_t - k.signal * wrong) / k.noise
    error = (flow.target(wrong, implied, t) - flow.target(clean, noise, t)) ** 2
    found = (error * flow.min_snr_weight(t, clean, 5.0)).mean((1, 2, 3, 4))
    snr = (k.signal / k.noise).flatten() ** 2
    torch.testing.assert_close(found, snr.clamp_max(5.0) * ((wrong - clean) ** 2).mean((1, 2, 3, 4)))


@pytest.mark.parametrize(
    "scheduler", [ddim(), ddim(prediction_type="v_prediction"), FlowMatchEulerDiscreteScheduler()]
)
def test_a_frame_may_be_clean_where_times_are_per_frame(scheduler):
    model, flow = Diffusion(scheduler), isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    clean, noise = noise_like((2, 3, 2, 4, 4), 1), noise_like((2, 3, 2, 4, 4), 2)
    t = torch.tensor([[CLEAN, 500], [900, CLEAN]], dtype=torch.float32 if flow else torch.long)
    x_t = model.noised(clean, noise, t)
    assert torch.equal(x_t[0, :, 0], clean[0, :, 0])
    assert torch.equal(x_t[1, :, 1], clean[1, :, 1])
    alone = model.noised(clean, noise, t.clamp_min(0))
    assert torch.equal(x_t[0, :, 1], alone[0, :, 1])
    assert torch.equal(x_t[1, :, 0], alone[1, :, 0])
    estimate = model.clean_estimate(model.target(clean, noise, t), x_t, t)
    torch.testing.assert_close(estimate, clean, rtol=1e-4, atol=1e-3)
