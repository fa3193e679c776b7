from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vidgen.conditioning import clip_of, pixels_of
from vidgen.errors import InvalidArgumentError, UnknownNameError, VideoError
from vidgen.video import Video

SIZE = (12, 16)


def frames(count: int = 5, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def expected(array: np.ndarray) -> torch.Tensor:
    """Frames (f, h, w, 3) as a clip."""
    return torch.from_numpy(array).permute(3, 0, 1, 2).float() / 127.5 - 1


def test_one_picture_comes_out_equal_in_every_form() -> None:
    array = frames(1)[0]
    clip = expected(array[None])[:, 0]
    alpha = Image.fromarray(np.dstack([array, np.full(SIZE, 9, np.uint8)]), "RGBA")
    forms = [array, array[:, ::-1][:, ::-1], Image.fromarray(array), alpha, clip, clip.double()]
    for form in forms:
        found = pixels_of(form, SIZE, "it")
        assert found.dtype == torch.float32
        assert torch.allclose(found, clip, atol=1e-6)
    grey = pixels_of(Image.fromarray(array[..., 0]), SIZE, "it")
    assert torch.equal(grey, clip[:1].expand(3, -1, -1))


def test_the_given_picture_is_never_changed_through_the_result() -> None:
    array = frames(1)[0]
    before = array.copy()
    pixels_of(array, SIZE, "it").zero_()
    assert (array == before).all()


@pytest.mark.parametrize("form", ["array", "pil", "tensor"])
def test_crop_covers_the_size_and_keeps_the_centre(form: str) -> None:
    # 24 x 64 covers 12 x 16 as 12 x 32; of its columns 8..24 stay, which are 16..48 of the picture.
    array = np.zeros((24, 64, 3), np.uint8)
    array[:, 16:48] = (255, 0, 0)
    array[:12, 16:48, 2] = 255
    picture: Any = {
        "array": array,
        "pil": Image.fromarray(array),
        "tensor": expected(array[None])[:, 0],
    }[form]
    found = pixels_of(picture, SIZE, "it", resize="crop")
    assert found.shape == (3, *SIZE)
    assert found.abs().max() <= 1
    inside = found[:, :, 2:-2]
    assert torch.allclose(inside[0], torch.ones(12, 12), atol=0.02)
    assert (inside[2, :4] > 0.97).all()
    assert (inside[2, 8:] < -0.97).all()


def test_crop_leaves_a_picture_that_fits_and_antialiases_one_that_does_not() -> None:
    array = frames(1)[0]
    assert torch.equal(pixels_of(array, SIZE, "it", resize="crop"), pixels_of(array, SIZE, "it"))
    checks = (np.indices((60, 80)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    for form in (checks, expected(checks[None])[:, 0]):
        assert pixels_of(form, SIZE, "it", resize="crop").abs().max() < 0.1  # grey, no aliases


def test_the_odd_pixel_of_a_crop_is_the_same_for_arrays_and_tensors() -> None:
    array = frames(1, (12, 19))[0]
    found = pixels_of(array, SIZE, "it", resize="crop")
    assert torch.equal(found, expected(array[None, :, 1:17])[:, 0])
    assert torch.equal(found, pixels_of(expected(array[None])[:, 0], SIZE, "it", resize="crop"))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((12, 16), np.uint8), r"array of uint8 and shape \(12, 16\)"),
        (np.zeros((12, 16, 4), np.uint8), r"shape \(12, 16, 4\).*expected uint8 of shape"),
        (np.zeros((12, 16, 3)), "array of float64"),
        (torch.zeros(3, 12, 16, dtype=torch.uint8), "tensor of torch.uint8"),
        (torch.zeros(12, 16, 3), r"shape \(12, 16, 3\); expected floating point"),
        (torch.full((3, 12, 16), 2.0), r"from 2 to 2; expected \[-1, 1\]"),
        (torch.full((3, 12, 16), float("nan")), r"expected \[-1, 1\]"),
        (np.zeros((16, 12, 3), np.uint8), r"has 16 x 12 pixels.*expected 12 x 16.*resize='crop'"),
        ("picture.png", "is a str; expected a PIL image"),
        (None, "is a NoneType"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(picture: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"the picture for frame 3 .*{message}"):
        pixels_of(picture, SIZE, "the picture for frame 3")


def test_an_unknown_way_to_resize_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="'crop'"):
        pixels_of(frames(1)[0], SIZE, "it", resize="krop")


def test_one_video_comes_out_equal_in_every_form(tmp_path: Path) -> None:
    array = frames()
    video = Video(array, 8)
    clip = expected(array)
    files = [video.save(tmp_path / "video.mp4", lossless=True), video.save(tmp_path / "pictures")]
    lists = [list(array), [Image.fromarray(frame) for frame in array], tuple(clip.unbind(1))]
    for form in [video, *files, str(files[0]), *lists, array, clip]:
        found = clip_of(form, SIZE, "it")
        assert found.shape == (3, 5, *SIZE)
        assert torch.allclose(found, clip, atol=1e-6), form
        assert torch.equal(clip_of(form, SIZE, "it", num_frames=2), found[:, :2])


def test_frames_are_cropped_like_pictures() -> None:
    array = frames(3, (30, 50))
    found = clip_of(array, SIZE, "it", resize="crop")
    for i in range(3):
        assert torch.equal(found[:, i], pixels_of(array[i], SIZE, "it", resize="crop"))


def test_a_file_is_read_no_further_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Video(frames(40), 8).save(tmp_path / "video.mp4", lossless=True)
    from vidgen.video import VideoReader

    converted = []
    convert = VideoReader._convert
    monkeypatch.setattr(VideoReader, "_convert", lambda *a: converted.append(1) or convert(*a))
    clip_of(path, SIZE, "it", num_frames=3)
    assert len(converted) == 3


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ([], "the video has no frames"),
        (np.zeros((0, 12, 16, 3), np.uint8), "the video has no frames"),
        (frames()[0], r"ndarray of shape \(12, 16, 3\); expected a Video"),
        (3, "is a int; expected a Video"),
        ([frames()[0], np.zeros((3, 3, 3), np.uint8)], "frame 1 of the video has 3 x 3 pixels"),
        (torch.zeros(1, 5, 12, 16), "frame 0 of the video is a tensor"),
    ],
)
def test_what_is_no_video_is_refused_by_name(video: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        clip_of(video, SIZE, "the video")


def test_no_frames_asked_for_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="num_frames=0"):
        clip_of(frames(), SIZE, "it", num_frames=0)
    with pytest.raises(VideoError, match=r"nothing\.mp4"):
        clip_of(tmp_path / "nothing.mp4", SIZE, "it")
