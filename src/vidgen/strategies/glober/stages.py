"""GLOBER's two stages of training (Sun et al. 2023, sections 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidgen.codecs import FrameCodec
from vidgen.conditioning import Conditioning
from vidgen.denoising import DenoisingStage
from vidgen.noise import Independent
from vidgen.strategies.glober.cra import (
    DISCRIMINATOR_FAKE,
    DISCRIMINATOR_FAKE_UNORDERED,
    DISCRIMINATOR_REAL,
    GENERATOR_REAL,
    discriminator_loss,
    discriminator_pairs,
    draw_frames,
    generator_loss,
    generator_pairs,
    judge,
    pair_weights,
    timestep_gate,
)
from vidgen.tensors import KnownMask, Latents
from vidgen.trainable import Loss, OptimizerGroup, TrainingStep
from vidgen.video.dataset import ClipBatch

if TYPE_CHECKING:
    from vidgen.strategies.glober.strategy import GLOBER

__all__ = ["AutoencoderStage", "GeneratorStage"]


@dataclass(frozen=True)
class Decoded:
    """Two frames of each clip, noised and denoised through ``v``."""

    pair: Int[Tensor, "b 2"]
    clean: Float[Tensor, "b c 2 h w"]
    estimate: Float[Tensor, "b c 2 h w"]
    gates: Float[Tensor, "b 2"]
    error: Tensor
    divergence: Tensor


class AutoencoderStage(DenoisingStage):
    """Trains video encoder and decoder on two frames of each clip, and the discriminator against them.

    ``||eps - eps_theta||^2`` or its like for the other prediction types, the divergence of ``v``, and the
    coherence and realism adversarial loss (eq. 10). Of a clip no frames are looked at but the keyframes and
    the two. Prompts are dropped or exchanged, ``v`` never. Here a clip's loss depends a little on those it is
    computed with: the encoder normalises ``v`` over them, and wrong prompts are theirs. Micro-batches of a few
    clips make that norm a poor one; with a single clip a prompt is never wrong. Validation exchanges them too.

    Args:
        strategy: what is trained.
    """

    def __init__(self, strategy: GLOBER) -> None:
        config = strategy.config
        learns = ["video_encoder", "unet", "branch", "index"]
        if config.train_text and not getattr(strategy.text_encoder, "frozen", False):
            learns.append("text_encoder")
        super().__init__(strategy, strategy.predict, learns, name="autoencoder", drop_text=config.frame_drop)
        self.glober, self.config = strategy, config
        self.own = tuple(learns)
        self.needs_pixels = config.adversarial and config.judge == "pixel"
        if config.adversarial:
            self.components = (*learns, "discriminator")

    def optimizers(self) -> tuple[OptimizerGroup, ...]:
        """One for encoder and decoder, one for the discriminator."""
        encoder = self.glober.parameters_of("video_encoder")
        others = self.glober.parameters_of(*(name for name in self.own if name != "video_encoder"))
        groups = [  # the first one's rate is logged
            OptimizerGroup(self.name, others),
            OptimizerGroup(self.name, encoder, warmup_steps=self.config.encoder_warmup_steps),
        ]
        if self.config.adversarial:
            judges = self.glober.parameters_of("discriminator")
            groups.append(OptimizerGroup("discriminator", judges, self.config.discriminator_lr_scale))
        return tuple(groups)

    def losses(self, batch: ClipBatch, step: TrainingStep) -> Iterator[Loss]:
        """The auto-encoder's loss, then the discriminator's on the same frames."""
        found = self.decoded(batch, step)
        value, logs = found.error, {"error": float(found.error.detach())}
        if self.config.posterior == "kl":
            value = value + self.config.kl_weight * found.divergence
        if self.config.posterior != "deterministic":
            logs["divergence"] = float(found.divergence.detach())
        if not self.config.adversarial:
            yield Loss(self.name, value, logs)
            return
        discriminator = self.glober.modules["discriminator"]
        real, synthetic = self._shown(batch, found)
        # Validation counts steps of its own, and always looks.
        if step.index >= self.config.cra_warmup_steps or not self.glober.video_encoder.training:
            logits = judge(discriminator, generator_pairs(real, synthetic))
            weights = pair_weights(found.gates, GENERATOR_REAL)
            adversarial = generator_loss(logits, self.config.cra_form, weights)  # eq. 10
            value = value + self.config.cra_weight * adversarial
            logs["adversarial"] = float(adversarial.detach())
        yield Loss(self.name, value, logs)
        yield self._judged(real, synthetic.detach(), found.gates)

    def decoded(self, batch: ClipBatch, step: TrainingStep) -> Decoded:
        """Draw two frames and their noise, and denoise them through the clip's ``v``."""
        diffusion, frames = self.glober.diffusion, _length(batch)
        b, device = len(batch), next(iter(self.glober.parameters_of("unet"))).device
        drawn = torch.stack([step.uniforms(i, "frames", 2) for i in range(b)])
        pair = draw_frames(drawn.float(), frames)
        chosen = torch.tensor(self.glober.keyframes(frames)).expand(b, -1)
        latents = _latents_of(self.glober, batch, torch.cat([chosen, pair], dim=1))
        keys, clean = latents[:, :, :-2], latents[:, :, -2:]
        posterior = self.glober.posterior(keys, frames)
        v = posterior.mean
        if self.config.posterior != "deterministic":
            v = posterior.sample(_posterior_noise(step, v))  # GLOBER eq. 1
        times = torch.stack([step.uniforms(i, "timestep", 2) for i in range(b)])
        t = diffusion.sample_timesteps(times, self.config.noise_bias).to(device)
        noise = _frame_noise(self.glober, step, pair, clean)
        x_t = diffusion.noised(clean, noise, t)  # GLOBER eq. 5, with sqrt(1 - abar)
        cond = self.condition(self._told(batch, step), clean, None, step)
        vectors = self.glober.index((pair.to(device) / frames).flatten()).unflatten(0, (b, 2))
        prediction = self.glober.decoder(x_t, t, cond.tokens, v=v, index=vectors).float()
        error = (prediction - diffusion.target(clean, noise, t)) ** 2
        if self.config.snr_gamma is not None:
            error = error * diffusion.min_snr_weight(t, clean, self.config.snr_gamma)
        return Decoded(
            pair,
            clean,
            diffusion.clean_estimate(prediction, x_t, t),  # GLOBER eq. 9
            timestep_gate(diffusion, t, self.config.cra_gate),
            error.mean(),  # GLOBER eq. 7, as a mean over elements
            posterior.kl(),
        )

    def _told(self, batch: ClipBatch, step: TrainingStep) -> ClipBatch:
        """Give some clips the next one's prompt (and class), so that the decoder has to believe ``v``."""
        if self.config.wrong_text_frames == 0:
            return batch
        rows = torch.arange(len(batch))
        wrong = step.uniform("wrong-prompt") < self.config.wrong_text_frames
        told = torch.where(wrong, rows.roll(-1), rows)
        captions = [batch.captions[i] for i in told.tolist()]
        return replace(batch, captions=captions, labels=batch.labels[told.to(batch.labels.device)])

    def _shown(self, batch: ClipBatch, found: Decoded) -> tuple[Tensor, Tensor]:
        """Return the real and the estimated frames as the discriminator sees them."""
        if self.config.judge == "latent":
            return found.clean, found.estimate
        codec = self.glober.codec
        assert isinstance(codec, FrameCodec)  # of `component_types`
        # Gradients pass through the codec, whose own weights stay.
        with torch.autocast(found.estimate.device.type, enabled=False):
            # Frame by frame and not by `decode`, which clamps: what leaves [-1, 1] would get no gradient.
            flat = found.estimate.float().transpose(1, 2).flatten(0, 1)
            synthetic = codec.decode_frames(flat).unflatten(0, (-1, 2)).transpose(1, 2)
        return _frames_of(batch.clip, found.pair), synthetic

    def _judged(self, real: Tensor, synthetic: Tensor, gates: Tensor) -> Loss:
        """The discriminator's loss, by what it was before this step's update of the decoder."""
        discriminator = self.glober.modules["discriminator"]
        fakes = DISCRIMINATOR_FAKE if self.config.cra_order else DISCRIMINATOR_FAKE_UNORDERED
        yes, no = discriminator_pairs(real, synthetic, fakes)
        logits = judge(discriminator, torch.cat([yes, no]))
        weights = pair_weights(gates, fakes)
        if self.config.cra_balance:
            weights = weights / len(fakes)
        own = pair_weights(gates, DISCRIMINATOR_REAL)
        value = discriminator_loss(logits[:1], logits[1:], self.config.cra_form, own, weights)  # eq. 10
        means = logits.detach().float().mean(1)
        logs = {"logit/real": float(means[0]), "logit/fake": float(means[1:4].mean())}
        if self.config.cra_order:
            logs["logit/swapped"] = float(means[4])
        return Loss("discriminator", value, logs)


