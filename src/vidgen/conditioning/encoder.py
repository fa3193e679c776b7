"""What every encoder of prompts offers, whether it is learnt with the model or pretrained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from difflib import get_close_matches

from torch import nn

from vidgen.tensors import Tokens

__all__ = ["TextEncoder", "nearest"]


class TextEncoder(nn.Module, ABC):
    """Prompts to tokens for cross-attention.

    A subclass sets ``frozen`` and writes ``width``, ``encode`` and ``check``. One that is learnt with
    the model is also a diffusers ``ModelMixin`` and is stored whole; a frozen one stores where its
    weights came from and their hash, and has a class method ``from_pretrained(folder)``.
    """

    frozen: bool = False
    """True: pretrained and never trained; a checkpoint stores a reference and a hash of the weights."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Features ``d`` of a token."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens ``b n d`` of ``texts``, on the encoder's device.

        ``n`` is the same for all texts, and a text's tokens do not depend on the texts beside it. The
        empty text is the unconditional prompt of classifier-free guidance (Ho & Salimans 2021).

        Raises:
            InvalidArgumentError: a text that ``check`` refuses.
        """

    @abstractmethod
    def check(self, texts: Sequence[str]) -> None:
        """Refuse texts that ``encode`` cannot take, without running the network.

        Raises:
            InvalidArgumentError: a text that the encoder never learnt, or that is too long.
        """


def nearest(name: str, known: Sequence[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` with the known name nearest to ``name``, or nothing."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
