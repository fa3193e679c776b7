"""The sampler: the same video however it is made, and diffusers' way of calling."""

from __future__ import annotations

import json
from dataclasses import dataclass

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

import vidgen.sampling.work as work_module
from toy import toy
from vidgen.errors import (
    CheckpointError,
    GenerationInterruptedError,
    InvalidArgumentError,
    PlanError,
    SchedulerError,
    UnknownNameError,
)
from vidgen.noise import NoiseKey
from vidgen.plans import CascadeLevel, autoregressive, cascade, chunks, keyframes, rooted, tree
from vidgen.sampling import Sampler
from vidgen.video import Video, read_metadata

PICTURE = torch.linspace(-1, 1, 192).reshape(3, 8, 8)

# Batched convolutions may round differently; observed differences are below 1e-6.
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture
def sampler():
    sampler = Sampler(toy())
    sampler.set_progress_bar_config(disable=True)
    return sampler


def latents(sampler, *args, **kwargs):
    return sampler(*args, output_type="latent", **{"seed": 5, "num_frames": 20, **kwargs}).frames


PLANS = [
    None,
    autoregressive(20, 6, 2),
    keyframes(20, 8),
    tree(20, 5),
    chunks(20, 7),
    rooted(chunks(20, 7), "global"),
    cascade([CascadeLevel("coarse", 10, 10), CascadeLevel("video", 20, 6, time_factor=2, halo=1)]),
]
PLAN_NAMES = ["default", "autoregressive", "keyframes", "tree", "chunks", "global", "cascade"]


@pytest.mark.parametrize("plan", PLANS, ids=PLAN_NAMES)
def test_same_seed_same_video_whatever_batch_and_order(sampler, plan, tmp_path):
    whole = latents(sampler, ["a", "b"], plan=plan, eta=0.5)
    for i, prompt in enumerate("ab"):
        torch.testing.assert_close(latents(sampler, prompt, plan=plan, eta=0.5), whole[i : i + 1], **TOLERANCE)
    for batch_size in (1, 3, 100):
        again = latents(sampler, ["a", "b"], plan=plan, eta=0.5, batch_size=batch_size)
        torch.testing.assert_close(again, whole, **TOLERANCE)
    assert (latents(sampler, ["a", "b"], plan=plan, eta=0.5, seed=6) - whole).abs().max() > 0.1
    # Written to a file the calls run depth first, one after the other.
    out = sampler("a", seed=5, num_frames=20, plan=plan, eta=0.5, out=tmp_path / "frames")
    pixels = sampler("a", seed=5, num_frames=20, plan=plan, eta=0.5).videos[0].frames
    np.testing.assert_array_equal(Video.load(out.paths[0]).frames, pixels)


@pytest.mark.parametrize("plan", PLANS, ids=PLAN_NAMES)
def test_any_span_agrees_with_the_whole_video(sampler, plan):
    whole = latents(sampler, "a", plan=plan, eta=1.0)
    for span in (range(9, 13), [0], [19], [3, 17]):
        sampler.strategy.modules["network"].calls.clear()
        part = latents(sampler, "a", plan=plan, eta=1.0, frames=span)
        torch.testing.assert_close(part, whole[:, :, list(span)], **TOLERANCE)
        made = len(sampler.strategy.modules["network"].calls)
        full = plan or sampler.strategy.plan(20)
        assert made == 4 * full.subplan(span).num_calls  # its ancestors, and nothing else


def test_span_costs_less_than_the_whole(sampler):
    plan = tree(20, 5)
    assert sampler.cost(num_frames=20, plan=plan, frames=range(2)).calls < plan.num_calls


def test_videos_of_a_prompt_use_consecutive_seeds(sampler):
    out = sampler(["a", "b"], num_videos_per_prompt=2, seed=7, output_type="latent")
    assert out.seeds == (7, 8, 7, 8)
    single = sampler("b", seed=8, output_type="latent").frames
    torch.testing.assert_close(out.frames[3:], single, **TOLERANCE)
    generator = torch.Generator().manual_seed(7)
    same = sampler("a", generator=generator, output_type="latent")
    torch.testing.assert_close(same.frames, out.frames[:1], **TOLERANCE)


