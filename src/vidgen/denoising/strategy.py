"""The usual answers of a strategy whose network denoises clips."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from vidgen.codecs import Codec
from vidgen.conditioning import ClassEncoder, Conditioning, OpenClipTextEncoder, VocabularyEncoder, guide
from vidgen.denoising.config import ClipConfig
from vidgen.denoising.stage import DenoisingStage
from vidgen.diffusion import Denoiser
from vidgen.plans import Call, Plan
from vidgen.strategy import Canvas, Defaults, Request, Strategy, check_window
from vidgen.tensors import KnownMask, Latents
from vidgen.trainable import Stage, TrainingStep
from vidgen.video.dataset import ClipDataset

__all__ = ["DenoisingStrategy"]


class DenoisingStrategy(Strategy):
    """A strategy of one level whose network denoises frames of the video, told a prompt and given frames.

    Left to write are ``create`` (the components), ``plan`` (the calls) and ``predict`` (the network);
    where training should see more than whole clips, ``view``. Everything else has the usual answer and may
    be overridden. ``Config`` derives from ``ClipConfig``.

    Attributes:
        stride: spacing of a call's frames that the network is trained on; None allows any.
    """

    Config: ClassVar[type] = ClipConfig
    component_types: ClassVar[dict[str, tuple[type, ...]]] = {
        "codec": (Codec,),
        "text_encoder": (VocabularyEncoder, ClassEncoder, OpenClipTextEncoder),
    }
    """What ``ClipConfig`` builds; a subclass adds its networks: ``{**component_types, "network": (...,)}``."""
    stride: ClassVar[int | None] = 1

    def __init__(self, config: Any, modules: Mapping[str, nn.Module], scheduler: SchedulerMixin) -> None:
        super().__init__(config, modules, scheduler, config.prior)

    @classmethod
    def prepare(cls, config: Any, dataset: ClipDataset) -> Any:
        """Take the clips' size, the captions' words or classes and the pixels' statistics from the data."""
        return config.fitted(dataset)

    @property
    def window(self) -> int:
        """The most latent frames of one call."""
        return int(self.config.window or self.codec.latent_frames(self.config.sample_frames))

    @property
    def defaults(self) -> Defaults:
        """A training clip's length, size and rate."""
        c: ClipConfig = self.config
        # Without prompts there is nothing to guide.
        scale = c.guidance_scale if self.text_encoder is not None and c.has_prompts else 1.0
        return Defaults(c.sample_frames, *c.sample_size, c.sample_fps, scale, c.num_inference_steps)

    def accepts(self, plan: Plan) -> None:
        """Calls must be frames of the video at ``stride``, at most ``window`` of them."""
        check_window(self.name, plan, self.window, stride=self.stride)

    def condition(self, call: Call, canvas: Canvas, request: Request) -> Conditioning:
        """The prompt of the call's first new frame, and the frames given to it."""
        cond = Conditioning()
        if self.text_encoder is not None:
            cond = Conditioning(*self.tokens(call, request), request.guidance_scale)
        if not call.given:
            return cond
        c, h, w = self.slot_shape(call, request)
        clean = torch.zeros(1, c, len(call.frames), h, w)
        known = torch.zeros(1, len(call.frames), dtype=torch.bool)
        for slot in call.given:
            position = call.frames.index(slot[1])
            clean[0, :, position], known[0, position] = canvas[slot], True
        return replace(cond, known=known, clean=clean)

    def denoiser(self, call: Call) -> Denoiser:
        """``predict`` under guidance, in the networks' dtype; the same for every call."""
        del call
        return partial(guide, self._unguided)

    def _unguided(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        # The solver works in float32 whatever the networks are cast to.
        return self.predict(x_t.to(self.dtype), t, cond.to(dtype=self.dtype)).float()

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in: the dtype of the first that is neither codec nor text encoder."""
        modules = (m for name, m in self.modules.items() if name not in ("codec", "text_encoder"))
        return next((p.dtype for m in modules for p in m.parameters()), torch.float32)

    @abstractmethod
    def predict(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """Return the network's prediction for noisy latents ``b c f h w`` at ``t`` (b,), without guidance.

        The same in training and in sampling. ``cond`` has ``tokens``, and ``known`` and ``clean`` where
        frames are given (``mark_given`` joins them to the input).
        """

    def view(self, clips: Latents, step: TrainingStep) -> tuple[Latents, KnownMask | None]:
        """Return what is learnt from clips, and which frames of it are given; see ``denoising.stage.View``."""
        del step
        return clips, None

    def stages(self) -> tuple[Stage, ...]:
        """One stage: everything that learns, which is all but the codec and frozen encoders."""
        learns = [
            name
            for name, module in self.modules.items()
            if name != "codec" and not getattr(module, "frozen", False)
        ]
        c: ClipConfig = self.config
        c.check_trainable()
        return (
            DenoisingStage(
                self,
                self.predict,
                learns,
                view=self.view,
                drop_text=c.drop_text,
                noise_bias=c.noise_bias,
                snr_gamma=c.snr_gamma,
            ),
        )
