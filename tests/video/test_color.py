"""Pictures of every mode as 8-bit RGB."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vidgen.video.color import opaque, to_rgb


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La"])
def test_what_is_transparent_is_white_in_every_mode(mode: str) -> None:
    alpha = Image.fromarray(np.array([[0, 255, 51]], np.uint8))
    picture = Image.merge("LA", [Image.new("L", (3, 1), 0), alpha])
    picture = picture.convert("RGBA").convert(mode) if mode.startswith("RGB") else picture.convert(mode)
    assert np.asarray(to_rgb(picture)).tolist() == [[[255] * 3, [0] * 3, [204] * 3]]
    assert np.asarray(opaque(picture, 0).convert("L")).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(("dtype", "top"), [(np.uint16, 65535), (np.int32, 65535), (np.float32, 1)])
def test_grey_of_more_bits_is_scaled_whatever_it_holds(dtype: type, top: int) -> None:
    for values in ([0, 0.25, 1], [0, 0, 0.003]):  # a dark picture stays dark
        picture = Image.fromarray((np.array([values]) * top).astype(dtype))
        assert np.abs(np.asarray(to_rgb(picture))[0, :, 1] - np.array(values) * 255).max() <= 0.5


def test_what_has_8_bits_stays() -> None:
    grey = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    assert np.array_equal(np.asarray(to_rgb(grey))[0, :, 2], np.arange(256))
