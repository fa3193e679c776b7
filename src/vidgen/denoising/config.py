"""Settings that every strategy has which learns from captioned clips."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, TypeVar

import torch
from diffusers import DDIMScheduler

from vidgen import config as configs
from vidgen.codecs import Codec, PixelCodec, is_layout, load_codec, measure
from vidgen.conditioning import (
    ClassEncoder,
    OpenClipTextEncoder,
    TextEncoder,
    VocabularyEncoder,
    split_words,
    vocabulary,
)
from vidgen.denoising.image_model import ImageModel
from vidgen.errors import InvalidArgumentError
from vidgen.noise import Independent, NoisePrior
from vidgen.paths import expanded
from vidgen.video.dataset import ClipDataset
from vidgen.weights import newest_model

__all__ = ["ClipConfig"]

logger = logging.getLogger("vidgen")

_Config = TypeVar("_Config", bound="ClipConfig")
_CLIPS_MEASURED = 64


@dataclass(frozen=True)
class ClipConfig:
    """What a strategy knows of its clips, their latents, its prompts and its noise; derive your own from it.

    Args:
        sample_frames, sample_size, sample_fps: frames, (height, width) and rate of the training clips; a
            training run takes them from its data.
        window: latent frames of one call; None is a whole training clip.
        codec: folder or hub id of a diffusers VAE, per frame or compressing time, in whose latents the
            networks work; None is pixels. ``"layout:kl-f8"`` is an untrained VAE of that layout: it serves to
            find out sizes and costs, and is not trained on.
        pretrained: a text-to-image model to start from, a folder of diffusers' layout or a bundled name: its
            UNet, and its VAE, noise process and closed-vocabulary text encoder where it has them and no
            other is named.
        patch: side of the pixel squares folded into channels (see ``PixelCodec``).
        pixel_mean, pixel_std: of the data's pixels; a training run measures them where None.
        text: what prompts are: ``"words"`` of a closed vocabulary learnt with the model, names of
            ``"classes"`` learnt with it, or any text, read by a frozen ``"open_clip"`` encoder.
        words: the vocabulary of the prompts; a training run takes it from the captions where empty. The text
            encoder that comes with ``pretrained`` keeps its own words and learns these besides.
        max_words: longest prompt; a training run takes the longest caption where None.
        classes: the classes' names; a training run takes them from its data where empty.
        text_model, text_pretrained, text_layer: open_clip's name of the text encoder, its pretrained tag or a
            safetensors file, and the layer whose features are taken: ``"penultimate"`` as Stable Diffusion 2,
            or ``"last"`` as Stable Diffusion 1.
        drop_text: share of training clips whose prompt is dropped, for guidance.
        guidance_scale, num_inference_steps: defaults of sampling.
        prediction_type: ``"v_prediction"``, ``"epsilon"`` or ``"sample"``.
        noise_bias: see ``Diffusion.sample_timesteps``.
        snr_gamma: see ``DenoisingStage``.
        beta_schedule, beta_start, beta_end, num_train_timesteps: of the noise schedule, as diffusers names
            them.
        prior: the noise over frames.

    Raises:
        InvalidArgumentError: values that contradict each other.
    """

    sample_frames: int = 16
    sample_size: tuple[int, int] = (64, 64)
    sample_fps: float = 8.0
    window: int | None = None
    codec: str | None = None
    pretrained: str | None = None
    patch: int = 4
    pixel_mean: float | None = None
    pixel_std: float | None = None
    text: Literal["words", "classes", "open_clip"] = "words"
    words: tuple[str, ...] = ()
    max_words: int | None = None
    classes: tuple[str, ...] = ()
    text_model: str | None = None
    text_pretrained: str | None = None
    text_layer: Literal["penultimate", "last"] = "penultimate"
    drop_text: float = 0.1
    guidance_scale: float = 3.0
    num_inference_steps: int = 50
    prediction_type: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"
    noise_bias: float = 0.0
    snr_gamma: float | None = None
    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    num_train_timesteps: int = 1000
    prior: NoisePrior = field(default_factory=Independent)

    def __post_init__(self) -> None:
        """Check what annotations cannot say."""
        if not 0 <= self.drop_text <= 1:
            raise InvalidArgumentError(f"drop_text is {self.drop_text}; expected a share of the clips, 0 to 1.")
        if self.noise_bias <= -1:
            raise InvalidArgumentError(f"noise_bias is {self.noise_bias}; expected more than -1; 0 is uniform.")
        if (self.text == "open_clip") != (self.text_model is not None):
            raise InvalidArgumentError(
                f"text={self.text!r} with text_model={self.text_model!r}; expected text='open_clip' with a "
                "text_model, such as 'ViT-H-14', or another text without one."
            )

    @property
    def has_prompts(self) -> bool:
        """Whether there is anything that a prompt may say."""
        known = {"words": self.words, "classes": self.classes, "open_clip": ("any text",)}
        return bool(known[self.text]) or self.learnt_words is not None

    @property
    def learns_words(self) -> bool:
        """Whether a text encoder of words is trained with the rest."""
        return True

    @property
    def vae(self) -> str | None:
        """Where the codec's VAE comes from, ``pretrained`` where no other is named; None works on pixels."""
        if self.codec is not None or self.pretrained is None:
            return self.codec
        found = ImageModel(self.pretrained).vae
        return None if found is None else str(found)

    @property
    def learnt_words(self) -> dict[str, Any] | None:
        """The configuration of the text encoder that comes with ``pretrained``, if one does."""
        if self.text != "words" or self.pretrained is None:
            return None
        return ImageModel(self.pretrained).text_settings

    def fitted(self: _Config, dataset: ClipDataset) -> _Config:
        """Return the settings completed by what only the data tell; what is set stays, but for sizes."""
        for source in {self.codec, self.pretrained} - {None}:
            _warn_of_unfinished(str(source))
        sample = dataset[0]
        _, frames, height, width = sample.clip.shape
        found: dict[str, Any] = {"sample_frames": frames, "sample_size": (height, width)}
        if self.vae is None and (self.pixel_mean is None or self.pixel_std is None):
            mean, std = measure(clip.clip[None] for clip in islice(dataset, _CLIPS_MEASURED))
            found |= {"pixel_mean": mean, "pixel_std": std}
        if self.text == "words":
            known, texts = self.learnt_words, set(dataset.texts())
            if known is not None:
                found |= self._with_words_of(known, texts)
            else:
                found["words"] = self.words or tuple(vocabulary(texts))
                found["max_words"] = self.max_words or _longest(texts)
        elif self.text == "classes":
            found["classes"] = self._same_classes(dataset)
        return replace(self, sample_fps=float(sample.fps), **found)

    def _with_words_of(self, known: dict[str, Any], texts: set[str]) -> dict[str, Any]:
        """Return the words of the text encoder that comes with ``pretrained``, and those of the data."""
        if self.max_words is not None and self.max_words < known["max_words"]:
            raise InvalidArgumentError(
                f"max_words is {self.max_words}, and the text encoder of {self.pretrained!r} reads prompts of "
                f"{known['max_words']} words. Leave it out, or give as many or more."
            )
        assert self.pretrained is not None  # it has words
        with torch.random.fork_rng(devices=[]):  # only its words are wanted here
            encoder = ImageModel(self.pretrained).text_encoder()
            new = encoder.grow(() if self.words else texts, words=self.words, max_words=self.max_words or 0)
        encoder.check(sorted(texts))
        if new and not self.learns_words:
            raise InvalidArgumentError(
                f"the text encoder of {self.pretrained!r} knows none of the words {', '.join(new)}, and is not "
                "trained here. Set train_text=true, or leave these words out of the captions."
            )
        if new:
            logger.info("the vocabulary of %s grows by %d words: %s", self.pretrained, len(new), ", ".join(new))
        return {"words": tuple(encoder.words), "max_words": encoder.max_words}

    def _same_classes(self, dataset: ClipDataset) -> tuple[str, ...]:
        """Return the data's classes: clips are labelled by their numbers, so another order would lie."""
        if self.classes not in ((), tuple(dataset.classes)):
            raise InvalidArgumentError(
                f"classes are {self.classes}; those of the data are {tuple(dataset.classes)}, in this order. "
                "Leave classes out: training takes them from the data."
            )
        return tuple(dataset.classes)

    def check_trainable(self) -> None:
        """Refuse to train on latents that mean nothing.

        Raises:
            InvalidArgumentError: the codec is a layout without weights.
        """
        if is_layout(self.codec):
            raise InvalidArgumentError(
                f"codec is {self.codec!r}, an untrained VAE that serves to measure costs; expected trained "
                "weights. Give the folder or hub id of a VAE of that layout: --set codec=PATH."
            )

    def build_codec(self) -> Codec:
        """Return the codec of these settings; its weights are read, not made.

        Raises:
            CheckpointError, InvalidArgumentError, UnknownNameError: see ``codecs.load_codec``.
        """
        if self.vae is not None:
            return load_codec(self.vae)
        codec: Codec = PixelCodec(self.patch, self.pixel_mean or 0.0, self.pixel_std or 0.5)
        return codec

    def build_text_encoder(self, width: int, layers: int = 1) -> TextEncoder:
        """Return the text encoder of these settings; ``width`` and ``layers`` are those of a learnt one.

        A pretrained one, and one that comes with ``pretrained``, has a width of its own: build networks for
        ``encoder.width``.
        """
        if self.text == "open_clip":
            return OpenClipTextEncoder(self.text_model or "", self.text_pretrained, layer=self.text_layer)
        if self.text == "classes":
            classes: TextEncoder = ClassEncoder(self.classes, width)
            return classes
        if self.pretrained is not None and self.learnt_words is not None:
            learnt = ImageModel(self.pretrained).text_encoder()
            learnt.grow(words=self.words, max_words=self.max_words or 0)
            return learnt
        words: TextEncoder = VocabularyEncoder(self.words, width, layers, max_words=self.max_words or 16)
        return words

    def build_scheduler(self) -> DDIMScheduler:
        """Return the noise process that these settings describe, or that ``pretrained`` was trained on."""
        process = {} if self.pretrained is None else dict(ImageModel(self.pretrained).process)
        own = DDIMScheduler(
            num_train_timesteps=self.num_train_timesteps,
            beta_schedule=self.beta_schedule,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            prediction_type=self.prediction_type,
            timestep_spacing="trailing",  # starts where the training noise ends
            clip_sample=False,  # latents of unit variance leave [-1, 1]
        )
        return DDIMScheduler.from_config(own.config, **process)


def _warn_of_unfinished(source: str) -> None:
    """Say if what a training starts from is a checkpoint whose own training is not finished."""
    folder = newest_model(expanded(source))
    with suppress(OSError, ValueError):  # no checkpoint of ours: who loads it says what is wrong
        record = configs.read_json(folder / "vidgen.json").get("training")
        if isinstance(record, dict) and record.get("finished") is False:
            logger.warning(
                "the training of %s, which this one starts from, is not finished: start it again first, or go "
                "on with what it has learnt so far",
                source,
            )


def _longest(texts: Iterable[str]) -> int:
    return max([1, *(len(split_words(text)) for text in texts)])
