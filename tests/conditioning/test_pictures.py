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
    unit = (clip + 1) / 2  # floating point is [0, 1]
    forms = [array, array[:, ::-1][:, ::-1], Image.fromarray(array)]
    forms += [unit, unit.double(), unit.permute(1, 2, 0).numpy(), array / 255]
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
        "tensor": torch.from_numpy(array).permute(2, 0, 1) / 255,
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
    for form in (checks, checks / 255):
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
        (np.zeros((12, 16, 4), np.uint8), r"shape \(12, 16, 4\); expected \(height, width, 3\)"),
        (np.zeros((12, 16, 3), np.int64), "array of int64"),
        (torch.zeros(3, 12, 16, dtype=torch.uint8), "tensor of torch.uint8"),
        (torch.zeros(12, 16, 3), r"shape \(12, 16, 3\); expected \(3, height, width\) of floating point"),
        (torch.full((3, 12, 16), 2.0), r"from 2 to 2; expected \[0, 1\]. Values in 0..255"),
        (np.full((12, 16, 3), 255.0), r"from 255 to 255; expected \[0, 1\]"),
        (torch.full((3, 12, 16), -1.5), r"from -1.5 to -1.5; expected \[0, 1\]"),
        (torch.full((3, 12, 16), float("nan")), r"expected \[0, 1\]"),
        (torch.full((3, 12, 16), float("inf")), r"expected \[0, 1\]"),
        (np.zeros((16, 12, 3), np.uint8), r"has 16 x 12 pixels.*expected 12 x 16.*resize='crop'"),
        ("picture.png", "is picture.png, which does not exist"),
        (Path("tests"), "is tests, which is no picture"),
        (None, "is a NoneType"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(picture: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"the picture for frame 3:? .*{message}"):
        pixels_of(picture, SIZE, "the picture for frame 3")


def test_tensors_in_minus_one_to_one_are_taken_as_such_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    array = frames()
    clip = expected(array)
    clip[:, 3] = clip[:, 3].abs()  # one frame has no value below 0: it is judged with the others
    for form in (clip, list(clip.unbind(1)), clip.permute(1, 2, 3, 0).numpy(), clip.transpose(0, 1)):
        caplog.clear()
        assert torch.equal(clip_of(form, SIZE, "it"), clip)
        (warning,) = caplog.messages
        assert "it: floating-point values from -1 to 1 are taken as [-1, 1]" in warning
    caplog.clear()
    assert torch.equal(pixels_of(clip[:, 0], SIZE, "it"), clip[:, 0])
    assert "taken as [-1, 1]" in caplog.text


def test_what_rounding_misses_the_range_by_is_clipped_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    picture = torch.tensor([-0.0015, 0.5, 1.0015]).expand(3, 2, 3)
    assert torch.equal(pixels_of(picture, (2, 3), "it")[0, 0], torch.tensor([-1.0, 0.0, 1.0]))
    assert not caplog.messages


def test_what_is_transparent_is_white() -> None:
    array = np.zeros((*SIZE, 4), np.uint8)
    array[..., :3] = (255, 0, 255)  # hidden
    array[4:8, 4:8] = (0, 255, 0, 255)
    array[8:, 8:] = (0, 0, 0, 51)  # a fifth black
    want = np.full((*SIZE, 3), 255, np.uint8)
    want[4:8, 4:8] = (0, 255, 0)
    want[8:, 8:] = 204
    found = pixels_of(Image.fromarray(array), SIZE, "it")
    assert torch.allclose(found, expected(want[None])[:, 0], atol=1.5 / 127.5)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([255, 0, 255, 0, 0, 255])
    palette.info["transparency"] = 0
    assert pixels_of(palette, (1, 2), "it")[:, 0].T.tolist() == [[1, 1, 1], [-1, -1, 1]]
    grey = Image.merge("LA", [Image.new("L", (2, 1), 9), Image.fromarray(np.array([[0, 255]], np.uint8))])
    assert (pixels_of(grey, (1, 2), "it")[0, 0] * 127.5 + 127.5).round().tolist() == [255, 9]


def test_grey_of_more_bits_stays_a_ramp(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).round().astype(np.uint16), (4, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    want = torch.linspace(-1, 1, 256)
    forms = [Image.fromarray(ramp), tmp_path / "ramp.png", Image.fromarray(ramp.astype(np.int32))]
    for form in [*forms, Image.fromarray((ramp / 65535).astype(np.float32))]:
        assert torch.allclose(pixels_of(form, (4, 256), "it")[0, 0], want, atol=0.005)
    with pytest.raises(InvalidArgumentError, match=r"from 0 to 6.554e\+04; expected \[0, 1\]"):
        pixels_of(Image.fromarray(ramp.astype(np.float32)), (4, 256), "it")


def test_a_file_is_a_picture_turned_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = frames(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: turn by 90 degrees
    Image.fromarray(np.rot90(array).copy()).save(tmp_path / "a.png", exif=exif)
    monkeypatch.setenv("HOME", str(tmp_path))
    for form in (tmp_path / "a.png", str(tmp_path / "a.png"), "~/a.png"):
        assert torch.equal(pixels_of(form, SIZE, "it"), expected(array[None])[:, 0])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InvalidArgumentError, match=r"it is .*text\.png, which is no picture"):
        pixels_of(tmp_path / "text.png", SIZE, "it")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # of more than twice as many, PIL says it is a bomb
    with pytest.raises(InvalidArgumentError, match="decompression bomb"):
        pixels_of(tmp_path / "a.png", SIZE, "it")


def test_an_unknown_way_to_resize_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="'crop'"):
        pixels_of(frames(1)[0], SIZE, "it", resize="krop")


def test_one_video_comes_out_equal_in_every_form(tmp_path: Path) -> None:
    array = frames()
    video = Video(array, 8)
    clip = expected(array)
    files = [video.save(tmp_path / "video.mp4", lossless=True), video.save(tmp_path / "pictures")]
    unit = (clip + 1) / 2
    lists = [list(array), [Image.fromarray(frame) for frame in array], tuple(unit.unbind(1))]
    paths = [files[1] / f"{i:05d}.png" for i in range(5)]
    arrays = [array, array / 255, unit.transpose(0, 1), unit]
    batches = [(array / 255)[None], unit.transpose(0, 1)[None]]
    for form in [video, *files, str(files[0]), *lists, paths, *arrays, *batches]:
        found = clip_of(form, SIZE, "it")
        assert found.shape == (3, 5, *SIZE)
        assert torch.allclose(found, clip, atol=1e-6), form
        assert torch.equal(clip_of(form, SIZE, "it", num_frames=2), found[:, :2])


def test_three_frames_of_a_tensor_come_first_as_in_results() -> None:
    array = frames(3)
    clip = expected(array)
    assert torch.allclose(clip_of((clip.transpose(0, 1) + 1) / 2, SIZE, "it"), clip, atol=1e-6)
    with pytest.raises(InvalidArgumentError, match=r"either side could be the frames. Give \(frames, 3"):
        clip_of(Video(array, 8).to_tensor(), SIZE, "it")


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
        (torch.zeros(2, 5, 3, 12, 16), r"Tensor of shape \(2, 5, 3, 12, 16\); expected a Video"),
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
