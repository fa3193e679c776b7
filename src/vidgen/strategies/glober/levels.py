"""GLOBER's two levels: ``v``, and the frames made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vidgen.conditioning import Conditioning
from vidgen.denoising import DenoisingLevel
from vidgen.errors import InvalidArgumentError
from vidgen.plans import Call
from vidgen.request import Canvas, Request
from vidgen.strategies.glober.branch import Residuals
from vidgen.strategies.glober.decoder import FrameDecoder
from vidgen.strategies.glober.generator import GlobalGenerator
from vidgen.strategies.glober.index import IndexEmbedding
from vidgen.strategies.glober.video_encoder import Posterior, VideoEncoder, keyframes
from vidgen.strategy import Strategy
from vidgen.tensors import Latents, Tokens

__all__ = ["GLOBAL", "FramesLevel", "GlobalLevel"]

GLOBAL = "global"
"""The level of ``v``, whose one slot is ``("global", 0)``."""


class GlobalLevel(DenoisingLevel):
    """The global feature ``v``, which the generator makes of the prompt; a clip of one frame, ``b c 1 h w``.

    Args:
        strategy, **settings: see ``DenoisingLevel``.
        count: keyframes that the encoder reads.
        length: frames of a training clip.
    """

    def __init__(self, strategy: Strategy, *, count: int, length: int, **settings: Any) -> None:
        super().__init__(strategy, GLOBAL, **settings)
        modules: Mapping[str, Any] = strategy.modules
        self.generator: GlobalGenerator = modules["generator"]
        self.encoder: VideoEncoder = modules["video_encoder"]
        self.count, self.length = count, length

    def shape(self, request: Request) -> tuple[int, int, int]:
        """The shape of ``v``."""
        del request
        return self.encoder.global_shape

    def condition(self, call: Call, canvas: Canvas, request: Request) -> Conditioning:
        """The prompt.

        Raises:
            InvalidArgumentError: several prompts for one ``v``.
        """
        _check_one_prompt(request)
        return super().condition(call, canvas, request)

    def predict(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """Ask the generator, without guidance."""
        assert cond.tokens is not None
        return self.generator(x_t[:, :, 0], t, cond.tokens)[:, :, None]  # type: ignore[no-any-return]

    def keyframes(self, num_frames: int) -> tuple[int, ...]:
        """Frames that the encoder reads of a clip: those nearest to where training has its keyframes.

        Raises:
            InvalidArgumentError: fewer frames than keyframes.
        """
        return keyframes(num_frames, self.count, self.length)

    def posterior(self, latents: Latents, num_frames: int) -> Posterior:
        """Return the distribution of ``v``, given the keyframes of clips of ``num_frames`` frames.

        Raises:
            InvalidArgumentError: not as many keyframes as the configuration says.
        """
        chosen = torch.tensor(self.keyframes(num_frames), device=latents.device)
        return self.encoder(latents, chosen / num_frames)  # type: ignore[no-any-return]


class FramesLevel(DenoisingLevel):
    """Frames of the video, each denoised from ``v`` alone.

    Args:
        strategy, **settings: see ``DenoisingLevel``.
    """

    def __init__(self, strategy: Strategy, **settings: Any) -> None:
        super().__init__(strategy, "video", **settings)
        modules: Mapping[str, Any] = strategy.modules
        self.decoder = FrameDecoder(modules["unet"], modules["branch"])
        self.index: IndexEmbedding = modules["index"]

    def condition(self, call: Call, canvas: Canvas, request: Request) -> Conditioning:
        """The prompt, and what the branch adds, computed once for all steps of the solver.

        Raises:
            InvalidArgumentError: several prompts: the calls would decide which frames are told what.
        """
        _check_one_prompt(request)
        tokens, negative = self.tokens(call, request)
        scale = request.levels[self.name].guidance_scale
        v = canvas[GLOBAL, 0][None].to(self.strategy.device, torch.float32)
        indices = torch.tensor(call.frames, device=v.device)[None] / request.num_frames
        size = self.shape(request)[1:]
        extras = self.residuals(v, indices, size, tokens)
        if self.decoder.branch.reads_text and scale != 1:
            other = self.residuals(v, indices, size, negative)
            extras |= {f"negative:{name}": tensor for name, tensor in other.items()}
        return Conditioning(tokens, negative, scale, extras=extras)

    def residuals(
        self,
        v: Float[Tensor, "b gc gh gw"],
        indices: Float[Tensor, "b f"],
        size: Sequence[int],
        tokens: Tokens | None,
    ) -> dict[str, Tensor]:
        """Return what the branch adds to the UNet at frames of ``indices``, as parts of a condition."""
        vectors = self.index(indices.flatten()).unflatten(0, indices.shape)
        height, width = size
        return self.decoder.features(v, vectors, (height, width), tokens).to_extras()

    def predict(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """Ask the decoder, without guidance."""
        return self.decoder(x_t, t, cond.tokens, Residuals.from_extras(cond.extras))  # type: ignore[no-any-return]

    def halves(self, call: Call) -> tuple[Call, Call] | None:
        """Any frames can be had alone."""
        return call.halves()


def _check_one_prompt(request: Request) -> None:
    if not isinstance(request.prompt, str) and len(set(request.prompt.values())) > 1:
        raise InvalidArgumentError(
            f"prompt has {len(request.prompt)} texts by frame; glober makes one v for the whole video, so one "
            "prompt. Give one text."
        )
