"""The text-to-image model that a video strategy starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, UNet2DConditionModel

from vidgen import plugins
from vidgen.codecs.files import CONFIG, read_module, read_object
from vidgen.components import find_component
from vidgen.conditioning import VocabularyEncoder
from vidgen.errors import CheckpointError, InvalidArgumentError
from vidgen.paths import expanded
from vidgen.weights import newest_model

__all__ = ["ImageModel"]

_PROCESS = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""What training fixes of a noise process; the rest is the solver's."""


class ImageModel:
    """A text-to-image model in diffusers' layout, part by part; nothing is read before it is asked for.

    source/
      unet/            a ``UNet2DConditionModel``
      vae/ or codec/   its VAE, if there is one
      text_encoder/    its text encoder; one of vidgen's own is taken with it
      scheduler/       its noise process, if it is said

    Args:
        source: a folder such as Stable Diffusion's, a training run (its newest checkpoint), or the name of a
            bundled model (``"shapes/ldm"``).

    Raises:
        InvalidArgumentError: there is neither.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.folder = _folder_of(source)

    @property
    def vae(self) -> Path | None:
        """Where its VAE lies."""
        parts = (find_component(self.folder, name) for name in ("vae", "codec"))
        return next((part for part in parts if (part / CONFIG).is_file()), None)

    def unet(self) -> UNet2DConditionModel:
        """Return its UNet, with its weights.

        Raises:
            InvalidArgumentError: there is none.
            CheckpointError: files are missing, unsafe or damaged.
        """
        return read_module(self._unet_folder(), [UNet2DConditionModel])

    def _unet_folder(self) -> Path:
        folder = find_component(self.folder, "unet")
        if not (folder / CONFIG).is_file():
            raise InvalidArgumentError(
                f"no 2D UNet in {self.source!r}: expected unet/{CONFIG} and safetensors weights beside it, as "
                "diffusers saves them."
            )
        return folder

    @property
    def token_width(self) -> int:
        """Features of a token that its UNet reads.

        Raises:
            InvalidArgumentError: there is no UNet, or one that reads tokens of several widths.
        """
        width = read_object(self._unet_folder() / CONFIG).get("cross_attention_dim", 1280)
        if not isinstance(width, int):
            raise InvalidArgumentError(
                f"the UNet in {self.source!r} has cross_attention_dim={width}; expected one number, as Stable "
                "Diffusion 1 and 2 have."
            )
        return width

    @property
    def text_settings(self) -> dict[str, Any] | None:
        """The configuration of its closed-vocabulary text encoder; None where it has another, or none."""
        file = find_component(self.folder, "text_encoder") / CONFIG
        settings = read_object(file) if file.is_file() else {}
        return settings if settings.get("_class_name") == VocabularyEncoder.__name__ else None

    def text_encoder(self) -> VocabularyEncoder:
        """Return its closed-vocabulary text encoder, with its weights; see ``text_settings``."""
        encoder: VocabularyEncoder = read_module(
            find_component(self.folder, "text_encoder"), [VocabularyEncoder]
        )
        return encoder

    @property
    def process(self) -> Mapping[str, Any]:
        """The noise process that it was trained on; what its scheduler's file leaves out is diffusers' default.

        Raises:
            InvalidArgumentError: a flow, which no model here learns.
            CheckpointError: the file describes no noise process.
        """
        file = self.folder / "scheduler" / "scheduler_config.json"
        if not file.is_file():
            return {}
        found = read_object(file)
        if "FlowMatch" in str(found.get("_class_name")):
            raise InvalidArgumentError(
                f"{self.source!r} was trained on a flow ({found['_class_name']}); expected a noise process, as "
                "Stable Diffusion 1 and 2 have. Start from another image model."
            )
        try:
            config = DDIMScheduler(**{name: found[name] for name in _PROCESS if name in found}).config
        except (NotImplementedError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file} describes no noise process of this diffusers: {error}") from error
        return {name: config[name] for name in _PROCESS}


def _folder_of(source: str) -> Path:
    path = expanded(source)
    if path.is_dir():
        return newest_model(path)
    if source in plugins.available(plugins.MODELS):
        return plugins.model_folder(source)
    bundled = ", ".join(plugins.available(plugins.MODELS)) or "none"
    raise InvalidArgumentError(
        f"pretrained is {source!r}; there is no such folder, and no bundled model of that name (there are: "
        f"{bundled}). Give the folder of a text-to-image model as diffusers saves it."
    )