class GeneratorStage(DenoisingStage):
    """Trains the generator on the means of ``v``; everything else stays as it is.

    Args:
        strategy: what is trained.
    """

    def __init__(self, strategy: GLOBER) -> None:
        super().__init__(
            strategy,
            strategy.predict_global,
            ["generator"],
            name="generator",
            view=self._means,
            drop_text=strategy.config.drop_text,
            noise_bias=strategy.config.noise_bias,
            snr_gamma=strategy.config.snr_gamma,
        )
        self.glober = strategy
        self._frames = 0

    def optimizers(self) -> tuple[OptimizerGroup, ...]:
        """One for the generator."""
        config = self.glober.config
        own = self.glober.parameters_of("generator")
        return (OptimizerGroup(self.name, own, config.generator_lr_scale),)

    def losses(self, batch: ClipBatch, step: TrainingStep) -> Iterator[Loss]:
        """Mean squared error of the prediction for noised ``v``; only keyframes are encoded."""
        frames = _length(batch)
        chosen = torch.tensor(self.glober.keyframes(frames)).expand(len(batch), -1)
        latents = _latents_of(self.glober, batch, chosen)
        self._frames = frames
        yield from super().losses(replace(batch, latents=latents), step)

    def _means(
        self, latents: Latents, step: TrainingStep
    ) -> tuple[Float[Tensor, "b gc 1 gh gw"], KnownMask | None]:
        del step
        with torch.no_grad():
            mean = self.glober.posterior(latents, self._frames).mean
        return mean.float()[:, :, None], None

    def condition(
        self, batch: ClipBatch, clean: Latents, known: KnownMask | None, step: TrainingStep
    ) -> Conditioning:
        """The prompts, by a text encoder that stays as it is."""
        with torch.no_grad():
            return super().condition(batch, clean, known, step)


