"""The usual level model: a network that denoises frames, told a prompt and given frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vidgen.conditioning import Conditioning, guide
from vidgen.diffusion import Denoiser, Diffusion
from vidgen.level_model import LevelModel
from vidgen.plans import Call
from vidgen.request import Canvas, Request
from vidgen.strategy import Strategy
from vidgen.tensors import Latents, Tokens

__all__ = ["DenoisingLevel"]


class DenoisingLevel(LevelModel):
    """Denoises frames of latents with one network, under classifier-free guidance.

    What it is told is the prompt of the call's first new frame, and the frames of its own level that are given
    to it. A level whose condition is another overrides ``condition`` or, for frames alone, ``give``.

    Args:
        strategy: whose codec, text encoder and device it uses, and whose noise process for ``name``.
        name: of the level.
        predict: the network without guidance, ``(x_t, t, conditions) -> prediction``; None where a subclass
            writes ``predict``.
        tokens_per_frame: tell the network the prompt of every frame, tokens ``b f n d``, instead of one.
        **settings: see ``LevelModel``.

    Raises:
        SchedulerError: the strategy was given no scheduler for the level.
    """

    def __init__(
        self,
        strategy: Strategy,
        name: str = "video",
        predict: Denoiser | None = None,
        *,
        tokens_per_frame: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(name, strategy.diffusion_of(name), **settings)
        self.strategy, self.tokens_per_frame = strategy, tokens_per_frame
        self._predict = predict

    def predict(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """Return the network's prediction for ``x_t`` b c f h w at ``t`` (b,), without guidance."""
        predict: Callable[..., Tensor] | None = self._predict
        if predict is None:
            raise TypeError(f"{type(self).__name__} was given no network; override predict().")
        return predict(x_t, t, cond)

    def denoise(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """See ``LevelModel.denoise``; the networks compute in their own dtype."""
        return guide(self._in_dtype, x_t, t, cond)

    def _in_dtype(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        # The solver works in float32 whatever the networks are cast to.
        dtype = self.dtype
        return self.predict(x_t.to(dtype), t, cond.to(dtype=dtype)).float()

    @property
    def process(self) -> Diffusion:
        """The noise process that the network is trained on."""
        assert self.diffusion is not None  # of the constructor
        return self.diffusion

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in: the dtype of the first that is neither codec nor text encoder."""
        modules = self.strategy.modules.items()
        networks = (m for name, m in modules if name not in ("codec", "text_encoder"))
        return next((p.dtype for m in networks for p in m.parameters()), torch.float32)

    def shape(self, request: Request) -> tuple[int, int, int]:
        """The codec's latent."""
        return self.strategy.codec.latent_shape(request.height, request.width)

    def video_frame(self, frame: int) -> int:
        """Return the first video frame that frame ``frame`` of this level stands for."""
        return self.strategy.codec.frames_of_latent(frame * self.frame_stride).start

    def condition(self, call: Call, canvas: Canvas, request: Request) -> Conditioning:
        """The prompt, and the given frames."""
        return self.give(self.prompted(call, request), call, canvas, request)

    def prompted(self, call: Call, request: Request) -> Conditioning:
        """Return the prompt alone: that of the call's first new frame, or of every frame."""
        if self.strategy.text_encoder is None:
            return Conditioning()
        scale = request.levels[self.name].guidance_scale
        if not self.tokens_per_frame:
            return Conditioning(*self.tokens(call, request), scale)
        pairs = [self.strategy.tokens(request, self.video_frame(frame)) for frame in call.frames]
        tokens, negative = (torch.stack(found, dim=1) for found in zip(*pairs, strict=True))
        return Conditioning(tokens, negative, scale)

    def tokens(self, call: Call, request: Request) -> tuple[Tokens, Tokens]:
        """Return the embeddings of the call's prompt and of the negative one, each ``1 n d``."""
        own = [frame for level, frame in call.emits if level == self.name]
        return self.strategy.tokens(request, self.video_frame(min(own, default=0)))

    def give(self, cond: Conditioning, call: Call, canvas: Canvas, request: Request) -> Conditioning:
        """Return ``cond`` with those frames of the call that are given to it."""
        given = [(i, frame) for i, frame in enumerate(call.frames) if (self.name, frame) in call.given]
        if not given:
            return cond
        c, h, w = self.shape(request)
        clean = torch.zeros(1, c, len(call.frames), h, w)
        known = torch.zeros(1, len(call.frames), dtype=torch.bool)
        for place, frame in given:
            clean[0, :, place], known[0, place] = canvas[self.name, frame], True
        return replace(cond, known=known, clean=clean)

    def batch_key(self, call: Call) -> tuple[Any, ...]:
        """As the base's, but given frames may lie anywhere: a mask says where."""
        count, places, besides = super().batch_key(call)
        return (count, bool(places), besides)
