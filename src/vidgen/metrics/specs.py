"""Extractors by a line of text, as the command line and configurations name them."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from vidgen.config import read_json
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from vidgen.metrics.extractors import (
    ClipExtractor,
    HubClip,
    OpenClip,
    Preprocessing,
    ShapesExtractor,
    ShapesFrameExtractor,
    TorchScriptExtractor,
    VideoMAEExtractor,
    i3d_extractor,
)
from vidgen.metrics.extractors.shapes import MOTION_FRAMES
from vidgen.metrics.features import FeatureExtractor
from vidgen.metrics.meters import Judge
from vidgen.paths import expanded
from vidgen.shapes.classifier import ShapesClassifier, load_classifier
from vidgen.weights import weight_hash

__all__ = ["KINDS", "open_extractor", "shapes_judge"]

JUDGE = "shapes_v1"
"""Name of the bundled classifier in keys; another network is another name."""

SIDE = 64
"""Pixels at which the classifier was trained."""

NUMBERS = ("classes",)
FLAGS = {"true": True, "false": False}
"""Options that are no text are numbers, or ``truncate``, which is one of ``FLAGS``."""


def open_extractor(spec: str, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Open the extractor that ``spec`` names, on ``device``.

    Args:
        spec: ``KIND``, ``KIND:WHERE`` or ``KIND:WHERE,NAME=VALUE,...``:

            - ``shapes``, ``shapes_frames``: the bundled classifier, of videos or of single frames;
            - ``i3d:FILE`` in safetensors (``classes=600``, ``features=pooled``);
            - ``torchscript:FILE``, with ``FILE.json`` beside it, which declares ``name``, ``preprocessing``
              and, where needed, the other arguments of ``TorchScriptExtractor``;
            - ``videomae:FOLDER`` or hub id (``name=...``);
            - ``clip:FOLDER`` or hub id of transformers' CLIP (``name=...``, ``truncate=true``);
            - ``open_clip:MODEL`` (``pretrained=TAG``, ``name=...``, ``truncate=true``).

            ``truncate=true`` cuts captions that are too long for CLIP instead of refusing them.
        device: where the network works.

    Raises:
        UnknownNameError: another kind.
        InvalidArgumentError: a place or an option that the kind does not have.
        CheckpointError: files are missing, unsafe or damaged.
    """
    head, *pairs = spec.split(",")
    kind, _, where = head.partition(":")
    if kind not in KINDS:
        raise UnknownNameError("extractor", kind, KINDS)
    allowed, needs_place, build = KINDS[kind]
    if bool(where) != needs_place:
        wanted = f"{kind}:PLACE" if needs_place else kind
        raise InvalidArgumentError(f"the extractor {spec!r} was given; expected {wanted}.")
    return build(where, **_options(spec, pairs, allowed)).to(device)


def shapes_judge(
    classifier: ShapesClassifier | None = None, *, name: str = JUDGE, device: torch.device | str = "cpu"
) -> Judge:
    """Return a classifier of the shapes data as the judge of prompt accuracy and positions.

    Frames are squeezed to 64 x 64 where they are not, which keeps places as shares of the frame. Single
    frames are read as pictures. Motion counts in clips of 8 frames or more, from which on the classifier tells
    motions apart.

    Args:
        classifier: None loads the bundled one; a given one is copied.
        name: part of every key; another classifier should have another.
        device: where it works.

    Raises:
        UnknownNameError, CheckpointError: there is no bundled classifier, or it is damaged.
    """
    network: Any = load_classifier() if classifier is None else deepcopy(classifier).eval()
    network.to(device)
    pixels = Preprocessing(size=SIDE, antialias=True)

    def read(clips: Tensor) -> Any:
        prepared = pixels.prepare(clips.to(device))
        return network(prepared) if prepared.shape[2] > 1 else network.read_images(prepared[:, :, 0])

    about = {"name": name, "weights": weight_hash(network), "preprocessing": pixels.to_json()}
    return Judge(name, read, about, MOTION_FRAMES)


def _options(spec: str, pairs: list[str], allowed: tuple[str, ...]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in allowed:
            known = ", ".join(f"{known}=..." for known in allowed) or "no options"
            raise InvalidArgumentError(f"{pair!r} in the extractor {spec!r}: expected {known}.")
        if name in NUMBERS and not value.isdecimal():
            raise InvalidArgumentError(
                f"{pair!r} in the extractor {spec!r}: expected a number, as in {name}=600."
            )
        if name == "truncate" and value not in FLAGS:
            raise InvalidArgumentError(f"{pair!r} in the extractor {spec!r}: expected true or false.")
        options[name] = int(value) if name in NUMBERS else FLAGS[value] if name == "truncate" else value
    return options


def _torchscript(file: str) -> FeatureExtractor:
    declaration = expanded(f"{file}.json")
    try:
        fields = read_json(declaration)
    except (OSError, InvalidArgumentError) as error:
        raise CheckpointError(
            f"{declaration} cannot be read ({error}). A TorchScript file says nothing of the pixels it wants: "
            'write {"name": ..., "preprocessing": {...}} there; see docs/metrics.md.'
        ) from error
    try:
        pixels = Preprocessing(**{name: _tuple(value) for name, value in fields.pop("preprocessing").items()})
        return TorchScriptExtractor(file, preprocessing=pixels, **fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(
            f"{declaration} holds {json.dumps(fields)}, which declares no TorchScript extractor ({error}); "
            'expected "name", "preprocessing" with fields of Preprocessing, and other arguments of '
            "TorchScriptExtractor."
        ) from error


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


KINDS: dict[str, tuple[tuple[str, ...], bool, Callable[..., FeatureExtractor]]] = {
    "shapes": ((), False, lambda _: ShapesExtractor()),
    "shapes_frames": ((), False, lambda _: ShapesFrameExtractor()),
    "i3d": (("classes", "features"), True, i3d_extractor),
    "torchscript": ((), True, _torchscript),
    "videomae": (("name",), True, VideoMAEExtractor),
    "clip": (("name", "truncate"), True, lambda source, **options: ClipExtractor(HubClip(source, **options))),
    "open_clip": (
        ("pretrained", "name", "truncate"),
        True,
        lambda model, **options: ClipExtractor(OpenClip(model, **options)),
    ),
}
"""Options of each kind, whether it needs a place, and what builds it."""
