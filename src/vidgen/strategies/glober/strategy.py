"""GLOBER as a strategy: ``v`` first, then the frames in independent chunks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from jaxtyping import Float
from torch import Tensor, nn

from vidgen.codecs import FrameCodec
from vidgen.conditioning import Conditioning, clip_of, guide
from vidgen.denoising import DenoisingStrategy
from vidgen.diffusion import Denoiser
from vidgen.errors import InvalidArgumentError, PlanError
from vidgen.plans import Call, Plan, chunks
from vidgen.strategies.glober.branch import GlobalBranch, Residuals
from vidgen.strategies.glober.config import GLOBERConfig, GLOBEROptions
from vidgen.strategies.glober.decoder import FrameDecoder
from vidgen.strategies.glober.discriminator import PairDiscriminator
from vidgen.strategies.glober.generator import GlobalGenerator
from vidgen.strategies.glober.index import IndexEmbedding
from vidgen.strategies.glober.stages import AutoencoderStage, GeneratorStage
from vidgen.strategies.glober.video_encoder import Posterior, VideoEncoder, keyframes
from vidgen.strategy import Canvas, Request
from vidgen.tensors import Latents
from vidgen.trainable import Stage

__all__ = ["GLOBAL", "GLOBER"]

GLOBAL = "global"
"""The level of ``v``, whose one slot is ``("global", 0)``."""


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
    Options = GLOBEROptions
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

    def __init__(self, config: GLOBERConfig, modules: Mapping[str, Any], scheduler: SchedulerMixin) -> None:
        super().__init__(config, modules, scheduler)
        self.decoder = FrameDecoder(modules["unet"], modules["branch"])
        self.index: IndexEmbedding = modules["index"]
        self.video_encoder: VideoEncoder = modules["video_encoder"]
        self.generator: GlobalGenerator = modules["generator"]

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
        return chunks(num_frames, self.window, root=GLOBAL)

    def accepts(self, plan: Plan) -> None:
        """One call makes ``v``; every other one is frames of the video given ``v`` and nothing else.

        Raises:
            PlanError: another call, or frames of the video that are given: nothing would follow them.
        """
        pinned = sorted(frame for level, frame in plan.pins if level == plan.video.name)
        if pinned:
            raise PlanError(
                f"{len(pinned)} frames of the video are given, {pinned[:3]} the first; glober makes every "
                "frame from v, and the others would show another video. Frames know nothing of given pictures: "
                "encode a video instead, v = strategy.encode(video), and give pins={('global', 0): v}."
            )
        for call in plan.calls:
            if call.level == GLOBAL:
                fits = call.frames == (0,) and not call.given
            else:
                fits = call.level == plan.video.name and call.given == ((GLOBAL, 0),)
            if not fits:
                raise PlanError(
                    f"call {call.id!r} makes {list(call.emits)[:3]} from {list(call.given)[:3]}; glober makes "
                    f"('{GLOBAL}', 0) from nothing and frames of the video from it alone, any number at a "
                    "time (chunks(n, window, root='global')). Frames know nothing of given pictures: encode a "
                    "video instead, v = strategy.encode(video), and give pins={('global', 0): v}."
                )

    def halves(self, call: Call) -> tuple[Call, Call] | None:
        """Any frames can be had alone."""
        return call.halves()

    def frame_rate(self, num_frames: int) -> float:
        """A clip lasts as long as those of the training, however many frames are made of it."""
        return self.config.sample_fps * num_frames / self.config.sample_frames

    def slot_shape(self, call: Call, request: Request) -> tuple[int, int, int]:
        """The shape of ``v``, or of a latent frame."""
        return self.video_encoder.global_shape if call.level == GLOBAL else super().slot_shape(call, request)

    def condition(self, call: Call, canvas: Canvas, request: Request) -> Conditioning:
        """The prompt; for frames also what the branch adds, computed once for all steps of the solver.

        Raises:
            InvalidArgumentError: several prompts for one ``v``.
        """
        if not isinstance(request.prompt, str) and len(set(request.prompt.values())) > 1:
            raise InvalidArgumentError(
                f"prompt has {len(request.prompt)} texts by frame; glober makes one v for the whole video, so "
                "one prompt. Give one text."
            )
        tokens, negative = self.tokens(call, request)
        if call.level == GLOBAL:
            return Conditioning(tokens, negative, self._global_scale(request))
        v = canvas[GLOBAL, 0][None].to(self.device, torch.float32)
        indices = torch.tensor(call.frames, device=self.device) / request.num_frames
        _, h, w = self.slot_shape(call, request)
        vectors = self.index(indices)[None]
        extras = self.decoder.features(v, vectors, (h, w), tokens).to_extras()
        if self.decoder.branch.reads_text and request.guidance_scale != 1:
            other = self.decoder.features(v, vectors, (h, w), negative).to_extras()
            extras |= {f"negative:{name}": tensor for name, tensor in other.items()}
        return Conditioning(tokens, negative, request.guidance_scale, extras=extras)

    def _global_scale(self, request: Request) -> float:
        # The same whatever the prompt: videos of other prompts share the batch.
        if not self.config.has_prompts:
            return 1.0  # both branches are the same
        chosen = request.options.global_guidance_scale if request.options is not None else None
        return float(self.config.global_guidance_scale if chosen is None else chosen)

    def branches(self, call: Call, request: Request) -> int:
        """Each of the two is guided by its own scale."""
        scale = self._global_scale(request) if call.level == GLOBAL else request.guidance_scale
        return 2 if scale != 1 else 1

    def denoiser(self, call: Call) -> Denoiser:
        """The generator for ``v``, the decoder for frames, under guidance."""
        if call.level != GLOBAL:
            return super().denoiser(call)

        def unguided(x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
            return self.predict_global(x_t.to(self.dtype), t, cond.to(dtype=self.dtype)).float()

        return partial(guide, unguided)

    def predict(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """Ask the decoder, without guidance."""
        return self.decoder(x_t, t, cond.tokens, Residuals.from_extras(cond.extras))  # type: ignore[no-any-return]

    def predict_global(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """Ask the generator, without guidance; ``v`` is a clip of one frame, ``b c 1 h w``."""
        assert cond.tokens is not None
        return self.generator(x_t[:, :, 0], t, cond.tokens)[:, :, None]  # type: ignore[no-any-return]

    def keyframes(self, num_frames: int) -> tuple[int, ...]:
        """Frames that the encoder reads of a clip: those nearest to where training has its keyframes.

        Raises:
            InvalidArgumentError: fewer frames than keyframes.
        """
        return keyframes(num_frames, self.config.keyframes, self.config.sample_frames)

    def posterior(self, latents: Latents, num_frames: int) -> Posterior:
        """Return the distribution of ``v``, given the keyframes of clips of ``num_frames`` frames.

        Raises:
            InvalidArgumentError: not as many keyframes as the configuration says.
        """
        chosen = torch.tensor(self.keyframes(num_frames), device=latents.device)
        return self.video_encoder(latents, chosen / num_frames)  # type: ignore[no-any-return]

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
        chosen = self.keyframes(clip.shape[1])
        latents = self.codec.encode(clip[None, :, list(chosen)].to(self.device))
        training = self.video_encoder.training
        self.video_encoder.eval()
        try:
            return self.posterior(latents.to(self.dtype), clip.shape[1]).mean[0].float().cpu()
        finally:
            self.video_encoder.train(training)

    def stages(self) -> tuple[Stage, ...]:
        """The auto-encoder with its discriminator, then the generator on the encoder's means."""
        self.config.check_trainable()
        return AutoencoderStage(self), GeneratorStage(self)
