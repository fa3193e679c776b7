"""What a strategy is made of and costs, without weights: counted by hand, and as real tensors count."""

from __future__ import annotations

import importlib
import re
import resource
import sys
from dataclasses import replace

import pytest
import torch

from toy import Toy, ToyConfig, ToyLevel, levels_of, toy
from vidgen import checkpoint, info, plugins
from vidgen import config as configs
from vidgen.codecs import PixelCodec
from vidgen.errors import InvalidArgumentError, UnknownNameError, VidgenError
from vidgen.frame_codec.task import FrameCodecTask
from vidgen.nn import attention_backend, flop_counter
from vidgen.plans import Call, Level, Plan, all_at_once, chunks
from vidgen.recipe import Recipe
from vidgen.request import Request
from vidgen.strategies.vdm import VDM
from vidgen.video.dataset import DataConfig, open_dataset


def request(num_frames=8, size=(8, 8), strategy=None):
    return Request(
        prompt="",
        negative_prompt="",
        seed=0,
        num_frames=num_frames,
        height=size[0],
        width=size[1],
        fps=4.0,
        levels=levels_of(strategy or toy(), guidance_scale=1.0),
    )


def conv_macs(frames, height, width):
    """By hand: ToyNetwork is one 3 x 3 x 3 convolution from 12 latent channels and a mask to 12."""
    return 12 * 13 * 27 * frames * (height // 2) * (width // 2)


def on_meta(kind=Toy, **config):
    with torch.device("meta"):
        return kind.create(ToyConfig(**config))


@pytest.mark.parametrize("make", [toy, on_meta], ids=["cpu", "meta"])
def test_a_convolution_is_counted_as_by_hand(make):
    strategy = make()
    assert info.macs_per_call(strategy, all_at_once(8), request()) == conv_macs(8, 8, 8)
    assert info.macs_per_call(strategy, all_at_once(8), request(size=(8, 16))) == conv_macs(8, 8, 16)


@pytest.mark.parametrize("make", [toy, on_meta], ids=["cpu", "meta"])
def test_calls_of_different_length_are_averaged(make):
    plan = chunks(10, 4)
    assert [len(call.frames) for call in plan.calls] == [4, 4, 2]
    expected = (2 * conv_macs(4, 8, 8) + conv_macs(2, 8, 8)) / 3
    assert info.macs_per_call(make(), plan, request(10)) == pytest.approx(expected)
    plan = make().plan(18)  # windows that are given frames
    assert plan.num_calls == 3
    assert info.macs_per_call(make(), plan, request(18)) == conv_macs(8, 8, 8)


class SmallRoot(ToyLevel):
    """Its global feature is smaller than a frame."""

    def shape(self, request):
        shape = super().shape(request)
        return (shape[0], 2, 1) if self.name == "global" else shape

    def condition(self, call, canvas, request):
        assert all(canvas[slot].shape == (12, 2, 1) for slot in call.given)
        return super().condition(call, canvas, request)


class TwoSizes(Toy):
    level_class = SmallRoot


def test_calls_given_another_level():
    calls = (
        Call("global", "global", (0,), (), (("global", 0),)),
        Call("video", "video", tuple(range(4)), (("global", 0),), tuple(("video", i) for i in range(4))),
    )
    plan = Plan(calls, (Level("global", 1, 1), Level("video", 4, 4)))
    expected = (conv_macs(1, 4, 2) + conv_macs(4, 8, 8)) / 2
    assert info.macs_per_call(on_meta(TwoSizes), plan, request(4)) == expected


def test_calls_alike_are_counted_once(monkeypatch):
    strategy = on_meta()
    asked = []
    monkeypatch.setattr(ToyLevel, "answer", lambda self, batch: asked.append(batch.calls) or batch.noise())
    info.macs_per_call(strategy, strategy.plan(500), request(500))
    assert len(asked) == 2  # the first window, and those that are given frames


class TwoPasses(ToyLevel):
    """Answers in two evaluations, without a solver."""

    def answer(self, batch):
        x, t = batch.noise(), torch.zeros(1, device=batch.device)
        return self.denoise(self.denoise(x, t, batch.cond), t, batch.cond)

    def evaluations(self, call, solver_evaluations):
        return 2


class WithoutSolver(Toy):
    level_class = TwoPasses


def test_what_a_call_answers_without_a_solver_counts():
    strategy = WithoutSolver.create(ToyConfig())
    assert info.macs_per_call(strategy, all_at_once(8), request(strategy=strategy)) == conv_macs(8, 8, 8)


def test_vdm_counts_on_the_meta_device_what_it_counts_on_the_cpu():
    """Against real tensors through the sampler, whose one unguided step is one evaluation."""
    found = info.describe("vdm", "tiny", assignments=["size=16", "videos=8"])
    recipe = configs.override(plugins.load_recipe("vdm", "tiny"), ["size=16", "videos=8"])
    strategy_class = plugins.load(plugins.STRATEGIES, "vdm")
    from vidgen.sampling import Sampler
    from vidgen.video.dataset import open_dataset

    model = strategy_class.prepare(recipe.model, open_dataset(recipe.data))
    strategy = checkpoint.build(strategy_class, model)
    for module in strategy.modules.values():
        module.eval()
    assert found["components"] == {k: {"parameters": n} for k, n in strategy.num_parameters().items()}
    sampler = Sampler(strategy)
    sampler.set_progress_bar_config(disable=True)
    with flop_counter() as counter:
        sampler(seed=0, num_inference_steps=1, guidance_scale=1, output_type="latent")
    network = sum(counter.get_flop_counts()["VideoUNet"].values())
    assert network == 2e9 * found["gmacs_per_call"]
    plan = strategy.plan(strategy.defaults.num_frames)
    size = (strategy.defaults.height, strategy.defaults.width)
    asked = request(strategy.defaults.num_frames, size, strategy)
    for backend in ("sdpa", "math", "flash"):
        with attention_backend(backend):
            assert info.macs_per_call(strategy, plan, asked) == network / 2


def test_exactly_the_documented_keys():
    found = info.describe("vdm", num_frames=100, assignments=["videos=8"])
    assert list(found) == ["strategy", "recipe", "components", "gmacs_per_call", "plan"]
    assert (found["strategy"], found["recipe"]) == ("vdm", "vdm/tiny")
    assert list(found["components"]) == ["codec", "unet", "temporal", "text_encoder"]
    assert all(list(value) == ["parameters"] for value in found["components"].values())
    # 16 frames, then 12 new ones in each of 7 windows; a window is all that lives while it streams
    expected = {"frames": 100, "calls": 8, "waves": 8, "critical_path": 8, "peak_frames": 16}
    assert found["plan"] == expected
    assert info.describe("vdm", "vdm/tiny", num_frames=100, assignments=["videos=8"]) == found


def test_overrides_and_the_default_length_show():
    one = info.describe("vdm", assignments=["videos=8"])
    two = info.describe("vdm", assignments=["videos=8", "widths=[64,64]", "clip_length=8"])
    assert (one["plan"]["frames"], two["plan"]["frames"]) == (16, 8)
    assert two["components"]["unet"] != one["components"]["unet"]
    assert two["gmacs_per_call"] != one["gmacs_per_call"]


def test_a_model_of_a_billion_parameters_needs_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = [
        "widths=[1024,2048]",
        "layers_per_block=2",
        "head_dim=64",
        "sample_size=[256,256]",
        "sample_frames=64",
    ]
    found = info.describe("vdm", assignments=["data.path=/no/such/folder", *sizes])
    assert sum(value["parameters"] for value in found["components"].values()) > 1e9
    assert found["gmacs_per_call"] > 1e4
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 200e6


def test_words_come_from_data_that_are_there(tmp_path):
    """The closed vocabulary is part of the model: its size is what the captions say."""
    from vidgen.shapes.datasets import ShapesData
    from vidgen.shapes.export import write_folder

    def encoder(*assignments):
        described = info.describe("vdm", assignments=["max_words=8", *assignments])
        return described["components"]["text_encoder"]["parameters"]

    write_folder(ShapesData.source(DataConfig.of("shapes", size=16, videos=2, frames=16)), tmp_path / "clips")
    few = encoder(f"data.path={tmp_path / 'clips'}", "size=16", f"cache_dir={tmp_path / 'cache'}")
    many, none = encoder("videos=64"), encoder("data.path=/no/such/folder")
    assert none < few < many


def test_ambient_random_state_is_untouched():
    state = torch.get_rng_state()
    info.describe("vdm", assignments=["data.path=/no/such/folder"])
    assert torch.equal(state, torch.get_rng_state())


def installed(monkeypatch, kind):
    """Register ``kind`` as the strategy "toy", with a recipe."""
    recipe = Recipe("toy", ToyConfig(), DataConfig("/no/such/folder"))
    monkeypatch.setattr(plugins, "load_recipe", lambda strategy, name: recipe)
    load = plugins.load
    monkeypatch.setattr(
        plugins, "load", lambda group, name: kind if group == plugins.STRATEGIES else load(group, name)
    )


class ViewsLevel(ToyLevel):
    """Hands views of what needs gradients through a module, as a learned embedding is repeated."""

    def denoise(self, x_t, t, cond):
        seen, bias = torch.nn.Identity(), self.strategy.modules["network"].conv.bias
        return super().denoise(x_t + 0 * seen(bias.expand(1, 12)).mean(), t, cond)


class Views(Toy):
    level_class = ViewsLevel


def test_counting_leaves_what_needs_gradients_as_it_was():
    strategy = Views.create(ToyConfig())
    strategy.modules["network"].conv.weight.requires_grad_(False)  # not what is viewed
    strategy.modules["scale"].requires_grad_(False)
    before = [p.requires_grad for p in strategy.parameters_of(*strategy.modules)]
    assert set(before) == {True, False}
    assert info.macs_per_call(strategy, all_at_once(8), request()) == conv_macs(8, 8, 8)
    assert [p.requires_grad for p in strategy.parameters_of(*strategy.modules)] == before
    strategy.levels["video"].denoise = lambda x, t, cond: 1 / 0
    with pytest.raises(ZeroDivisionError):
        info.macs_per_call(strategy, all_at_once(8), request())
    assert [p.requires_grad for p in strategy.parameters_of(*strategy.modules)] == before


class WithScheduler(Toy):
    """Its scheduler reads its own tables while it is built, as many of diffusers' do."""

    @classmethod
    def create(cls, config):
        from diffusers import DPMSolverMultistepScheduler

        made = super().create(config)
        assert next(made.modules["network"].parameters()).is_meta
        return cls(config, made.modules, DPMSolverMultistepScheduler(prediction_type="sample"))


def test_schedulers_are_no_part_of_the_meta_device(monkeypatch):
    installed(monkeypatch, WithScheduler)
    found = info.describe("toy", num_frames=18)
    assert found["gmacs_per_call"] == conv_macs(8, 8, 8) / 1e9
    assert found["plan"]["calls"] == 3


class Twice(ToyLevel):
    """Evaluates its network again while that is being trained."""

    def denoise(self, x_t, t, cond):
        again = self.strategy.modules["network"].training
        return super().denoise(super().denoise(x_t, t, cond) if again else x_t, t, cond)


class TwiceInTraining(Toy):
    level_class = Twice


def test_what_is_counted_is_sampling_and_not_training(monkeypatch):
    installed(monkeypatch, TwiceInTraining)
    assert info.describe("toy", num_frames=18)["gmacs_per_call"] == conv_macs(8, 8, 8) / 1e9


class Reading(ToyLevel):
    def denoise(self, x_t, t, cond):
        return super().denoise(x_t, t, cond) if float(x_t.mean()) < 9 else x_t


class ReadsValues(Toy):
    level_class = Reading


def test_a_strategy_that_reads_values_is_told_so(monkeypatch):
    installed(monkeypatch, ReadsValues)
    with pytest.raises(VidgenError, match="'toy' cannot be counted without computing"):
        info.describe("toy")


class Failing(ToyLevel):
    def denoise(self, x_t, t, cond):
        raise RuntimeError("a bug of its own")


class Broken(Toy):
    level_class = Failing


def test_other_errors_come_through(monkeypatch):
    installed(monkeypatch, Broken)
    with pytest.raises(RuntimeError, match="a bug of its own"):
        info.describe("toy")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"strategy": "vmd"}, UnknownNameError, "Did you mean 'vdm'"),
        ({"strategy": "vdm", "recipe": "tinny"}, UnknownNameError, "Did you mean 'vdm/tiny'"),
        ({"strategy": "vdm", "assignments": ["widht=3"]}, UnknownNameError, "Did you mean 'width"),
        ({"strategy": "vdm", "num_frames": 0}, InvalidArgumentError, "num_frames is 0"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        info.describe(**arguments)


def test_a_pretrained_vocabulary_that_grows_is_described_too():
    found = info.describe("ldm", "shapes/ldm", assignments=["videos=16"])
    assignments = ["pretrained=shapes/ldm", "codec=null", "caption_style=full", "videos=16"]
    grown = info.describe("ldm", "shapes/ldm", assignments=assignments)
    counts = [value["components"]["text_encoder"]["parameters"] for value in (found, grown)]
    assert counts[1] > counts[0]


MEDIUM = {
    "vdm": ("vidgen.strategies.vdm.recipes", 16, 24_000),
    "ldm": ("vidgen.strategies.ldm.recipes", 1, 384_000),
}


@pytest.mark.parametrize("name", MEDIUM)
def test_medium_recipes_cost_what_they_say(name, monkeypatch):
    place, frames, seen = MEDIUM[name]
    medium = importlib.import_module(place).medium
    recipe = medium()
    assert recipe.training.steps * recipe.training.batch_size == seen
    small = replace(recipe, data=recipe.data.changed(videos=4, frames=16))
    monkeypatch.setattr(plugins, "load_recipe", lambda *_: small)
    found = info.describe(name, "medium")
    model = VDM.prepare(small.model, open_dataset(small.data)) if name == "vdm" else small.model
    assert found["plan"]["frames"] == recipe.data.clip_length == frames
    assert PixelCodec(model.patch).latent_shape(256, 256)[1:] == (64, 64)
    said = re.search(r"([\d.]+) GMACs .* ([\d.]+) million parameters", medium.__doc__)
    assert found["gmacs_per_call"] == pytest.approx(float(said[1]), rel=0.03)
    parameters = sum(value["parameters"] for value in found["components"].values())
    assert parameters / 1e6 == pytest.approx(float(said[2]), abs=0.06)
    total = float(re.search(r"([\d.]+e15) multiply", medium.__doc__)[1])
    assert 3 * seen * found["gmacs_per_call"] * 1e9 == pytest.approx(total, rel=0.03)


def test_the_medium_codec_costs_what_it_says():
    medium = importlib.import_module("vidgen.frame_codec.recipes").medium
    recipe = medium()
    with torch.device("meta"):
        task = FrameCodecTask.create(recipe.model).codec.vae.requires_grad_(False)
        frames = torch.zeros(1, 3, 256, 256)
    with flop_counter() as counter:
        latents = task.encode(frames).latent_dist.mean
        task.decode(latents)
    assert latents.shape == (1, 4, 64, 64)
    gmacs = float(re.search(r"([\d.]+) GMACs", medium.__doc__)[1])
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.01)
    assert sum(p.numel() for p in task.parameters()) / 1e6 == pytest.approx(1.0, abs=0.06)
    assert recipe.training.steps * recipe.training.batch_size == 32_000
