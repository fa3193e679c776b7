"""GLOBER's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vidgen.codecs import Codec
from vidgen.denoising import UNetConfig
from vidgen.errors import InvalidArgumentError
from vidgen.nn.unet import norm_groups
from vidgen.strategies.glober.discriminator import PairDiscriminator
from vidgen.strategies.glober.generator import GlobalGenerator
from vidgen.strategies.glober.index import IndexEmbedding, index_scale
from vidgen.strategies.glober.video_encoder import VideoEncoder
from vidgen.video.checks import check_name

__all__ = ["GLOBERConfig"]


@dataclass(frozen=True)
class GLOBERConfig(UNetConfig):
    """What a ``glober`` is; the fields that come first are ``UNetConfig``'s.

    The defaults are small; ``glober/ucf101_256`` and its kin are the paper's. ``prior`` should stay
    independent: GLOBER's frames share nothing but ``v``. ``guidance_scale`` is that of the frames.

    Args:
        keyframes: frames that the video encoder reads, K.
        global_channels: channels of ``v``.
        encoder_widths, encoder_blocks, encoder_head_dim: see ``VideoEncoder``.
        index_channels, index_dim: see ``IndexEmbedding``.
        branch_layers, branch_width: residual blocks per stage of the branch, and their most channels.
        branch_text: whether the branch attends to the prompt too, see ``GlobalBranch.beside``.
        generator_width, generator_depth, generator_heads, generator_pooled_text: see ``GlobalGenerator``.
        judge: what the discriminator sees: ``"latent"`` frames, or ``"pixel"`` ones, through the codec.
        discriminator_width, discriminator_multipliers, discriminator_full_levels,
            discriminator_time_levels: see ``PairDiscriminator``.
        posterior: ``"deterministic"`` takes the encoder's mean in training; ``"variance"`` draws from its
            distribution; ``"kl"`` also pulls that towards a standard normal: its variance, for the mean's scale
            is fixed.
        initial_std: see ``VideoEncoder``; it counts for ``"variance"`` and ``"kl"``.
        kl_weight: of the divergence, which is a sum over elements.
        cra_weight: of the adversarial loss; 0 trains without a discriminator.
        cra_form: ``"hinge"``, or ``"log"`` as printed.
        cra_order: whether pairs in the wrong order are fakes, as the paper has it. Not of data that look alike
            backwards: a swapped pair is then a real one, and the best discriminator is a constant.
        cra_balance: whether the fake pairs together weigh as much in the discriminator's loss as the real one.
            Printed as a sum, they outweigh it, and a small discriminator may stay at "fake".
        cra_gate: frames with more noise per signal than this are not judged; None judges all.
        cra_warmup_steps: steps in which the discriminator learns and the decoder does not listen.
        drop_text_frames: share of clips whose prompt the decoder is not told; None is ``drop_text``, which
            is the generator's.
        wrong_text_frames: share of the other clips whose prompt, as the decoder is told it, is that of another
            clip. If prompts are always right, the decoder reads from them what it could read from ``v``.
        train_text: whether the first stage trains the text encoder, where that is a vocabulary's (open_clip's
            never learn). One that came with a pretrained model may stay as it is.
        global_guidance_scale: default guidance of ``v``.
        encoder_warmup_steps: steps over which the encoder's learning rate rises. A slow encoder stays a random
            mixture of ordered keyframes until the decoder can tell what indices are for; a fast one has
            forgotten their order by then.
        generator_lr_scale, discriminator_lr_scale: factors on the recipe's learning rate.
    """

    keyframes: int = 4
    global_channels: int = 16
    encoder_widths: tuple[int, ...] = (64, 128)
    encoder_blocks: int = 1
    encoder_head_dim: int = 32
    index_channels: int = 64
    index_dim: int = 256
    branch_layers: int = 1
    branch_width: int | None = None
    branch_text: Literal["cross", "concat"] = "cross"
    generator_width: int = 256
    generator_depth: int = 6
    generator_heads: int = 4
    generator_pooled_text: bool = False
    judge: Literal["latent", "pixel"] = "latent"
    discriminator_width: int = 64
    discriminator_multipliers: tuple[int, ...] = (1, 2)
    discriminator_full_levels: tuple[int, ...] = (1,)
    discriminator_time_levels: tuple[int, ...] = ()
    posterior: Literal["deterministic", "variance", "kl"] = "kl"
    initial_std: float = 1.0
    kl_weight: float = 1e-6
    cra_weight: float = 0.1
    cra_form: Literal["hinge", "log"] = "hinge"
    cra_order: bool = True
    cra_balance: bool = False
    cra_gate: float | None = None
    cra_warmup_steps: int = 0
    drop_text_frames: float | None = None
    wrong_text_frames: float = 0.0
    train_text: bool = True
    global_guidance_scale: float = 9.0
    encoder_warmup_steps: int = 0
    generator_lr_scale: float = 1.0
    discriminator_lr_scale: float = 1.0

    @property
    def learns_words(self) -> bool:
        """See ``ClipConfig.learns_words``."""
        return self.train_text

    def __post_init__(self) -> None:
        """Check what annotations cannot say."""
        super().__post_init__()
        check_name("posterior", self.posterior, ("deterministic", "variance", "kl"))
        check_name("judge", self.judge, ("latent", "pixel"))
        check_name("cra_form", self.cra_form, ("hinge", "log"))
        for name in ("kl_weight", "cra_weight", "cra_warmup_steps", "encoder_warmup_steps"):
            if getattr(self, name) < 0:
                raise InvalidArgumentError(f"{name} is {getattr(self, name)}; expected 0 or more.")
        for name in ("generator_lr_scale", "discriminator_lr_scale", "cra_gate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InvalidArgumentError(f"{name} is {value}; expected more than 0.")
        for name, share in (
            ("drop_text_frames", self.frame_drop),
            ("wrong_text_frames", self.wrong_text_frames),
        ):
            if not 0 <= share <= 1:
                raise InvalidArgumentError(f"{name} is {share}; expected a share, 0 to 1.")

    @property
    def frame_drop(self) -> float:
        """Share of clips whose prompt the decoder is not told."""
        return self.drop_text if self.drop_text_frames is None else self.drop_text_frames

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator takes part in training."""
        return self.cra_weight > 0

    def build_video_encoder(self, codec: Codec) -> VideoEncoder:
        """Return a fresh video encoder for the codec's latents."""
        channels, height, width = codec.latent_shape(*self.sample_size)
        return VideoEncoder(  # type: ignore[no-any-return]  # diffusers: untyped
            latent_channels=channels,
            sample_size=(height, width),
            widths=self.encoder_widths,
            blocks_per_level=self.encoder_blocks,
            head_dim=self.encoder_head_dim,
            global_channels=self.global_channels,
            norm_groups=norm_groups(self.encoder_widths),
            scale=index_scale(self.sample_frames),
            initial_std=self.initial_std,
        )

    def build_index(self) -> IndexEmbedding:
        """Return a fresh embedding of frame indices, scaled to the training clips' length."""
        scale = index_scale(self.sample_frames)
        return IndexEmbedding(self.index_channels, self.index_dim, scale)  # type: ignore[no-any-return]

    def build_generator(self, text_width: int) -> GlobalGenerator:
        """Return a fresh generator that reads tokens of ``text_width`` features."""
        return GlobalGenerator(  # type: ignore[no-any-return]
            channels=self.global_channels,
            text_width=text_width,
            width=self.generator_width,
            depth=self.generator_depth,
            heads=self.generator_heads,
            pooled_text=self.generator_pooled_text,
        )

    def build_discriminator(self, codec: Codec) -> PairDiscriminator:
        """Return a fresh discriminator of latent frames or of pixels, as ``judge`` says."""
        channels, *size = codec.latent_shape(*self.sample_size)
        sides: dict[str, Any] = {"in_channels": channels, "sample_size": tuple(size)}
        if self.judge == "pixel":
            sides = {"in_channels": 3, "sample_size": self.sample_size}
        return PairDiscriminator(  # type: ignore[no-any-return]
            **sides,
            width=self.discriminator_width,
            multipliers=self.discriminator_multipliers,
            full_levels=self.discriminator_full_levels,
            time_levels=self.discriminator_time_levels,
        )
