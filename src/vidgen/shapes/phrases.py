"""The captions of the shapes data: from scenes to words and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import MappingProxyType

from vidgen.errors import InvalidArgumentError
from vidgen.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    ShapeSpec,
    compose_scene,
)
from vidgen.video.checks import check_name

__all__ = ["CAPTION_STYLES", "describe", "parse_caption", "scene_from_caption"]

CAPTION_STYLES = ("short", "size", "background", "full")
"""What a caption says besides colour, shape and motion; ``full`` says size and background."""

PHRASES = MappingProxyType(
    {
        "left": "moves left",
        "right": "moves right",
        "up": "moves up",
        "down": "moves down",
        "circle": "moves in a circle",
        "bounce": "bounces",
        "still": "stays still",
    }
)

_OBJECT = re.compile(
    rf"an? (?:(?P<size>{'|'.join(SIZES)}) )?(?P<colour>{'|'.join(COLOURS)}) "
    rf"(?P<shape>{'|'.join(SHAPES)}) (?P<phrase>{'|'.join(PHRASES.values())})"
)
_BACKGROUND = re.compile(rf" on an? (?P<name>{'|'.join(BACKGROUNDS)}) background$")


def describe(specs: Sequence[ShapeSpec], background: str, style: str = "short") -> str:
    """Say what is seen: ``"a red circle moves left and a blue square bounces"``.

    ``style`` is one of ``CAPTION_STYLES``. Raises UnknownNameError for another style.
    """
    check_name("caption style", style, CAPTION_STYLES)
    with_size = style in ("size", "full")
    parts = [
        f"a {spec.size + ' ' if with_size else ''}{spec.colour} {spec.shape} {PHRASES[spec.motion]}"
        for spec in specs
    ]
    tail = f" on a {background} background" if style in ("background", "full") else ""
    return " and ".join(parts) + tail


def parse_caption(caption: str, size: str = "large") -> tuple[tuple[ShapeSpec, ...], str | None]:
    """Read a caption of any style back into specs and the background (``None`` if not said).

    ``size`` is given to objects whose size is not said. Raises InvalidArgumentError for words that
    no scene of the shapes data is described by.
    """
    text = caption.strip().lower().rstrip(".")
    tail = _BACKGROUND.search(text)
    body = text[: tail.start()] if tail else text
    motions = {phrase: motion for motion, phrase in PHRASES.items()}
    specs = []
    for part in body.split(" and "):
        match = _OBJECT.fullmatch(part)
        if match is None:
            raise InvalidArgumentError(
                f"{part!r} in the caption {caption!r} is not of the shapes data; expected "
                f"'a [size] colour shape phrase' with sizes {', '.join(SIZES)}, colours "
                f"{', '.join(COLOURS)}, shapes {', '.join(SHAPES)} and phrases "
                f"{', '.join(PHRASES.values())}."
            )
        name = match["size"] or size
        specs.append(ShapeSpec(match["shape"], match["colour"], motions[match["phrase"]], name))
    return tuple(specs), tail["name"] if tail else None


def scene_from_caption(caption: str, *, background: str = "black", size: str = "large", seed: int = 0) -> Scene:
    """Build a scene that ``caption`` describes; what it does not say comes from the arguments.

    Raises InvalidArgumentError for a caption that is not of the shapes data.
    """
    specs, said = parse_caption(caption, size)
    return compose_scene(specs, background=said or background, seed=seed)
