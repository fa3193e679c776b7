"""GLOBER's two stages: what is looked at, what is drawn, what is descended, what learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_glober import batch_of, noise, step_of
from tiny_glober import build as build_tiny
from torch.nn import functional

from vidgen.noise import Independent, NoiseKey
from vidgen.recipe import TrainingConfig
from vidgen.request import Canvas, Request
from vidgen.trainable import TrainingStep
from vidgen.training.batches import micro_batches
from vidgen.training.running import begin_stage

B, F = 3, 8
CONFIG = TrainingConfig(batch_size=B, warmup_steps=0)
LATENTS = noise(B, 12, F, 4, 4, seed=7)
FORMS = {
    "hinge": lambda real, fake: functional.relu(1 - real).sum(0) + functional.relu(1 + fake).sum(0),
    "log": lambda real, fake: torch.log(1 - real.sigmoid()).sum(0) + torch.log(fake.sigmoid()).sum(0),
}


def build(*args, **changes):
    return build_tiny(*args, **{"prediction_type": "epsilon", "sample_frames": F, **changes})


def autoencoder(strategy):
    return strategy.stages()[0]


def generator(strategy):
    return strategy.stages()[1]


def values(stage, batch, step):
    return [loss.value.detach() for loss in stage.losses(batch, step)]


# What is drawn, written out.


def drawn(step, sample, bias=0.0):
    """The two frames and timesteps of a clip, from the step's keys."""
    one, other = step.uniforms(sample, "frames", 2).float().tolist()
    first, second = int(one * F), int(other * (F - 1))
    frames = sorted((first, second + (second >= first)))
    return frames, [int(float(u) ** (1 / (1 + bias)) * 1000) for u in step.uniforms(sample, "timestep", 2)]


def share_of_one(name, stream="drop"):
    """The share of prompts at which exactly one of the clips' is dropped (or another's)."""
    return float(TrainingStep(5, name, 2, (0, 1, 2)).uniform(stream).sort().values[1])


@torch.no_grad()
def by_hand(
    strategy,
    step,
    *,
    form="hinge",
    gate=None,
    drop=0.0,
    wrong=0.0,
    posterior="kl",
    fake_weight=1.0,
    swapped=True,
    bias=0.0,
    gamma=None,
):
    """Every part of the first stage's losses."""
    abar = strategy.scheduler.alphas_cumprod
    keys = torch.tensor([0.0, 7 / 8])
    found = strategy.modules["video_encoder"](LATENTS[:, :, [0, 7]], keys)
    errors, real, made, gates = [], [], [], []
    for clip in range(B):
        frames, times = drawn(step, clip, bias)
        v = found.mean[clip]
        if posterior != "deterministic":
            key = NoiseKey(5, f"posterior-2-{clip}", "train/autoencoder")
            v = v + (0.5 * found.logvar[clip]).exp() * Independent().sample(range(1), v.shape, key)[:, 0]
        eps = Independent().sample(frames, (12, 4, 4), NoiseKey(5, f"noise-2-{clip}", "train/autoencoder"))
        a = abar[times][None, :, None, None]
        x = LATENTS[clip][:, frames]
        x_t = a.sqrt() * x + (1 - a).sqrt() * eps
        dropped = float(step.uniform("drop")[clip]) < drop
        told = (clip + 1) % B if float(step.uniform("wrong-prompt")[clip]) < wrong else clip
        tokens = strategy.text_encoder.encode(["" if dropped else batch_of(LATENTS).captions[told]])
        index = strategy.modules["index"](torch.tensor(frames) / F)[None]
        prediction = strategy.frames_level.decoder(
            x_t[None], torch.tensor([times]), tokens, v=v[None], index=index
        )[0]
        snr = a / (1 - a)
        weight = 1.0 if gamma is None else snr.clamp(max=gamma) / snr  # of predicted noise
        errors.append((weight * (prediction - eps) ** 2).mean())
        real.append(x)
        made.append((x_t - (1 - a).sqrt() * prediction) / a.sqrt())
        gates.append([float(gate is None or ((1 - abar[t]) / abar[t]).sqrt() <= gate) for t in times])
    variance = found.logvar.exp()
    divergence = 0.5 * (found.mean**2 + variance - found.logvar - 1).sum() / B
    adversarial, judged = adversaries(strategy, real, made, gates, form, fake_weight, swapped)
    return torch.stack(errors).mean(), divergence, adversarial, judged, torch.tensor(gates)


