"""The baseline's configuration and options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vidgen.errors import InvalidArgumentError
from vidgen.noise import Independent, NoisePrior

__all__ = ["VDMConfig", "VDMOptions"]


@dataclass(frozen=True)
class VDMConfig:
    """What a ``vdm`` is.

    Args:
        sample_frames, sample_size, sample_fps: frames, (height, width) and rate of the training clips; a
            training run takes them from its data.
        words: the vocabulary of the prompts; a training run takes it from the captions where empty.
        patch: side of the pixel squares folded into channels (see ``PixelCodec``).
        pixel_mean, pixel_std: of the data's pixels; a training run measures them where None.
        widths: channels per level of the UNet.
        layers_per_block: residual blocks per level.
        attention_levels: levels with spatial attention and cross-attention.
        head_dim: width of an attention head.
        text_width, text_layers: of the text encoder.
        pooled_text: also add the pooled prompt to the time embedding, as the paper does.
        max_words: longest prompt; a training run takes the longest caption where None.
        context: frames that each window of a longer video shares with the one before it.
        mask_past: share of training clips whose first frames are given clean.
        mask_random: share of training clips with a random set of given frames.
        drop_text: share of training clips whose prompt is dropped, for guidance.
        guidance_scale, num_inference_steps: defaults of sampling.
        prediction_type: ``"v_prediction"``, ``"epsilon"`` or ``"sample"``.
        snr_gamma: bound of the signal-to-noise ratio in the loss weight (Hang et al. 2023, Min-SNR); None
            weighs all timesteps alike.
        beta_schedule, num_train_timesteps: of the noise schedule, as diffusers names them.
        prior: the noise over frames.
        pretrained: folder of a text-to-image model of diffusers' layout to start the UNet from; ``widths``
            and the like are then its own, and so is its noise process, if it comes with a scheduler.
    """

    sample_frames: int = 16
    sample_size: tuple[int, int] = (64, 64)
    sample_fps: float = 8.0
    words: tuple[str, ...] = ()
    patch: int = 4
    pixel_mean: float | None = None
    pixel_std: float | None = None
    widths: tuple[int, ...] = (64, 128)
    layers_per_block: int = 1
    attention_levels: tuple[int, ...] = (1,)
    head_dim: int = 32
    text_width: int = 64
    text_layers: int = 2
    pooled_text: bool = True
    max_words: int | None = None
    context: int = 4
    mask_past: float = 0.4
    mask_random: float = 0.1
    drop_text: float = 0.1
    guidance_scale: float = 3.0
    num_inference_steps: int = 50
    prediction_type: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"
    snr_gamma: float | None = None
    beta_schedule: str = "squaredcos_cap_v2"
    num_train_timesteps: int = 1000
    prior: NoisePrior = field(default_factory=Independent)
    pretrained: str | None = None

    def __post_init__(self) -> None:
        """Check what annotations cannot say."""
        shares = (self.mask_past, self.mask_random, self.drop_text)
        if min(shares) < 0 or max(shares) > 1 or self.mask_past + self.mask_random > 1:
            raise InvalidArgumentError(
                f"mask_past={self.mask_past}, mask_random={self.mask_random}, drop_text={self.drop_text} are "
                "shares of the clips; expected values in [0, 1], the first two adding to at most 1."
            )
        if not 0 < self.context < self.sample_frames and self.sample_frames > 1:
            raise InvalidArgumentError(
                f"context is {self.context}; expected 1 to {self.sample_frames - 1} of the "
                f"{self.sample_frames} frames of a clip."
            )

    @property
    def takes_frames(self) -> bool:
        """Whether the network was trained with given clean frames."""
        return self.mask_past + self.mask_random > 0


@dataclass(frozen=True)
class VDMOptions:
    """What may be chosen for every generation.

    Args:
        given: how given frames steer a call: ``"clean"`` hands them to the network as they are,
            ``"replacement"`` overwrites them with their noised selves at every solver step (Ho et al. 2022,
            section 3.1), ``"auto"`` is clean where the network was trained for it.
    """

    given: Literal["auto", "clean", "replacement"] = "auto"
