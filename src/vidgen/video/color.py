"""From a decoded frame to upright RGB: matrix, range, bit depth, size and rotation.

Decoders give Y'CbCr in the matrix and range that the file's tags name. Using the wrong ones
shifts every colour, so both are passed to swscale by hand instead of left to its guess.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from vidgen.errors import InvalidArgumentError, UnknownNameError, VideoError

__all__ = [
    "ColorInfo",
    "FrameConverter",
    "Orientation",
    "Resample",
    "color_of",
    "eight_bit",
    "opaque",
    "orientation_of",
    "to_rgb",
]

Resample = Literal["bicubic", "bilinear", "area"]
_FILTERS = {
    "bicubic": Interpolation.BICUBIC,
    "bilinear": Interpolation.BILINEAR,
    "area": Interpolation.AREA,
}
# Rec. ITU-T H.273 table 4: matrix_coefficients; those that swscale can undo.
_MATRICES = {
    1: ("bt709", Colorspace.ITU709),
    4: ("fcc", Colorspace.FCC),
    5: ("bt601", Colorspace.ITU601),
    6: ("bt601", Colorspace.ITU601),
    7: ("smpte240m", Colorspace.SMPTE240M),
    9: ("bt2020", Colorspace.BT2020),
}
_UNTAGGED = (2, 3)
_SPACES = dict(_MATRICES.values())


@dataclass(frozen=True)
class ColorInfo:
    """How the samples of a file are to be read as colours.

    Args:
        matrix: ``"bt601"``, ``"bt709"``, ``"bt2020"``, ``"fcc"``, ``"smpte240m"`` or ``"rgb"``.
        full_range: True if black is 0 and white is the largest sample value.
        guessed: True if the file does not name its matrix: BT.709 is then assumed for HD
            (1280 wide or more, or higher than 576), BT.601 for anything smaller.
    """

    matrix: str
    full_range: bool
    guessed: bool


@dataclass(frozen=True)
class Orientation:
    """How decoded pixels are turned to be shown: rows and columns swapped first, then flipped."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def clockwise(self) -> int:
        """The rotation part in degrees clockwise: 0, 90, 180 or 270."""
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_x and self.flip_y else 0

    def apply(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn ``(h, w, 3)`` pixels; the result is a view."""
        if self.transpose:
            frame = frame.swapaxes(0, 1)
        return frame[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


def orientation_of(frame: VideoFrame) -> Orientation:
    """Orientation that the frame's display matrix asks for, to the nearest quarter turn."""
    entries = cast(SideDataContainer, frame.side_data)
    data = next((bytes(d) for d in entries if d.type == SideDataType.DISPLAYMATRIX), None)
    if data is None:
        return Orientation()
    # ISO/IEC 14496-12 8.2.2.3: x' = a x + c y, y' = b x + d y, y pointing down.
    a, b, _, c, d, *_ = struct.unpack("=9i", data[:36])
    if abs(a) >= abs(b):
        return Orientation(False, flip_x=a < 0, flip_y=d < 0)
    return Orientation(True, flip_x=c < 0, flip_y=b < 0)


def color_of(frame: VideoFrame) -> ColorInfo:
    """Matrix and range of a decoded frame.

    Raises:
        VideoError: the frame is tagged with a matrix that cannot be converted (YCgCo, ICtCp...).
    """
    if frame.format.is_rgb or frame.format.has_palette:
        return ColorInfo("rgb", True, False)
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    code = int(frame.colorspace)
    if code in _MATRICES:
        return ColorInfo(_MATRICES[code][0], full, False)
    if code not in _UNTAGGED:
        raise VideoError(
            f"the video's colour matrix (H.273 code {code}) cannot be converted to RGB; "
            f"convert the file to one of {', '.join(sorted(_SPACES))} first."
        )
    hd = frame.width >= 1280 or frame.height > 576
    return ColorInfo("bt709" if hd else "bt601", full, True)


def _matrix(color: ColorInfo) -> dict[str, Any]:
    """What swscale has to be told to read samples of ``color``."""
    if color.matrix == "rgb":
        return {}
    return {
        "src_colorspace": _SPACES[color.matrix],
        "src_color_range": ColorRange.JPEG if color.full_range else ColorRange.MPEG,
        "dst_color_range": ColorRange.JPEG,
    }


def _opaque(frame: VideoFrame, reformatter: VideoReformatter) -> VideoFrame:
    """Lay a frame with transparent parts over white, at its own size: no hidden colour bleeds out."""
    picture = reformatter.reformat(frame, format="rgba", threads=1, **_matrix(color_of(frame)))
    rgba = picture.to_ndarray().astype(np.uint8, copy=False)
    if frame.format.has_palette and not rgba[..., 3].any():
        rgba[..., 3] = 255  # a palette that knows nothing of transparency
    return VideoFrame.from_ndarray(_over(rgba, 255), format="rgb24")


def _over(rgba: NDArray[np.uint8], level: int) -> NDArray[np.uint8]:
    """Lay pixels ``(h, w, 4)`` with straight alpha over grey of ``level``; ``(h, w, 3)``."""
    if (rgba[..., 3] == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed: NDArray[np.uint8] = ((rgba[..., :3] * alpha + level * (255 - alpha) + 127) // 255).astype(np.uint8)
    return mixed


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture of any mode as 8-bit RGB, over white where it is transparent."""
    return opaque(eight_bit(picture), 255).convert("RGB")


def eight_bit(picture: Image.Image) -> Image.Image:
    """Return a picture in a mode of 8 bits; grey of 16 is scaled, floating point is [0, 1].

    PIL itself cuts 16 bits off at 255, so that nearly everything turns white.
    """
    if picture.mode == "F":
        scale = 255.0
    elif picture.mode == "I" or picture.mode.startswith("I;16"):  # older releases read 16-bit PNG as "I"
        scale = 1 / 257
    else:
        return picture
    grey = np.asarray(picture).astype(np.float64) * scale
    return Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))


def opaque(picture: Image.Image, level: int) -> Image.Image:
    """Return a picture of 8 bits over grey of ``level``: the colours of what is transparent are arbitrary."""
    if picture.mode not in ("RGBA", "RGBa", "LA", "La", "PA") and "transparency" not in picture.info:
        return picture
    picture = picture.convert("LA") if picture.mode == "La" else picture  # PIL goes no further at once
    return Image.fromarray(_over(np.asarray(picture.convert("RGBA")), level))


class FrameConverter:
    """Writes decoded frames as upright 8-bit RGB, resized in the same pass.

    Args:
        size: (height, width) of the result as shown; None keeps the frame's own.
        resample: filter for resizing; swscale widens it when shrinking, so nothing aliases.
        accurate: False uses swscale's fast path (colours within 3 of 255, chroma repeated);
            True rounds exactly and interpolates chroma (within 1), at several times the cost.
    """

    def __init__(
        self,
        size: tuple[int, int] | None = None,
        resample: Resample = "bicubic",
        accurate: bool = False,
    ) -> None:
        if resample not in _FILTERS:
            raise UnknownNameError("resample filter", str(resample), get_args(Resample))
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise InvalidArgumentError(f"size={size!r} is not (height, width) in pixels, each at least 1.")
        self.size = size
        self._reformatter = VideoReformatter()
        self._filter = _FILTERS[resample]
        if accurate:
            self._filter |= Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

    def shape(self, width: int, height: int, orientation: Orientation) -> tuple[int, int]:
        """(height, width) of the result for decoded frames of ``width`` x ``height``."""
        if self.size is not None:
            return self.size
        return (width, height) if orientation.transpose else (height, width)

    def write(self, frame: VideoFrame, out: NDArray[np.uint8], orientation: Orientation) -> None:
        """Convert ``frame`` into ``out``, ``(h, w, 3)``, scaling it to fit."""
        height, width = out.shape[:2]
        if orientation.transpose:
            height, width = width, height
        if any(component.is_alpha for component in frame.format.components) or frame.format.has_palette:
            frame = _opaque(frame, self._reformatter)
        color = color_of(frame)
        rgb = self._reformatter.reformat(
            frame, width, height, "rgb24", interpolation=self._filter, threads=1, **_matrix(color)
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        pixels = rows[:height, : width * 3].reshape(height, width, 3)
        out[...] = orientation.apply(pixels)