def adversaries(strategy, real, made, gates, form, fake_weight, swapped):
    """What the pairs cost the decoder, and the discriminator."""
    (x_i, x_j), (xh_i, xh_j) = (torch.stack(pair).unbind(2) for pair in (real, made))
    open_i, open_j = torch.tensor(gates).unbind(1)
    one = torch.ones(B)

    def logits(*pairs):
        judge = strategy.modules["discriminator"]
        return torch.stack([judge(torch.stack(pair, dim=2)) for pair in pairs])

    own = logits((xh_i, xh_j), (xh_i, x_j), (x_i, xh_j))
    own = -own if form == "hinge" else torch.log(1 - own.sigmoid())
    adversarial = (own * torch.stack([open_i * open_j, open_i, open_j])).sum(0).mean()
    fakes = ((x_i, xh_j), (xh_i, x_j), (xh_i, xh_j), (x_j, x_i), (xh_j, xh_i))
    weights = [open_j, open_i, open_i * open_j, one, open_i * open_j]
    fake = logits(*fakes)
    judged = FORMS[form](logits((x_i, x_j)), fake[:0])
    for logit, weight in list(zip(fake, weights, strict=True))[: None if swapped else 3]:
        judged = judged + fake_weight * weight * FORMS[form](fake[:0], logit[None])
    return adversarial, judged.mean()


# The first stage.


