"""From a 2D network to a video network that equals it, frame by frame, until it is trained.

The 2D network stays a plain diffusers ``UNet2DConditionModel`` with the state dict it always had.
What time needs lives in ``TemporalLayers``, a component of its own; ``Inflation`` joins the two by
forward hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vidgen.errors import InvalidArgumentError
from vidgen.nn.checkpointing import checkpoint
from vidgen.nn.processor import AttendHandle, use_attend
from vidgen.nn.temporal import SpaceTimeAttention, TemporalAttention, TemporalConv

__all__ = ["Inflation", "TemporalLayers", "widen_input", "widen_unet"]

Attend = Literal["every level", "as the image network", "never"]


def widen_input(conv: nn.Conv2d, extra: int) -> nn.Conv2d:
    """A copy of ``conv`` that reads ``extra`` more input channels, with zero weights on them.

    Raises:
        InvalidArgumentError: ``extra`` is negative, or the convolution is grouped.
    """
    if extra < 0 or conv.groups != 1:
        raise InvalidArgumentError(
            f"a convolution with {conv.groups} group(s) cannot be widened by {extra} channels; it "
            "must have one group, and extra must be 0 or more."
        )
    padding: Any = conv.padding
    wide = nn.Conv2d(
        conv.in_channels + extra,
        conv.out_channels,
        kernel_size=(conv.kernel_size[0], conv.kernel_size[1]),
        stride=(conv.stride[0], conv.stride[1]),
        padding=padding,
        dilation=(conv.dilation[0], conv.dilation[1]),
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    old = conv.weight.detach()
    zeros = old.new_zeros(old.shape[0], extra, *old.shape[2:])
    wide.weight = nn.Parameter(torch.cat([old, zeros], dim=1))
    if conv.bias is not None:
        wide.bias = nn.Parameter(conv.bias.detach().clone())
    return wide


def widen_unet(unet: UNet2DConditionModel, extra: int) -> UNet2DConditionModel:
    """A copy of ``unet`` with ``extra`` more input channels, its config telling so.

    Whatever the new channels hold, the output is that of ``unet`` on the old ones.
    """
    # diffusers' own entries start with "_"; one of them would reset fields to their defaults.
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    config["in_channels"] += extra
    with torch.device("meta"):  # the weights come from `unet`: no time or random number for others
        wide = UNet2DConditionModel.from_config(config)
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    weights["conv_in.weight"] = widen_input(unet.conv_in, extra).weight.detach()
    wide.load_state_dict(weights, assign=True)
    return wide.train(unet.training)


class TemporalLayers(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers: untyped
    """The temporal layers that go into a 2D UNet, each named by the module it follows.

    ``TemporalLayers.beside(unet)`` chooses the places; the config records them.

    Args:
        conv_sites: module path in the UNet -> channels there, for temporal convolutions.
        attention_sites: the same for temporal attention.
        head_dim: features of an attention head.
        norm_groups: groups of the convolutions' normalisation.
        joint_sites: the same for attention over all pixels of all frames together.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        conv_sites: Mapping[str, int],
        attention_sites: Mapping[str, int],
        head_dim: int = 32,
        norm_groups: int = 8,
        joint_sites: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        # Sorted, as a saved config is: a loaded model has its parameters in the same order.
        self.convs = nn.ModuleDict(
            {_key(site): TemporalConv(c, norm_groups) for site, c in sorted(conv_sites.items())}
        )
        self.attentions = nn.ModuleDict(
            {_key(site): TemporalAttention(c, head_dim) for site, c in sorted(attention_sites.items())}
        )
        self.joint = nn.ModuleDict(
            {_key(site): SpaceTimeAttention(c, head_dim) for site, c in sorted((joint_sites or {}).items())}
        )

    @classmethod
    def beside(
        cls,
        unet: UNet2DConditionModel,
        attend: Attend = "every level",
        head_dim: int = 32,
        joint_middle: bool = False,
    ) -> TemporalLayers:
        """Fresh layers for ``unet``, on its device and in its dtype.

        A convolution follows every residual block. Attention follows every spatial transformer
        and, with ``attend="every level"``, the residual blocks of stages that have none. With
        ``joint_middle`` attention over all pixels of all frames follows in the middle block.
        """
        blocks = _sites(unet, ResnetBlock2D, "out_channels")
        transformers = _sites(unet, Transformer2DModel, "in_channels")
        attention = {} if attend == "never" else dict(transformers)
        if attend == "every level":
            attended = {_stage(site) for site in transformers}
            attention |= {s: c for s, c in blocks.items() if _stage(s) not in attended}
        with torch.device(unet.device):
            layers: TemporalLayers = cls(
                conv_sites=blocks,
                attention_sites=attention,
                head_dim=head_dim,
                norm_groups=unet.config.norm_num_groups,
                joint_sites={s: c for s, c in transformers.items() if joint_middle and "mid_block" in s}
                or None,
            )
        return layers if layers.dtype == unet.dtype else layers.to(unet.dtype)

    def enable_gradient_checkpointing(
        self, gradient_checkpointing_func: Callable[..., Any] = checkpoint
    ) -> None:
        """Recompute attention in the backward pass, by default with the backend of the forward pass.

        Args:
            gradient_checkpointing_func: called with a function and its arguments, as diffusers does.
        """
        super().enable_gradient_checkpointing(gradient_checkpointing_func)

    def at_sites(self) -> Iterator[tuple[str, nn.Module]]:
        """Each module path in the UNet with the layer after it: convolutions first, joint attention last."""
        for kind, sites in (
            (self.convs, self.config.conv_sites),
            (self.attentions, self.config.attention_sites),
            (self.joint, self.config.joint_sites or {}),
        ):
            for site in sorted(sites):
                yield site, kind[_key(site)]


