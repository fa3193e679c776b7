from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vidgen.conditioning import mask_of
from vidgen.errors import InvalidArgumentError, UnknownNameError, VideoError
from vidgen.video import Video

SIZE = (4, 6)
PER_FRAME = [True, False, True]


def of(mask: Any, **more: Any) -> torch.Tensor:
    return mask_of(mask, 3, SIZE, "the mask", **more)


@pytest.mark.parametrize(
    "mask",
    [
        PER_FRAME,
        (1, 0, 1),
        [1.0, 0.2, 0.7],
        np.array(PER_FRAME),
        torch.tensor([1, 0, 1], dtype=torch.uint8),
        torch.tensor([0.5, 0.49, 1.0]),
        [np.True_, np.False_, np.int64(1)],
    ],
)
def test_one_value_per_frame_holds_for_all_its_pixels(mask: Any) -> None:
    found = of(mask)
    assert found.dtype == torch.bool
    assert torch.equal(found, torch.tensor(PER_FRAME)[:, None, None].expand(3, *SIZE))


def test_a_file_a_folder_and_an_animation_are_masks(tmp_path: Path) -> None:
    white, black = Image.new("L", (6, 4), 255), Image.new("L", (6, 4), 0)
    white.save(tmp_path / "a.png")
    assert of(tmp_path / "a.png").all()
    (tmp_path / "each").mkdir()
    for i, value in enumerate(PER_FRAME):
        (white if value else black).save(tmp_path / "each" / f"{i}.png")
    white.save(tmp_path / "mask.gif", save_all=True, append_images=[black, white])
    clip = np.stack([np.asarray(p.convert("RGB").resize((16, 16))) for p in (white, black, white)])
    Video(clip, 8).save(tmp_path / "mask.mp4")
    want = torch.tensor(PER_FRAME)[:, None, None].expand(3, *SIZE)
    for name in ("each", "mask.gif"):
        assert torch.equal(of(str(tmp_path / name)), want)
    assert torch.equal(of(tmp_path / "mask.mp4", resize="crop"), want)
    (tmp_path / "empty").mkdir()
    for name, message in {"none.png": "does not exist", "empty": "holds no picture"}.items():
        with pytest.raises(InvalidArgumentError, match=f"the mask is .*{name}, which {message}"):
            of(tmp_path / name)
    (tmp_path / "text.png").write_text("neither")
    with pytest.raises(VideoError, match=r"text\.png"):
        of(tmp_path / "text.png")


def test_of_16_bits_white_begins_in_the_middle_and_what_is_transparent_stays() -> None:
    grey = np.array([[0, 300, 32000, 33500, 65535, 65535]] * 4, np.uint16)
    assert of(Image.fromarray(grey))[0, 0].tolist() == [False, False, False, True, True, True]
    alpha = Image.fromarray(np.array([[0] * 3 + [255] * 3] * 4, np.uint8))
    painted = Image.merge("LA", [Image.new("L", (6, 4), 255), alpha])
    assert of(painted)[0, 0].tolist() == [False] * 3 + [True] * 3


def picture() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[1:3, 2:] = True
    return mask


@pytest.mark.parametrize("kind", ["bool", "int", "float", "uint8", "pil", "pil-1", "tensor"])
def test_one_picture_holds_for_all_frames_and_a_list_frame_by_frame(kind: str) -> None:
    def form(mask: np.ndarray) -> Any:
        return {
            "bool": mask,
            "int": mask.astype(np.int64),
            "float": mask.astype(np.float32),
            "uint8": np.where(mask, 128, 127).astype(np.uint8),
            "pil": Image.fromarray(np.where(mask, 128, 127).astype(np.uint8)),
            "pil-1": Image.fromarray(mask),
            "tensor": torch.from_numpy(mask),
        }[kind]

    one = torch.from_numpy(picture())
    assert torch.equal(of(form(picture())), one.expand(3, *SIZE))
    each = of([form(picture()), form(~picture()), form(picture())])
    assert torch.equal(each, torch.stack([one, ~one, one]))


def test_an_array_of_pictures_is_taken_frame_by_frame() -> None:
    mask = np.stack([picture(), ~picture(), np.ones(SIZE, bool)])
    assert torch.equal(of(mask), torch.from_numpy(mask))
    assert torch.equal(of(mask.astype(np.uint8) * 255), torch.from_numpy(mask))


def test_crop_covers_and_keeps_the_centre() -> None:
    wide = np.zeros((8, 20), bool)  # 4 x 10 after scaling; columns 2..8 of it stay
    wide[:4, 4:6] = True
    wide[:, 7] = True  # a thin line stays whole: no mixing with its neighbours
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[:2, 0] = True
    expected[:, 1] = True
    assert torch.equal(of(wide, resize="crop"), expected.expand(3, *SIZE))
    assert of(PER_FRAME, resize="crop")[:, 0, 0].tolist() == PER_FRAME
    with pytest.raises(InvalidArgumentError, match=r"8 x 20 pixels.*expected 4 x 6.*resize='crop'"):
        of(wide)
    with pytest.raises(UnknownNameError, match="refuse"):
        of(wide, resize="squash")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([True, False], r"shape \(2, 4, 6\) for a video of 3 frames"),
        (np.zeros((2, *SIZE)), r"shape \(2, 4, 6\) for a video of 3 frames"),
        (np.zeros((1, 3, *SIZE)), r"shape \(1, 3, 4, 6\)"),
        (True, r"shape \(\) for a video"),
        ([], "shape"),
        ([0, 1, 2], "entry 2 of the mask holds values from 2 to 2"),
        (np.array([0, 255, 0]), "values from 0 to 255"),
        (np.full(SIZE, -0.5), "values from -0.5 to -0.5"),
        (np.full(SIZE, np.nan), "values from nan"),
        (np.full(SIZE, 1.5), "values from 1.5"),
        ([True, picture(), True], "entries of 2 shapes"),
        (b"101", "the mask is a bytes"),
        (None, "the mask is a NoneType"),
    ],
)
def test_what_is_no_mask_is_refused_with_what_is(mask: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{message}.*true or white is generated anew"):
        of(mask)
