"""The frame codec: its loss against closed forms, and latents that end up normalised within its own layers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from safetensors.torch import load_file
from torch.distributions import Normal, kl_divergence

from vidgen import checkpoint
from vidgen.codecs import ImageCodec, PixelCodec, load_codec
from vidgen.errors import InvalidArgumentError
from vidgen.frame_codec import task as frame_codec
from vidgen.frame_codec.task import FrameCodecConfig, FrameCodecTask, normalise_latents
from vidgen.noise import Independent, NoiseKey
from vidgen.recipe import Recipe, TrainingConfig
from vidgen.trainable import TrainingStep
from vidgen.training import Trainer
from vidgen.training.batches import micro_batches
from vidgen.video.dataset import ClipBatch, ClipDataset, ClipSample, DataConfig, collate

CONFIG = FrameCodecConfig(block_out_channels=(8, 8), latent_channels=3, norm_num_groups=4, sample_size=16)


class Colours(ClipDataset):
    """Clips of two frames; each has two halves, of colours between yellow and blue."""

    def __init__(self, count=12):
        super().__init__()
        self.count = count
        self.reads = []

    def __len__(self):
        return self.count

    def read(self, index, draw):
        self.reads.append(index)
        generator = torch.Generator().manual_seed(index)
        strength = torch.rand(1, 2, 1, 2, generator=generator) * 1.6 - 0.8
        colours = torch.cat([strength, strength, -strength])
        clip = colours.repeat_interleave(16, 2).repeat_interleave(8, 3)
        return ClipSample(clip, f"clip {index}", -1, 8.0, index, draw, (0, 1))

    def content_key(self, index):
        return f"colours {index}"

    def texts(self):
        return [f"clip {index}" for index in range(self.count)]


def task(seed=0, **changes):
    return checkpoint.build(FrameCodecTask, replace(CONFIG, **changes), seed=seed)


def batch_of(count=4) -> ClipBatch:
    data = Colours(count)
    return collate([data[i] for i in range(count)])


def step_of(count=4, index=3, seed=5):
    return TrainingStep(seed, "frame_codec", index, tuple(range(count)))


def loss_of(made, batch, step):
    (stage,) = made.stages()
    (loss,) = stage.losses(batch, step)
    assert loss.optimizer == stage.optimizers()[0].name
    return loss


def varied_vae(**changes):
    """A VAE whose latents are neither centred nor of one size."""
    vae = task(**changes).codec.vae
    with torch.no_grad():
        vae.quant_conv.weight[:3].mul_(torch.tensor([4.0, 0.3, 1.0])[:, None, None, None])
        vae.quant_conv.bias.copy_(torch.tensor([1.5, -2.0, 0.1, -1.0, 0.5, -3.0]))
    return vae


FRAMES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_it_is_built_as_its_settings_say():
    made = task(block_out_channels=(8, 16, 24), layers_per_block=2, norm_num_groups=8)
    vae = made.codec.vae
    assert isinstance(vae, AutoencoderKL)
    assert vae.config.block_out_channels == (8, 16, 24)
    assert (vae.config.scaling_factor, vae.config.force_upcast, vae.config.sample_size) == (1.0, False, 16)
    assert (made.codec.channels, made.codec.space_factor) == (3, 4)
    assert [len(block.resnets) for block in vae.encoder.down_blocks] == [2, 2, 2]
    assert {m.num_groups for m in vae.modules() if isinstance(m, torch.nn.GroupNorm)} == {8}
    for wrong in ({"kl_weight": -1e-9}, {"square_weight": -1.0}):
        with pytest.raises(InvalidArgumentError, match="expected finite numbers, 0 or more"):
            replace(CONFIG, **wrong)
    with pytest.raises(InvalidArgumentError, match="component 'codec'; expected ImageCodec"):
        FrameCodecTask(CONFIG, {"codec": PixelCodec(2)})


@torch.no_grad()
def test_normalising_changes_the_latents_and_nothing_that_comes_out():
    mean, std = (1.25, -2.0, 0.5), (3.0, 0.2, 1.7)
    vae = varied_vae().eval()
    before = vae.encode(FRAMES).latent_dist
    outputs = [vae(FRAMES).sample, vae(FRAMES, sample_posterior=True, generator=_generator()).sample]
    normalise_latents(vae, mean, std)
    after = vae.encode(FRAMES).latent_dist
    shift, scale = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std))
    torch.testing.assert_close(
        after.mean.double(), (before.mean.double() - shift) / scale, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        after.logvar.double(), before.logvar.double() - 2 * scale.log(), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(after.std.double(), before.std.double() / scale, rtol=1e-5, atol=1e-6)
    again = [vae(FRAMES).sample, vae(FRAMES, sample_posterior=True, generator=_generator()).sample]
    assert outputs[0].std() > 0.02
    for one, other in zip(outputs, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def _generator():
    return torch.Generator().manual_seed(3)


def test_a_vae_without_the_convolutions_is_refused():
    for missing in ("use_quant_conv", "use_post_quant_conv"):
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=3, **{missing: False})
        with pytest.raises(InvalidArgumentError, match="no quant_conv and post_quant_conv"):
            normalise_latents(vae, (0.0,) * 3, (1.0,) * 3)


def test_finishing_measures_the_first_clips_only(monkeypatch):
    monkeypatch.setattr(frame_codec, "_CLIPS_MEASURED", 5)
    made, data = FrameCodecTask(CONFIG, {"codec": ImageCodec(varied_vae())}), Colours(12)
    made.finish(data)
    assert data.reads == [0, 1, 2, 3, 4]
    with torch.no_grad():
        clips = torch.stack([data[i].clip for i in range(5)])
        latents = rearrange(made.codec.encode(clips), "b c f h w -> c (b f h w)").double()
    torch.testing.assert_close(latents.mean(1), torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(latents.std(1, correction=0), torch.ones(3).double(), rtol=0, atol=1e-5)
    before = {name: p.clone() for name, p in made.codec.vae.named_parameters()}
    made.finish(data)  # what is normalised stays as it is
    for name, p in made.codec.vae.named_parameters():
        torch.testing.assert_close(p, before[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kl_weight", "square_weight"), [(0.3, 2.0), (0.0, 0.0)])
def test_the_loss_is_what_it_says_it_is(kl_weight, square_weight):
    made = FrameCodecTask(
        replace(CONFIG, kl_weight=kl_weight, square_weight=square_weight), {"codec": ImageCodec(varied_vae())}
    )
    batch, step = batch_of(), step_of()
    loss = loss_of(made, batch, step)
    vae, frames = made.codec.vae, rearrange(batch.clip, "b c f h w -> (b f) c h w")
    with torch.no_grad():
        posterior = vae.encode(frames).latent_dist
        keys = [NoiseKey(5, f"noise-3-{i}", "train/frame_codec") for i in range(4)]
        noise = torch.stack([_noise_of(key, posterior.mean.shape[1:]) for key in keys])
        z = posterior.mean + posterior.std * rearrange(noise, "b f c h w -> (b f) c h w")
        error = (vae.decode(z).sample - frames).double()
        kl = kl_divergence(Normal(posterior.mean.double(), posterior.std.double()), Normal(0.0, 1.0)).mean()
    assert loss.logs["kl"] == pytest.approx(float(kl), rel=1e-5)
    assert loss.logs["kl"] > 0.5
    assert loss.logs["mse"] == pytest.approx(float(error.square().mean()), rel=1e-4)
    expected = error.abs().mean() + square_weight * error.square().mean() + kl_weight * kl
    assert float(loss.value.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert loss.value.dtype == torch.float32


def _noise_of(key, shape):
    """The independent noise of two frames of one clip."""
    return torch.stack([Independent().sample([frame], shape, key)[:, 0] for frame in range(2)])


def test_randomness_is_the_steps():
    made, batch = task(), batch_of()
    torch.manual_seed(1)
    one = loss_of(made, batch, step_of()).value
    torch.manual_seed(2)
    assert torch.equal(loss_of(made, batch, step_of()).value, one)
    for other in (step_of(index=4), step_of(seed=6)):
        assert not torch.equal(loss_of(made, batch, other).value, one)


@pytest.mark.parametrize("size", [1, 3])
def test_gradients_do_not_depend_on_how_the_batch_is_cut(size):
    found = []
    for most in (4, size):
        made = FrameCodecTask(replace(CONFIG, kl_weight=0.1), {"codec": ImageCodec(varied_vae())})
        batch, step = batch_of(), step_of()
        for piece, micro in micro_batches(batch, most):
            loss = loss_of(made, micro, replace(step, samples=step.samples[piece]))
            (loss.value * len(micro) / 4).backward()
        parameters = made.parameters_of("codec")
        assert all(p.grad is not None for p in parameters)
        found.append(torch.cat([p.grad.flatten() for p in parameters]))
    assert found[0].abs().max() > 1e-2
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


RECIPE = Recipe(
    "frame_codec",
    replace(CONFIG, kl_weight=1e-4),
    DataConfig("shapes"),
    TrainingConfig(
        steps=60,
        batch_size=4,
        learning_rate=1e-2,
        lr_schedule="cosine",
        warmup_steps=5,
        log_every=10,
        ema_decay=0.9,
    ),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run: its folder, that of its checkpoint, and the task."""
    out = tmp_path_factory.mktemp("codec") / "run"
    trainer = Trainer(RECIPE, out, dataset=Colours(), progress=False, device="cpu")
    return out, trainer.run(), trainer.strategy


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_training_restores_far_better_than_the_mean_colour(run):
    out, folder, _ = run
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["mse"] < 0.2 * lines[0]["mse"]
    assert {"loss", "mse", "kl"} <= lines[-1].keys()
    codec, data = load_codec(folder / "model"), Colours()
    clips = torch.stack([data[i].clip for i in range(len(data))])
    mean_colour = (clips - clips.mean((0, 2, 3, 4), keepdim=True)).square().mean()
    with torch.no_grad():
        error = (codec.decode(codec.encode(clips)) - clips).square().mean()
    assert error < 0.2 * mean_colour


