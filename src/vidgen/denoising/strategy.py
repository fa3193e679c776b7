"""The usual strategy: one level whose network denoises clips."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from vidgen.codecs import Codec
from vidgen.conditioning import ClassEncoder, Conditioning, OpenClipTextEncoder, VocabularyEncoder
from vidgen.denoising.config import ClipConfig
from vidgen.denoising.level import DenoisingLevel
from vidgen.denoising.stage import DenoisingStage
from vidgen.level_model import LevelModel
from vidgen.plans import Plan
from vidgen.request import Defaults
from vidgen.strategy import Strategy, check_window
from vidgen.tensors import Latents
from vidgen.trainable import Stage
from vidgen.video.dataset import ClipDataset

__all__ = ["DenoisingStrategy"]


class DenoisingStrategy(Strategy):
    """A strategy of one level whose network denoises frames of the video, told a prompt and given frames.

    Left to write are ``create`` (the components), ``plan`` (the calls) and ``predict`` (the network).
    Everything else has the usual answer and may be overridden: what a call is told by a ``DenoisingLevel`` of
    one's own, what training shows by a ``DenoisingStage`` of one's own, named here. ``Config`` derives from
    ``ClipConfig``.

    Attributes:
        level_class: answers the calls.
        stage_class: trains the network.
        stride: spacing of a call's frames that the network is trained on; None allows any.
    """

    Config: ClassVar[type] = ClipConfig
    component_types: ClassVar[dict[str, tuple[type, ...]]] = {
        "codec": (Codec,),
        "text_encoder": (VocabularyEncoder, ClassEncoder, OpenClipTextEncoder),
    }
    """What ``ClipConfig`` builds; a subclass adds its networks: ``{**component_types, "network": (...,)}``."""
    level_class: ClassVar[type[DenoisingLevel]] = DenoisingLevel
    stage_class: ClassVar[type[DenoisingStage]] = DenoisingStage
    stride: ClassVar[int | None] = 1

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
        return Defaults(c.sample_frames, *c.sample_size, c.sample_fps)

    @cached_property
    def levels(self) -> Mapping[str, LevelModel]:
        """The video, denoised by ``predict``."""
        return {"video": self.level_class(self, "video", self.predict, **self.level_settings)}

    @property
    def level_settings(self) -> dict[str, Any]:
        """What the configuration says of a level: its prior and its defaults of sampling."""
        c: ClipConfig = self.config
        # Without prompts there is nothing to guide.
        scale = c.guidance_scale if self.text_encoder is not None and c.has_prompts else 1.0
        return {
            "prior": c.prior,
            "guidance_scale": scale,
            "num_inference_steps": c.num_inference_steps,
        }

    def check_plan(self, plan: Plan) -> None:
        """Calls must be frames of the video at ``stride``, at most ``window`` of them."""
        super().check_plan(plan)
        check_window(self.name, plan, self.window, stride=self.stride)

    @abstractmethod
    def predict(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """Return the network's prediction for noisy latents ``b c f h w`` at ``t`` (b,), without guidance.

        The same in training and in sampling. ``cond`` has ``tokens``, and ``known`` and ``clean`` where
        frames are given (``mark_given`` joins them to the input).
        """

    def stages(self) -> tuple[Stage, ...]:
        """One stage: everything that learns, which is all but the codec and frozen encoders."""
        learns = [
            name
            for name, module in self.modules.items()
            if name != "codec" and not getattr(module, "frozen", False)
        ]
        c: ClipConfig = self.config
        c.check_trainable()
        settings: dict[str, Any] = {
            "drop_text": c.drop_text,
            "noise_bias": c.noise_bias,
            "snr_gamma": c.snr_gamma,
        }
        return (self.stage_class(self, learns, **settings),)
