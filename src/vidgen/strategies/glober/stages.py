"""GLOBER's two stages of training (Sun et al. 2023, sections 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidgen.codecs import FrameCodec
from vidgen.denoising import DenoisingStage, Example
from vidgen.noise import Independent
from vidgen.strategies.glober.config import GLOBERConfig
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
from vidgen.strategies.glober.levels import GLOBAL, FramesLevel, GlobalLevel
from vidgen.strategy import Strategy
from vidgen.tensors import Latents
from vidgen.trainable import Loss, OptimizerGroup, TrainingStep
from vidgen.video.dataset import ClipBatch

__all__ = ["AutoencoderStage", "GeneratorStage"]


@dataclass(frozen=True, eq=False)
class PairExample(Example):
    """Two frames of each clip behind its ``v``.

    Args:
        pair: their positions, ``b 2``.
        divergence: of the distribution of ``v``.
    """

    pair: Int[Tensor, "b 2"] = field(kw_only=True)
    divergence: Tensor = field(kw_only=True)


class AutoencoderStage(DenoisingStage):
    """Trains video encoder and decoder on two frames of each clip, and the discriminator against them.

    ``||eps - eps_theta||^2`` or its like for the other prediction types, the divergence of ``v``, and the
    coherence and realism adversarial loss (eq. 10). Of a clip no frames are looked at but the keyframes and
    the two. Prompts are dropped or exchanged, ``v`` never. Here a clip's loss depends a little on those it is
    computed with: the encoder normalises ``v`` over them, and wrong prompts are theirs. Micro-batches of a few
    clips make that norm a poor one; with a single clip a prompt is never wrong. Validation exchanges them too.

    Args:
        strategy: what is trained: a GLOBER.
        config: its configuration.
    """

    level: FramesLevel

    def __init__(self, strategy: Strategy, config: GLOBERConfig) -> None:
        learns = ["video_encoder", "unet", "branch", "index"]
        if config.train_text and not getattr(strategy.text_encoder, "frozen", False):
            learns.append("text_encoder")
        shares: dict[str, Any] = {"drop_text": config.frame_drop, "noise_bias": config.noise_bias}
        super().__init__(strategy, learns, name="autoencoder", snr_gamma=config.snr_gamma, **shares)
        self.config, self.encoder = config, _global_level(strategy)
        self.own = tuple(learns)
        self.needs_pixels = config.adversarial and config.judge == "pixel"
        if config.adversarial:
            self.components = (*learns, "discriminator")

    def optimizers(self) -> tuple[OptimizerGroup, ...]:
        """One for encoder and decoder, one for the discriminator."""
        encoder = self.strategy.parameters_of("video_encoder")
        others = self.strategy.parameters_of(*(name for name in self.own if name != "video_encoder"))
        groups = [  # the first one's rate is logged
            OptimizerGroup(self.name, others),
            OptimizerGroup(self.name, encoder, warmup_steps=self.config.encoder_warmup_steps),
        ]
        if self.config.adversarial:
            judges = self.strategy.parameters_of("discriminator")
            groups.append(OptimizerGroup("discriminator", judges, self.config.discriminator_lr_scale))
        return tuple(groups)

    def losses(self, batch: ClipBatch, step: TrainingStep) -> Iterator[Loss]:
        """The auto-encoder's loss, then the discriminator's on the same frames."""
        example = self.example(batch, step)
        found = self.denoised(example, step)
        value, logs = found.loss, {"error": float(found.loss.detach())}  # GLOBER eq. 7, as a mean over elements
        if self.config.posterior == "kl":
            value = value + self.config.kl_weight * example.divergence
        if self.config.posterior != "deterministic":
            logs["divergence"] = float(example.divergence.detach())
        if not self.config.adversarial:
            yield Loss(self.name, value, logs)
            return
        estimate = self.level.process.clean_estimate(found.prediction, found.x_t, found.t)  # GLOBER eq. 9
        gates = timestep_gate(self.level.process, found.t, self.config.cra_gate)
        real, synthetic = self._shown(batch, example, estimate)
        # Validation counts steps of its own, and always looks.
        if step.index >= self.config.cra_warmup_steps or not self.encoder.encoder.training:
            logits = judge(self.strategy.modules["discriminator"], generator_pairs(real, synthetic))
            weights = pair_weights(gates, GENERATOR_REAL)
            adversarial = generator_loss(logits, self.config.cra_form, weights)  # eq. 10
            value = value + self.config.cra_weight * adversarial
            logs["adversarial"] = float(adversarial.detach())
        yield Loss(self.name, value, logs)
        yield self._judged(real, synthetic.detach(), gates)

    def example(self, batch: ClipBatch, step: TrainingStep) -> PairExample:
        """Draw two frames of each clip, and tell the decoder its ``v``."""
        frames, b = _length(batch), len(batch)
        pair = draw_frames(torch.stack([step.uniforms(i, "frames", 2) for i in range(b)]).float(), frames)
        chosen = torch.tensor(self.encoder.keyframes(frames)).expand(b, -1)
        latents = _latents_of(self.strategy, batch, torch.cat([chosen, pair], dim=1))
        keys, clean = latents[:, :, :-2], latents[:, :, -2:]
        posterior = self.encoder.posterior(keys, frames)
        v = posterior.mean
        if self.config.posterior != "deterministic":
            noise = step.noise(Independent(), v[:, :, None], stream="posterior")[:, :, 0]
            v = posterior.sample(noise)  # GLOBER eq. 1
        told = self.prompts(self._told(batch, step), step)
        extras = self.level.residuals(v, pair.to(v.device) / frames, clean.shape[3:], told.tokens)
        conditioning = replace(told, extras=extras)
        return PairExample(clean, conditioning, frames=pair, pair=pair, divergence=posterior.kl())

    def timesteps(self, example: Example, step: TrainingStep) -> Tensor:
        """Each of the two frames has a time of its own."""
        times = torch.stack([step.uniforms(i, "timestep", 2) for i in range(len(example.clean))])
        return self.level.process.sample_timesteps(times, self.noise_bias)

    def _told(self, batch: ClipBatch, step: TrainingStep) -> ClipBatch:
        """Give some clips the next one's prompt (and class), so that the decoder has to believe ``v``."""
        if self.config.wrong_text_frames == 0:
            return batch
        rows = torch.arange(len(batch))
        wrong = step.uniform("wrong-prompt") < self.config.wrong_text_frames
        told = torch.where(wrong, rows.roll(-1), rows)
        captions = [batch.captions[i] for i in told.tolist()]
        return replace(batch, captions=captions, labels=batch.labels[told.to(batch.labels.device)])

    def _shown(self, batch: ClipBatch, example: PairExample, estimate: Latents) -> tuple[Tensor, Tensor]:
        """Return the real and the estimated frames as the discriminator sees them."""
        if self.config.judge == "latent":
            return example.clean, estimate
        codec = self.strategy.codec
        assert isinstance(codec, FrameCodec)  # of `component_types`
        # Gradients pass through the codec, whose own weights stay.
        with torch.autocast(estimate.device.type, enabled=False):
            # Frame by frame and not by `decode`, which clamps: what leaves [-1, 1] would get no gradient.
            flat = estimate.float().transpose(1, 2).flatten(0, 1)
            synthetic = codec.decode_frames(flat).unflatten(0, (-1, 2)).transpose(1, 2)
        return _frames_of(batch.clip, example.pair), synthetic

    def _judged(self, real: Tensor, synthetic: Tensor, gates: Tensor) -> Loss:
        """The discriminator's loss, by what it was before this step's update of the decoder."""
        discriminator = self.strategy.modules["discriminator"]
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
        strategy: what is trained: a GLOBER.
        config: its configuration.
    """

    level: GlobalLevel

    def __init__(self, strategy: Strategy, config: GLOBERConfig) -> None:
        super().__init__(
            strategy,
            ["generator"],
            level=GLOBAL,
            name="generator",
            drop_text=config.drop_text,
            noise_bias=config.noise_bias,
            snr_gamma=config.snr_gamma,
        )
        self.lr_scale = config.generator_lr_scale

    def optimizers(self) -> tuple[OptimizerGroup, ...]:
        """One for the generator."""
        return (OptimizerGroup(self.name, self.strategy.parameters_of("generator"), self.lr_scale),)

    @torch.no_grad()
    def example(self, batch: ClipBatch, step: TrainingStep) -> Example:
        """The means of ``v`` and the prompts; only keyframes are encoded, and encoders stay as they are."""
        frames = _length(batch)
        chosen = torch.tensor(self.level.keyframes(frames)).expand(len(batch), -1)
        mean = self.level.posterior(_latents_of(self.strategy, batch, chosen), frames).mean
        return Example(mean.float()[:, :, None], self.prompts(batch, step))


def _global_level(strategy: Strategy) -> GlobalLevel:
    found = strategy.level(GLOBAL)
    assert isinstance(found, GlobalLevel)
    return found


def _length(batch: ClipBatch) -> int:
    """Frames of the batch's clips."""
    return int((batch.clip if batch.latents is None else batch.latents).shape[2])


def _latents_of(strategy: Strategy, batch: ClipBatch, positions: Int[Tensor, "b n"]) -> Latents:
    """Return the latents of the frames at ``positions`` of each clip; no others are encoded."""
    if batch.latents is not None:
        return _frames_of(batch.latents, positions)
    return strategy.latents(replace(batch, clip=_frames_of(batch.clip, positions)))


def _frames_of(clips: Float[Tensor, "b c f h w"], positions: Int[Tensor, "b n"]) -> Tensor:
    rows = torch.arange(len(clips), device=clips.device)[:, None]
    return clips.transpose(1, 2)[rows, positions.to(clips.device)].transpose(1, 2)
