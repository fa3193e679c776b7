"""Captions of the shapes data, written and read back."""

from __future__ import annotations

import pytest

from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.shapes.phrases import CAPTION_STYLES, describe, parse_caption, scene_from_caption
from vidgen.shapes.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, ShapeSpec

CIRCLE = ShapeSpec("circle", "red", "left", "small")
SQUARE = ShapeSpec("square", "blue", "bounce", "large")


def test_what_each_style_says() -> None:
    said = {style: describe([CIRCLE, SQUARE], "navy", style) for style in CAPTION_STYLES}
    assert said == {
        "short": "a red circle moves left and a blue square bounces",
        "size": "a small red circle moves left and a large blue square bounces",
        "background": "a red circle moves left and a blue square bounces on a navy background",
        "full": "a small red circle moves left and a large blue square bounces on a navy background",
    }


def test_reading_undoes_describing_for_every_object_and_background() -> None:
    for shape in SHAPES:
        for colour in COLOURS:
            for motion in MOTIONS:
                for size in SIZES:
                    spec = ShapeSpec(shape, colour, motion, size)
                    for style in ("short", "size"):
                        text = describe([spec, SQUARE], "black", style)
                        assert parse_caption(text, size)[0][0] == spec
    for background in BACKGROUNDS:
        text = describe([CIRCLE], background, "full")
        assert parse_caption(text) == ((CIRCLE,), background)
    assert parse_caption(" A red circle moves left. ", "small") == ((CIRCLE,), None)


def test_a_scene_made_from_a_caption_is_what_it_says() -> None:
    scene = scene_from_caption("a small red circle moves left on a brown background", seed=3)
    assert scene.specs == (CIRCLE,)
    assert scene.background == "brown"
    assert scene != scene_from_caption("a small red circle moves left", background="brown")
    again = scene_from_caption("a small red circle moves left", background="brown", seed=3)
    assert scene == again


def test_words_it_does_not_know() -> None:
    for caption in ("a dog runs", "a red circle moves left and", "a red circle jumps", ""):
        with pytest.raises(InvalidArgumentError, match="expected 'a "):
            parse_caption(caption)
    with pytest.raises(UnknownNameError, match="'short'"):
        describe([CIRCLE], "navy", "shrot")