def test_noise_is_the_priors_by_absolute_frame_and_fresh_in_every_step(sampler, monkeypatch):
    strategy, asked = sampler.strategy, []
    level = strategy.levels["video"]
    sample = type(level.prior).sample

    def spy(self, frames, shape, key):
        asked.append((tuple(frames), shape, key))
        return sample(self, frames, shape, key)

    monkeypatch.setattr(type(level.prior), "sample", spy)
    starts = []
    level.denoise, network = lambda x, t, cond: starts.append(x) or network(x, t, cond), level.denoise
    latents(sampler, "a", num_frames=13, eta=1.0)
    calls = strategy.plan(13).calls
    streams = ["start", "step-0", "step-1", "step-2", "step-3"]
    assert asked == [
        (call.frames, (12, 4, 4), NoiseKey(5, stream, "video")) for call in calls for stream in streams
    ]
    for call, start in zip(calls, starts[::4], strict=True):  # the first of four steps
        expected = sample(level.prior, call.frames, (12, 4, 4), NoiseKey(5, "start", "video"))
        assert torch.equal(start[0], expected)
    deterministic = latents(sampler, "a", num_frames=13)
    assert (deterministic - latents(sampler, "a", num_frames=13, eta=1.0)).abs().max() > 0.1


def test_given_latents_replace_the_start_noise(sampler):
    shape = (1, 12, 8, 4, 4)
    assert latents(sampler, num_frames=8, latents=torch.zeros(shape), seed=1).equal(
        latents(sampler, num_frames=8, latents=torch.zeros(shape), seed=2)
    )
    with pytest.raises(InvalidArgumentError, match=r"expected \(b, c, f, h, w\)"):
        latents(sampler, num_frames=9, latents=torch.zeros(shape))
    both = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(0))
    made = latents(sampler, ["a", "a"], num_frames=8, latents=both)
    for i in range(2):  # each video has its own
        alone = latents(sampler, "a", num_frames=8, latents=both[i : i + 1])
        torch.testing.assert_close(made[i : i + 1], alone, **TOLERANCE)
    assert (made[0] - made[1]).abs().max() > 0.01


def test_output_types_agree(sampler):
    as_np = sampler("a", seed=0)
    assert as_np.frames.shape == (1, 8, 8, 8, 3)
    assert 0 <= as_np.frames.min() <= as_np.frames.max() <= 1
    as_pt = sampler("a", seed=0, output_type="pt").frames
    np.testing.assert_array_equal(as_pt.permute(0, 1, 3, 4, 2).numpy(), as_np.frames)
    as_pil = sampler("a", seed=0, output_type="pil")
    np.testing.assert_array_equal(np.asarray(as_pil.frames[0][3]), (as_np.frames[0, 3] * 255).round())
    np.testing.assert_array_equal(as_pil.videos[0].frames, as_np.videos[0].frames)
    (frames,) = sampler("a", seed=0, return_dict=False)
    np.testing.assert_array_equal(frames, as_np.frames)
    latent = sampler("a", seed=0, output_type="latent").frames
    decoded = (sampler.strategy.codec.decode(latent) + 1) / 2
    np.testing.assert_allclose(decoded[0].permute(1, 2, 3, 0).numpy(), as_np.frames[0], atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="holds latents"):
        sampler("a", seed=0, num_frames=3, output_type="latent").videos  # noqa: B018
    with pytest.raises(UnknownNameError, match="Did you mean 'latent'"):
        sampler("a", output_type="latents")


def test_files_carry_their_settings(sampler, tmp_path):
    out = sampler(["a", "b"], seed=3, num_frames=12, height=16, width=16, out=tmp_path / "v.mp4")
    assert [path.name for path in out.paths] == ["v-000.mp4", "v-001.mp4"]
    assert out.frames is None
    settings = read_metadata(out.paths[1])
    assert (settings["prompt"], settings["seed"], settings["num_frames"]) == ("b", 3, 12)
    assert Video.load(out.paths[0]).frames.shape == (12, 16, 16, 3)
    assert out.videos[0].fps == 4.0


def test_memory_is_bounded_by_the_window_when_streaming(sampler, tmp_path, monkeypatch):
    """The canvas never holds more than the plan says, however long the video."""
    from vidgen.sampling.engine import Engine

    held = []
    forget = Engine._forget

    def spy(self, calls):
        held.append(max(len(canvas) for canvas in self.canvases))
        forget(self, calls)

    monkeypatch.setattr(Engine, "_forget", spy)
    for plan in (autoregressive(100, 8, 3), tree(65, 5)):
        held.clear()
        sampler("a", seed=1, num_frames=plan.num_frames, plan=plan, out=tmp_path / f"{plan.num_calls}.mp4")
        assert max(held) <= plan.peak_frames("depth") < 25


