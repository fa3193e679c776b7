"""A small text encoder over a closed vocabulary, learnt together with the model it serves."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import regex
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Int
from torch import Tensor, nn

from vidgen.conditioning.encoder import TextEncoder, nearest
from vidgen.errors import InvalidArgumentError
from vidgen.nn import TransformerBlock
from vidgen.tensors import Tokens

__all__ = ["VocabularyEncoder", "split_words", "vocabulary"]

_LETTER = r"[\p{L}\p{N}_][\p{M}\u200c\u200d]*"  # with its combining marks and joiners
_WORD = regex.compile(rf"(?:{_LETTER})+(?:['-](?:{_LETTER})+)*")
# Shown as nothing, so nobody could type a prompt that has them where a caption had; joiners and the space
# of no width part or join letters.
_INVISIBLE = regex.compile(r"(?V1)[\p{Default_Ignorable_Code_Point}--[\u200b-\u200d]]")
_INNER_APOSTROPHE = regex.compile(r"(?<=[\p{L}\p{M}\p{N}])[\u2018\u2019\u201b\u02bc\uff07](?=[\p{L}\p{N}])")
_INNER_HYPHEN = regex.compile(r"(?<=[\p{L}\p{M}\p{N}])[\u2010\u2011\uff0d](?=[\p{L}\p{N}])")
_FIRST_WORD = re.compile(r"\w+(?:['-]\w+)*")
_PAD, _START, _SPECIAL = 0, 1, 2


class VocabularyEncoder(TextEncoder, ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers: untyped
    """Prompts made of known words to token embeddings for cross-attention.

    A prompt is split into lower-case words, led by a start token and padded to a fixed length, so
    that its embedding does not depend on the prompts beside it. Padding is a learnt token that is
    attended to, as in Stable Diffusion. The empty prompt is the unconditional one.

    Args:
        words: the vocabulary (``vocabulary(captions)`` builds one): sorted, lower case, unique.
        width: features ``d`` of a token.
        layers: transformer layers.
        heads: attention heads; they divide ``width``.
        max_words: longest prompt in words; ``n = max_words + 1``.
        word_rule: 2 splits prompts as ``split_words`` does. 1 is how it was done before: combining marks and
            typographic apostrophes part words. A stored configuration that does not say is of that time, and
            its words keep their meaning.

    Raises:
        InvalidArgumentError: an unsorted, empty or repeated vocabulary, or sizes that do not fit.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        words: Sequence[str],
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        max_words: int = 16,
        word_rule: int = 2,
    ) -> None:
        super().__init__()
        if word_rule not in _RULES:
            raise InvalidArgumentError(
                f"word_rule={word_rule}; expected 2, or 1 for a vocabulary of earlier days. Another number is "
                "a newer vidgen's: install that."
            )
        self._split = _RULES[word_rule]
        _check(words, width, layers, heads, max_words, self._split)
        self._index = {word: i + _SPECIAL for i, word in enumerate(words)}
        self.embedding = nn.Embedding(len(words) + _SPECIAL, width)
        self.position = nn.Parameter(0.02 * torch.randn(max_words + 1, width))
        self.transformer = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(layers)))
        self.final_norm = nn.LayerNorm(width)

    @classmethod
    def from_config(cls, config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Build an encoder from a stored configuration, as diffusers does; see ``word_rule``."""
        if isinstance(config, Mapping):
            config = {"word_rule": 1, **config}
        return super().from_config(config, *args, **kwargs)

    @property
    def width(self) -> int:
        """Features ``d`` of a token."""
        return self.embedding.embedding_dim

    @property
    def words(self) -> list[str]:
        """The vocabulary."""
        return list(self._index)

    @property
    def max_words(self) -> int:
        """The longest prompt in words."""
        return len(self.position) - 1

    def forward(self, ids: Int[Tensor, "b n"]) -> Tokens:
        """Embeddings of token numbers from ``tokenize``."""
        tokens = self.embedding(ids) + self.position
        return self.final_norm(self.transformer(tokens))  # type: ignore[no-any-return]

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Embeddings of ``texts``; see ``tokenize`` for what raises."""
        return self(self.tokenize(texts))  # type: ignore[no-any-return]

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "b n"]:
        """Token numbers of ``texts`` on the model's device, padded to ``max_words + 1``.

        Raises:
            InvalidArgumentError: a word outside the vocabulary (all of them are named), or a
                prompt longer than ``max_words``.
        """
        self.check(texts)
        length = len(self.position) - 1
        split = [self._split(text) for text in texts]
        rows = [
            [_START, *(self._index[word] for word in words), *[_PAD] * (length - len(words))] for words in split
        ]
        return torch.tensor(rows, dtype=torch.long, device=self.position.device).reshape(len(rows), length + 1)

    def check(self, texts: Sequence[str]) -> None:
        """Refuse texts that cannot be tokenized.

        Raises:
            InvalidArgumentError: a word outside the vocabulary (all of them are named), or a
                prompt longer than ``max_words``.
        """
        split = [self._split(text) for text in texts]
        self._refuse_unknown(split)
        length = len(self.position) - 1
        for text, words in zip(texts, split, strict=True):
            if len(words) > length:
                raise InvalidArgumentError(
                    f"the prompt {text!r} has {len(words)} words; this encoder reads up to "
                    f"{length}. Shorten it, or train an encoder with a larger max_words."
                )

    def grow(self, texts: Iterable[str] = (), *, words: Iterable[str] = (), max_words: int = 0) -> list[str]:
        """Learn to read more, in place, and return the new words; what it reads already stays as it is.

        New words get fresh embeddings, still to be trained. Only a longer ``max_words`` changes old prompts: it
        adds padding, which is attended to.

        Args:
            texts: prompts to be read from now on.
            words: further words.
            max_words: at least so many words must a prompt be able to have.
        """
        split = [self._split(text) for text in texts]
        old, longest = self.words, max([self.max_words, max_words, *map(len, split)])
        new = sorted({*words, *(word for found in split for word in found)} - {*old})
        if new or longest > self.max_words:
            self._become({"words": sorted([*old, *new]), "max_words": longest})
        return new

    def _become(self, changes: dict[str, Any]) -> None:
        """Take the layout of an encoder with ``changes``, with one's own weights wherever there are any."""
        config: Any = self.config
        own = {name: value for name, value in config.items() if not name.startswith("_")}
        fresh = type(self)(**{**own, **changes})
        # diffusers' own warns of fp32 modules even where it has none
        nn.Module.to(fresh, self.position.device, self.position.dtype)
        kept = [fresh._index[word] for word in self._index]
        with torch.no_grad():
            fresh.embedding.weight[:_SPECIAL] = self.embedding.weight[:_SPECIAL]
            fresh.embedding.weight[kept] = self.embedding.weight[_SPECIAL:]
            fresh.position[: len(self.position)] = self.position
        fresh.requires_grad_(self.position.requires_grad)
        self.embedding, self.position, self._index = fresh.embedding, fresh.position, fresh._index
        register: Any = self.register_to_config
        register(**changes)

    def _refuse_unknown(self, prompts: Iterable[Sequence[str]]) -> None:
        unknown = {word for words in prompts for word in words if word not in self._index}
        if not unknown:
            return
        named = [f"{word!r}{nearest(word, list(self._index))}" for word in sorted(unknown)]
        raise InvalidArgumentError(
            f"words this model never learnt: {', '.join(named)}. It knows: "
            f"{', '.join(self._index) or 'no word'}."
        )


