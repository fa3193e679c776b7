"""GLOBER as a strategy: ``v`` first, then the frames in independent chunks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from vidgen.codecs import FrameCodec
from vidgen.conditioning import Conditioning, clip_of
from vidgen.denoising import DenoisingStrategy
from vidgen.errors import InvalidArgumentError, PlanError
from vidgen.level_model import LevelModel
from vidgen.plans import Plan, chunks, rooted
from vidgen.strategies.glober.branch import GlobalBranch
from vidgen.strategies.glober.config import GLOBERConfig
from vidgen.strategies.glober.discriminator import PairDiscriminator
from vidgen.strategies.glober.generator import GlobalGenerator
from vidgen.strategies.glober.index import IndexEmbedding
from vidgen.strategies.glober.levels import GLOBAL, FramesLevel, GlobalLevel
from vidgen.strategies.glober.stages import AutoencoderStage, GeneratorStage
from vidgen.strategies.glober.video_encoder import VideoEncoder, keyframes
from vidgen.strategy import Strategy
from vidgen.tensors import Latents
from vidgen.trainable import Stage

__all__ = ["GLOBER"]


class GLOBER(DenoisingStrategy):
    """A global feature ``v`` of the whole video, and frames that are each denoised from it alone.

    ``v`` stands for a clip as long as the training clips, and frame ``i`` of ``n`` is the one at ``i / n`` of
    it: more frames are the same clip at a higher rate, and any frames can be had alone. ``encode`` finds the
    ``v`` of a given video; ``pins={("global", 0): v}`` renders it.

    Components: ``codec``, ``text_encoder``, ``unet`` (a plain 2D UNet), ``branch`` and ``index`` (what it is
    added of ``v`` and of frame indices), ``video_encoder``, ``generator`` (of ``v``) and ``discriminator`` (in
    training only). Source: Sun et al. 2023, GLOBER.
    """

    name = "glober"
    Config = GLOBERConfig
    component_types: ClassVar[dict[str, tuple[type, ...]]] = {
        **DenoisingStrategy.component_types,
        "codec": (FrameCodec,),  # every frame has its own latent
        "unet": (UNet2DConditionModel,),
        "branch": (GlobalBranch,),
        "index": (IndexEmbedding,),
        "video_encoder": (VideoEncoder,),
        "generator": (GlobalGenerator,),
        "discriminator": (PairDiscriminator,),
    }
    training_only = ("discriminator",)
    stride = None
    config: GLOBERConfig

    @classmethod
    def create(cls, config: GLOBERConfig) -> GLOBER:
        """See ``Strategy.create``."""
        keyframes(config.sample_frames, config.keyframes)  # refuses what is not possible
        codec = config.build_codec()
        text = config.build_text_encoder(config.token_width, config.text_layers)
        unet = config.build_unet(codec, text.width)
        branch = GlobalBranch.beside(
            unet,
            config.global_channels,
            config.index_dim,
            layers=config.branch_layers,
            max_width=config.branch_width,
            text=config.branch_text,
            reduction=2 ** (len(config.encoder_widths) - 1),
        )
        modules = {
            "codec": codec,
            "text_encoder": text,
            "unet": unet,
            "branch": branch,
            "index": config.build_index(),
            "video_encoder": config.build_video_encoder(codec),
            "generator": config.build_generator(text.width),
            "discriminator": config.build_discriminator(codec),
        }
        return cls(config, modules, config.build_scheduler())

    def fresh(self, component: str) -> nn.Module:
        """See ``Trainable.fresh``."""
        del component  # the discriminator is the only one
        return self.config.build_discriminator(self.codec)

    def plan(self, num_frames: int) -> Plan:
        """``v``, then chunks of frames, each given ``v`` alone: any other chunks give the same frames."""
        return rooted(chunks(num_frames, self.window), GLOBAL)

    def check_plan(self, plan: Plan) -> None:
        """One call makes ``v``; every other one is frames of the video given ``v`` and nothing else.

        Raises:
            PlanError: another call, or frames of the video that are given: nothing would follow them.
        """
        Strategy.check_plan(self, plan)
        pinned = sorted(frame for level, frame in plan.pins if level == plan.video.name)
        if pinned:
            raise PlanError(
                f"{len(pinned)} frames of the video are given, {pinned[:3]} the first; glober makes every "
                "frame from v, and the others would show another video. Frames know nothing of given pictures: "
                "encode a video instead, v = strategy.encode(video), and give pins={('global', 0): v}."
            )
        for call in plan.calls:
            if call.level == plan.video.name:
                fits = call.given == ((GLOBAL, 0),)
            else:
                fits = call.frames == (0,) and not call.given
            if not fits:
                raise PlanError(
                    f"call {call.id!r} makes {list(call.emits)[:3]} from {list(call.given)[:3]}; glober makes "
                    f"('{GLOBAL}', 0) from nothing and frames of the video from it alone, any number at a "
                    "time (rooted(chunks(n, window), 'global')). Frames know nothing of given pictures: encode "
                    "a video instead, v = strategy.encode(video), and give pins={('global', 0): v}."
                )

    def frame_rate(self, num_frames: int) -> float:
        """A clip lasts as long as those of the training, however many frames are made of it."""
        return self.config.sample_fps * num_frames / self.config.sample_frames

    @cached_property
    def levels(self) -> Mapping[str, LevelModel]:
        """``v``, made by the generator, and the frames, each made from it."""
        c, settings = self.config, self.level_settings
        scale = c.global_guidance_scale if c.has_prompts else 1.0
        own = {**settings, "guidance_scale": scale, "count": c.keyframes, "length": c.sample_frames}
        return {GLOBAL: GlobalLevel(self, **own), "video": FramesLevel(self, **settings)}

    @property
    def global_level(self) -> GlobalLevel:
        """The level of ``v``."""
        found = self.levels[GLOBAL]
        assert isinstance(found, GlobalLevel)
        return found

    @property
    def frames_level(self) -> FramesLevel:
        """The level of the frames."""
        found = self.levels["video"]
        assert isinstance(found, FramesLevel)
        return found

    def predict(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """Ask the decoder, without guidance."""
        return self.frames_level.predict(x_t, t, cond)

    @torch.no_grad()
    def encode(self, video: Any) -> Float[Tensor, "c h w"]:
        """Return the ``v`` of a video, as ``pins={("global", 0): v}`` takes it: the encoder's mean.

        The video may have any length from ``keyframes`` frames on; its whole is what ``v`` stands for. It is
        encoded as in evaluation, also in the middle of a training.

        Args:
            video: a ``Video``, a file, pictures, uint8 (f h w c), or floating point in [0, 1], an array
                (f h w c) or a tensor (f c h w); it is scaled and cropped to the size of the training clips.

        Raises:
            InvalidArgumentError: fewer frames than keyframes.
            VideoError: the file cannot be read.
        """
        clip: Tensor = clip_of(video, self.config.sample_size, "video", resize="crop")
        least = self.config.keyframes
        if clip.shape[1] < least:
            raise InvalidArgumentError(
                f"the video has {clip.shape[1]} frame(s), and this model's encoder reads {least} of them; give "
                f"one of {least} frames or more."
            )
        chosen = self.global_level.keyframes(clip.shape[1])
        latents = self.codec.encode(clip[None, :, list(chosen)].to(self.device))
        level, encoder = self.global_level, self.modules["video_encoder"]
        training = encoder.training
        encoder.eval()
        try:
            return level.posterior(latents.to(level.dtype), clip.shape[1]).mean[0].float().cpu()
        finally:
            encoder.train(training)

    def stages(self) -> tuple[Stage, ...]:
        """The auto-encoder with its discriminator, then the generator on the encoder's means."""
        self.config.check_trainable()
        return AutoencoderStage(self, self.config), GeneratorStage(self, self.config)
