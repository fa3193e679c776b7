"""Levels of several kinds in one strategy: settings by level, one pass, own loops, states and contexts."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

import vidgen
from toy import Toy, ToyConfig, ToyLevel, toy
from vidgen import checkpoint, info, plugins
from vidgen import config as configs
from vidgen.conditioning import Conditioning
from vidgen.errors import (
    CheckpointError,
    GenerationInterruptedError,
    InvalidArgumentError,
    PlanError,
    SchedulerError,
    UnknownNameError,
)
from vidgen.level_model import LevelModel
from vidgen.plans import Level, Plan, chunks, rooted
from vidgen.sampling import Sampler

TOLERANCE = {"rtol": 0, "atol": 1e-5}


class OnePass(LevelModel):
    """A root made in one pass, from noise only if asked."""

    def __init__(self, strategy):
        super().__init__("global")
        self.strategy, self.drawn = strategy, []

    def shape(self, request):
        return (2, 3, 5)

    def noise(self, call, request, stream):
        self.drawn.append(stream)
        return super().noise(call, request, stream)

    def condition(self, call, canvas, request):
        return Conditioning(extras={"length": torch.tensor([float(request.num_frames)])})

    def answer(self, batch):
        return batch.cond.extras["length"].reshape(-1, 1, 1, 1, 1).expand(-1, 2, 1, 3, 5) / 100


class OwnLoop(ToyLevel):
    """A loop of its own: what it is told by the batch is all that it uses."""

    def answer(self, batch):
        settings, x = batch.settings, batch.noise("mine")
        for i in range(settings.num_inference_steps):
            t = settings.diffusion.sample_timesteps(torch.full((len(batch),), 0.5))
            x = (
                x
                + 0.1 * settings.guidance_scale * self.denoise(x, t, batch.cond)
                + settings.eta * batch.noise(f"s{i}")
            )
            x = batch.step(i, t[0], x)
        return x

    def evaluations(self, call, solver_evaluations):
        return solver_evaluations


class Handed(ToyLevel):
    """Chunks that add up what the chunks before them were, by a state, and see one frame before their own."""

    def state_shape(self, state, request):
        assert state == "sum"
        return (12, 4, 4)

    def condition(self, call, canvas, request):
        own = tuple(slot for slot in call.given if slot[0] == "video" and slot[1] in call.frames)
        cond = super().condition(replace(call, given=own), canvas, request)
        state = [canvas[slot] for slot in call.given if slot[0] == "sum"]
        context = [canvas[slot] for slot in call.given if slot[0] == "video" and slot[1] not in call.frames]
        zero = torch.zeros(12, 4, 4)
        return replace(
            cond, extras={**cond.extras, "sum": sum(state, zero)[None], "before": sum(context, zero)[None]}
        )

    def answer(self, batch):
        clips = super().answer(batch) + 0.1 * batch.cond.extras["before"][:, :, None]
        total = batch.cond.extras["sum"] + clips.sum(2)
        if not self.strategy.forgets:
            batch.emit("sum", total)
        return clips + 0.01 * total[:, :, None]


def handed_on(num_frames, window=4):
    plan, calls = chunks(num_frames, window), []
    for number, call in enumerate(plan.calls):
        given = (("sum", number - 1), ("video", call.frames[0] - 1)) if number else ()
        calls.append(replace(call, given=given, emits=(*call.emits, ("sum", number))))
    return Plan(tuple(calls), (Level("sum", len(calls), 1, state=True), *plan.levels))


class Several(Toy):
    name = "several"
    forgets = False
    video_class = ToyLevel

    @cached_property
    def levels(self):
        return {"global": OnePass(self), "video": self.video_class(self, "video")}

    def plan(self, num_frames):
        return rooted(chunks(num_frames, 5), "global")


class Looping(Several):
    name = "looping"
    video_class = OwnLoop


class Chained(Several):
    name = "chained"
    video_class = Handed

    def plan(self, num_frames):
        return handed_on(num_frames)


def built(kind):
    torch.manual_seed(0)
    strategy = kind.create(ToyConfig())
    for module in strategy.modules.values():
        module.eval()
    sampler = Sampler(strategy)
    sampler.set_progress_bar_config(disable=True)
    return sampler


def latents(sampler, prompt="a", **arguments):
    return sampler(prompt, **{"seed": 5, "num_frames": 14, "output_type": "latent", **arguments}).frames


def bar_of(sampler, monkeypatch):
    bar = SimpleNamespace(n=0, total=0)
    bar.update = lambda done: setattr(bar, "n", bar.n + done)
    bar.__enter__ = lambda: bar

    class Bar:
        def __enter__(self):
            return bar

        def __exit__(self, *_):
            return False

    monkeypatch.setattr(sampler, "progress_bar", lambda total: setattr(bar, "total", total) or Bar())
    return bar


def test_a_level_without_a_process_answers_in_one_pass_and_draws_nothing(monkeypatch):
    sampler = built(Several)
    bar = bar_of(sampler, monkeypatch)
    made = latents(sampler)
    assert sampler.strategy.levels["global"].drawn == []
    assert bar.n == bar.total == 1 + 3 * 4  # the pass counts as one evaluation
    assert sampler.cost(prompt="a", num_frames=14).evaluations == 13
    assert not torch.equal(made[:, :, :5], latents(sampler, num_frames=5))  # the root knows the length
    with pytest.raises(SchedulerError, match="'global' of 'several' has no noise process"):
        sampler.strategy.scheduler = {"global": "DDIM"}


def test_settings_by_level_reach_their_level_alone():
    sampler, network = Sampler(toy()), None
    sampler.set_progress_bar_config(disable=True)
    network = sampler.strategy.modules["network"]
    plan = rooted(chunks(14, 5), "global")
    cases = {
        6 + 3 * 4: {"num_inference_steps": {"global": 6}},
        4 + 3 * 2: {"num_inference_steps": {"video": 2}},
        3 + 3 * 3: {"num_inference_steps": 3},
    }
    for evaluations, settings in cases.items():
        network.calls.clear()
        latents(sampler, plan=plan, **settings)
        assert len(network.calls) == evaluations
        assert sampler.cost(prompt="a", num_frames=14, plan=plan, **settings).evaluations == evaluations
    usual = latents(sampler, plan=plan)
    assert torch.equal(latents(sampler, plan=plan, eta={"video": 0.0, "global": 0.0}), usual)
    assert not torch.equal(latents(sampler, plan=plan, eta={"global": 1.0}), usual)
    solvers = [
        latents(sampler, plan=plan, scheduler=s) for s in ({"global": "UniPC"}, {"video": "UniPC"}, "UniPC")
    ]
    assert not any(torch.equal(one, usual) for one in solvers)
    assert not torch.equal(solvers[0], solvers[2])


def test_settings_are_in_the_metadata_once_or_by_level():
    sampler = built(Several)
    found = sampler("a", num_frames=5, seed=0, num_inference_steps={"video": 2}).metadata[0]
    assert found["num_inference_steps"] == {"global": 50, "video": 2}
    assert found["scheduler"] == {"global": None, "video": "DDIMScheduler"}
    assert found["eta"] == 0.0


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"guidance_scale": {"vidoe": 2.0}}, UnknownNameError, "vidoe.*video"),
        (
            {"num_inference_steps": {"video": 2.5}},
            InvalidArgumentError,
            "num_inference_steps of level 'video' is 2.5",
        ),
        ({"eta": {"video": "x"}}, InvalidArgumentError, "eta of level 'video' is 'x'"),
        (
            {"guidance_scale": {"video": float("inf")}},
            InvalidArgumentError,
            "guidance_scale of level 'video' is inf",
        ),
        ({"scheduler": {"video": "Eulre"}}, UnknownNameError, "Did you mean 'Euler'"),
        ({"seed": {"video": 1}}, InvalidArgumentError, "seed is {'video': 1}"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        latents(built(Several), **settings)


def test_a_loop_of_its_own_is_told_all_settings(monkeypatch):
    sampler = built(Looping)
    bar, seen = bar_of(sampler, monkeypatch), []

    def look(sampler, step, t, inputs):
        seen.append((step, inputs["call"].id))

    options = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": ["call"]}
    made = latents(sampler, num_inference_steps={"video": 7}, **options)
    assert bar.n == bar.total == 1 + 3 * 7
    assert [step for step, _ in seen] == [*range(7)] * 3
    changes = (
        {"num_inference_steps": {"video": 3}},
        {"guidance_scale": {"video": 2.0}},
        {"eta": {"video": 0.5}},
    )
    for change in changes:
        assert not torch.equal(latents(sampler, **{"num_inference_steps": {"video": 7}, **change}), made)
    both = latents(sampler, ["a", "b"], num_inference_steps={"video": 7})
    torch.testing.assert_close(both[:1], made, **TOLERANCE)


def test_a_loop_of_its_own_is_interrupted_and_may_be_given_latents():
    sampler = built(Looping)

    def stop(sampler, step, t, inputs):
        sampler.interrupt = step == 1

    with pytest.raises(GenerationInterruptedError, match="step 1"):
        latents(sampler, callback_on_step_end=stop)
    zeros = latents(sampler, callback_on_step_end=lambda s, i, t, x: {"latents": 0 * x["latents"]})
    assert not zeros.any()


def test_info_counts_one_evaluation_of_a_loop_of_its_own():
    counts = []
    for kind in (Several, Looping):
        strategy = built(kind).strategy
        request = info._request(strategy, 14)
        counts.append(info.macs_per_call(strategy, strategy.plan(14), request))
    assert counts[0] == pytest.approx(counts[1])


def test_states_and_context_go_from_chunk_to_chunk_however_calls_are_run(tmp_path):
    sampler = built(Chained)
    whole = latents(sampler, ["a", "b"])
    alone = latents(sampler, "b")
    torch.testing.assert_close(alone, whole[1:], **TOLERANCE)
    torch.testing.assert_close(latents(sampler, "b", frames=range(9, 11)), whole[1:, :, 9:11], **TOLERANCE)
    torch.testing.assert_close(latents(sampler, ["a", "b"], batch_size=1), whole, **TOLERANCE)
    written = sampler("b", seed=5, num_frames=14, out=tmp_path / "frames")  # depth first
    assert len(list(written.paths[0].glob("*.png"))) == 14
    assert not torch.equal(whole[:, :, 4:8], latents(sampler, ["a", "b"], plan=chunks(14, 4))[:, :, 4:8])


def test_states_are_kept_in_the_work_folder(tmp_path):
    sampler = built(Chained)
    whole, level = latents(sampler), sampler.strategy.levels["video"]
    answer, calls = level.answer, []

    def cut(batch):
        calls.append(batch.calls[0].id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(batch)

    level.answer = cut
    with pytest.raises(KeyboardInterrupt):
        latents(sampler, work=tmp_path)
    level.answer = lambda batch: calls.append(batch.calls[0].id) or answer(batch)
    assert torch.equal(latents(sampler, work=tmp_path), whole)
    assert calls == ["video/0-3", "video/4-7", "video/8-11", "video/8-11", "video/12-13"]
    assert sampler.cost(prompt="a", num_frames=14).disk_bytes == 4 * 192 * (
        14 + 3
    )  # no call needs the last state


def test_a_state_that_is_not_handed_out_is_named():
    sampler = built(Chained)
    sampler.strategy.forgets = True
    with pytest.raises(PlanError, match=r"emits the state 'sum'.*batch\.emit\('sum', value\)"):
        latents(sampler)
    with pytest.raises(InvalidArgumentError, match="emit the state 'sum'; ToyLevel has no such state"):
        latents(Sampler(toy()), plan=handed_on(14))


def test_calls_of_another_structure_do_not_share_a_batch():
    level = toy().levels["video"]
    first, second, last = handed_on(12).calls
    key = level.batch_key
    assert key(second) == key(last) != key(first)
    inside = replace(last, frames=(7, *last.frames))  # the given frame is one of its own
    assert key(inside) != key(last)
    other = replace(last, given=(*last.given, ("coarse", 0)))
    assert len({key(call) for call in (first, second, inside, other)}) == 4


@pytest.fixture
def known(monkeypatch):
    own, load = {kind.name: kind for kind in (Several, Looping, Chained)}, plugins.load
    monkeypatch.setattr(plugins, "load", lambda group, name: own[name] if name in own else load(group, name))
    return own


class TwoProcesses(Several):
    name = "looping"  # stands in for it

    @cached_property
    def levels(self):
        return {"global": ToyLevel(self, "global"), "video": ToyLevel(self, "video")}


def test_schedulers_by_level_are_saved_and_loaded(tmp_path, known):
    base = toy()
    ddim = base.scheduler
    euler = EulerDiscreteScheduler.from_config(ddim.config)
    strategy = TwoProcesses(ToyConfig(), base.modules, {"global": euler, "video": ddim})
    known["looping"] = TwoProcesses
    folder = checkpoint.save_strategy(strategy, tmp_path / "two")
    assert sorted(p.name for p in (folder / "scheduler").iterdir()) == ["global", "video"]
    loaded = vidgen.load(folder, device="cpu").strategy
    kinds = {name: type(scheduler).__name__ for name, scheduler in loaded.schedulers.items()}
    assert kinds == {"global": "EulerDiscreteScheduler", "video": "DDIMScheduler"}
    loaded.scheduler = {"global": "DDIM"}
    checkpoint.save_strategy(loaded, tmp_path / "one")
    loaded.scheduler = "UniPC"
    assert {type(s).__name__ for s in loaded.schedulers.values()} == {"UniPCMultistepScheduler"}


def test_one_scheduler_is_one_file_and_none_is_none(tmp_path, known):
    folder = checkpoint.save_strategy(built(Several).strategy, tmp_path / "one")
    assert [p.name for p in (folder / "scheduler").iterdir()] == ["scheduler_config.json"]
    loaded = vidgen.load(folder, device="cpu").strategy
    assert isinstance(loaded.scheduler, DDIMScheduler)
    assert list(loaded.schedulers) == ["video"]


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", "..", "a\\b"])
def test_hostile_names_of_levels_are_refused(tmp_path, known, name):
    folder = checkpoint.save_strategy(built(Several).strategy, tmp_path / "model")
    index = configs.read_json(folder / "vidgen.json")
    index["process"] = {name: index["process"]}
    configs.write_json(folder / "vidgen.json", index)
    with pytest.raises(CheckpointError, match="expected the plain name of a level"):
        vidgen.load(folder, device="cpu")


def test_a_plan_of_levels_that_the_strategy_does_not_have_is_refused():
    with pytest.raises(PlanError, match="is of level 'film'; several has a model for 'global', 'video'"):
        latents(built(Several), plan=chunks(14, 5, level="film"))
