"""Shapes stories: long videos whose captions change while the objects in them stay the same."""

from __future__ import annotations

from functools import lru_cache

from vidgen.errors import InvalidArgumentError
from vidgen.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    Scene,
    ShapeObject,
    ShapeSpec,
    continue_object,
    place,
)
from vidgen.shapes.synthetic import SPLITS, Segment, ShapesSource, check_objects
from vidgen.video.checks import check_name
from vidgen.video.draws import Draws, digest

__all__ = ["ShapesStory"]


class ShapesStory(ShapesSource):
    """Videos of hundreds of frames: at each segment's border every object takes a new motion.

    Shape, colour, size and background persist, and positions are continuous across borders.
    """

    def __init__(
        self,
        num_videos: int,
        num_frames: int = 480,
        size: int = 64,
        objects: tuple[int, int] = (1, 2),
        segment: tuple[int, int] = (32, 64),
        seed: int = 0,
        fps: int | float = 8.0,
        split: str = "train",
        caption_style: str = "short",
    ) -> None:
        """Define ``num_videos`` stories of ``num_frames`` frames, ``size`` x ``size`` pixels.

        ``segment`` is the least and the most frames between two changes (the last segment takes
        what is left, up to one and a half times the most). ``objects``, ``split`` and
        ``caption_style`` are as in ``ShapesDataset``; the videos are other ones.

        Raises InvalidArgumentError for values out of range, UnknownNameError for unknown names.
        """
        super().__init__(num_videos, num_frames, size, fps, caption_style)
        check_name("split", split, SPLITS)
        check_objects(objects)
        if not 2 <= segment[0] <= segment[1]:
            raise InvalidArgumentError(
                f"segment={segment}; give the least (2 or more) and the most frames of a segment."
            )
        self.objects, self.segment, self.seed, self.split = objects, segment, seed, split

    def segments(self, index: int) -> tuple[Segment, ...]:
        """Return the segments of story ``index`` in order."""
        self._check_index(index)
        return _segments(self.seed, self.split, index, self.num_frames, self.objects, self.segment)

    def content_key(self, index: int) -> str:
        """Name story ``index``'s content: equal names, equal frames."""
        fields = (repr(self.objects), repr(self.segment), self.num_frames, self.size, index)
        return digest("vidgen.story", self.seed, self.split, *fields).hex()


@lru_cache(maxsize=256)
def _segments(
    seed: int,
    split: str,
    index: int,
    num_frames: int,
    objects: tuple[int, int],
    segment: tuple[int, int],
) -> tuple[Segment, ...]:
    """Tell the story: each segment begins where the one before it ended."""
    draws = Draws("vidgen.story", seed, split, index)
    scene = _first_scene(objects, draws)
    parts: list[Segment] = []
    start = 0
    while start < num_frames:
        length = segment[0] + draws.integer(segment[1] - segment[0] + 1)
        left = num_frames - start
        # No stump at the end: a rest too short for a segment of its own joins this one.
        length = left if left - length < segment[0] else length
        if start:
            scene = _next_scene(scene, parts[-1].stop - parts[-1].start, length, draws)
        parts.append(Segment(start, start + length, scene))
        start += length
    return tuple(parts)


def _first_scene(objects: tuple[int, int], draws: Draws) -> Scene:
    count = objects[0] + draws.integer(objects[1] - objects[0] + 1)
    background = draws.choice(tuple(BACKGROUNDS))
    colours = list(COLOURS)
    specs = []
    for _ in range(count):
        colour = colours.pop(draws.integer(len(colours)))
        shape, motion, size = draws.choice(SHAPES), draws.choice(MOTIONS), draws.choice([*SIZES])
        specs.append(ShapeSpec(shape, colour, motion, size))
    return place(specs, background, draws)


def _next_scene(scene: Scene, lasted: int, length: int, draws: Draws) -> Scene:
    """Give every object of ``scene``, after ``lasted`` frames, another motion."""
    moved: list[ShapeObject] = []
    for item in scene.objects:
        spec = item.spec
        motion = draws.choice([name for name in MOTIONS if name != spec.motion])
        x, y = item.positions([lasted])[0]
        spec = ShapeSpec(spec.shape, spec.colour, motion, spec.size)
        moved.append(continue_object(spec, float(x), float(y), length, draws))
    return Scene(tuple(moved), scene.background)
