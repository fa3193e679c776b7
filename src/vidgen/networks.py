"""Denoisers that strategies may take by name: entry point group ``vidgen.networks``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from vidgen import plugins
from vidgen.components import load_module
from vidgen.components.saving import save_component
from vidgen.errors import VidgenError
from vidgen.tensors import KnownMask, Latents, Tokens

__all__ = ["ClipDenoiser", "network_class", "network_of_class"]

N = TypeVar("N", bound="ClipDenoiser")


class ClipDenoiser(nn.Module, ABC):
    """A network that denoises clips of latents, told a prompt and given frames.

    A package registers its class by any name; a strategy takes it by that name,
    ``network_class("vdm").create(channels, size, token_width)``, and keeps it whole as one component
    (``component_types = {..., "network": (ClipDenoiser,)}``) or its ``parts`` as components of their own.

    A subclass sets ``part_types``, has a constructor that takes the parts by name, and writes ``create`` and
    ``forward``.
    """

    part_types: ClassVar[Mapping[str, type[Any]]]
    """The diffusers modules that hold all weights, by the attribute that each is."""

    @classmethod
    @abstractmethod
    def create(cls: type[N], channels: int, size: int, token_width: int, **settings: Any) -> N:
        """Return a fresh network.

        Args:
            channels: of the latents.
            size: their height and width.
            token_width: features of a prompt's token.
            settings: the network's own; all have defaults.
        """

    @abstractmethod
    def forward(
        self,
        x_t: Latents,
        t: Tensor | float | int,
        tokens: Tokens | None = None,
        known: KnownMask | None = None,
        clean: Latents | None = None,
    ) -> Latents:
        """Return the prediction for ``x_t``, in the meaning that the network was trained for.

        Args:
            x_t: noisy latents ``b c f h w``, of any number of frames.
            t: the scheduler's timestep: a scalar, one per video ``b``, or one per frame ``b f``.
            tokens: prompt embeddings; None for no prompt.
            known: frames that are given, of which nothing is predicted; None for none.
            clean: the given frames' latents, anything elsewhere.
        """

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The modules that hold all weights, by name."""
        return {name: getattr(self, name) for name in self.part_types}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write every part to a folder of its name: configuration and safetensors."""
        for name, part in self.parts.items():
            save_component(part, Path(folder) / name)

    @classmethod
    def from_pretrained(cls: type[N], folder: str | Path) -> N:
        """Load what ``save_pretrained`` wrote.

        Raises:
            CheckpointError: files are missing, unsafe or damaged, or do not fit each other.
        """
        parts = {name: load_module(kind, Path(folder) / name) for name, kind in cls.part_types.items()}
        return cls(**parts)


def network_class(name: str) -> type[ClipDenoiser]:
    """Return the network that is registered as ``name``.

    Raises:
        UnknownNameError: none is; the nearest name is suggested.
        VidgenError: the package that registers it gives something else.
        ImportError: the package's own, unchanged.
    """
    found = plugins.load(plugins.NETWORKS, name)
    if not (isinstance(found, type) and issubclass(found, ClipDenoiser)):
        package = plugins.available(plugins.NETWORKS)[name]
        raise VidgenError(
            f"the network {name!r} of package {package!r} is {found!r}; expected a subclass of "
            "vidgen.networks.ClipDenoiser. Tell its authors."
        )
    return found


def network_of_class(class_name: str) -> type[ClipDenoiser] | None:
    """Return the registered network whose class is called so, as checkpoints name it; None if there is none."""
    names = plugins.naming(plugins.NETWORKS, class_name)
    return network_class(names[0]) if names else None