@pytest.mark.parametrize(("form", "gate"), [("hinge", None), ("hinge", 1.0), ("log", None)])
def test_losses_are_error_divergence_and_adversary(form, gate):
    drop = share_of_one("autoencoder")
    weights = {"kl_weight": 0.01, "cra_weight": 0.3}
    strategy = build(cra_form=form, cra_gate=gate, drop_text=0.0, drop_text_frames=drop, **weights)
    stage = autoencoder(strategy)
    step = step_of(stage)
    error, divergence, adversarial, judged, gates = by_hand(strategy, step, form=form, gate=gate, drop=drop)
    if gate is not None:
        assert 0 < gates.sum() < gates.numel()
    first, second = stage.losses(batch_of(LATENTS), step)
    assert (first.optimizer, second.optimizer) == ("autoencoder", "discriminator")
    expected = error + 0.01 * divergence + 0.3 * adversarial
    torch.testing.assert_close(first.value.detach(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second.value.detach(), judged, rtol=1e-4, atol=1e-4)
    assert first.logs == {
        "error": pytest.approx(float(error), rel=1e-4),
        "divergence": pytest.approx(float(divergence), rel=1e-4),
        "adversarial": pytest.approx(float(adversarial), rel=1e-3, abs=1e-4),
    }


@pytest.mark.parametrize("gate", [None, 1.0])
def test_balanced_fakes_weigh_as_much_as_the_real_pair(gate):
    strategy = build(cra_balance=True, cra_gate=gate, cra_weight=0.3, drop_text=0.0)
    stage = autoencoder(strategy)
    step = step_of(stage)
    _, _, adversarial, judged, _ = by_hand(strategy, step, gate=gate, fake_weight=1 / 5)
    first, second = stage.losses(batch_of(LATENTS), step)
    torch.testing.assert_close(second.value.detach(), judged, rtol=1e-4, atol=1e-4)
    assert first.logs["adversarial"] == pytest.approx(float(adversarial), rel=1e-3, abs=1e-4)  # as before


@pytest.mark.parametrize("balance", [False, True])
def test_without_order_swapped_pairs_are_not_among_the_fakes(balance):
    strategy = build(cra_order=False, cra_balance=balance, drop_text=0.0)
    stage = autoencoder(strategy)
    step = step_of(stage)
    *_, judged, _ = by_hand(strategy, step, swapped=False, fake_weight=1 / 3 if balance else 1.0)
    _, second = stage.losses(batch_of(LATENTS), step)
    torch.testing.assert_close(second.value.detach(), judged, rtol=1e-4, atol=1e-4)
    assert "logit/swapped" not in second.logs


@pytest.mark.parametrize(("bias", "gamma"), [(2.0, None), (0.0, 1.5), (1.0, 1.5)])
def test_timesteps_are_biased_and_errors_weighed_as_the_config_says(bias, gamma):
    strategy = build(noise_bias=bias, snr_gamma=gamma, cra_weight=0.0, kl_weight=0.0, drop_text=0.0)
    stage = autoencoder(strategy)
    step = step_of(stage)
    error, *_ = by_hand(strategy, step, bias=bias, gamma=gamma)
    (loss,) = stage.losses(batch_of(LATENTS), step)
    torch.testing.assert_close(loss.value.detach(), error, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("posterior", ["deterministic", "variance", "kl"])
def test_v_is_the_mean_or_drawn_and_pulled_or_not(posterior):
    strategy = build(posterior=posterior, kl_weight=0.5, cra_weight=0.0, drop_text=0.0)
    stage = autoencoder(strategy)
    error, divergence, *_ = by_hand(strategy, step_of(stage), posterior=posterior)
    (loss,) = stage.losses(batch_of(LATENTS), step_of(stage))
    expected = error + (0.5 * divergence if posterior == "kl" else 0.0)
    torch.testing.assert_close(loss.value.detach(), expected, rtol=1e-4, atol=1e-4)
    assert ("divergence" in loss.logs) == (posterior != "deterministic")


@pytest.mark.parametrize("drop", [0.0, share_of_one("autoencoder")])
@pytest.mark.parametrize("wrong", [0.0, 1.0, share_of_one("autoencoder", "wrong-prompt") + 1e-9])
def test_wrong_prompts_are_those_of_the_next_clip(wrong, drop):
    strategy = build(wrong_text_frames=wrong, drop_text=drop, cra_weight=0.0)
    stage = autoencoder(strategy)
    error = by_hand(strategy, step_of(stage), wrong=wrong, drop=drop)[0]
    (found,) = stage.losses(batch_of(LATENTS), step_of(stage))
    assert found.logs["error"] == pytest.approx(float(error), rel=1e-4)
    if wrong:
        right = by_hand(strategy, step_of(stage), drop=drop)[0]
        assert found.logs["error"] != pytest.approx(float(right), rel=1e-3)


def test_the_generator_is_told_no_wrong_prompts():
    found = []
    for wrong in (0.0, 1.0):
        stage = generator(build(wrong_text_frames=wrong, drop_text=0.0))
        found += values(stage, batch_of(LATENTS), step_of(stage))
    assert found[0] == found[1]


def test_wrong_classes_are_those_of_the_next_clip():
    found = []
    for wrong, labels in ((1.0, [0, 1, 2]), (0.0, [1, 2, 0]), (0.0, [0, 1, 2])):
        strategy = build(text="classes", classes=("a", "b", "c"), wrong_text_frames=wrong, drop_text=0.0)
        stage = autoencoder(strategy)
        batch = replace(batch_of(LATENTS), labels=torch.tensor(labels))
        found.append(float(values(stage, batch, step_of(stage))[0]))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("train_text", [True, False])
def test_the_text_encoder_learns_in_the_first_stage_or_never(train_text):
    strategy = build(train_text=train_text)
    texts = {id(p) for p in strategy.parameters_of("text_encoder")}
    assert texts
    learn = []
    for stage in strategy.stages():
        begin_stage(strategy, stage, CONFIG, torch.device("cpu"))
        next(stage.losses(batch_of(LATENTS), step_of(stage))).value.backward()
        own = {id(p) for group in stage.optimizers() for p in group.parameters if p.grad is not None}
        assert own >= texts or not own & texts
        learn.append(own >= texts)
        assert ("text_encoder" in stage.components) == learn[-1]
    assert learn == [train_text, False]


def test_a_clip_alone_is_told_its_own_prompt():
    found = []
    for wrong in (0.0, 1.0):
        stage = autoencoder(build(wrong_text_frames=wrong, drop_text=0.0, cra_weight=0.0))
        found += values(stage, batch_of(LATENTS[:1]), step_of(stage, count=1))
    assert found[0] == found[1]


def test_without_weight_there_is_no_discriminator():
    strategy = build(cra_weight=0.0)
    stage, seen = autoencoder(strategy), []
    strategy.modules["discriminator"].register_forward_hook(lambda *_: seen.append(1))
    assert "discriminator" not in stage.components
    assert {group.name for group in stage.optimizers()} == {"autoencoder"}
    (loss,) = stage.losses(batch_of(LATENTS), step_of(stage))
    assert "adversarial" not in loss.logs
    assert not seen


def test_before_warm_up_ends_the_discriminator_learns_alone():
    strategy = build(cra_warmup_steps=3, kl_weight=0.0)
    stage = autoencoder(strategy)
    assert {g.name for g in stage.optimizers()} == {"autoencoder", "discriminator"}
    for index, training, listens in ((2, True, False), (3, True, True), (0, False, True)):  # validation: always
        strategy.modules["video_encoder"].train(training)
        first, second = stage.losses(batch_of(LATENTS), step_of(stage, index))
        assert ("adversarial" in first.logs) == listens
        apart = float(first.value.detach()) - first.logs["error"]
        assert (abs(apart) > 1e-4) == listens
        assert second.optimizer == "discriminator"


def test_pairs_and_noise_are_drawn_anew_for_every_clip_and_frame():
    """What the decoder is given: never one frame twice, each with a time and noise of its own."""
    strategy = build(cra_weight=0.0, keyframes=1)
    stage, seen = autoencoder(strategy), []
    strategy.frames_level.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[:2]))
    indices = []
    strategy.modules["index"].register_forward_pre_hook(
        lambda _, given: indices.append(given[0].reshape(-1, 2) * F)
    )
    clean = torch.zeros_like(LATENTS)  # what is noised is noise
    for index in range(12):
        next(stage.losses(batch_of(clean), step_of(stage, index)))
    pairs = torch.cat(indices).round().long()
    assert pairs.shape == (12 * B, 2)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert (pairs.min(), pairs.max()) == (0, F - 1)
    assert len({tuple(pair) for pair in pairs.tolist()}) > 12
    times = torch.cat([t for _, t, *_ in seen])
    assert (times[:, 0] != times[:, 1]).float().mean() > 0.9
    assert len(set(times.flatten().tolist())) > 60
    abar = strategy.scheduler.alphas_cumprod[times]
    eps = torch.cat([x for x, *_ in seen]) / (1 - abar).sqrt()[:, None, :, None, None]
    flat = eps.transpose(1, 2).flatten(0, 1).flatten(1)  # one row per frame
    close = torch.corrcoef(flat) - torch.eye(len(flat))
    assert close.abs().max() < 0.4  # of 192 numbers each
    assert abs(float(flat.std()) - 1) < 0.05


