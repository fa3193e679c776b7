"""The baseline as a strategy: all frames at once, longer videos window by window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from vidgen.codecs import Codec, PixelCodec, measure
from vidgen.conditioning import Conditioning, VocabularyEncoder, guide, split_words, vocabulary
from vidgen.diffusion import Denoiser
from vidgen.errors import InvalidArgumentError
from vidgen.nn import TemporalLayers
from vidgen.plans import Call, Plan, all_at_once, autoregressive
from vidgen.shapes import Latents
from vidgen.strategies.vdm.config import VDMConfig, VDMOptions
from vidgen.strategies.vdm.network import MASK_CHANNELS, VideoUNet, build_unet, load_unet
from vidgen.strategies.vdm.training import VDMStage
from vidgen.strategy import Canvas, Defaults, Request, Stage, Strategy, check_window
from vidgen.video.dataset import ClipDataset

__all__ = ["VDM"]


class VDM(Strategy):
    """A space-time factorised UNet over all frames of a clip; longer videos in overlapping windows.

    Components: ``codec``, ``unet`` (a plain 2D UNet), ``temporal`` (what makes it a video network) and
    ``text_encoder``. Source: Ho et al. 2022, Video Diffusion Models.
    """

    name = "vdm"
    Config = VDMConfig
    Options = VDMOptions
    component_types: ClassVar[Mapping[str, tuple[type, ...]]] = {
        "codec": (PixelCodec,),
        "unet": (UNet2DConditionModel,),
        "temporal": (TemporalLayers,),
        "text_encoder": (VocabularyEncoder,),
    }
    config: VDMConfig

    def __init__(self, config: VDMConfig, modules: Mapping[str, Any], scheduler: SchedulerMixin) -> None:
        super().__init__(config, modules, scheduler, config.prior)
        self.network = VideoUNet(modules["unet"], modules["temporal"])
        self.text_encoder: VocabularyEncoder = modules["text_encoder"]

    @classmethod
    def create(cls, config: VDMConfig) -> VDM:
        """See ``Strategy.create``."""
        std = 0.5 if config.pixel_std is None else config.pixel_std
        codec = PixelCodec(config.patch, config.pixel_mean or 0.0, std)
        unet = _unet(config, codec)
        text = VocabularyEncoder(
            config.words,
            unet.config.cross_attention_dim,
            config.text_layers,
            max_words=config.max_words or 16,
        )
        modules = {
            "codec": codec,
            "unet": unet,
            "temporal": TemporalLayers.beside(unet, head_dim=config.head_dim),
            "text_encoder": text,
        }
        return cls(config, modules, _scheduler(config))

    @classmethod
    def prepare(cls, config: VDMConfig, dataset: ClipDataset) -> VDMConfig:
        """Take the clips' size, the captions' words and the pixels' statistics from the data."""
        sample = dataset[0]
        _, frames, height, width = sample.clip.shape
        texts = set(dataset.texts())
        words = config.words or tuple(vocabulary(texts))
        mean, std = config.pixel_mean, config.pixel_std
        if mean is None or std is None:
            mean, std = measure(clip.clip[None] for clip in islice(dataset, 64))
        return replace(
            config,
            sample_frames=frames,
            sample_size=(height, width),
            sample_fps=float(sample.fps),
            words=words,
            max_words=config.max_words or max([1, *(len(split_words(text)) for text in texts)]),
            pixel_mean=mean,
            pixel_std=std,
        )

    @property
    def defaults(self) -> Defaults:
        """See ``Strategy.defaults``."""
        c = self.config
        height, width = c.sample_size
        scale = c.guidance_scale if c.words else 1.0  # without prompts there is nothing to guide
        return Defaults(c.sample_frames, height, width, c.sample_fps, scale, c.num_inference_steps)

    def plan(self, num_frames: int) -> Plan:
        """All at once up to the clip length, then an autoregressive window.

        A call of fewer frames than the clip length sees less, so a shorter video is not the start of a
        longer one; windows of a longer video are always whole.
        """
        if num_frames <= self.config.sample_frames:
            return all_at_once(num_frames)
        return autoregressive(num_frames, self.config.sample_frames, self.config.context)

    def accepts(self, plan: Plan) -> None:
        """Calls must be consecutive frames, no more than a training clip has."""
        check_window(self.name, plan, self.config.sample_frames)

    def condition(self, call: Call, canvas: Canvas, request: Request) -> Conditioning:
        """Text of the call's first new frame, and the frames given to it."""
        new = [frame for _, frame in call.emits]
        texts = [request.prompt_at(min(new)), request.negative_prompt]
        tokens, negative = self.text_encoder.encode(texts).split(1)
        cond = Conditioning(tokens, negative, request.guidance_scale)
        if not call.given:
            return cond
        clean = torch.zeros(1, self.codec.channels, len(call.frames), *self._latent_size(request))
        known = torch.zeros(1, len(call.frames), dtype=torch.bool)
        for slot in call.given:
            position = call.frames.index(slot[1])
            clean[0, :, position], known[0, position] = canvas[slot], True
        return replace(cond, known=known, clean=clean, replace=self._replaces(request.options)).to(
            tokens.device
        )

    def _latent_size(self, request: Request) -> tuple[int, int]:
        return self.codec.latent_shape(request.height, request.width)[1:]

    def _replaces(self, options: VDMOptions) -> bool:
        if options.given == "clean" and not self.config.takes_frames:
            raise InvalidArgumentError(
                "given='clean' was asked of a vdm trained without given frames (mask_past and mask_random "
                "are 0). Use given='replacement', or train with mask_past=0.4."
            )
        return options.given == "replacement" or not self.config.takes_frames

    def denoiser(self, call: Call) -> Denoiser:
        """The video UNet under guidance; the same for every call."""
        del call
        return self._denoise

    def _denoise(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        return guide(self._predict, x_t, t, cond)

    def _predict(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        # Replacement is the solver's affair: the network then sees nothing but noisy frames.
        known, clean = (None, None) if cond.replace else (cond.known, cond.clean)
        dtype = next(self.network.parameters()).dtype
        prediction: Tensor = self.network(x_t.to(dtype), t, cond.tokens, known, clean)
        return prediction.float()

    def stages(self) -> tuple[Stage, ...]:
        """One stage: everything but the codec."""
        return (VDMStage(self, self.config, self.network, self.text_encoder),)


def _unet(config: VDMConfig, codec: Codec) -> UNet2DConditionModel:
    if config.pretrained is not None:
        unet = load_unet(config.pretrained)
        if unet.config.in_channels != codec.channels + MASK_CHANNELS:
            raise InvalidArgumentError(
                f"the UNet in {config.pretrained} reads {unet.config.in_channels - MASK_CHANNELS} channels; "
                f"the codec's latents have {codec.channels}. Choose a codec that fits it."
            )
        return unet
    height, width = codec.latent_shape(*config.sample_size)[1:]
    return build_unet(
        codec.channels + MASK_CHANNELS,
        codec.channels,
        max(height, width),
        widths=config.widths,
        layers_per_block=config.layers_per_block,
        attention_levels=config.attention_levels,
        cross_attention_dim=config.text_width,
        head_dim=config.head_dim,
        pooled_text=config.pooled_text,
    )


def _scheduler(config: VDMConfig) -> DDIMScheduler:
    """The process of the configuration, or that of the image model that the UNet starts from."""
    process = {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction_type,
    }
    if config.pretrained is not None and (Path(config.pretrained) / "scheduler").is_dir():
        found = DDIMScheduler.load_config(config.pretrained, subfolder="scheduler")
        names = (*process, "beta_start", "beta_end", "rescale_betas_zero_snr")
        process |= {name: found[name] for name in names if name in found}
    return DDIMScheduler(
        **process,
        timestep_spacing="trailing",  # starts where the training noise ends
        clip_sample=False,  # latents of unit variance leave [-1, 1]
    )
