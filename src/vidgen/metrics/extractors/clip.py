"""CLIP: features of single frames, and CLIPSIM, how well frames show what a prompt says.

Radford et al. 2021 (arXiv 2103.00020) for CLIP; Wu et al. 2021 (GODIVA, arXiv 2104.14806) for CLIPSIM.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vidgen.conditioning.clip_pixels import ClipPixels
from vidgen.conditioning.open_clip import OpenClipImageEncoder, OpenClipTextEncoder
from vidgen.errors import CheckpointError, InvalidArgumentError
from vidgen.metrics.exact import full_precision
from vidgen.metrics.extractors.base import check_chunk, check_name
from vidgen.metrics.extractors.preprocessing import check_clips
from vidgen.metrics.extractors.pretrained import key_of, local, pixel_moments, read_config, read_network
from vidgen.metrics.features import FeatureExtractor, Features
from vidgen.weights import weight_hash

__all__ = ["ClipExtractor", "ClipModel", "HubClip", "OpenClip", "clipsim"]

M = TypeVar("M", bound="ClipModel")

_CHECKED = 256
"""Texts whose tokens are in memory at once while their lengths are checked."""


class ClipModel(ABC):
    """A CLIP of any library: frames and texts to embeddings in one space, frozen.

    Attributes:
        name: part of every metric's key.
    """

    name: str

    @abstractmethod
    def embed_images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Return projected embeddings of pictures in [-1, 1] of any size; not normalised, float32."""

    @abstractmethod
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return projected embeddings of texts; not normalised, float32.

        Raises:
            InvalidArgumentError: a text that is too long, unless the model was built to cut it.
        """

    def check_texts(self, texts: Sequence[str]) -> None:
        """Refuse what ``embed_texts`` would: by embedding it, where a model knows no quicker way.

        Raises:
            InvalidArgumentError: a text that is too long, unless the model was built to cut it.
        """
        for at in range(0, len(texts), _CHECKED):
            self.embed_texts(texts[at : at + _CHECKED])

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the network is."""

    @abstractmethod
    def to(self: M, device: torch.device | str) -> M:
        """Move the network and return the model itself."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return, in plain JSON values, all that decides the embeddings."""


