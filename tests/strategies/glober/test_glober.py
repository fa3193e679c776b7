"""GLOBER as a strategy: v first, then any frames from it, the image model at first."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_glober import CONFIG, V_SHAPE, build, noise, sampler

from vidgen import checkpoint
from vidgen.errors import InvalidArgumentError, PlanError
from vidgen.plans import Call, Plan, all_at_once, autoregressive, chunks, keyframes, rooted
from vidgen.request import Canvas, Request
from vidgen.sampling import load
from vidgen.strategies.glober import GLOBAL, GLOBER, GLOBERConfig
from vidgen.testing import check_strategy

LATENT = {"seed": 3, "output_type": "latent", "num_inference_steps": 2}
CLOSE = {"rtol": 0, "atol": 1e-4}
SLOT = (GLOBAL, 0)


@pytest.fixture(scope="module")
def make():
    return sampler(build())


def request(strategy, prompt="red", *, num_frames=4, scale=1.0, of_v=9.0):
    scales = {"global": of_v, "video": scale}
    levels = {name: replace(m.settings(), guidance_scale=scales[name]) for name, m in strategy.levels.items()}
    return Request(prompt, "", 0, num_frames, 8, 8, 8.0, levels)


def test_glober_keeps_every_promise():
    report = check_strategy(GLOBER, replace(CONFIG, words=(), max_words=None))
    assert not report.failed
    assert [check.name for check in report.skipped] == ["given pictures are kept"]
    assert "v = strategy.encode(video)" in report["given pictures are kept"].detail


# At first it is the image model.


@torch.no_grad()
def test_untrained_it_draws_the_image_models_frames():
    """Of the bundled image model: the same noise, prompt and solver give the same pictures."""
    prompt = "a red circle moves left"
    image = load("shapes/ldm", device="cpu")
    image.set_progress_bar_config(disable=True)
    words = image.strategy.config.words
    video = sampler(
        checkpoint.build(
            GLOBER,
            GLOBERConfig(
                pretrained="shapes/ldm",
                words=words,
                encoder_widths=(16, 32),
                encoder_head_dim=16,
                index_channels=8,
                index_dim=16,
                branch_width=8,
                generator_width=16,
                generator_depth=1,
                generator_heads=2,
                discriminator_width=8,
            ),
        )
    )
    given = {"num_frames": 4, "frames": [0, 2], "guidance_scale": 3.0, "num_inference_steps": 2, "seed": 5}
    np.testing.assert_allclose(video(prompt, **given).frames, image(prompt, **given).frames, rtol=0, atol=1e-4)
    assert image(prompt, **given).frames.std() > 0.05


# Frames know nothing of each other.

LONG = 128


def spread(*parts):
    """``v``, then the frames in ``parts``, in calls as they come."""
    calls = [Call("v", GLOBAL, (0,), (), (SLOT,))]
    for i, frames in enumerate(parts):
        calls.append(Call(f"part-{i}", "video", tuple(frames), (SLOT,), tuple(("video", f) for f in frames)))
    return Plan(tuple(calls), rooted(chunks(LONG, LONG), GLOBAL).levels)


@pytest.fixture(scope="module")
def whole(make):
    """128 frames in one call."""
    plan = rooted(chunks(LONG, LONG), GLOBAL)
    return make("red circle", num_frames=LONG, plan=plan, **LATENT).frames


def test_128_frames_in_any_chunks_and_order_are_the_same(make, whole):
    apart = (whole[:, :, 1:] - whole[:, :, :-1]).abs().amax(dim=(0, 1, 3, 4))
    assert apart.min() > 0.1  # no two frames are the same
    quarters = rooted(chunks(LONG, 32), GLOBAL)
    plans = {
        "4 x 32": quarters,
        "backwards": Plan((quarters.calls[0], *reversed(quarters.calls[1:])), quarters.levels),
        "woven": spread(range(1, LONG, 2), range(0, LONG, 2)),
        "uneven": spread(range(100), range(100, 101), range(101, LONG)),
    }
    for plan in plans.values():
        frames = make("red circle", num_frames=LONG, plan=plan, **LATENT).frames
        torch.testing.assert_close(frames, whole, **CLOSE)


def test_chunks_that_memory_does_not_hold_are_parted(make, whole, monkeypatch):
    level, seen = make.strategy.frames_level, []
    predict = level.predict

    def limited(x_t, t, cond):
        seen.append(x_t.shape[2])
        if x_t.shape[2] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return predict(x_t, t, cond)

    monkeypatch.setattr(level, "predict", limited)
    plan = rooted(chunks(LONG, LONG), GLOBAL)
    frames = make("red circle", num_frames=LONG, plan=plan, **LATENT).frames
    torch.testing.assert_close(frames, whole, **CLOSE)
    # 128, 64 and 32 fail once each, and nothing above 16 is asked again.
    assert seen[:3] == [128, 64, 32]
    assert set(seen[3:]) == {16}


def test_any_frames_can_be_had_alone(make, whole):
    chosen = [2, 77, 78, 127]
    some = make("red circle", num_frames=LONG, frames=chosen, **LATENT)
    torch.testing.assert_close(some.frames, whole[:, :, chosen], **CLOSE)
    assert some.frame_indices == tuple(chosen)
    asked = []
    hook = make.strategy.modules["unet"].register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    make("red circle", num_frames=LONG, frames=[77], guidance_scale=1.0, **LATENT)
    hook.remove()
    assert asked == [4, 4]  # of 32 calls one was made, in two steps


def test_plan_is_v_then_chunks_of_a_window():
    assert build().plan(10) == rooted(chunks(10, 4), GLOBAL)
    assert build(window=3).plan(10) == rooted(chunks(10, 3), GLOBAL)


@pytest.mark.parametrize("plan", [chunks(8, 4), all_at_once(8), autoregressive(8, 4, 1), keyframes(8, 4)])
def test_plans_that_give_frames_anything_but_v_are_refused(make, plan):
    with pytest.raises(
        PlanError, match=rf"call '{plan.calls[0].id}' makes.*rooted\(chunks\(n, window\), 'global'\)"
    ):
        make("red", num_frames=8, plan=plan)


def test_videos_of_a_batch_are_as_alone(make):
    alone = [make(prompt, **LATENT).frames for prompt in ("red", "circle")]
    for size in (1, 3, None):
        both = make(["red", "circle"], batch_size=size, num_frames=4, **LATENT).frames
        torch.testing.assert_close(both, torch.cat(alone), **CLOSE)
    assert (alone[0] - alone[1]).abs().max() > 0.1
    two = make("red", num_videos_per_prompt=2, **LATENT).frames
    torch.testing.assert_close(two[:1], alone[0], **CLOSE)
    torch.testing.assert_close(two[1:], make("red", **(LATENT | {"seed": 4})).frames, **CLOSE)


def test_an_empty_prompt_beside_another_is_no_other_batch(make):
    """Guidance of v is the same number for all videos of a batch, whatever their prompts."""
    both = make(["red", ""], **LATENT).frames
    torch.testing.assert_close(both[:1], make("red", **LATENT).frames, **CLOSE)
    torch.testing.assert_close(both[1:], make("", **LATENT).frames, **CLOSE)


# v: encoded, pinned, at other rates.


def clip_of(frames, seed=0):
    return noise(3, frames, 8, 8, seed=seed).clamp(-1, 1)


def test_v_is_the_mean_of_the_keyframes_posterior():
    strategy, clip = build(), clip_of(7)
    v = strategy.encode(clip)
    with torch.no_grad():
        # Of 4 frames in training it saw the first and the last, 0 and 3/4: of 7 that is nearest to frame 5.
        latents = strategy.codec.encode(clip[None, :, [0, 5]])
        mean = strategy.modules["video_encoder"](latents, torch.tensor([0.0, 5 / 7])).mean[0]
    torch.testing.assert_close(v, mean, rtol=0, atol=1e-5)
    assert v.shape == V_SHAPE
    assert v.device.type == "cpu"
    assert not v.requires_grad
    pictures = ((clip_of(7).permute(1, 2, 3, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    torch.testing.assert_close(strategy.encode(pictures), v, rtol=0, atol=0.1)  # 8 bits
    assert not torch.equal(strategy.encode(clip.flip(1)), v)


def test_encoding_is_the_same_in_the_middle_of_training():
    strategy, clip = build(), clip_of(7)
    expected = strategy.encode(clip)
    strategy.modules["video_encoder"].train()
    before = strategy.modules["video_encoder"].unit.running_mean.clone()
    assert torch.equal(strategy.encode(clip), expected)
    assert torch.equal(strategy.modules["video_encoder"].unit.running_mean, before)
    assert strategy.modules["video_encoder"].training


def test_the_configs_deviation_is_the_encoders():
    encoder = build(trained=False, initial_std=0.25).modules["video_encoder"]
    assert float(encoder.to_logvar.bias.detach().mean()) == pytest.approx(2 * math.log(0.25))


def test_encoding_looks_at_keyframes_alone():
    strategy, clip = build(), clip_of(7)
    v = strategy.encode(clip)
    for frame in range(7):
        other = clip.clone()
        other[:, frame] = clip_of(7, seed=9)[:, frame]
        apart = (strategy.encode(other) - v).abs().max()
        assert (apart > 1e-3) == (frame in (0, 5)), frame


def test_what_cannot_be_encoded_is_refused():
    strategy = build()
    with pytest.raises(InvalidArgumentError, match=r"has 1 frame\(s\), .* of 2 frames or more"):
        strategy.encode(clip_of(1))
    larger = noise(3, 4, 16, 24).clamp(-1, 1)
    assert strategy.encode(larger).shape == V_SHAPE  # scaled to the training clips' size


class Calls:
    """Counts what the generator and the UNet are asked, as (kind, batch)."""

    def __init__(self, strategy):
        self.seen = []
        own = strategy.modules
        self.hooks = [
            own[name].register_forward_pre_hook(
                lambda _, given, name=name: self.seen.append((name, len(given[0])))
            )
            for name in ("generator", "unet")
        ]

    def __enter__(self):
        return self.seen

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


def test_pinned_v_is_what_frames_are_made_of(make):
    strategy = make.strategy
    v = strategy.encode(clip_of(4))
    with Calls(strategy) as seen:
        made = make("red", pins={SLOT: v}, guidance_scale=1.0, **LATENT).frames
    assert seen == [("unet", 4)] * 2  # v is not generated
    assert (made - make("red", guidance_scale=1.0, **LATENT).frames).abs().max() > 1e-3
    assert (made - make("red", pins={SLOT: -v}, guidance_scale=1.0, **LATENT).frames).abs().max() > 1e-3
    assert torch.equal(v, strategy.encode(clip_of(4)))  # the caller's tensor stays
    # Written out: frame i told i / 4.
    call = strategy.plan(4).calls[1]
    x, t = noise(1, 12, 4, 4, 4), torch.tensor([600])
    with torch.no_grad():
        level = strategy.frames_level
        cond = level.condition(call, Canvas({SLOT: v}), request(strategy))
        index = strategy.modules["index"](torch.tensor([0.0, 0.25, 0.5, 0.75]))[None]
        tokens = strategy.text_encoder.encode(["red"])
        expected = strategy.frames_level.decoder(x, t, tokens, v=v[None], index=index)
        torch.testing.assert_close(level.denoise(x, t, cond), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_more_frames_of_one_v_are_the_clip_at_a_higher_rate(make):
    strategy = make.strategy
    v, start = strategy.encode(clip_of(4)), noise(1, 12, 8, 4, 4)
    given = {"pins": {SLOT: v}, "output_type": "latent", "num_inference_steps": 2, "seed": 0}
    slow = make("red", num_frames=4, latents=start[:, :, ::2], **given)
    fast = make("red", num_frames=8, latents=start, **given)
    # The same instant, the same noise, the same frame.
    torch.testing.assert_close(fast.frames[:, :, ::2], slow.frames, **CLOSE)
    assert (fast.frames[:, :, 1::2] - slow.frames).abs().max() > 0.1
    assert (slow.fps, fast.fps) == (8.0, 16.0)
    named = make("red", num_frames=8, fps=5, latents=start, **given)
    assert named.fps == 5.0
    assert torch.equal(named.frames, fast.frames)
    assert build(sample_frames=16, sample_fps=10.0).frame_rate(40) == 25.0


@pytest.mark.parametrize(
    ("pins", "error", "message"),
    [
        (
            {SLOT: noise(5, 2, 3)},
            InvalidArgumentError,
            r"\('global', 0\) as \(5, 2, 3\); expected.*\(5, 2, 2\)",
        ),
        ({SLOT: noise(1, *V_SHAPE)}, InvalidArgumentError, r"expected a tensor \(c, h, w\) = \(5, 2, 2\)"),
        ({SLOT: noise(*V_SHAPE).numpy()}, InvalidArgumentError, r"as ndarray; expected a tensor"),
        ({("globe", 0): noise(*V_SHAPE)}, PlanError, r"\('globe', 0\).*a slot of levels global, video"),
        ({(GLOBAL, 1): noise(*V_SHAPE)}, PlanError, r"\('global', 1\)"),
        ({("video", 2): noise(12, 4, 4)}, PlanError, r"encode a video instead, v = strategy.encode\(video\)"),
        ({2: np.zeros((8, 8, 3), np.uint8)}, PlanError, r"pins=\{\('global', 0\): v\}"),
    ],
)
def test_pins_that_do_not_fit_are_refused(make, pins, error, message):
    with pytest.raises(error, match=message):
        make("red", pins=pins, **LATENT)


@pytest.mark.parametrize("name", ["image", "last_image"])
def test_given_pictures_are_refused(make, name):
    with pytest.raises(PlanError, match="Frames know nothing of given pictures: encode a video instead"):
        make("red", **{name: np.zeros((8, 8, 3), np.uint8)})


@pytest.mark.parametrize("given", [3, 4], ids=["part of a chunk", "a whole chunk"])
def test_given_videos_are_not_gone_on_from(make, given):
    video = np.zeros((given, 8, 8, 3), np.uint8)
    with pytest.raises(PlanError, match="Frames know nothing of given pictures: encode a video instead"):
        make("red", video=video, num_frames=8)
    kept = np.arange(8) >= given
    with pytest.raises(PlanError, match="Frames know nothing of given pictures: encode a video instead"):
        make("red", video=np.zeros((8, 8, 8, 3), np.uint8), mask=kept, num_frames=8)


def test_one_v_has_one_prompt(make):
    several = {0: "red", 2: "circle"}
    with pytest.raises(InvalidArgumentError, match=r"prompt has 2 texts by frame.*Give one text"):
        make(several, **LATENT)
    # With v at hand too: or the chunks would decide which frames are told what.
    with pytest.raises(InvalidArgumentError, match="prompt has 2 texts"):
        make(several, pins={SLOT: noise(*V_SHAPE)}, **LATENT)
    same = make({0: "red", 2: "red"}, **LATENT).frames
    torch.testing.assert_close(same, make("red", **LATENT).frames, **CLOSE)


# Guidance, and what is computed once.


def test_guidance_of_v_is_not_that_of_frames(make):
    strategy = make.strategy
    for frames, of_v in ((1.0, 1.0), (1.0, 4.0), (2.0, 1.0), (2.0, 4.0)):
        with Calls(strategy) as seen:
            make("red", guidance_scale={"video": frames, "global": of_v}, **LATENT)
        expected = [("generator", 1 if of_v == 1 else 2)] * 2 + [("unet", 4 if frames == 1 else 8)] * 2
        assert seen == expected
    default = make("red", **LATENT).frames
    torch.testing.assert_close(make("red", guidance_scale={"global": 9.0}, **LATENT).frames, default, **CLOSE)
    assert (make("red", guidance_scale={"global": 4.0}, **LATENT).frames - default).abs().max() > 1e-3
    assert (make("red", negative_prompt="circle", **LATENT).frames - default).abs().max() > 1e-3
    with pytest.raises(
        InvalidArgumentError, match="guidance_scale of level 'global' is nan; expected a finite number"
    ):
        make("red", guidance_scale={"global": float("nan")}, **LATENT)


@torch.no_grad()
def test_guided_v_is_the_mixture_of_two_predictions():
    strategy = build()
    call = strategy.plan(4).calls[0]
    x, t = noise(1, 5, 1, 2, 2), torch.tensor([300])
    level = strategy.global_level
    cond = level.condition(call, Canvas(), request(strategy, scale=2.0, of_v=5.0))
    red, empty = (
        strategy.modules["generator"](x[:, :, 0], t, strategy.text_encoder.encode([s])) for s in ("red", "")
    )
    assert (red - empty).abs().max() > 1e-3
    expected = (empty + 5 * (red - empty))[:, :, None]
    torch.testing.assert_close(level.denoise(x, t, cond), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ["cross", "concat"])
@torch.no_grad()
def test_guided_frames_are_the_mixture_of_two_predictions(text):
    strategy = build(branch_text=text)
    call = strategy.plan(4).calls[1]
    v, x, t = noise(*V_SHAPE), noise(1, 12, 4, 4, 4), torch.tensor([300])
    level = strategy.frames_level
    cond = level.condition(call, Canvas({SLOT: v}), request(strategy, scale=3.0))
    given = {
        "v": v[None],
        "index": strategy.modules["index"](torch.arange(4) / 4)[None],
    }
    tokens = {word: strategy.text_encoder.encode([word]) for word in ("red", "")}
    red, empty = (strategy.frames_level.decoder(x, t, tokens[word], **given) for word in ("red", ""))
    guided = level.denoise(x, t, cond)
    torch.testing.assert_close(guided, empty + 3 * (red - empty), rtol=1e-4, atol=1e-4)
    # The unconditional half with the residuals of the prompt would be another thing where these read text.
    other = strategy.frames_level.decoder.features(**given, size=(4, 4), tokens=tokens["red"])
    wrong = strategy.frames_level.decoder(x, t, tokens[""], other)
    assert ((wrong - empty).abs().max() > 1e-3) == (text == "concat")


@pytest.mark.parametrize(
    ("text", "scale", "times"), [("cross", 3.0, 1), ("concat", 3.0, 2), ("concat", 1.0, 1)]
)
def test_the_branch_runs_once_per_call_and_not_per_step(text, scale, times):
    strategy, runs = build(branch_text=text), []
    stages = strategy.frames_level.decoder.branch.stages
    for name, stage in stages.items():
        stage.register_forward_hook(lambda *_, name=name: runs.append(name))
    with Calls(strategy) as seen:
        sampler(strategy)("red", num_frames=8, guidance_scale=scale, num_inference_steps=5, seed=0)
    assert len([kind for kind, _ in seen if kind == "unet"]) == 2 * 5
    assert sorted(runs) == sorted([*stages] * 2 * times)  # two calls


def test_configurations_that_cannot_be():
    for changes, message in (
        ({"keyframes": 5}, "5 keyframes of 4 frames"),
        ({"cra_weight": -0.1}, "cra_weight is -0.1; expected 0 or more"),
        ({"kl_weight": -1.0}, "kl_weight is -1.0"),
        ({"cra_warmup_steps": -1}, "cra_warmup_steps is -1"),
        ({"cra_gate": 0.0}, "cra_gate is 0.0; expected more than 0"),
        ({"generator_lr_scale": 0.0}, "generator_lr_scale is 0.0"),
        ({"encoder_warmup_steps": -1}, "encoder_warmup_steps is -1"),
        ({"initial_std": 0.0}, "initial_std is 0.0"),
        ({"wrong_text_frames": -0.1}, "wrong_text_frames is -0.1; expected a share"),
        ({"wrong_text_frames": 1.1}, "wrong_text_frames is 1.1; expected a share"),
        ({"drop_text_frames": 1.5}, "drop_text_frames is 1.5; expected a share"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            build(**changes)
