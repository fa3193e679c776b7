"""What GLOBER adds to an image UNet: the global feature and the frame's index (Sun et al. 2023, section 3.1).

Two ways of telling it the prompt. The paper writes that text embeddings are "concatenated with flattened
frame features" during attention; pretrained UNets (and the released code) have cross-attention instead, which
is always there, and is all there is by default. ``GlobalBranch.beside(unet, text="concat")`` adds the paper's
words as the branch's own: attention over the features of the frame and the text tokens together. Inside the
UNet the added keys would change the softmax of pretrained weights; behind the branch's zero convolutions they
change nothing at first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vidgen.errors import InvalidArgumentError
from vidgen.nn import CrossAttention, checkpoint, flop_counter
from vidgen.nn.residuals import StageSite, stage_sites
from vidgen.nn.unet import token_width
from vidgen.nn.zero import zeroed
from vidgen.tensors import FrameBatch, Tokens

__all__ = ["GlobalBranch", "GlobalFeature", "IndexVectors", "Residuals"]

GlobalFeature = Float[Tensor, "b gc gh gw"]
"""``v`` of each video."""

IndexVectors = Float[Tensor, "b f e"]
"""Embedded indices of frames."""

Text = Literal["cross", "concat"]

_EXTRA = "residual:"


@dataclass(frozen=True, eq=False)
class Residuals:
    """What the branch adds to the UNet for some frames: once computed, good for every solver step.

    Args:
        tensors: module path of a stage -> ``b f c h w``.
    """

    tensors: Mapping[str, Float[Tensor, "b f c h w"]]

    def frames(self, positions: Sequence[int]) -> Residuals:
        """Return those of the frames at ``positions``, in that order."""
        return Residuals({site: tensor[:, list(positions)] for site, tensor in self.tensors.items()})

    def flat(self) -> dict[str, FrameBatch]:
        """Return them as frame batches ``(b f) c h w``."""
        return {site: tensor.flatten(0, 1) for site, tensor in self.tensors.items()}

    def to_extras(self) -> dict[str, Tensor]:
        """Return them as ``Conditioning.extras``, which are joined, split and guided like the prompts."""
        return {_EXTRA + site: tensor for site, tensor in self.tensors.items()}

    @classmethod
    def from_extras(cls, extras: Mapping[str, Tensor]) -> Residuals | None:
        """Return what ``to_extras`` put among ``extras``, None where it put nothing."""
        tensors = {
            name.removeprefix(_EXTRA): tensor for name, tensor in extras.items() if name.startswith(_EXTRA)
        }
        return cls(tensors) if tensors else None


class GlobalBranch(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers: untyped
    """From the global feature and frame indices to what is added to each stage of the UNet.

    For each stage: a convolution of ``v``, a residual block that joins the index vector and brings both to the
    stage's resolution, and a zero convolution (GLOBER section 3.1: "additional modules"). The first convolution
    runs once per video. Nothing here sees the noisy frame or the timestep. ``GlobalBranch.beside(unet)``
    chooses the stages; the config records them.

    Args:
        sites: module path of a stage in the UNet -> channels and halvings of its output.
        global_channels: channels of ``v`` (C'').
        index_dim: features of an index vector.
        layers: residual blocks per stage.
        max_width: most channels inside a stage of the branch; None for those of the UNet's stage.
        norm_groups: groups of the normalisations, fewer where they do not divide a stage's channels.
        reduction: side of the UNet's input over that of ``v`` (f_video), where ``features`` is not told a size.
        text_width: features of a text token, for stages that attend to text; None for none.
        text_sites: the stages that do.
        head_dim: width of an attention head there.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sites: Mapping[str, Sequence[int]],
        global_channels: int = 16,
        index_dim: int = 1280,
        layers: int = 1,
        max_width: int | None = None,
        norm_groups: int = 32,
        reduction: int = 2,
        text_width: int | None = None,
        text_sites: Sequence[str] = (),
        head_dim: int = 64,
    ) -> None:
        super().__init__()
        del reduction  # read from the config
        _check_sizes(sites, layers, max_width)
        # Sorted, as a saved config is: a loaded model has its parameters in the same order.
        self.stages = nn.ModuleDict()
        for site, (channels, _) in sorted(sites.items()):
            width = channels if max_width is None else min(channels, max_width)
            stage = _Stage(global_channels, index_dim, width, channels, layers, norm_groups)
            if text_width is not None and site in text_sites:
                stage.text = _JointAttention(width, text_width, head_dim)
            self.stages[_key(site)] = stage

    @classmethod
    def beside(
        cls,
        unet: UNet2DConditionModel,
        global_channels: int = 16,
        index_dim: int = 1280,
        *,
        layers: int = 1,
        max_width: int | None = None,
        reduction: int = 2,
        text: Text = "cross",
        parts: Sequence[str] = ("down", "middle", "up"),
    ) -> GlobalBranch:
        """Fresh branch for ``unet``, on its device and in its dtype.

        Args:
            unet: the image UNet; it stays as it is.
            global_channels: channels of ``v``.
            index_dim: features of an index vector.
            layers: residual blocks per stage.
            max_width: most channels inside a stage of the branch.
            reduction: side of the UNet's input over that of ``v``.
            text: ``"cross"``: the prompt is the UNet's affair; ``"concat"``: the branch attends to it as well,
                in stages where the UNet does (see the module's docstring).
            parts: what the branch reaches; the paper has all three, the released code ``("down",)``.

        Raises:
            InvalidArgumentError: unknown ``parts``, or none.
        """
        if not parts or set(parts) - {"down", "middle", "up"} or text not in ("cross", "concat"):
            raise InvalidArgumentError(
                f"parts={tuple(parts)}, text={text!r}: give some of 'down', 'middle' and 'up', and "
                "text='cross' or 'concat'."
            )
        sites = {s: stage for s, stage in stage_sites(unet).items() if _PARTS[s.split("_")[0]] in parts}
        concat = text == "concat"
        with torch.device(unet.device):
            branch: GlobalBranch = cls(
                sites={site: (stage.channels, stage.halvings) for site, stage in sites.items()},
                global_channels=global_channels,
                index_dim=index_dim,
                layers=layers,
                max_width=max_width,
                norm_groups=unet.config.norm_num_groups,
                reduction=reduction,
                text_width=token_width(unet) if concat else None,
                text_sites=tuple(site for site, stage in sites.items() if concat and stage.attends),
            )
        return branch if branch.dtype == unet.dtype else nn.Module.to(branch, unet.dtype)

    @property
    def reads_text(self) -> bool:
        """Whether residuals depend on the prompt, and so are others for the unconditional half of guidance."""
        return self.config.text_width is not None and len(self.config.text_sites) > 0

    def features(
        self,
        v: GlobalFeature,
        index: IndexVectors,
        size: tuple[int, int] | None = None,
        tokens: Tokens | None = None,
    ) -> Residuals:
        """What is added to the UNet for each frame; the same at every timestep.

        Args:
            v: global features.
            index: vectors of the indices of the frames, any frames in any order.
            size: height and width of the UNet's input; by default those of ``v`` times ``reduction``.
            tokens: prompt embeddings, for a branch that reads text and only for one.

        Raises:
            InvalidArgumentError: shapes that do not fit, or text missing or too much.
        """
        self._check(v, index, tokens)
        height, width = size or tuple(side * self.config.reduction for side in v.shape[-2:])
        v, index = v.to(self.dtype), index.to(self.dtype)
        tokens = None if tokens is None else tokens.to(self.dtype)
        tensors = {}
        for site, (channels, halvings) in self.config.sites.items():
            out = StageSite(channels, halvings, False).size(height, width)
            added = self.stages[_key(site)](v, index, out, tokens)
            tensors[site] = rearrange(added, "(b f) c h w -> b f c h w", b=len(v))
        return Residuals(tensors)

    forward = features

    def enable_gradient_checkpointing(
        self, gradient_checkpointing_func: Callable[..., Any] = checkpoint
    ) -> None:
        """Recompute the stages in the backward pass, by default with the backend of the forward pass."""
        super().enable_gradient_checkpointing(gradient_checkpointing_func)

    def multiply_adds(
        self, v_size: tuple[int, int], size: tuple[int, int] | None = None, num_tokens: int = 77
    ) -> int:
        """Return the multiply-adds of one frame, computing nothing: what caching saves at every later step.

        Args:
            v_size: height and width of ``v``.
            size: as for ``features``.
            num_tokens: text tokens, for a branch that reads them.
        """
        with torch.device("meta"), torch.no_grad(), flop_counter() as counter:
            twin = type(self).from_config(self.config)
            v = torch.empty(1, self.config.global_channels, *v_size)
            tokens = torch.empty(1, num_tokens, self.config.text_width) if self.reads_text else None
            twin.features(v, torch.empty(1, 1, self.config.index_dim), size, tokens)
        return int(counter.get_total_flops()) // 2  # torch counts a multiplication and an addition as two

    def _check(self, v: Tensor, index: Tensor, tokens: Tensor | None) -> None:
        channels, dim = self.config.global_channels, self.config.index_dim
        if v.shape[1] != channels or index.shape[-1] != dim or len(v) != len(index):
            raise InvalidArgumentError(
                f"global features {tuple(v.shape)} and index vectors {tuple(index.shape)} were given; expected "
                f"(b, {channels}, h, w) and (b, f, {dim}) of as many videos."
            )
        if self.reads_text != (tokens is not None):
            raise InvalidArgumentError(
                f"this branch was made {'with' if self.reads_text else 'without'} text='concat' and was given "
                f"{'no' if tokens is None else ''} tokens; pass them exactly where it reads text."
            )


