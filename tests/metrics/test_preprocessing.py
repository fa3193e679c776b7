"""Pixels as networks want them, against closed forms and a float64 interpolation of its own."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.metrics.extractors.preprocessing import Preprocessing, check_clips


def clips(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def bilinear(rows: np.ndarray, size: int) -> np.ndarray:
    """Along the first axis, with half-pixel centres, in float64."""
    have = len(rows)
    where = np.clip((np.arange(size) + 0.5) * have / size - 0.5, 0, have - 1)
    low = np.floor(where).astype(int)
    high = np.minimum(low + 1, have - 1)
    share = (where - low).reshape(-1, *[1] * (rows.ndim - 1))
    return rows[low] * (1 - share) + rows[high] * share


def resized(clip: torch.Tensor, height: int, width: int) -> np.ndarray:
    pixels = np.moveaxis(clip.double().numpy(), (3, 4), (0, 1))
    pixels = bilinear(pixels, height)
    pixels = np.swapaxes(bilinear(np.swapaxes(pixels, 0, 1), width), 0, 1)
    return np.moveaxis(pixels, (0, 1), (3, 4))


def test_left_alone_by_default() -> None:
    given = clips(2, 3, 4, 6, 5)
    assert torch.equal(Preprocessing().apply(given), given)


@pytest.mark.parametrize(("height", "width", "size"), [(9, 14, 6), (5, 4, 11), (16, 16, 7)])
def test_squash_is_bilinear_interpolation_in_both_directions(height: int, width: int, size: int) -> None:
    given = clips(2, 3, 2, height, width)
    out = Preprocessing(size=size).apply(given)
    np.testing.assert_allclose(out.numpy(), resized(given, size, size), atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "target", "top", "left"),
    [(10, 20, (5, 10), 0, 2), (21, 10, (11, 5), 3, 0), (4, 6, (5, 8), 0, 1)],
)
def test_crop_scales_the_short_side_and_cuts_out_the_centre(
    height: int, width: int, target: tuple[int, int], top: int, left: int
) -> None:
    given = clips(1, 3, 2, height, width)
    out = Preprocessing(size=5, resize="crop").apply(given)
    whole = resized(given, *target)
    np.testing.assert_allclose(out.numpy(), whole[..., top : top + 5, left : left + 5], atol=1e-5)


@pytest.mark.parametrize("side", [10, 49, 93, 107, 117, 300])
def test_a_square_is_never_cropped_after_a_rounding_error(side: int) -> None:
    given = clips(1, 3, 1, side, side)
    assert torch.equal(
        Preprocessing(size=224, resize="crop").apply(given), Preprocessing(size=224).apply(given)
    )


def test_antialiasing_takes_a_wider_filter() -> None:
    given = clips(1, 3, 1, 8, 8)
    plain = Preprocessing(size=4).apply(given)[0, :, 0, 1, 1]
    smooth = Preprocessing(size=4, antialias=True).apply(given)[0, :, 0, 1, 1]
    torch.testing.assert_close(plain, given[0, :, 0, 2:4, 2:4].mean((1, 2)))
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    torch.testing.assert_close(smooth, torch.einsum("cij,i,j->c", given[0, :, 0, 1:5, 1:5], weights, weights))


def test_bicubic_differs_and_stays_within_the_pixels_range() -> None:
    given = torch.ones(1, 3, 1, 8, 8)
    given[..., 4:] = -1
    cubic = Preprocessing(size=16, interpolation="bicubic").apply(given)
    assert not torch.allclose(cubic, Preprocessing(size=16).apply(given), atol=1e-2)
    assert cubic.abs().max() == 1


def test_range_then_mean_and_std_of_each_channel() -> None:
    given = clips(1, 3, 2, 4, 4)
    out = Preprocessing(value_range=(0, 255), mean=(10, 20, 30), std=(1, 2, 4)).apply(given)
    for channel, (mean, std) in enumerate([(10, 1), (20, 2), (30, 4)]):
        expected = ((given[:, channel].double() + 1) * 127.5 - mean) / std
        torch.testing.assert_close(out[:, channel].double(), expected, atol=1e-4, rtol=1e-5)
    half = Preprocessing(value_range=(-0.5, 0.5)).apply(given)
    torch.testing.assert_close(half, given / 2)


def test_quantised_to_the_levels_of_a_file_before_resizing() -> None:
    levels = torch.tensor([0.0, 1.0, 100.0, 255.0]).reshape(1, 1, 1, 1, 4).expand(1, 3, 1, 1, 4)
    given = (levels + 0.3) / 127.5 - 1
    out = Preprocessing(quantise=True, value_range=(0, 255)).apply(given)
    torch.testing.assert_close(out, levels, atol=1e-4, rtol=0)
    small = Preprocessing(quantise=True, value_range=(0, 255), size=1).apply(given)
    torch.testing.assert_close(small, torch.full_like(small, 50.5), atol=1e-4, rtol=0)


def test_values_beyond_white_and_black_are_clamped() -> None:
    given = torch.full((1, 3, 1, 2, 2), 1.3)
    given[..., 0] = -2
    out = Preprocessing().apply(given)
    assert set(out.unique().tolist()) == {-1.0, 1.0}


def test_layouts() -> None:
    given = clips(2, 3, 4, 5, 5)
    assert torch.equal(Preprocessing(layout="b f c h w").apply(given), given.transpose(1, 2))
    frames = Preprocessing(layout="(b f) c h w")
    assert frames.per_frame
    assert torch.equal(frames.apply(given), given.transpose(1, 2).reshape(8, 3, 5, 5))
    assert not Preprocessing().per_frame


def test_frames_are_chosen_and_never_repeated() -> None:
    given = clips(1, 3, 9, 2, 2)
    assert torch.equal(Preprocessing(num_frames=4).apply(given), given[:, :, :4])
    assert torch.equal(Preprocessing(num_frames=4, frames="centre").apply(given), given[:, :, 2:6])
    with pytest.raises(InvalidArgumentError, match=r"9 frames.*takes 10"):
        Preprocessing(num_frames=10).apply(given)


def test_the_given_tensor_keeps_its_values_and_half_precision_is_computed_in_float32() -> None:
    given = clips(1, 3, 2, 6, 6).half()
    before = given.clone()
    everything = Preprocessing(
        size=4, quantise=True, value_range=(0, 1), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
    )
    assert everything.apply(given).dtype == torch.float32
    assert torch.equal(given, before)


def test_every_field_is_in_the_json_and_changes_it() -> None:
    plain = Preprocessing()
    changed = {
        "size": 8,
        "resize": "crop",
        "interpolation": "bicubic",
        "antialias": True,
        "value_range": (0.0, 1.0),
        "layout": "b f c h w",
        "num_frames": 3,
        "frames": "centre",
        "quantise": True,
    }
    both = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}
    assert changed.keys() | both.keys() == {field.name for field in dataclasses.fields(Preprocessing)}
    for field, value in changed.items():
        found = dataclasses.replace(plain, **{field: value}).to_json()
        assert json.loads(json.dumps(found)) == found != plain.to_json()
        assert list(found) == list(plain.to_json())
    assert Preprocessing(**both).to_json()["mean"] == [0.1, 0.2, 0.3]
    assert json.dumps(Preprocessing(value_range=(0, 255)).to_json()) == json.dumps(
        Preprocessing(value_range=(0.0, 255.0)).to_json()
    )


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"resize": "squish"}, UnknownNameError, "squash"),
        ({"layout": "b h w c"}, UnknownNameError, "layout"),
        ({"frames": "center"}, UnknownNameError, "centre"),
        ({"interpolation": "linear"}, UnknownNameError, "bilinear"),
        ({"size": 0}, InvalidArgumentError, "size is 0"),
        ({"num_frames": 0}, InvalidArgumentError, "num_frames is 0"),
        ({"value_range": (1.0, 0.0)}, InvalidArgumentError, "low < high"),
        ({"mean": (0.0, 0.0, 0.0)}, InvalidArgumentError, "three numbers"),
        ({"mean": (0.0,), "std": (1.0,)}, InvalidArgumentError, "three numbers"),
        ({"mean": (0.0,) * 3, "std": (1.0, 0.0, 1.0)}, InvalidArgumentError, "above 0"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Preprocessing(**fields)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(1, 1, 4, 8, 8), "RGB"),
        (torch.zeros(0, 3, 4, 8, 8), "at least one video"),
        (torch.zeros(1, 3, 2, 8, 8), r"2 frames.*needs 3"),
        (torch.full((1, 3, 3, 8, 8), 255.0), r"reach 255.*127\.5"),
        (torch.full((1, 3, 3, 8, 8), float("nan")), "reach nan"),
    ],
)
def test_clips_that_cannot_be_described_are_refused(given: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        check_clips(given, "i3d_k400", 3)
