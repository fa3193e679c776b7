"""The stage of training that diffusion strategies share: predict what noise did to clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vidgen.conditioning import ClassEncoder, Conditioning
from vidgen.diffusion import Denoiser
from vidgen.errors import InvalidArgumentError
from vidgen.strategy import Strategy
from vidgen.tensors import KnownMask, Latents
from vidgen.trainable import Loss, OptimizerGroup, Stage, TrainingStep
from vidgen.video.dataset import ClipBatch

__all__ = ["DenoisingStage", "View"]

View = Callable[[Latents, TrainingStep], tuple[Latents, KnownMask | None]]
"""``(latents of the clips b c f h w, step) -> (what is learnt from them b c g h w, given frames b g)``.

It may cut, reorder or thin frames; of each clip at least one frame must not be given.
"""


class DenoisingStage(Stage):
    """Trains ``components`` by one optimiser to undo noise.

    Clips are noised to a random time with the strategy's prior (DDPM eq. 4) and ``predict`` is asked for
    ``Diffusion.target``. The loss is the squared error, averaged over the frames of each clip that are not
    given, then over clips: a batch may be cut anywhere. All randomness is the step's.

    A stage whose conditions are more than prompts and given frames overrides ``condition``.

    Args:
        strategy: whose codec, diffusion, prior and text encoder (if it has one) are used.
        predict: the network as in sampling, without guidance: ``(x_t, t, conditions) -> prediction``.
        components: names of the strategy's modules that learn.
        name: of the stage and of its optimiser.
        view: which frames of a clip are learnt from, and which of those are given; None takes clips whole,
            nothing given.
        drop_text: share of clips whose prompt is dropped, for guidance.
        noise_bias: see ``Diffusion.sample_timesteps``.
        snr_gamma: bound of the signal-to-noise ratio in the loss weight (Hang et al. 2023, Min-SNR); None
            weighs all timesteps alike.

    Raises:
        InvalidArgumentError: a component that the strategy does not have, or ``drop_text`` is no share.
    """

    needs_pixels = False

    def __init__(
        self,
        strategy: Strategy,
        predict: Denoiser,
        components: Sequence[str],
        *,
        name: str = "denoiser",
        view: View | None = None,
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
        self.strategy, self.predict = strategy, predict
        self.name, self.components = name, tuple(components)
        self.view, self.drop_text = view, drop_text
        self.noise_bias, self.snr_gamma = noise_bias, snr_gamma

    def optimizers(self) -> tuple[OptimizerGroup, ...]:
        """One optimiser for all."""
        return (OptimizerGroup(self.name, self.strategy.parameters_of(*self.components)),)

    def losses(self, batch: ClipBatch, step: TrainingStep) -> Iterator[Loss]:
        """Mean squared error of the prediction on the frames that are not given."""
        diffusion, known = self.strategy.diffusion, None
        clean = self.strategy.latents(batch)
        if self.view is not None:
            clean, known = self.view(clean, step)
            known = None if known is None else known.to(clean.device)
        t = diffusion.sample_timesteps(step.uniform("timestep"), self.noise_bias).to(clean.device)
        noise = step.noise(self.strategy.prior, clean)
        cond = self.condition(batch, clean, known, step)
        prediction = self.predict(diffusion.noised(clean, noise, t), t, cond)
        error = (prediction.float() - diffusion.target(clean, noise, t)) ** 2
        if self.snr_gamma is not None:
            error = error * diffusion.min_snr_weight(t, clean, self.snr_gamma)
        yield Loss(self.name, _mean_by_clip(error, known))

    def condition(
        self, batch: ClipBatch, clean: Latents, known: KnownMask | None, step: TrainingStep
    ) -> Conditioning:
        """Return the conditions of a batch: its prompts, some dropped, and its given frames.

        Args:
            batch: as it came from the data.
            clean: the latents that are learnt from, ``b c f h w``; what is not given is hidden here.
            known: ``b f``, or None.
            step: of which all randomness comes.
        """
        encoder, tokens = self.strategy.text_encoder, None
        if encoder is not None:
            drops = step.uniform("drop") < self.drop_text
            if isinstance(encoder, ClassEncoder):
                labels = batch.labels.to(clean.device)
                tokens = encoder.encode_labels(labels.masked_fill(drops.to(clean.device), -1))
            else:
                captions = zip(batch.captions, drops.tolist(), strict=True)
                tokens = encoder.encode(["" if drop else text for text, drop in captions])
        if known is None:
            return Conditioning(tokens)
        shown = torch.where(known[:, None, :, None, None], clean, torch.zeros_like(clean))
        return Conditioning(tokens, known=known, clean=shown)


def _mean_by_clip(error: Tensor, known: KnownMask | None) -> Tensor:
    dims = (1, 2, 3, 4)  # clip by clip, so that the batch may be cut anywhere
    if known is None:
        return error.mean(dims).mean()
    # Given frames are input, not output: they carry no loss.
    weight = (~known)[:, None, :, None, None].float().expand_as(error)
    return ((error * weight).sum(dims) / weight.sum(dims)).mean()