class _Stage(nn.Module):
    """``v`` and the index vector to the residual of one stage: ``b c h w, b f d -> (b f) C H W``."""

    def __init__(self, given: int, index_dim: int, width: int, made: int, layers: int, groups: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(given, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            _IndexedBlock(width, index_dim, math.gcd(groups, width)) for _ in range(layers)
        )
        self.text: _JointAttention | None = None
        self.leave = zeroed(nn.Conv2d(width, made, 1))
        # diffusers' names: `enable_gradient_checkpointing` of the owning model sets both.
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Tensor] = checkpoint

    def forward(
        self, v: Tensor, index: Tensor, size: tuple[int, int], tokens: Tensor | None = None
    ) -> FrameBatch:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self._compute, v, index, size, tokens)
        return self._compute(v, index, size, tokens)

    def _compute(self, v: Tensor, index: Tensor, size: tuple[int, int], tokens: Tensor | None) -> Tensor:
        frames = index.shape[1]
        hidden = repeat(self.enter(v), "b c h w -> (b f) c h w", f=frames)  # v is the same for all frames
        flat = functional.silu(rearrange(index, "b f d -> (b f) d"))
        for block in self.blocks:
            hidden = block(hidden, flat, size)
        if self.text is not None and tokens is not None:
            hidden = hidden + self.text(hidden, repeat(tokens, "b n d -> (b f) n d", f=frames))
        return self.leave(hidden)  # type: ignore[no-any-return]


