"""Small trained models that come with the package, each with a card (``README.md``) beside its weights."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shapes_classifier", "shapes_codec", "shapes_glober", "shapes_ldm", "shapes_vdm"]

_SHAPES = Path(__file__).parent / "shapes"


def shapes_codec() -> Path:
    """The frame codec: 64 x 64 pixels to 4 x 8 x 8 latents."""
    return _SHAPES / "codec"


def shapes_classifier() -> Path:
    """The judge of shapes videos, and their feature extractor."""
    return _SHAPES / "classifier"


def shapes_ldm() -> Path:
    """The text-to-image model."""
    return _SHAPES / "ldm"


def shapes_glober() -> Path:
    """GLOBER: a feature of the whole video from the prompt, then 16 frames of it, or any other number."""
    return _SHAPES / "glober"


def shapes_vdm() -> Path:
    """The video model: 16 frames at once, longer videos in windows; inflated from the image model."""
    return _SHAPES / "vdm"
