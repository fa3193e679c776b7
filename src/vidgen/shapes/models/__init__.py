"""Small trained models that come with the package, each with a card (``README.md``) beside its weights."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shapes_classifier", "shapes_codec", "shapes_glober", "shapes_ldm", "shapes_vdm"]

_FOLDER = Path(__file__).parent


def shapes_codec() -> Path:
    """The frame codec: 64 x 64 pixels to 16 x 8 x 8 latents."""
    return _FOLDER / "codec"


def shapes_classifier() -> Path:
    """The judge of shapes videos, and their feature extractor."""
    return _FOLDER / "classifier"


def shapes_ldm() -> Path:
    """The text-to-image model."""
    return _FOLDER / "ldm"


def shapes_glober() -> Path:
    """GLOBER: a feature of the whole video from the prompt, then 16 frames of it, or any other number."""
    return _FOLDER / "glober"


def shapes_vdm() -> Path:
    """The video model: 16 frames at once, longer videos in windows; inflated from the image model."""
    return _FOLDER / "vdm"
