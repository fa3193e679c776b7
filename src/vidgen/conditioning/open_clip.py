"""Text and image encoders of open_clip, frozen: a checkpoint stores where they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vidgen.conditioning.clip_pixels import ClipPixels
from vidgen.conditioning.encoder import TextEncoder
from vidgen.conditioning.open_clip_source import OpenClipSource, on_meta
from vidgen.conditioning.open_clip_trust import check_repository
from vidgen.config import read_json, write_json
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError, shown
from vidgen.tensors import Tokens
from vidgen.weights import weight_hash

__all__ = ["LAYERS", "OpenClipImageEncoder", "OpenClipTextEncoder"]

LAYERS = ("last", "penultimate")
_CONFIG = "config.json"
T = TypeVar("T", bound="_OpenClip")


class _OpenClip(nn.Module):
    """One tower of an open_clip model, never trained, saved as a reference to its weights."""

    def __init__(self, model: str | OpenClipSource, pretrained: str | Path | None, part: str) -> None:
        super().__init__()
        found = isinstance(model, OpenClipSource)
        self.source: OpenClipSource = model if found else OpenClipSource.find(model, pretrained)  # type: ignore
        # The rest of the model is let go: the other tower is often the larger one.
        self.tower: Any = getattr(self.source.build(), part)
        self.requires_grad_(False).eval()
        self.digest: str | None = None if on_meta() else weight_hash(self.tower)
        """``vidgen.weights.weight_hash`` of the tower as it was loaded; None on the meta device."""

    def train(self: T, mode: bool = True) -> T:  # noqa: ARG002
        """Stay in evaluation mode, whatever ``mode`` says."""
        return super().train(False)

    def save_pretrained(
        self,
        folder: str | Path,
        safe_serialization: bool = True,  # noqa: ARG002
    ) -> None:
        """Write ``config.json`` alone: the model, where its weights are, and their hash.

        Args:
            folder: made if it does not exist.
            safe_serialization: there for diffusers' sake; no weights are written.

        Raises:
            CheckpointError: the weights are not those that were loaded, so a reference would be wrong.
        """
        self._refuse_changed()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": type(self).__name__, **asdict(self.source), **self._options()}
        write_json(folder / _CONFIG, config | {"weight_hash": self.digest})

    @classmethod
    def from_pretrained(cls: type[T], folder: str | Path) -> T:
        """Build what ``save_pretrained`` wrote, and verify the weights by their hash.

        A weights file that has moved is also looked for in ``folder``. On the meta device no weights are
        read. A repository of the hub that the configuration names, and open_clip does not, is loaded only
        within ``vidgen.components.repositories_allowed`` (``vidgen.load(..., repositories=[...])``).

        Raises:
            CheckpointError: ``folder`` holds no such configuration, or the weights are missing, no
                safetensors, or not those the checkpoint was made with.
        """
        folder = Path(folder)
        source, options, expected = _read(folder / _CONFIG, cls.__name__, cls._OPTIONS)
        if source.model.startswith("hf-hub:"):  # named by the checkpoint, not by the caller
            check_repository(source.model.removeprefix("hf-hub:"), folder.name)
        beside = folder / Path(source.pretrained).name
        if source.pretrained and not Path(source.pretrained).is_file() and beside.is_file():
            source = replace(source, pretrained=str(beside.absolute()))
        named = f"{source.model} {source.pretrained}".strip()
        hint = f"Put the right weights there, or give vidgen.load an encoder of your own: {folder.name}=..."
        try:
            encoder = cls(source, **options)
        except Exception as error:  # any value may stand in the file
            raise CheckpointError(
                f"{folder} refers to the weights {named!r}, which cannot be used: {error} {hint}"
            ) from error
        if encoder.digest not in (None, expected):
            raise CheckpointError(
                f"{folder} was made with the weights {named!r} of hash {expected}; those found now have "
                f"{encoder.digest}, and would give other embeddings. {hint}"
            )
        encoder.digest = expected
        return encoder

    _OPTIONS: ClassVar[Mapping[str, type]] = {}
    """The keyword arguments besides the source that are saved, with their types."""

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._OPTIONS}

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = next(self.tower.parameters())
        return weight

    def _refuse_changed(self) -> None:
        # In another precision the values cannot be compared; they then come from the same source.
        whole = all(p.dtype == torch.float32 and not p.is_meta for p in self.tower.parameters())
        if self.digest is None or (whole and weight_hash(self.tower) != self.digest):
            raise CheckpointError(
                f"the weights of this {type(self).__name__} are not those of {self.source.model} "
                f"{self.source.pretrained} with hash {self.digest}: they were changed, or never loaded. Frozen "
                "encoders are stored as a reference; save changed weights to a safetensors file and build the "
                "encoder from that."
            )


class OpenClipTextEncoder(_OpenClip, TextEncoder):
    """The text tower of an open_clip model: token features for cross-attention.

    Only safetensors are read; see ``OpenClipSource``. The tower computes in the dtype it is cast to; what
    comes out is float32.

    Args:
        model: open_clip's name (``"ViT-H-14"``), ``hf-hub:org/name`` or ``local-dir:folder``.
        pretrained: a tag of open_clip (``"laion2b_s32b_b79k"``) or the path of a safetensors file.
        layer: ``"last"``, or ``"penultimate"`` as Stable Diffusion 2 uses it: the features before the
            last block, through the final norm.
        truncate: cut longer texts as open_clip does; False refuses them.

    Raises:
        UnknownNameError: no such model, tag or layer.
        InvalidArgumentError: no weights were named, or the model has no penultimate layer to give.
        CheckpointError: weights or tokenizer are missing, unsafe, or do not fit.
    """

    frozen = True
    _OPTIONS: ClassVar[Mapping[str, type]] = {"layer": str, "truncate": bool}

    def __init__(
        self,
        model: str | OpenClipSource,
        pretrained: str | Path | None = None,
        *,
        layer: str = "last",
        truncate: bool = False,
    ) -> None:
        if layer not in LAYERS:
            raise UnknownNameError("layer", layer, LAYERS)
        super().__init__(model, pretrained, "text")
        self.layer = layer
        self.truncate = truncate
        self._foreign = not hasattr(self.tower, "forward_intermediates")  # a tower of transformers
        if self._foreign and layer != "last":
            raise InvalidArgumentError(
                f"the text tower of {self.source.model!r} comes from transformers and gives its last layer "
                f"only; layer={layer!r} was asked for. Use layer='last'."
            )
        if self._foreign:
            self.tower.output_tokens = True
        self._tokenizer: Any = None if on_meta() else self.source.tokenizer()

    @property
    def width(self) -> int:
        """Features ``d`` of a token."""
        return int(self.tower.config.hidden_size if self._foreign else self.tower.width)

    @property
    def pooled_width(self) -> int:
        """Features of ``pooled``."""
        return int(self.source.architecture["embed_dim"])

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Return token features ``b n d`` after the final norm, padding included.

        Raises:
            InvalidArgumentError: a text is too long and ``truncate`` is False.
        """
        ids = self.tokenize(texts)
        if self._foreign:
            return self.tower(ids)[1].float()  # type: ignore[no-any-return]
        blocks = len(self.tower.transformer.resblocks)
        taken = self.tower.forward_intermediates(
            ids,
            indices=[blocks - 1 - LAYERS.index(self.layer)],
            stop_early=True,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
        )
        return taken["text_intermediates"][0].float()  # type: ignore[no-any-return]

    def pooled(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Return open_clip's text embeddings (``encode_text(..., normalize=False)``).

        Raises:
            InvalidArgumentError: a text is too long and ``truncate`` is False.
        """
        return _first(self.tower(self.tokenize(texts))).float()

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "b n"]:
        """Return open_clip's token numbers of ``texts``, on the encoder's device.

        Raises:
            InvalidArgumentError: a text is too long and ``truncate`` is False.
        """
        self.check(texts)
        return self._numbers(texts, self.source.context_length).to(self._weight.device)

    def check(self, texts: Sequence[str]) -> None:
        """Refuse texts that do not fit the context, unless ``truncate``.

        Raises:
            InvalidArgumentError: the first such text, its length and the longest.
        """
        if self.truncate or not texts:
            return
        length = self.source.context_length
        # With room for a token per byte nothing is cut; what is longer than the context spills over.
        room = length + max(len(text.encode()) for text in texts)
        numbers = self._numbers([*texts, ""], room)
        used = (numbers != numbers[-1, -1]).sum(1).tolist()
        for text, count in zip(texts, used[:-1], strict=True):
            if count > length:
                raise InvalidArgumentError(
                    f"the prompt {text!r} has {count} tokens; {self.source.model!r} reads {length}, start and "
                    "end included. Shorten it, or build the encoder with truncate=True to cut what is over."
                )

    def _numbers(self, texts: Sequence[str], length: int) -> Int[Tensor, "b n"]:
        self._tokenizer = self._tokenizer or self.source.tokenizer()
        with torch.device("cpu"):  # values are looked at, also while a network is built on meta
            numbers: Tensor = self._tokenizer(list(texts), context_length=length)
        return numbers


class OpenClipImageEncoder(_OpenClip):
    """The image tower of an open_clip model: one embedding, or patch tokens, per picture.

    Only safetensors are read; see ``OpenClipSource``. Gradients flow to the pictures. The tower computes
    in the dtype it is cast to; what comes out is float32.

    Args:
        model: open_clip's name (``"ViT-H-14"``), ``hf-hub:org/name`` or ``local-dir:folder``.
        pretrained: a tag of open_clip (``"laion2b_s32b_b79k"``) or the path of a safetensors file.
        preprocessing: replaces fields of open_clip's ``PreprocessCfg`` (``mean``, ``std``,
            ``interpolation``, ``resize_mode``, ``fill_color``). A tag brings its own; a file is taken to
            have OpenAI's.

    Raises:
        UnknownNameError: no such model, tag, or field of ``preprocessing``.
        InvalidArgumentError: no weights were named.
        CheckpointError: the weights are missing, unsafe, or do not fit.
    """

    frozen = True

    def __init__(
        self,
        model: str | OpenClipSource,
        pretrained: str | Path | None = None,
        *,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, pretrained, "visual")
        fields = self.source.preprocessing
        for name in preprocessing or {}:
            if name not in fields:
                raise UnknownNameError("field of preprocessing", name, fields)
        self.source = replace(self.source, preprocessing={**fields, **(preprocessing or {})})
        size = self.tower.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        values = {name: _frozen(value) for name, value in self.source.preprocessing.items()}
        self.preprocess = ClipPixels(size, **values)

    @property
    def width(self) -> int:
        """Features ``d`` of an embedding."""
        return int(self.source.architecture["embed_dim"])

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return open_clip's embeddings of pictures in [-1, 1] of any size (``encode_image``)."""
        return _first(self.tower(self._prepared(images))).float()

    def tokens(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Return the features of every patch after the last block, row by row, without class token.

        Transformers' features pass the final norm; convolutional towers give their last feature map.
        """
        taken = self.tower.forward_intermediates(
            self._prepared(images), indices=1, normalize_intermediates=True, intermediates_only=True
        )
        return taken["image_intermediates"][-1].flatten(2).transpose(1, 2).float()  # type: ignore[no-any-return]

    def _prepared(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 y x"]:
        return self.preprocess(images.to(self._weight.device)).to(self._weight.dtype)


def _frozen(value: Any) -> Any:
    """JSON's lists, such as the channels' means, as tuples."""
    return tuple(value) if isinstance(value, list) else value


def _first(out: Any) -> Tensor:
    """The embedding: some towers give their tokens beside it."""
    embedding: Tensor = out[0] if isinstance(out, tuple) else out
    return embedding


_FIELDS = {"model": str, "pretrained": str, "architecture": dict, "preprocessing": dict, "weight_hash": str}


def _read(file: Path, name: str, known: Mapping[str, type]) -> tuple[OpenClipSource, dict[str, Any], str]:
    """The source, the options (``known``, with their types) and the expected hash in a ``config.json``."""
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; expected the configuration of an {name}.")
    try:
        config = read_json(file)
        if config.pop("_class_name") != name:
            raise KeyError("_class_name")
        for field, kind in {**_FIELDS, **known}.items():
            if not isinstance(config[field], kind):
                raise KeyError(f"{field} is {shown(config[field])}; expected {kind.__name__}")
        *fields, expected = (config[field] for field in _FIELDS)
        parts = ("text_cfg", "vision_cfg")
        if not all(isinstance(config["architecture"].get(part), dict) for part in parts):
            raise KeyError(f"its architecture lacks {' or '.join(parts)}")
        return OpenClipSource(*fields), {option: config[option] for option in known}, expected
    except (KeyError, InvalidArgumentError) as error:
        raise CheckpointError(f"{file} is not the configuration of an {name}: {error}.") from error
