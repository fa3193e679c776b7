"""The stage of training that diffusion strategies share: predict what noise did to clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from vidgen.conditioning import ClassEncoder, Conditioning
from vidgen.denoising.level import DenoisingLevel
from vidgen.errors import InvalidArgumentError
from vidgen.strategy import Strategy
from vidgen.tensors import KnownMask, Latents
from vidgen.trainable import Loss, OptimizerGroup, Stage, TrainingStep
from vidgen.video.dataset import ClipBatch

__all__ = ["Denoised", "DenoisingStage", "Example"]


@dataclass(frozen=True, eq=False)
class Example:
    """What is learnt from a batch of clips.

    Args:
        clean: the latents, ``b c f h w``.
        conditioning: what the network is told, but for given frames: prompts and extras.
        given: True where a frame is given to the network, ``b f``; of each clip at least one is not. Given
            frames carry no loss; the others are hidden from the network.
        frames: absolute numbers of the frames, ``b f``, which key their noise; by default 0 to f - 1.
        weight: of each clip, ``b``, or of each frame, ``b f``, in the loss.
    """

    clean: Latents
    conditioning: Conditioning
    given: KnownMask | None = None
    frames: Int[Tensor, "b f"] | None = None
    weight: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Denoised:
    """What the network made of an example.

    Args:
        t: its times, ``b`` or ``b f``.
        x_t: the noised latents, ``b c f h w``.
        prediction: the network's, in float32.
        loss: the mean squared error of the prediction, weighted.
    """

    t: Tensor
    x_t: Latents
    prediction: Latents
    loss: Tensor


class DenoisingStage(Stage):
    """Trains ``components`` by one optimiser to undo noise.

    Clips are noised to a random time with the level's prior (DDPM eq. 4) and its ``predict`` is asked for
    ``Diffusion.target``. The loss is the squared error, averaged over the frames of each clip that are not
    given, then over clips: a batch may be cut anywhere. All randomness is the step's.

    A stage that learns something else from a clip overrides ``example`` alone; one that draws other times,
    such as one per frame, ``timesteps``; one with further losses builds on ``denoised``.

    Args:
        strategy: whose codec and text encoder (if it has one) are used.
        components: names of the strategy's modules that learn.
        level: whose network learns: a ``DenoisingLevel`` of the strategy.
        name: of the stage and of its optimiser.
        drop_text: share of clips whose prompt is dropped, for guidance.
        noise_bias: see ``Diffusion.sample_timesteps``.
        snr_gamma: bound of the signal-to-noise ratio in the loss weight (Hang et al. 2023, Min-SNR); None
            weighs all timesteps alike.

    Raises:
        InvalidArgumentError: a component that the strategy does not have, a level that does not denoise, or
            ``drop_text`` is no share.
    """

    needs_pixels = False

    def __init__(
        self,
        strategy: Strategy,
        components: Sequence[str],
        *,
        level: str = "video",
        name: str = "denoiser",
        drop_text: float = 0.0,
        noise_bias: float = 0.0,
        snr_gamma: float | None = None,
    ) -> None:
        unknown = sorted(set(components) - set(strategy.modules))
        if unknown or not components:
            raise InvalidArgumentError(
                f"stage {name!r} of {strategy.name!r} is to train {unknown or 'nothing'}; expected some of "
                f"its components: {', '.join(strategy.modules)}."
            )
        if not 0 <= drop_text <= 1:
            raise InvalidArgumentError(f"drop_text is {drop_text}; expected a share of the clips, 0 to 1.")
        found = strategy.level(level)
        if not isinstance(found, DenoisingLevel):
            raise InvalidArgumentError(
                f"stage {name!r} of {strategy.name!r} is to train level {level!r}, a {type(found).__name__}; "
                "expected a DenoisingLevel, whose predict() and noise process it uses."
            )
        self.strategy, self.level = strategy, found
        self.name, self.components = name, tuple(components)
        self.drop_text, self.noise_bias, self.snr_gamma = drop_text, noise_bias, snr_gamma

    def optimizers(self) -> tuple[OptimizerGroup, ...]:
        """One optimiser for all."""
        return (OptimizerGroup(self.name, self.strategy.parameters_of(*self.components)),)

    def example(self, batch: ClipBatch, step: TrainingStep) -> Example:
        """Return what is learnt from a batch: by default whole clips behind their prompts, nothing given.

        Args:
            batch: as it came from the data.
            step: of which all randomness comes.
        """
        return Example(self.strategy.latents(batch), self.prompts(batch, step))

    def prompts(self, batch: ClipBatch, step: TrainingStep) -> Conditioning:
        """Return the batch's prompts, some dropped; nothing for a strategy without a text encoder."""
        encoder = self.strategy.text_encoder
        if encoder is None:
            return Conditioning()
        drops = step.uniform("drop") < self.drop_text
        if isinstance(encoder, ClassEncoder):
            device = self.strategy.device
            labels = batch.labels.to(device).masked_fill(drops.to(device), -1)
            return Conditioning(encoder.encode_labels(labels))
        captions = zip(batch.captions, drops.tolist(), strict=True)
        return Conditioning(encoder.encode(["" if drop else text for text, drop in captions]))

    def timesteps(self, example: Example, step: TrainingStep) -> Tensor:
        """Draw the times to which an example is noised: one per clip, ``b``, or one per frame, ``b f``."""
        del example
        return self.level.process.sample_timesteps(step.uniform("timestep"), self.noise_bias)

    def losses(self, batch: ClipBatch, step: TrainingStep) -> Iterator[Loss]:
        """Mean squared error of the prediction on the frames that are not given."""
        yield Loss(self.name, self.denoised(self.example(batch, step), step).loss)

    def denoised(self, example: Example, step: TrainingStep) -> Denoised:
        """Noise an example, ask the network, and compare."""
        diffusion, clean = self.level.process, example.clean
        t = self.timesteps(example, step).to(clean.device)
        noise = step.noise(self.level.prior, clean, example.frames)
        x_t = diffusion.noised(clean, noise, t)
        cond, given = example.conditioning, example.given
        if given is not None:
            given = given.to(clean.device)
            shown = torch.where(given[:, None, :, None, None], clean, torch.zeros_like(clean))
            cond = replace(cond, known=given, clean=shown)
        prediction = self.level.predict(x_t, t, cond).float()
        error = (prediction - diffusion.target(clean, noise, t)) ** 2
        if self.snr_gamma is not None:
            error = error * diffusion.min_snr_weight(t, clean, self.snr_gamma)
        if example.weight is not None:
            error = error * _over_pixels(example.weight.to(error))
        return Denoised(t, x_t, prediction, _mean_by_clip(error, given))


def _over_pixels(weight: Tensor) -> Tensor:
    """Make weights ``b`` or ``b f`` broadcastable to ``b c f h w``."""
    return weight.reshape(len(weight), 1, -1, 1, 1)


def _mean_by_clip(error: Tensor, given: KnownMask | None) -> Tensor:
    dims = (1, 2, 3, 4)  # clip by clip, so that the batch may be cut anywhere
    if given is None:
        return error.mean(dims).mean()
    # Given frames are input, not output: they carry no loss.
    weight = (~given)[:, None, :, None, None].float().expand_as(error)
    return ((error * weight).sum(dims) / weight.sum(dims)).mean()
