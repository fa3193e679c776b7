"""Stories: captions change, identities stay, nothing jumps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from vidgen.errors import InvalidArgumentError
from vidgen.shapes.story import ShapesStory
from vidgen.shapes.synthetic import ShapesDataset

STORY = ShapesStory(12, num_frames=480, objects=(1, 3), segment=(32, 64), seed=2)


def test_positions_are_continuous_and_identities_persist() -> None:
    for index in range(len(STORY)):
        truth = STORY.truth(index, range(480))
        steps = np.abs((np.diff(truth.positions, axis=0) + 32) % 64 - 32)
        assert steps.max() < 0.17 * 64  # the fastest motion there is: a high bounce
        scenes = [segment.scene for segment in STORY.segments(index)]
        looks = {tuple((spec.shape, spec.colour, spec.size) for spec in scene.specs) for scene in scenes}
        assert len(looks) == 1
        assert len({scene.background for scene in scenes}) == 1
        for before, after in pairwise(STORY.segments(index)):
            for item, successor in zip(before.scene.objects, after.scene.objects, strict=True):
                left_at = item.positions([before.stop - before.start])
                np.testing.assert_allclose(left_at, successor.positions([0]), atol=1e-12)


def test_captions_tile_the_story_and_each_differs_from_the_one_before() -> None:
    for index in range(len(STORY)):
        captions = STORY.captions(index)
        assert captions[0][0] == 0
        assert captions[-1][1] == 480
        for (_, stop, text), (start, end, later) in pairwise(captions):
            assert stop == start
            assert text != later
            assert STORY.caption_at(index, start) == later
            assert STORY.caption_at(index, start - 1) == text
            assert 32 <= end - start < 96


def test_every_object_changes_its_motion_at_a_border() -> None:
    for index in range(len(STORY)):
        truth = STORY.truth(index, range(480))
        for start, _, _ in STORY.captions(index)[1:]:
            pairs = zip(truth.motions[start - 1], truth.motions[start], strict=True)
            assert all(before != after for before, after in pairs)


def test_motion_agrees_with_the_caption_within_each_segment() -> None:
    signs = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}
    checked = 0
    for index in range(len(STORY)):
        for start, stop, _ in STORY.captions(index):
            truth = STORY.truth(index, range(start, stop))
            steps = (np.diff(truth.positions, axis=0) + 32) % 64 - 32
            for column, motion in enumerate(truth.motions[0]):
                if motion in signs:
                    axis, sign = signs[motion]
                    assert (sign * steps[:, column, axis] > 1).all()
                    checked += 1
    assert checked > 50


def test_only_straight_paths_leave_the_view() -> None:
    checked = 0
    for index in range(len(STORY)):
        for segment in STORY.segments(index):
            for item in segment.scene.objects:
                margin = item.spec.extent
                path = item.positions(range(segment.stop - segment.start))
                begins_inside = ((path[0] > margin) & (path[0] < 1 - margin)).all()
                if item.spec.motion == "bounce" and begins_inside:
                    assert path[:, 1].min() > margin
                    assert path[:, 1].max() < 1 - margin
                    checked += 1
    assert checked > 5


def test_frames_across_a_border_equal_frames_drawn_alone() -> None:
    border = STORY.captions(4)[1][0]
    frames = [border + 1, border - 1, 479, border]
    together = STORY.render(4, frames)
    again = ShapesStory(12, num_frames=480, objects=(1, 3), segment=(32, 64), seed=2)
    for number, frame in zip(frames, together, strict=True):
        np.testing.assert_array_equal(again.render(4, [number])[0], frame)


def test_truth_is_in_the_pixels_at_the_end_of_a_story() -> None:
    for index in range(len(STORY)):
        truth = STORY.truth(index, range(440, 480, 5))
        pixels = STORY.render(index, range(440, 480, 5)).astype(int)
        for row, column in np.argwhere(truth.visibility > 0.999):
            x, y = np.rint(truth.positions[row, column]).astype(int) % 64
            assert np.abs(pixels[row, y, x] - truth.rgb[column]).max() <= 2


def test_a_story_is_not_the_shapes_data_again() -> None:
    scenes = {ShapesDataset(12, seed=2).scene(i) for i in range(12)}
    assert not scenes & {STORY.segments(i)[0].scene for i in range(12)}
    assert STORY.content_key(0) != STORY.content_key(1)


def test_bad_segment_range() -> None:
    with pytest.raises(InvalidArgumentError, match=r"segment=\(1, 4\)"):
        ShapesStory(1, segment=(1, 4))