class _IndexedBlock(nn.Module):
    """A residual block that scales and shifts by the index vector, and resizes on the way.

    The paper adds the vector. Scaled, one ``v`` can say other things of other frames at once, and training
    finds out sooner that it does. The index meets ``v`` before the resizing: once averaged over a coarse
    stage's pixels, what a place of ``v`` holds for this frame and what it holds for others could no longer be
    told apart.
    """

    def __init__(self, width: int, index_dim: int, groups: int) -> None:
        super().__init__()
        self.index = nn.Linear(index_dim, 2 * width)
        self.norm = nn.GroupNorm(groups, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
        scale, shift = self.index(index)[:, :, None, None].chunk(2, dim=1)
        hidden = hidden * (1 + scale) + shift
        inner = self.conv(_resize(functional.silu(self.norm(hidden)), size))
        return _resize(hidden, size) + inner  # type: ignore[no-any-return]


class _JointAttention(nn.Module):
    """Pixels of a frame attend to them all and to the text: the change, ``n c h w, n m e -> n c h w``."""

    def __init__(self, width: int, text_width: int, head_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(text_width, width)
        self.attention = CrossAttention(width, math.gcd(width, max(1, width // head_dim)))

    def forward(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        pixels = self.norm(rearrange(hidden, "n c h w -> n (h w) c"))
        # GLOBER section 3.1: text embeddings concatenated with flattened frame features
        gathered = self.attention(pixels, torch.cat([pixels, self.read(tokens)], dim=1))
        change: Tensor = rearrange(gathered, "n (h w) c -> n c h w", w=hidden.shape[-1])
        return change


_PARTS = {"down": "down", "mid": "middle", "up": "up"}


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Average to fewer pixels, interpolate to more, per side."""
    height, width = x.shape[-2:]
    fewer = min(height, size[0]), min(width, size[1])
    if fewer != (height, width):
        x = functional.adaptive_avg_pool2d(x, fewer)
    if fewer != tuple(size):
        x = functional.interpolate(x, size=tuple(size), mode="bilinear")
    return x


def _key(site: str) -> str:
    return site.replace(".", "_")  # a ModuleDict allows no dots


def _check_sizes(sites: Mapping[str, Sequence[int]], layers: int, max_width: int | None) -> None:
    if not sites or layers < 1 or (max_width is not None and max_width < 1):
        raise InvalidArgumentError(
            f"a branch for {len(sites)} stages with layers={layers}, max_width={max_width}: give at least one "
            "of each (GlobalBranch.beside(unet) chooses the stages)."
        )
