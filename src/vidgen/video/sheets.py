"""Contact sheets of several videos or pictures in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vidgen.video.result import Video

__all__ = ["picture_sheet", "video_sheet"]


def video_sheet(videos: Sequence[Video], columns: int = 8) -> Image.Image:
    """Return a picture with a row for each video: ``columns`` evenly spaced frames, first and last included."""
    rows = []
    for video in videos:
        chosen = np.linspace(0, video.num_frames - 1, columns).round().astype(int)
        rows.append(_row([video.frames[k] for k in chosen]))
    return _picture(rows)


def picture_sheet(pictures: Sequence[np.ndarray], columns: int = 8) -> Image.Image:
    """Return ``pictures`` (h w 3, uint8, of one size) in rows of ``columns``; the last is filled with white."""
    blank = np.full_like(pictures[0], 255)
    padded = [*pictures, *[blank] * (-len(pictures) % columns)]
    return _picture([_row(padded[i : i + columns]) for i in range(0, len(padded), columns)])


def _row(pictures: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([_framed(picture) for picture in pictures], axis=1)


def _framed(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=255)


def _picture(rows: Sequence[np.ndarray]) -> Image.Image:
    return Image.fromarray(np.concatenate(list(rows), axis=0))
