"""Contact sheets of several videos."""

from __future__ import annotations

import numpy as np

from vidgen.video import Video
from vidgen.video.sheets import picture_sheet, video_sheet


def grey_levels(count: int) -> np.ndarray:
    levels = 10 * np.arange(count, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, 4, 4, 3)).copy()


def test_a_row_for_each_video_from_its_first_frame_to_its_last() -> None:
    frames = grey_levels(16)
    sheet = np.asarray(video_sheet([Video(frames, 8), Video(frames[::-1].copy(), 8)], columns=4))
    assert sheet.shape == (12, 24, 3)
    centres = sheet[3::6, 3::6, 0]
    assert centres.tolist() == [[0, 50, 100, 150], [150, 100, 50, 0]]
    assert (sheet[0] == 255).all()  # a white frame keeps dark pictures apart


def test_videos_of_other_lengths_share_a_sheet() -> None:
    sheet = np.asarray(video_sheet([Video(grey_levels(3), 8), Video(grey_levels(9), 8)], columns=3))
    assert sheet[3::6, 3::6, 0].tolist() == [[0, 10, 20], [0, 40, 80]]


def test_the_last_row_of_pictures_is_filled_with_white() -> None:
    sheet = np.asarray(picture_sheet(list(grey_levels(3)), columns=2))
    assert sheet[3::6, 3::6, 0].tolist() == [[0, 10], [20, 255]]