class Inflation:
    """Temporal layers attached to a 2D UNet by forward hooks, until ``detach``.

    Under ``with inflation.clips_of(f):`` the next call of the UNet sees its batch as clips of ``f``
    frames. Without it the call is the plain 2D network's. The number stays known to the hooks until
    the following call, because gradient checkpointing runs them again during the backward pass:
    with checkpointing, finish that pass before a call with another number (torch raises otherwise).

    The UNet's own attention goes through ``vidgen.nn.attend`` too, so that a call's backend is the
    backend of all of it; the values are diffusers' own.

    Args:
        unet: the 2D network.
        temporal: layers made for it (``TemporalLayers.beside``).

    Raises:
        InvalidArgumentError: the layers name a module that the UNet does not have, or other widths.
    """

    def __init__(self, unet: UNet2DConditionModel, temporal: TemporalLayers) -> None:
        _check_fit(unet, temporal)
        self._frames = _Frames()
        self.attached = True
        self._handles: list[RemovableHandle | AttendHandle] = [
            use_attend(unet),
            unet.register_forward_pre_hook(self._frames.begin),
        ]
        for site, layer in temporal.at_sites():
            hook = _After(layer, self._frames)
            self._handles.append(unet.get_submodule(site).register_forward_hook(hook))

    @contextmanager
    def clips_of(self, num_frames: int) -> Iterator[None]:
        """Let the next call of the UNet treat its batch as clips of ``num_frames`` frames."""
        self._frames.coming = num_frames
        try:
            yield
        finally:
            self._frames.coming = None

    def detach(self) -> None:
        """Remove the hooks and processors: the UNet is the plain 2D network again."""
        for handle in self._handles:
            handle.remove()
        self.attached = False


class _Frames:
    """Frames per clip of the UNet's running (or last) call; None in a plain 2D call."""

    def __init__(self) -> None:
        self.coming: int | None = None
        self.now: int | None = None

    def begin(self, _unet: nn.Module, _args: tuple[Any, ...]) -> None:
        self.now, self.coming = self.coming, None


class _After:
    """A forward hook that runs a temporal layer on a module's output.

    An object and not a closure, so that copying a network copies the layer with it.
    """

    def __init__(self, layer: nn.Module, frames: _Frames) -> None:
        self.layer, self.frames = layer, frames

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if self.frames.now is None:
            return None  # torch keeps the output as it is
        if isinstance(output, Tensor):
            return self.layer(output, self.frames.now)
        if isinstance(output, tuple):
            return (self.layer(output[0], self.frames.now), *output[1:])
        output.sample = self.layer(output.sample, self.frames.now)
        return output


def _sites(unet: nn.Module, kind: type[nn.Module], width: str) -> dict[str, int]:
    return {
        site: int(getattr(module, width)) for site, module in unet.named_modules() if isinstance(module, kind)
    }


def _stage(site: str) -> str:
    """``down_blocks.0`` of ``down_blocks.0.resnets.1``."""
    return site.rsplit(".", 2)[0]


def _key(site: str) -> str:
    return site.replace(".", "_")  # a ModuleDict allows no dots


def _check_fit(unet: nn.Module, temporal: TemporalLayers) -> None:
    there = _sites(unet, ResnetBlock2D, "out_channels")
    there |= _sites(unet, Transformer2DModel, "in_channels")
    own = temporal.config
    wanted = {**own.conv_sites, **own.attention_sites, **(own.joint_sites or {})}
    for site, channels in wanted.items():
        if there.get(site) != channels:
            found = f"{there[site]} channels there" if site in there else "no such module"
            raise InvalidArgumentError(
                f"these temporal layers belong to another network: they follow {site!r} with "
                f"{channels} channels, and the given UNet has {found}. Load both components from "
                "one checkpoint, or make new layers with TemporalLayers.beside(unet)."
            )
