"""Tensors added to the stage outputs of a 2D UNet, without changing the UNet.

What a side network (a branch of global features, a control network) has to say is computed beforehand; the
hooks only add it. diffusers' own arguments for this reach the skips and the middle alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.tensors import FrameBatch

__all__ = ["StageResiduals", "StageSite", "stage_sites"]


@dataclass(frozen=True)
class StageSite:
    """Where a stage of a UNet puts out its features.

    Args:
        channels: of the stage's output.
        halvings: how often the output's sides are halved against the UNet's input.
        attends: whether the stage has attention, and so sees the prompt.
    """

    channels: int
    halvings: int
    attends: bool

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the stage's output for an input of ``height`` x ``width``."""
        # A strided convolution with padding 1 rounds up, and the way up goes back to the same sizes.
        scale = 2**self.halvings
        return -(-height // scale), -(-width // scale)


def stage_sites(unet: UNet2DConditionModel) -> dict[str, StageSite]:
    """Return the stages of ``unet`` by module path: down, middle and up, in the order in which they run."""
    sites: dict[str, StageSite] = {}
    halvings = 0
    for i, block in enumerate(unet.down_blocks):
        halvings += bool(block.downsamplers)
        sites[f"down_blocks.{i}"] = _site(block, halvings)
    if unet.mid_block is not None:
        sites["mid_block"] = _site(unet.mid_block, halvings)
    for i, block in enumerate(unet.up_blocks):
        halvings -= bool(block.upsamplers)
        sites[f"up_blocks.{i}"] = _site(block, halvings)
    return sites


class StageResiduals:
    """Hooks on the stages of a 2D UNet that add given tensors to what the stages put out, until ``detach``.

    The output of a down stage is also its last skip connection, so both carry the sum. Outside of ``with
    hooks.given(tensors):`` the UNet is the plain 2D network. Copying a UNet copies its hooks, with nothing
    given to them.

    Args:
        unet: the 2D network; its parameters and its state dict stay as they are.
        sites: module paths of the stages that may be added to.

    Raises:
        UnknownNameError: a stage that the UNet does not have.
    """

    def __init__(self, unet: UNet2DConditionModel, sites: Collection[str]) -> None:
        stages = stage_sites(unet)
        for site in sites:
            if site not in stages:
                raise UnknownNameError("stage of this UNet", site, stages)
        self._now = _Given()
        self.sites = frozenset(sites)
        self.attached = True
        self._handles: list[RemovableHandle] = [
            unet.get_submodule(site).register_forward_hook(_Add(site, self._now)) for site in sorted(sites)
        ]

    @contextmanager
    def given(self, tensors: Mapping[str, FrameBatch]) -> Iterator[None]:
        """Add ``tensors``, each to the output of the stage it is named by, in calls inside the ``with`` block.

        They are read and never changed, so that the same ones serve any number of calls.

        Raises:
            InvalidArgumentError: the hooks are detached; in the call, a tensor that does not fit its stage.
            UnknownNameError: a tensor for a stage that has no hook.
        """
        if not self.attached:
            raise InvalidArgumentError("these hooks were detached from their UNet; make new ones.")
        for site in tensors:
            if site not in self.sites:
                raise UnknownNameError("stage", site, self.sites)
        before, self._now.tensors = self._now.tensors, dict(tensors)
        try:
            yield
        finally:
            self._now.tensors = before

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self.attached = False


class _Given:
    """What the running call is given; a copy of it has nothing."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Given:
        copied = memo[id(self)] = _Given()
        return copied


class _Add:
    """A forward hook; an object and not a closure, so that copying a network copies it."""

    def __init__(self, site: str, given: _Given) -> None:
        self.site, self.given = site, given

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        residual = self.given.tensors.get(self.site)
        if residual is None:
            return None  # torch keeps the output as it is
        if isinstance(output, Tensor):
            return self._sum(output, residual)
        hidden, skips = output
        total = self._sum(hidden, residual)
        last = total if skips[-1] is hidden else skips[-1]
        return total, (*skips[:-1], last)

    def _sum(self, hidden: Tensor, residual: Tensor) -> Tensor:
        if hidden.shape != residual.shape:  # broadcasting would hide a mistake
            raise InvalidArgumentError(
                f"the stage {self.site!r} puts out {tuple(hidden.shape)} and was to be added "
                f"{tuple(residual.shape)}; compute the residuals for the same UNet, the same size of its input "
                "and as many frames."
            )
        return hidden + residual.to(hidden.dtype)


def _site(block: Any, halvings: int) -> StageSite:
    attends = bool(getattr(block, "has_cross_attention", False))
    return StageSite(int(block.resnets[-1].out_channels), halvings, attends)