def test_the_same_step_has_the_same_losses_and_a_batch_may_be_cut():
    for stage in build(kl_weight=0.1, cra_gate=3.0).stages():
        whole = values(stage, batch_of(LATENTS), step_of(stage))
        assert values(stage, batch_of(LATENTS), step_of(stage)) == whole
        for a, b in zip(values(stage, batch_of(LATENTS), step_of(stage, 3)), whole, strict=True):
            assert a != b
        means = [0.0] * len(whole)
        for piece, micro in micro_batches(batch_of(LATENTS), 1):
            step = replace(step_of(stage), samples=(0, 1, 2)[piece])
            for i, value in enumerate(values(stage, micro, step)):
                means[i] += float(value) / B
        torch.testing.assert_close(torch.tensor(means), torch.stack(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["latents", "clip"])
def test_only_keyframes_and_the_pair_are_looked_at(kind):
    strategy = build()
    pixels = noise(B, 3, F, 8, 8, seed=4).clamp(-1, 1)
    given = LATENTS if kind == "latents" else pixels
    first, second = strategy.stages()
    step = step_of(first)
    shown = given.clone()
    for clip in range(B):
        hidden = sorted(set(range(F)) - {0, 7, *drawn(step, clip)[0]})
        shown[clip][:, hidden] = torch.nan
    expected = values(first, batch_of(**{kind: given}), step)
    assert values(first, batch_of(**{kind: shown}), step) == expected
    frame = drawn(step, 1)[0][0] or drawn(step, 1)[0][1]
    shown[1][:, frame] = torch.nan
    assert torch.stack(values(first, batch_of(**{kind: shown}), step)).isnan().all()
    # The second stage: the keyframes alone.
    shown = given.clone()
    shown[:, :, 1:7] = torch.nan
    step = step_of(second)
    expected = values(second, batch_of(**{kind: given}), step)
    assert values(second, batch_of(**{kind: shown}), step) == expected
    shown[1, :, 7] = torch.nan
    assert values(second, batch_of(**{kind: shown}), step)[0].isnan()


def test_the_discriminator_teaches_nothing_but_itself():
    strategy = build()
    stage = autoencoder(strategy)
    first, second = stage.losses(batch_of(LATENTS), step_of(stage))
    others = strategy.parameters_of("video_encoder", "unet", "branch", "index", "text_encoder")
    assert all(
        g is None for g in torch.autograd.grad(second.value, others, allow_unused=True, retain_graph=True)
    )
    own = torch.autograd.grad(second.value, strategy.parameters_of("discriminator"), allow_unused=True)
    assert all(g is not None and g.isfinite().all() for g in own)
    taught = torch.autograd.grad(first.value, others, allow_unused=True)
    assert sum(g is not None and bool(g.any()) for g in taught) > 0.95 * len(others)


# The second stage.


def test_the_generator_learns_means_alone():
    drop = share_of_one("generator")
    strategy = build(drop_text=drop, drop_text_frames=0.0)
    stage = generator(strategy)
    step = step_of(stage)
    running = begin_stage(strategy, stage, CONFIG, torch.device("cpu"))
    before = {n: {k: x.clone() for k, x in m.state_dict().items()} for n, m in strategy.modules.items()}
    (loss,) = stage.losses(batch_of(LATENTS), step)
    with torch.no_grad():
        clean = strategy.modules["video_encoder"](LATENTS[:, :, [0, 7]], torch.tensor([0.0, 7 / 8])).mean
        keys = [NoiseKey(5, f"noise-2-{i}", "train/generator") for i in range(B)]
        eps = Independent().sample_batch(range(1), (5, 2, 2), keys)[:, :, 0]
        t = (step.uniform("timestep") * 1000).long()
        a = strategy.scheduler.alphas_cumprod[t][:, None, None, None]
        drops = step.uniform("drop") < drop
        assert drops.sum() == 1
        texts = [
            "" if drop else text for text, drop in zip(batch_of(LATENTS).captions, drops.tolist(), strict=True)
        ]
        x_t = a.sqrt() * clean + (1 - a).sqrt() * eps
        prediction = strategy.modules["generator"](x_t, t, strategy.text_encoder.encode(texts))
    torch.testing.assert_close(loss.value.detach(), ((prediction - eps) ** 2).mean(), rtol=1e-4, atol=1e-5)
    loss.value.backward()
    running.optimizers["generator"].step()
    for name, state in strategy.modules.items():
        changed = any(not torch.equal(x, before[name][key]) for key, x in state.state_dict().items())
        assert changed == (name == "generator"), name
    assert stage.components == ("generator",)


def test_the_generators_v_is_what_the_decoder_reads(monkeypatch):
    strategy = build()
    _, second = strategy.stages()
    diffusion = strategy.global_level.process
    seen, noised = [], diffusion.noised
    monkeypatch.setattr(diffusion, "noised", lambda x, eps, t: seen.append(x) or noised(x, eps, t))
    next(second.losses(batch_of(LATENTS), step_of(second)))
    (v,) = seen
    assert v.shape == (B, 5, 1, 2, 2)
    call = strategy.plan(8).calls[1]
    read, features = [], strategy.frames_level.decoder.features
    monkeypatch.setattr(
        strategy.frames_level.decoder, "features", lambda v, *rest: read.append(v) or features(v, *rest)
    )
    with torch.no_grad():
        levels = {name: model.settings() for name, model in strategy.levels.items()}
        request = Request("red", "", 0, 8, 8, 8, 8.0, levels)
        strategy.frames_level.condition(call, Canvas({("global", 0): v[0, :, 0]}), request)
        assert torch.equal(read[0][0], v[0, :, 0])
        mean = strategy.modules["video_encoder"](LATENTS[:, :, [0, 7]], torch.tensor([0.0, 7 / 8])).mean
    torch.testing.assert_close(v[:, :, 0], mean, rtol=0, atol=1e-5)


def test_the_encoders_rate_rises_over_its_own_warm_up():
    strategy = build(encoder_warmup_steps=4, cra_weight=0.1)
    training = replace(CONFIG, learning_rate=0.01, warmup_steps=2, lr_schedule="constant_with_warmup")
    running = begin_stage(strategy, strategy.stages()[0], training, torch.device("cpu"))
    own = {id(p) for p in strategy.parameters_of("video_encoder")}
    found = []
    for _ in range(6):
        groups = running.optimizers["autoencoder"].param_groups
        rates = {id(p): g["lr"] for g in groups for p in g["params"]}
        assert set(rates) >= own
        found.append(({rates[p] for p in own}, {rate for p, rate in rates.items() if p not in own}))
        assert running.take_means()["lr/autoencoder"] == max(found[-1][1])  # what most of it learns at
        for optimizer in running.optimizers.values():
            optimizer.step()
        running.advance({"autoencoder", "discriminator"})
    shared = [0.01 * min(1, step / 2) for step in range(6)]
    assert [sorted(others) for _, others in found] == [[pytest.approx(rate)] for rate in shared]
    assert [sorted(encoder) for encoder, _ in found] == [
        [pytest.approx(rate * min(1, step / 4))] for step, rate in enumerate(shared)
    ]


@pytest.mark.parametrize("trained", [True, False])
def test_both_stages_train_in_bfloat16(trained):
    strategy = build(trained)
    for number in range(2):
        stage = strategy.stages()[number]
        begin_stage(strategy, stage, CONFIG, torch.device("cpu"))
        losses = stage.losses(batch_of(LATENTS), step_of(stage))
        for _ in range(2 - number):
            with torch.autocast("cpu", torch.bfloat16):
                loss = next(losses)
            assert loss.value.dtype == torch.float32
            assert loss.value.isfinite()
            loss.value.backward()
        found = [p.grad for group in stage.optimizers() for p in group.parameters if p.grad is not None]
        assert found
        assert all(g.isfinite().all() for g in found)
    assert strategy.modules["video_encoder"].unit.running_var.isfinite().all()


@torch.no_grad()
def test_an_untrained_discriminator_sees_the_order_by_the_slots_embeddings():
    discriminator = build(trained=False).modules["discriminator"].double()
    for module in discriminator.modules():
        if isinstance(module, torch.nn.Conv3d):  # what else could tell: kernels that look back and ahead
            module.weight.copy_((module.weight + module.weight.flip(2)) / 2)
    pairs = noise(4, 12, 2, 4, 4).double()
    apart = discriminator(pairs) - discriminator(pairs.flip(2))
    assert apart.abs().min() > 1e-7
    discriminator.slots[:, 1] = discriminator.slots[:, 0]
    torch.testing.assert_close(discriminator(pairs), discriminator(pairs.flip(2)), rtol=0, atol=1e-12)