def test_a_finished_checkpoint_has_normalised_latents_under_diffusers_own_class(run):
    _, folder, strategy = run
    vae = AutoencoderKL.from_pretrained(folder / "model", subfolder="codec", use_safetensors=True)
    assert vae.config.scaling_factor == 1.0
    codec, data = load_codec(folder / "model"), Colours()
    assert isinstance(codec, ImageCodec)
    clips = torch.stack([data[i].clip for i in range(len(data))])
    with torch.no_grad():
        latents = codec.encode(clips)
        theirs = vae.encode(rearrange(clips, "b c f h w -> (b f) c h w")).latent_dist.mode()
        torch.testing.assert_close(rearrange(latents, "b c f h w -> (b f) c h w"), theirs, rtol=0, atol=1e-5)
        torch.testing.assert_close(strategy.codec.encode(clips), latents, rtol=0, atol=1e-5)
        channels = rearrange(latents, "b c f h w -> c (b f h w)").double()
    torch.testing.assert_close(channels.mean(1), torch.zeros(3).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(3).double(), rtol=0, atol=1e-4)
    # Before that the state, from which training may go on, was not touched: its latents are as trained.
    raw = load_file(folder / "state" / "tensors.safetensors")
    trained = [value for name, value in raw.items() if name.endswith("quant_conv.bias") and "post" not in name]
    assert trained
    assert all(not torch.allclose(value, vae.quant_conv.bias, atol=1e-3) for value in trained)


def test_running_again_on_the_finished_folder_changes_nothing(run):
    out, folder, _ = run
    before = files(out)
    again = Trainer(RECIPE, out, dataset=Colours(), progress=False, device="cpu").run()
    assert again == folder
    assert files(out) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kl_weight": float("nan")}, "kl_weight is nan"),
        ({"block_out_channels": ()}, "expected one width or more"),
        ({"block_out_channels": (8, 12), "norm_num_groups": 8}, "each a multiple of the groups"),
        ({"latent_channels": 0}, "latent_channels 0; expected 1 or more"),
    ],
)
def test_settings_that_no_vae_can_have_are_refused(fields, message):
    with pytest.raises(InvalidArgumentError, match=message):
        replace(CONFIG, **fields)


def test_the_frames_size_comes_from_the_data_and_must_halve():
    data = Colours()
    assert FrameCodecTask.prepare(replace(CONFIG, sample_size=64), data).sample_size == 16
    deep = replace(CONFIG, block_out_channels=(8,) * 6)
    with pytest.raises(InvalidArgumentError, match=r"16 x 16; a VAE of 6 levels .* multiples of 32"):
        FrameCodecTask.prepare(deep, data)
