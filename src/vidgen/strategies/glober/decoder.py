"""GLOBER's video decoder (Sun et al. 2023, section 3.1, "Video Decoding").

A text-to-image UNet denoises every frame alone. What makes the frames those of one video is a branch that reads
the global feature ``v`` and the index of the frame, and adds to the outputs of the UNet's stages.
"""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from einops import rearrange, repeat
from torch import Tensor, nn

from vidgen.errors import InvalidArgumentError
from vidgen.nn import checkpoint, use_attend
from vidgen.nn.residuals import StageResiduals, stage_sites
from vidgen.nn.unet import check_takes_time_and_tokens, times_per_frame, token_width
from vidgen.strategies.glober.branch import GlobalBranch, GlobalFeature, IndexVectors, Residuals
from vidgen.tensors import Latents, Tokens

__all__ = ["FrameDecoder", "GlobalBranch", "Residuals"]


class FrameDecoder(nn.Module):
    """The image UNet with the branch's residuals: a denoiser of single frames, given ``v`` and indices.

    It has no temporal module: a frame's prediction depends on that frame alone. At first it equals the UNet,
    whose state dict stays as it was.

    Args:
        unet: the 2D network, its input the noisy latents of one frame.
        branch: made for it (``GlobalBranch.beside``).

    Raises:
        InvalidArgumentError: the branch belongs to another network, or the UNet needs more than time and
            tokens.
    """

    def __init__(self, unet: UNet2DConditionModel, branch: GlobalBranch) -> None:
        super().__init__()
        check_takes_time_and_tokens(unet)
        _check_fit(unet, branch)
        self.unet, self.branch = unet, branch
        self.hooks = StageResiduals(unet, branch.config.sites)
        self._attend = use_attend(unet)

    def features(
        self,
        v: GlobalFeature,
        index: IndexVectors,
        size: tuple[int, int] | None = None,
        tokens: Tokens | None = None,
    ) -> Residuals:
        """See ``GlobalBranch.features``; compute them once and hand them to every step of the solver."""
        return self.branch.features(v, index, size, tokens if self.branch.reads_text else None)

    def forward(
        self,
        x_t: Latents,
        t: Tensor | float | int,
        tokens: Tokens | None = None,
        residuals: Residuals | None = None,
        *,
        v: GlobalFeature | None = None,
        index: IndexVectors | None = None,
    ) -> Latents:
        """The prediction for ``x_t``, in the meaning that the network was trained for.

        Args:
            x_t: noisy latents ``b c f h w`` of any frames in any order.
            t: the scheduler's timestep: a scalar, one per video ``b``, or one per frame ``b f``.
            tokens: prompt embeddings; None gives the cross-attention one zero token.
            residuals: of ``features`` for the same frames; or instead of them
            v: the global features,
            index: and the vectors of the frames' indices ``b f d``.

        Raises:
            InvalidArgumentError: not exactly one of residuals, and ``v`` with ``index``; or shapes that do not
                fit.
        """
        batch, channels, frames, height, width = x_t.shape
        if channels != self.unet.config.in_channels:
            raise InvalidArgumentError(
                f"latents with {channels} channels were given to a UNet that reads "
                f"{self.unet.config.in_channels}; use the codec it was trained with."
            )
        if tokens is None:
            tokens = x_t.new_zeros(batch, 1, token_width(self.unet))
        residuals = self._residuals(residuals, v, index, (height, width), tokens)
        times = times_per_frame(t, batch, frames, x_t.device)
        sample = rearrange(x_t, "b c f h w -> (b f) c h w")
        prompts = repeat(tokens.to(x_t.dtype), "b n d -> (b f) n d", f=frames)
        with self.hooks.given(residuals.flat()):
            (output,) = self.unet(sample, times.flatten(), prompts, return_dict=False)
        prediction: Tensor = rearrange(output, "(b f) c h w -> b c f h w", f=frames)
        return prediction

    def enable_gradient_checkpointing(self) -> None:
        """Trade time for memory while training, in the UNet and in the branch."""
        self.unet.enable_gradient_checkpointing(checkpoint)  # it keeps the attention backend
        self.branch.enable_gradient_checkpointing()

    def disable_gradient_checkpointing(self) -> None:
        """Keep all activations again."""
        self.unet.disable_gradient_checkpointing()
        self.branch.disable_gradient_checkpointing()

    def detach(self) -> UNet2DConditionModel:
        """Give back the plain 2D network, without hooks; this module cannot be called after it."""
        self.hooks.detach()
        self._attend.remove()
        return self.unet

    def _residuals(
        self,
        residuals: Residuals | None,
        v: Tensor | None,
        index: Tensor | None,
        size: tuple[int, int],
        tokens: Tensor,
    ) -> Residuals:
        if residuals is not None and v is None and index is None:
            return residuals
        if residuals is None and v is not None and index is not None:
            return self.features(v, index, size, tokens)
        given = {"residuals": residuals, "v": v, "index": index}
        names = [name for name, value in given.items() if value is not None]
        raise InvalidArgumentError(
            "a frame is decoded from residuals, or from v and index; given: "
            f"{', '.join(names) or 'none of them'}. For the image UNet alone, call `detach()` and the UNet."
        )


def _check_fit(unet: UNet2DConditionModel, branch: GlobalBranch) -> None:
    there = {site: (s.channels, s.halvings) for site, s in stage_sites(unet).items()}
    for site, wanted in branch.config.sites.items():
        if there.get(site) != tuple(wanted):
            raise InvalidArgumentError(
                f"this branch belongs to another network: its stage {site!r} has (channels, halvings) "
                f"{tuple(wanted)}, the UNet's {there.get(site, 'does not exist')}. Load both from one "
                "checkpoint, or make a new branch with GlobalBranch.beside(unet)."
            )
