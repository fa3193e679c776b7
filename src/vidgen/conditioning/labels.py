"""Class labels as prompts, learnt together with the model they steer."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Int
from torch import Tensor, nn

from vidgen.conditioning.encoder import TextEncoder, nearest
from vidgen.errors import InvalidArgumentError
from vidgen.tensors import Tokens

__all__ = ["ClassEncoder"]

_NULL = -1
_SHOWN = 100


class ClassEncoder(TextEncoder, ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers: untyped
    """One learnt token per class, and one for "no class".

    A prompt is a class's name, whatever its case, spacing and Unicode form, or its number from 0 written as
    text. A name wins over a number: with the classes ``("7", "3")`` the prompt ``"3"`` is the second class.
    The empty prompt is the null class of classifier-free guidance, an embedding like any other that is
    learnt from the prompts dropped in training (Ho & Salimans 2021, section 3.2).

    Args:
        classes: names of the classes, in the order of their numbers; distinct, case aside.
        width: features ``d`` of a token.

    Raises:
        InvalidArgumentError: no class, an empty or repeated name, or a ``width`` below 1.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, classes: Sequence[str], width: int = 64) -> None:
        super().__init__()
        _check(classes, width)
        self._number = {_plain(name): number for number, name in enumerate(classes)}
        self.embedding = nn.Embedding(len(classes) + 1, width)  # the last row is the null class

    @property
    def width(self) -> int:
        """Features ``d`` of a token."""
        return self.embedding.embedding_dim

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Return the token of each class, ``b 1 d``.

        Raises:
            InvalidArgumentError: a text names no class.
        """
        labels = torch.tensor(self.labels(texts), dtype=torch.long, device=self.embedding.weight.device)
        return self(labels)  # type: ignore[no-any-return]

    def encode_labels(self, labels: Int[Tensor, " b"]) -> Tokens:
        """Return the token ``b 1 d`` of each class number; -1 is the null class.

        Raises:
            InvalidArgumentError: a number outside -1 .. number of classes - 1.
        """
        last = len(self._number) - 1
        if not ((labels >= _NULL) & (labels <= last)).all():
            raise InvalidArgumentError(
                f"class numbers {sorted(set(labels.tolist()))} were given; expected 0 to {last}, or -1 for no "
                "class."
            )
        return self(labels.to(self.embedding.weight.device).long())  # type: ignore[no-any-return]

    def forward(self, labels: Int[Tensor, " b"]) -> Tokens:
        """Return the tokens of class numbers that were checked; -1 is the null class."""
        rows = torch.where(labels == _NULL, self.embedding.num_embeddings - 1, labels)
        return self.embedding(rows)[:, None]  # type: ignore[no-any-return]

    def check(self, texts: Sequence[str]) -> None:
        """Refuse prompts that name no class.

        Raises:
            InvalidArgumentError: every such prompt, its nearest class and the known classes.
        """
        self.labels(texts)

    def labels(self, texts: Sequence[str]) -> list[int]:
        """Return the class number of each prompt, -1 for the empty one.

        Raises:
            InvalidArgumentError: a text names no class; every such text is named.
        """
        found = [self._label(_plain(text)) for text in texts]
        unknown = sorted({text for text, label in zip(texts, found, strict=True) if label is None})
        if unknown:
            known = list(self._number)
            named = ", ".join(f"{text!r}{nearest(_plain(text), known)}" for text in unknown)
            more = f", and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
            raise InvalidArgumentError(
                f"classes this model never learnt: {named}. It knows: {', '.join(known[:_SHOWN])}{more}; or "
                f'their numbers, "0" to "{len(known) - 1}".'
            )
        return [label for label in found if label is not None]

    def _label(self, text: str) -> int | None:
        if not text:
            return _NULL
        if text in self._number:
            return self._number[text]
        # A number of thousands of digits is a class's name that nobody has, not one to compute with.
        if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(self._number):
            return int(text)
        return None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", " ".join(name.casefold().split()))


def _check(classes: Sequence[str], width: int) -> None:
    if isinstance(classes, str) or not classes:
        raise InvalidArgumentError(
            f"classes={classes!r} were given; expected a sequence of at least one name, such as ('cat', 'dog')."
        )
    names = [_plain(name) for name in classes]
    wrong = sorted({name for name in names if not name or names.count(name) > 1})
    if wrong:
        raise InvalidArgumentError(
            f"the classes hold {', '.join(map(repr, wrong))}, which is empty or comes twice (case and spacing "
            "aside); give each class a name of its own."
        )
    if width < 1:
        raise InvalidArgumentError(f"width={width} was given; expected 1 or more.")