def test_killed_run_goes_on_where_it_was(sampler, tmp_path):
    plan, network = tree(20, 5), sampler.strategy.modules["network"]
    whole = latents(sampler, "a", plan=plan)

    def stop(s, step, t, kwargs):
        s.interrupt = kwargs["call"] is plan.calls[4] and step == 2

    with pytest.raises(GenerationInterruptedError, match=plan.calls[4].id):
        latents(
            sampler,
            "a",
            plan=plan,
            work=tmp_path,
            batch_size=1,
            callback_on_step_end=stop,
            callback_on_step_end_tensor_inputs=["call"],
        )
    network.calls.clear()
    resumed = latents(sampler, "a", plan=plan, work=tmp_path, batch_size=1)
    torch.testing.assert_close(resumed, whole, **TOLERANCE)
    assert len(network.calls) == 4 * (plan.num_calls - 4)
    for change in (
        {"prompt": "b"},
        {"seed": 6},
        {"eta": 0.5},
        {"num_inference_steps": 5},
        {"scheduler": "UniPC"},
        {"plan": tree(20, 6)},
        {"pins": {0: torch.zeros(3, 8, 8)}},
        {"pins": {0: PICTURE.flip(-1)}},
        {"latents": torch.zeros(1, 12, 20, 4, 4)},
    ):
        with pytest.raises(CheckpointError, match="other settings or weights"):
            latents(sampler, work=tmp_path, **{"prompt": "a", "plan": plan, **change})
    with torch.no_grad():
        network.conv.bias += 1
    with pytest.raises(CheckpointError, match="other settings or weights"):
        latents(sampler, "a", plan=plan, work=tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


def test_work_folder_tells_a_picture_from_its_mirror_image(sampler, tmp_path):
    arguments = {"work": tmp_path / "work", "num_frames": 8}
    latents(sampler, "a", pins={0: PICTURE}, **arguments)
    with pytest.raises(CheckpointError, match="other settings"):
        latents(sampler, "a", pins={0: PICTURE.flip(-1)}, **arguments)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        latents(sampler, "a", work=tmp_path / "file")


def test_everything_pinned_needs_no_call(sampler, tmp_path):
    out = sampler("a", num_frames=3, pins=dict.fromkeys(range(3), PICTURE), out=tmp_path / "frames")
    frames = Video.load(out.paths[0]).frames
    expected = ((PICTURE + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert (frames == expected).all()
    assert sampler.strategy.modules["network"].calls == []


def test_several_videos_as_pictures_get_a_folder_each(sampler, tmp_path):
    out = sampler(["a", "b"], seed=0, out=tmp_path / "seq" / "%05d.png")
    assert [path.parent.name for path in out.paths] == ["seq-000", "seq-001"]
    assert all(Video.load(path.parent).num_frames == 8 for path in out.paths)


def test_a_span_holds_only_what_it_needs(sampler):
    from vidgen.sampling.arguments import Arguments
    from vidgen.sampling.engine import Engine

    generation = Arguments(prompt="a", seed=0, num_frames=100, frames=range(95, 98)).resolve(sampler.strategy)
    engine = Engine(sampler.strategy, generation)
    assert max(len(engine.canvases[0]) for _ in engine.run()) <= 16
    assert sorted(engine.canvases[0]) == [("video", 95), ("video", 96), ("video", 97)]


def test_callback_and_interrupt(sampler):
    seen = []

    def callback(s, step, t, kwargs):
        seen.append((step, int(t), set(kwargs)))
        return {"latents": torch.zeros_like(kwargs["latents"])}

    out = latents(sampler, "a", num_frames=8, callback_on_step_end=callback)
    assert [step for step, *_ in seen] == [0, 1, 2, 3]
    assert seen[0][1:] == (999, {"latents"})
    assert out.abs().max() == 0
    with pytest.raises(UnknownNameError, match="callback_on_step_end_tensor_inputs"):
        latents(sampler, "a", callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["x"])


def test_a_solver_set_on_the_sampler_is_used(sampler):
    """As ``pipe.scheduler = X`` of diffusers."""
    before = latents(sampler, "a", num_frames=8)
    config = sampler.scheduler.config
    sampler.scheduler = diffusers.UniPCMultistepScheduler.from_config(config)
    assert sampler.scheduler is sampler.strategy.scheduler
    changed = latents(sampler, "a", num_frames=8)
    assert (changed - before).abs().max() > 1e-3
    assert sampler("a", num_frames=8, seed=0).metadata[0]["scheduler"] == "UniPCMultistepScheduler"
    sampler.scheduler = "DDIM"
    torch.testing.assert_close(latents(sampler, "a", num_frames=8), before, rtol=0, atol=0)
    with pytest.raises(SchedulerError, match="DDPMScheduler draws its own noise"):
        sampler.scheduler = diffusers.DDPMScheduler.from_config(config)
    assert type(sampler.scheduler).__name__ == "DDIMScheduler"


def test_a_callback_written_for_diffusers_stops_the_generation(sampler):
    steps = []

    def callback(s, step, t, kwargs):
        steps.append(step)
        s._interrupt = step == 1
        return kwargs

    with pytest.raises(GenerationInterruptedError, match="step 1"):
        sampler("a", num_frames=8, seed=0, callback_on_step_end=callback)
    assert steps == [0, 1]
    assert sampler._interrupt
    assert sampler.interrupt


@pytest.mark.parametrize("name", ["schedular", "vae", "guidance_scale", "_interupt", "safety_checker"])
def test_setting_what_does_not_exist_is_refused(sampler, name):
    with pytest.raises(UnknownNameError, match=f"{name!r}.*Known: interrupt, scheduler, strategy"):
        setattr(sampler, name, None)
    assert not hasattr(sampler, name)


def test_a_derived_sampler_may_have_attributes_of_its_own(sampler):
    class Own(Sampler):
        history: list[int]

    own = Own(sampler.strategy)
    own.history = [1]
    assert own.history == [1]
    with pytest.raises(UnknownNameError):
        own.other = 1


def test_progress_counts_solver_steps(sampler, capsys):
    sampler.set_progress_bar_config(ascii=True)
    sampler("a", num_frames=20, seed=0)
    calls = sampler.strategy.plan(20).num_calls
    assert f"{4 * calls}/{4 * calls}" in capsys.readouterr().err
    cost = sampler.cost(prompt=["a", "b"], num_frames=20)
    assert (cost.videos, cost.calls, cost.evaluations) == (2, calls, 2 * calls * 4)


def test_guidance_between_equal_prompts_costs_nothing(sampler):
    assert sampler.cost(prompt="a", guidance_scale=3.0).evaluations == 8
    assert sampler.cost(prompt="", guidance_scale=3.0).evaluations == 4
    assert sampler.cost(prompt="a", negative_prompt="a", guidance_scale=3.0).evaluations == 4


def test_prompt_per_span(sampler):
    mixed = latents(sampler, {0: "a", 8: "zebra"}, num_frames=13)
    torch.testing.assert_close(mixed[:, :, :8], latents(sampler, "a", num_frames=13)[:, :, :8], **TOLERANCE)
    assert (mixed - latents(sampler, "a", num_frames=13))[:, :, 8:].abs().max() > 0.01


def test_pinned_pictures_come_back_and_steer(sampler):
    picture = Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
    out = sampler("a", seed=0, num_frames=13, pins={0: picture, 12: np.asarray(picture)})
    np.testing.assert_allclose(out.frames[0, [0, 12]], 200 / 255, atol=1e-5)
    free = sampler("a", seed=0, num_frames=13)
    assert np.abs(out.frames[0, 1] - free.frames[0, 1]).max() > 0.01
    with pytest.raises(InvalidArgumentError, match="frame 13"):
        sampler("a", num_frames=13, pins={13: picture})
    wide = Image.fromarray(np.concatenate([np.asarray(picture), np.zeros((8, 6, 3), np.uint8)], 1))
    cropped = sampler("a", seed=0, num_frames=13, pins={0: wide})  # scaled to cover, cropped to the centre
    np.testing.assert_allclose(cropped.frames[0, 0, :, :5], 200 / 255, atol=1e-5)
    np.testing.assert_allclose(cropped.frames[0, 0, :, 5:], 0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_frames": 0}, InvalidArgumentError, "num_frames is 0"),
        ({"num_frames": 8.5}, InvalidArgumentError, r"num_frames is 8.5 \(float\); expected a whole number"),
        ({"num_inference_steps": 2.5}, InvalidArgumentError, "expected a whole number"),
        ({"num_videos_per_prompt": "2"}, InvalidArgumentError, "expected a whole number"),
        ({"guidance_scale": "3"}, InvalidArgumentError, "guidance_scale is '3'"),
        ({"eta": "0.5"}, InvalidArgumentError, "expected a number"),
        ({"prompt": None}, InvalidArgumentError, "a prompt is None"),
        ({"prompt": ["a", 3.5]}, InvalidArgumentError, "a text, a class number"),
        ({"prompt": {"0": "a"}}, InvalidArgumentError, "a frame of a prompt is '0'"),
        ({"prompt": {-4: "a"}}, InvalidArgumentError, "begins at frame -4"),
        ({"negative_prompt": {0: "a"}}, InvalidArgumentError, "one text for the whole video"),
        ({"pins": {"0": PICTURE}}, InvalidArgumentError, "a frame of pins is '0'"),
        ({"pins": {0.5: PICTURE}}, InvalidArgumentError, "a frame of pins is 0.5"),
        ({"pins": [PICTURE]}, InvalidArgumentError, "expected {frame: picture}"),
        ({"frames": 3}, InvalidArgumentError, "frames is 3"),
        ({"frames": ["a"]}, InvalidArgumentError, "frames is 'a'"),
        ({"latents": np.zeros(3)}, InvalidArgumentError, "expected a tensor"),
        ({"plan": 3}, InvalidArgumentError, "expected a vidgen Plan"),
        ({"num_frames": True}, InvalidArgumentError, "num_frames is True"),
        ({"eta": float("nan")}, InvalidArgumentError, "eta is nan"),
        ({"fps": float("inf")}, InvalidArgumentError, "fps is inf"),
        ({"batch_size": 2.0}, InvalidArgumentError, "batch_size is 2.0"),
        ({"out": 3}, InvalidArgumentError, "out is 3"),
        ({"work": 3}, InvalidArgumentError, "work is 3"),
        ({"callback_on_step_end": "x"}, InvalidArgumentError, "expected a function"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, InvalidArgumentError, "a list of names"),
        ({"scheduler": 3}, InvalidArgumentError, "scheduler or its name"),
        ({"generator": "x"}, InvalidArgumentError, "a torch.Generator"),
        ({"num_frames": -3}, InvalidArgumentError, "num_frames is -3"),
        ({"height": 9}, InvalidArgumentError, "multiple"),
        ({"fps": 0}, InvalidArgumentError, "fps is 0"),
        ({"prompt": []}, InvalidArgumentError, "no video"),
        ({"prompt": {}}, InvalidArgumentError, r"a prompt is empty \(\{\}\)"),
        ({"num_videos_per_prompt": 0}, InvalidArgumentError, "no video"),
        ({"negative_prompt": ["a", "b"]}, InvalidArgumentError, "2 negative prompts"),
        ({"frames": range(6, 9)}, InvalidArgumentError, r"frames in\s+0..7"),
        ({"frames": []}, InvalidArgumentError, "no frame"),
        ({"plan": tree(20, 5)}, PlanError, "covers 20 latent frames"),
        ({"scheduler": "Eulre"}, UnknownNameError, "Did you mean 'Euler'"),
        ({"batch_size": 0}, InvalidArgumentError, "batch_size is 0"),
        ({"guidanse_scale": 3}, UnknownNameError, "Did you mean 'guidance_scale'"),
        ({"seed": -1}, InvalidArgumentError, "seed"),
        ({"num_inference_steps": 0}, InvalidArgumentError, "num_inference_steps is 0"),
        ({"num_inference_steps": 2000}, InvalidArgumentError, "expected 1 to 1000"),
        ({"guidance_scale": float("nan")}, InvalidArgumentError, "finite"),
        ({"scheduler": "PNDM"}, SchedulerError, "predicts 'sample'"),
        ({"pins": {0: torch.zeros(3, 8, 8, dtype=torch.uint8)}}, InvalidArgumentError, "floating point in"),
        ({"pins": {0: torch.full((3, 8, 8), float("nan"))}}, InvalidArgumentError, "from nan to nan"),
    ],
)
def test_bad_arguments_say_what_to_do(sampler, arguments, error, message):
    with pytest.raises(error, match=message):
        sampler(**{"prompt": "a", **arguments})


def test_cost_is_said_before_and_measured_after(sampler, caplog):
    arguments = {"prompt": ["a", "b"], "num_frames": 13, "guidance_scale": 3.0}
    before = sampler.cost(**arguments)
    assert (before.videos, before.calls, before.waves, before.seconds) == (2, 2, 2, None)
    assert before.evaluations == 2 * 2 * 4 * 2  # videos, calls, steps, guidance
    assert before.disk_bytes == 2 * 13 * 12 * 4 * 4 * 4  # 13 latents of 12 x 4 x 4 floats
    with caplog.at_level("INFO", logger="vidgen"):
        sampler(**arguments, seed=0)
    assert "2 video(s) x 2 call(s) in 2 wave(s): 32 network evaluations, 20 kB if kept" in caplog.text
    after = sampler.cost(**arguments)
    assert 0 < after.seconds < 60
    assert sampler.cost(**{**arguments, "prompt": ["a"]}).seconds == pytest.approx(after.seconds / 2)
    assert sampler.cost(num_frames=4).seconds is None  # shorter calls were not measured


def test_disk_cost_is_what_the_work_folder_holds(sampler, tmp_path):
    expected = sampler.cost(prompt="a", num_frames=20, plan=tree(20, 5)).disk_bytes
    sampler("a", seed=0, num_frames=20, plan=tree(20, 5), work=tmp_path)
    held = sum(len(load_file(file)["latents"].flatten()) for file in tmp_path.glob("video-*/*.safetensors"))
    assert 4 * held == expected


def test_settings_are_json(sampler, tmp_path):
    json.dumps(sampler("a", seed=0).metadata[0])
    sampler("a", seed=np.int64(0), num_frames=np.int64(8), fps=np.float32(4), work=tmp_path)  # NumPy counts too


def test_no_negative_prompt_is_the_empty_one(sampler):
    assert latents(sampler, negative_prompt=None).equal(latents(sampler, negative_prompt=""))


def test_a_repetition_without_a_seed_goes_on_with_the_one_it_had(sampler, tmp_path):
    first = sampler("a", num_frames=13, num_videos_per_prompt=2, work=tmp_path / "work")
    network = sampler.strategy.modules["network"]
    network.calls.clear()
    again = sampler("a", num_frames=13, num_videos_per_prompt=2, work=tmp_path / "work")
    assert again.seeds == first.seeds
    assert network.calls == []
    np.testing.assert_array_equal(again.frames, first.frames)
    with pytest.raises(CheckpointError, match="other settings"):
        sampler("a", num_frames=13, num_videos_per_prompt=2, work=tmp_path / "work", seed=first.seeds[0] + 1)
    for broken in ("no json", '{"seed": "abc"}'):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / "work.json").write_text(broken)
        if broken == "no json":
            with pytest.raises(CheckpointError, match="Delete it to begin anew"):
                sampler("a", work=tmp_path / "broken")
        else:
            sampler("a", work=tmp_path / "broken")  # no seed, no settings: it begins anew
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be used"):
        sampler("a", work=tmp_path / "file" / "below")


def test_a_full_disk_leaves_nothing_half_written_in_the_work_folder(sampler, tmp_path, monkeypatch):
    def full(path, tensors):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(work_module, "write_tensors", full)
    with pytest.raises(CheckpointError, match="No space left"):
        sampler("a", seed=0, work=tmp_path / "work")
    assert [p.name for p in (tmp_path / "work").rglob("*") if p.is_file()] == ["work.json"]


def test_cost_takes_what_a_call_takes(sampler):
    call = {"num_frames": 13, "seed": 0, "batch_size": 2, "output_type": "pt", "return_dict": False}
    assert sampler.cost("a", **call) == sampler.cost(prompt="a", num_frames=13)
    with pytest.raises(UnknownNameError, match="num_frame"):
        sampler.cost("a", num_frame=13)


@dataclass(frozen=True)
class Weights:
    """Options of a strategy."""

    scale: float | None = None
    count: int = 1
    way: str = "plain"
    exact: bool = False


def test_options_are_as_strict_with_numbers_as_the_samplers_own(sampler, monkeypatch):
    monkeypatch.setattr(type(sampler.strategy), "Options", Weights)
    for options in ({"scale": "3"}, {"scale": True}, {"count": "2"}):
        ((name, value),) = options.items()
        with pytest.raises(InvalidArgumentError, match=rf"{name} is {value!r} .*; expected a number"):
            sampler("a", seed=0, **options)
    made = sampler("a", seed=0, scale=3, count=np.int64(2), way="3", exact="true").metadata[0]["options"]
    assert made == {"scale": 3.0, "count": 2, "way": "3", "exact": True}