def _length(batch: ClipBatch) -> int:
    """Frames of the batch's clips."""
    return int((batch.clip if batch.latents is None else batch.latents).shape[2])


def _latents_of(strategy: GLOBER, batch: ClipBatch, positions: Int[Tensor, "b n"]) -> Latents:
    """Return the latents of the frames at ``positions`` of each clip; no others are encoded."""
    if batch.latents is not None:
        return _frames_of(batch.latents, positions)
    return strategy.latents(replace(batch, clip=_frames_of(batch.clip, positions)))


def _frames_of(clips: Float[Tensor, "b c f h w"], positions: Int[Tensor, "b n"]) -> Tensor:
    rows = torch.arange(len(clips), device=clips.device)[:, None]
    return clips.transpose(1, 2)[rows, positions.to(clips.device)].transpose(1, 2)


def _posterior_noise(step: TrainingStep, like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    keys = [step.key(i, "posterior") for i in range(len(like))]
    c, h, w = like.shape[1:]
    return Independent().sample_batch(range(1), (c, h, w), keys)[:, :, 0].to(like)


def _frame_noise(strategy: GLOBER, step: TrainingStep, pair: Tensor, like: Latents) -> Latents:
    """Return the prior's noise of each clip's two frames, by their own numbers."""
    shape = (like.shape[1], like.shape[3], like.shape[4])
    rows = [
        strategy.prior.sample(frames, shape, step.key(i, "noise")) for i, frames in enumerate(pair.tolist())
    ]
    return torch.stack(rows).to(like)