class OpenClip(ClipModel):
    """A CLIP of open_clip, through the encoders of ``vidgen.conditioning``.

    Args:
        model: open_clip's name (``"ViT-B-32"``), ``hf-hub:org/name`` or ``local-dir:folder``.
        pretrained: a tag of open_clip or the path of a safetensors file.
        preprocessing: replaces fields of open_clip's; see ``OpenClipImageEncoder``.
        truncate: cut long prompts instead of refusing them.
        name: part of every metric's key; None makes ``clip_...`` of the model's name.

    Raises:
        UnknownNameError: no such model, tag, or field of ``preprocessing``.
        InvalidArgumentError: no weights were named.
        CheckpointError: the weights are missing, unsafe, or do not fit.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | Path | None = None,
        *,
        preprocessing: Mapping[str, Any] | None = None,
        truncate: bool = False,
        name: str | None = None,
    ) -> None:
        self.images = OpenClipImageEncoder(model, pretrained, preprocessing=preprocessing)
        self.texts = OpenClipTextEncoder(model, pretrained, truncate=truncate)
        self.name = check_name(name or key_of(model, "clip"))

    @torch.no_grad()
    def embed_images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Return open_clip's ``encode_image``."""
        return self.images.encode(images)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return open_clip's ``encode_text``."""
        return self.texts.pooled(texts)

    def check_texts(self, texts: Sequence[str]) -> None:
        """Refuse texts that are too long; see ``ClipModel.check_texts``."""
        for at in range(0, len(texts), _CHECKED):
            self.texts.check(list(texts[at : at + _CHECKED]))

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return next(self.images.parameters()).device

    def to(self, device: torch.device | str) -> OpenClip:
        """Move both towers."""
        self.images.to(device)
        self.texts.to(device)
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Return name, weight hashes, preprocessing, and whether prompts are cut."""
        return {
            "name": self.name,
            "library": "open_clip",
            "architecture": self.images.source.architecture,
            "weights": [self.images.digest, self.texts.digest],
            "preprocessing": _plain(self.images.preprocess),
            "truncate": self.texts.truncate,
        }


class HubClip(ClipModel):
    """A CLIP of transformers (``CLIPModel``) with its tokenizer, from a folder or hub id.

    Pictures are prepared as the published checkpoints have it: the short side scaled by antialiased
    bicubic interpolation to the network's size in 8 bits, the centre cut out, mean and std of the
    checkpoint's image processor.

    Args:
        source: such as ``"openai/clip-vit-base-patch32"``; weights in safetensors.
        preprocessing: replaces mean, std and interpolation of the checkpoint.
        truncate: cut long prompts instead of refusing them.
        name: part of every metric's key; None makes ``clip_...`` of the source's last part.

    Raises:
        CheckpointError: weights, tokenizer or configuration are missing, unsafe, not whole, or of another
            network.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        preprocessing: ClipPixels | None = None,
        truncate: bool = False,
        name: str | None = None,
    ) -> None:
        import transformers

        source = local(source)
        config = read_config(transformers.CLIPConfig, source)
        self.network = read_network(transformers.CLIPModel, source)
        self.tokenizer = _tokenizer(source, config.text_config)
        self.context_length = int(config.text_config.max_position_embeddings)
        side = int(config.vision_config.image_size)
        self.preprocess = preprocessing or ClipPixels((side, side), *pixel_moments(source))
        self.truncate = truncate
        self.name = check_name(name or key_of(source, "clip"))
        self.weights = weight_hash(self.network)

    @torch.no_grad()
    def embed_images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Return ``get_image_features``."""
        pixels = self.preprocess(images.to(self.device))
        return _embedding(self.network.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return ``get_text_features``.

        Raises:
            InvalidArgumentError: a text is too long and ``truncate`` is False.
        """
        self.check_texts(texts)
        cut = {"truncation": True, "max_length": self.context_length} if self.truncate else {}
        batch = self.tokenizer(list(texts), padding=True, return_tensors="pt", **cut).to(self.device)
        return _embedding(
            self.network.get_text_features(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        )

    def check_texts(self, texts: Sequence[str]) -> None:
        """Refuse texts that are too long; see ``ClipModel.check_texts``."""
        if self.truncate or not texts:
            return
        tokens = self.tokenizer(list(texts))["input_ids"]
        for text, ids in zip(texts, tokens, strict=True):
            if len(ids) > self.context_length:
                raise InvalidArgumentError(
                    f"the prompt {text!r} has {len(ids)} tokens; {self.name} reads {self.context_length}, "
                    "start and end included. Shorten it, or build the model with truncate=True, which cuts it."
                )

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device  # type: ignore[no-any-return]

    def to(self, device: torch.device | str) -> HubClip:
        """Move the network."""
        self.network.to(device)
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Return name, weight hash, preprocessing, and whether prompts are cut."""
        return {
            "name": self.name,
            "library": "transformers",
            "weights": self.weights,
            "preprocessing": _plain(self.preprocess),
            "truncate": self.truncate,
        }


class ClipExtractor(FeatureExtractor):
    """CLIP's projected image embeddings, frame by frame, as the features of a Frechet or kernel distance.

    Args:
        model: any ``ClipModel``; its name is the extractor's.
        chunk: frames that the network sees at once.
    """

    per_frame = True

    def __init__(self, model: ClipModel, *, chunk: int = 32) -> None:
        self.model, self.name, self.chunk = model, model.name, check_chunk(chunk)

    @full_precision()
    def extract(self, clips: Float[Tensor, "b c f h w"]) -> Features:
        """Describe each frame of videos with pixels in [-1, 1].

        Raises:
            InvalidArgumentError: clips that are not RGB in [-1, 1].
        """
        check_clips(clips, self.name, 1)
        parts = [self.model.embed_images(images).cpu() for images in _images(clips, self.chunk)]
        return Features(torch.cat(parts))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    def to(self, device: torch.device | str) -> ClipExtractor:
        """Move the network."""
        self.model.to(device)
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Return the model's fingerprint, and that these are its image embeddings."""
        return self.model.fingerprint() | {"features": "image embedding", "per_frame": True}


def clipsim(
    clips: Float[Tensor, "b 3 f h w"] | Iterable[Float[Tensor, "b 3 f h w"]],
    prompts: Iterable[str],
    model: ClipModel,
    *,
    chunk: int = 32,
) -> Float[Tensor, " n"]:
    """Return each video's mean cosine between its prompt's embedding and its frames', in float64 on the CPU.

    The cosine itself, in [-1, 1]: papers that print numbers near 30 multiply it by 100. The score of a
    set of videos is the mean of what is returned.

    Args:
        clips: videos in [-1, 1], or an iterable of batches of them, which is read once, a batch at a time;
            batches may differ in size and length.
        prompts: one per video, in their order.
        model: embeds both.
        chunk: frames that the network sees at once.

    Raises:
        InvalidArgumentError: not one prompt for each video, clips that are not RGB in [-1, 1], or a
            prompt that is too long.
    """
    if isinstance(prompts, str):
        _refuse_prompts(f"the text {prompts!r} as prompts")
    check_chunk(chunk)
    remaining = iter(prompts)
    scores = []
    for batch in [clips] if isinstance(clips, Tensor) else clips:
        check_clips(batch, model.name, 1)
        texts = list(islice(remaining, len(batch)))
        if len(texts) < len(batch):
            _refuse_prompts("fewer prompts than videos")
        scores.append(_cosines(batch, texts, model, chunk))
    if next(remaining, None) is not None:
        _refuse_prompts("more prompts than videos")
    if not scores:
        _refuse_prompts("no videos")
    return torch.cat(scores)


@full_precision()
def _cosines(
    clips: Float[Tensor, "b 3 f h w"], texts: list[str], model: ClipModel, chunk: int
) -> Float[Tensor, " b"]:
    words = model.embed_texts(texts).double().cpu().repeat_interleave(clips.shape[2], dim=0)
    frames = torch.cat([model.embed_images(images).double().cpu() for images in _images(clips, chunk)])
    return cosine_similarity(words, frames, dim=1).reshape(len(clips), -1).mean(1)


def _images(clips: Float[Tensor, "b 3 f h w"], chunk: int) -> Iterator[Float[Tensor, "n 3 h w"]]:
    """Frames in the order (video, frame), a few at a time."""
    frames = rearrange(clips.detach(), "b c f h w -> (b f) c h w")
    yield from (part.float().clamp(-1, 1) for part in frames.split(chunk))


def _refuse_prompts(problem: str) -> NoReturn:
    raise InvalidArgumentError(f"clipsim was given {problem}; give one prompt for each video, in their order.")


def _plain(pixels: ClipPixels) -> dict[str, Any]:
    """A preprocessing in JSON values: tuples become lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(pixels).items()}


def _embedding(out: Any) -> Tensor:
    """The projected embedding: transformers 5 gives it within its output, 4 as it is."""
    embedding: Tensor = getattr(out, "pooler_output", out)
    return embedding.float()


def _tokenizer(source: str, config: Any) -> Any:
    """The tokenizer in ``source``, where it is that of the network."""
    import transformers

    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source} has no tokenizer that can be loaded ({type(error).__name__}: {error}). Expected the "
            "files that CLIPTokenizer.save_pretrained writes, beside the model."
        ) from error
    # Without its files transformers builds a tokenizer of three tokens, which reads every text as unknown.
    if len(tokenizer) != config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {source} knows {len(tokenizer)} tokens and the network {config.vocab_size}. "
            "Expected the files that CLIPTokenizer.save_pretrained writes, beside the model they belong to."
        )
    return tokenizer