def vocabulary(captions: Iterable[str]) -> list[str]:
    """All words of ``captions``, sorted: the ``words`` of a ``VocabularyEncoder``."""
    return _sorted_words(captions, split_words)


def split_words(text: str) -> list[str]:
    """The words of a prompt as the encoder counts them: lower case, without punctuation.

    A word is a run of letters and digits of any script, with their combining marks (vowel signs, harakat,
    accents), and may have apostrophes and hyphens inside. However it was typed it is the same word: in NFC
    or NFD, with a straight or a typographic apostrophe or hyphen, with or without characters that show as
    nothing, such as soft hyphens. A script that sets no spaces, such as Thai or Chinese, gives one word for
    every run without punctuation: put spaces between words in its captions.
    """
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text).lower())
    text = _INNER_HYPHEN.sub("-", _INNER_APOSTROPHE.sub("'", text))
    return _WORD.findall(text)  # type: ignore[no-any-return]  # regex: untyped


def _first_split(text: str) -> list[str]:
    return _FIRST_WORD.findall(text.lower())


_RULES: dict[int, Callable[[str], list[str]]] = {1: _first_split, 2: split_words}


def _sorted_words(captions: Iterable[str], split: Callable[[str], list[str]]) -> list[str]:
    return sorted({word for caption in captions for word in split(caption)})


def _check(
    words: Sequence[str],
    width: int,
    layers: int,
    heads: int,
    max_words: int,
    split: Callable[[str], list[str]],
) -> None:
    if list(words) != _sorted_words(words, split):
        raise InvalidArgumentError(
            "the vocabulary must be sorted, lower case, without repeats, one word per entry; "
            "build it with vidgen.conditioning.vocabulary(captions)."
        )
    if min(width, layers, heads, max_words) < 1 or width % heads:
        raise InvalidArgumentError(
            f"width={width}, layers={layers}, heads={heads}, max_words={max_words}: each must be 1 "
            "or more, and heads must divide width."
        )
