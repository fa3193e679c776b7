"""The classifier from a folder, or the bundled one by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from vidgen import plugins
from vidgen.components import find_component, load_module
from vidgen.config import read_json
from vidgen.errors import CheckpointError, InvalidArgumentError
from vidgen.paths import expanded
from vidgen.shapes.classifier.network import ShapesClassifier

__all__ = ["BUNDLED", "load_classifier"]

BUNDLED = "shapes/classifier"
CONFIG = "config.json"


def load_classifier(source: str | Path = BUNDLED) -> ShapesClassifier:
    """Load a trained classifier, in float32 on the CPU and ready to judge.

    Args:
        source: the name of a bundled model, or a folder: that of the network (``config.json`` and
            safetensors), or a checkpoint of its training, which has it under ``classifier``.

    Raises:
        UnknownNameError: no folder, and no bundled model of that name.
        CheckpointError: files are missing, unsafe, damaged, or not of a classifier.
    """
    folder = expanded(source)
    if not folder.is_dir():
        if isinstance(source, Path):
            raise CheckpointError(f"{source} is no folder; expected that of a trained classifier.")
        folder = plugins.model_folder(source)
    if not (folder / CONFIG).is_file():
        part = find_component(folder, "classifier")
        folder = part if part.is_dir() else folder
    config = _config(folder / CONFIG)
    # Bundled weights are half precision; the network stays float32.
    return cast(ShapesClassifier, load_module(ShapesClassifier, folder, config).eval())


def _config(file: Path) -> dict[str, Any]:
    try:
        config = read_json(file)
    except (OSError, InvalidArgumentError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}). Expected a classifier's folder as save_pretrained writes it."
        ) from error
    name = config.get("_class_name")
    if name != ShapesClassifier.__name__:
        raise CheckpointError(f"{file} describes a {name}; expected a {ShapesClassifier.__name__}.")
    return config
