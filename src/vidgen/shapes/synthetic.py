"""The shapes data: procedural videos of moving shapes, with captions and exact ground truth.

Nothing is stored. Video ``index`` of a dataset depends on the dataset's seed and split and on
``index`` alone, and any frame of a video of any length is drawn at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from vidgen.errors import InvalidArgumentError
from vidgen.shapes.phrases import CAPTION_STYLES, describe
from vidgen.shapes.raster import paint, pixel_positions, visibility
from vidgen.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    Scene,
    ShapeSpec,
    place,
)
from vidgen.video.checks import check_name
from vidgen.video.draws import Draws, digest

__all__ = ["GroundTruth", "Segment", "ShapesDataset", "ShapesSource", "held_out_combinations"]

SPLITS = ("train", "test")
HIDDEN = 0.05
"""An object of which less than this share shows is not called visible."""


@dataclass(frozen=True)
class Segment:
    """Frames ``start`` to ``stop`` (excluded) of a video; the scene's frame 0 is ``start``."""

    start: int
    stop: int
    scene: Scene


@dataclass(frozen=True)
class GroundTruth:
    """What is true of each asked frame (f) and object (o, in drawing order: later in front).

    ``positions`` are centroids ``(x, y)`` in pixels, x counting columns and y rows, a pixel's
    centre being its index; an object over the border is drawn on both sides of it. ``visibility``
    is the share of an object that no other hides, and ``visible`` whether that is 0.05 or more.
    ``identities`` stay with an object through the video, with its shape, colour and size;
    ``motions`` holds a name per frame and object.
    """

    frames: Int64[np.ndarray, " f"]
    positions: Float[np.ndarray, "f o 2"]
    visible: Bool[np.ndarray, "f o"]
    visibility: Float32[np.ndarray, "f o"]
    identities: Int64[np.ndarray, " o"]
    rgb: UInt8[np.ndarray, "o 3"]
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    sizes: tuple[str, ...]
    motions: tuple[tuple[str, ...], ...]
    background: str

    def to_json(self) -> dict[str, Any]:
        """Return the same as lists, numbers and names, positions to a thousandth of a pixel."""
        return {
            "background": self.background,
            "objects": [
                {"identity": int(i), "shape": shape, "colour": colour, "size": size}
                for i, shape, colour, size in zip(
                    self.identities, self.shapes, self.colours, self.sizes, strict=True
                )
            ],
            "frames": self.frames.tolist(),
            "positions": np.round(self.positions, 3).tolist(),
            "visible": self.visible.tolist(),
            "motions": [list(names) for names in self.motions],
        }


class ShapesSource(ABC):
    """Videos of moving shapes: subclasses say what happens (``segments``), this draws it."""

    def __init__(
        self, num_videos: int, num_frames: int, size: int, fps: int | float, caption_style: str
    ) -> None:
        """Keep the extent of the data; see the subclasses for the arguments."""
        least = {"num_videos": (num_videos, 1), "num_frames": (num_frames, 1), "size": (size, 16)}
        for name, (value, minimum) in least.items():
            if value < minimum:
                raise InvalidArgumentError(f"{name}={value}; it must be {minimum} or more.")
        if not fps > 0:
            raise InvalidArgumentError(f"fps={fps}; it must be above 0.")
        check_name("caption style", caption_style, CAPTION_STYLES)
        self.num_videos, self.num_frames, self.size = num_videos, num_frames, size
        self.fps, self.caption_style = float(fps), caption_style

    @abstractmethod
    def segments(self, index: int) -> tuple[Segment, ...]:
        """Return what happens in video ``index``, in order, from frame 0 to ``num_frames``."""

    @abstractmethod
    def content_key(self, index: int) -> str:
        """Name video ``index``'s content: equal names, equal frames."""

    def __len__(self) -> int:
        """Return the number of videos."""
        return self.num_videos

    def render(self, index: int, frames: Sequence[int]) -> UInt8[np.ndarray, "f h w 3"]:
        """Draw ``frames`` (absolute indices, any order) of video ``index`` as RGB.

        Raises InvalidArgumentError for a video or frame that the data does not have.
        """
        wanted = self._frames(index, frames)
        out = np.empty((len(wanted), self.size, self.size, 3), dtype=np.uint8)
        for segment, chosen in self._parts(index, wanted):
            out[chosen] = paint(segment.scene, wanted[chosen] - segment.start, self.size)
        return out

    def truth(self, index: int, frames: Sequence[int]) -> GroundTruth:
        """Return the ground truth of ``frames`` (absolute indices, any order) of a video.

        Raises InvalidArgumentError for a video or frame that the data does not have.
        """
        wanted = self._frames(index, frames)
        scene = self.segments(index)[0].scene
        count = (len(wanted), len(scene.objects))
        positions, seen = np.empty((*count, 2)), np.empty(count, dtype=np.float32)
        motions: list[tuple[str, ...]] = [()] * len(wanted)
        for segment, chosen in self._parts(index, wanted):
            local = wanted[chosen] - segment.start
            positions[chosen] = pixel_positions(segment.scene, local, self.size)
            seen[chosen] = visibility(segment.scene, local, self.size)
            for row in np.flatnonzero(chosen):
                motions[row] = tuple(spec.motion for spec in segment.scene.specs)
        return GroundTruth(
            frames=wanted,
            positions=positions,
            visible=seen >= HIDDEN,
            visibility=seen,
            identities=np.arange(len(scene.objects), dtype=np.int64),
            rgb=np.array([COLOURS[spec.colour] for spec in scene.specs], dtype=np.uint8),
            shapes=tuple(spec.shape for spec in scene.specs),
            colours=tuple(spec.colour for spec in scene.specs),
            sizes=tuple(spec.size for spec in scene.specs),
            motions=tuple(motions),
            background=scene.background,
        )

    def captions(self, index: int) -> list[tuple[int, int, str]]:
        """Return ``(start, stop, caption)`` for each span of video ``index``, in order."""
        return [(part.start, part.stop, self._describe(part.scene)) for part in self.segments(index)]

    def caption_at(self, index: int, frame: int) -> str:
        """Return the caption that holds at ``frame`` of video ``index``."""
        ((segment, _),) = self._parts(index, self._frames(index, [frame]))
        return self._describe(segment.scene)

    def label(self, index: int, frame: int = 0) -> int:
        """Return the class at ``frame``: the index in ``MOTIONS`` of the first object's motion."""
        ((segment, _),) = self._parts(index, self._frames(index, [frame]))
        return MOTIONS.index(segment.scene.specs[0].motion)

    def _describe(self, scene: Scene) -> str:
        return describe(scene.specs, scene.background, self.caption_style)

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.num_videos:
            raise InvalidArgumentError(
                f"there is no video {index}; the data has videos 0 to {self.num_videos - 1}."
            )

    def _frames(self, index: int, frames: Sequence[int]) -> Int64[np.ndarray, " f"]:
        self._check_index(index)
        wanted = np.asarray(frames, dtype=np.int64)
        outside = wanted[(wanted < 0) | (wanted >= self.num_frames)]
        if outside.size:
            raise InvalidArgumentError(
                f"there is no frame {outside[0]}; videos have frames 0 to {self.num_frames - 1} "
                "(raise num_frames: frames are drawn when asked for, so length is free)."
            )
        return wanted

    def _parts(self, index: int, wanted: np.ndarray) -> list[tuple[Segment, np.ndarray]]:
        """Return the segments that hold some of ``wanted``, each with the mask of those frames."""
        segments = self.segments(index)
        starts = np.array([segment.start for segment in segments])
        held = np.searchsorted(starts, wanted, side="right") - 1
        return [(segments[i], held == i) for i in np.unique(held)]


@lru_cache(maxsize=16)
def held_out_combinations(fraction: int | float) -> frozenset[tuple[str, str, str]]:
    """Return the ``(colour, shape, motion)`` triples that training never shows.

    ``fraction`` in ``[0, 1)`` of all triples, chosen by hash: the same for every seed, and a
    larger fraction holds out those of a smaller one too.
    """
    if not 0 <= fraction < 1:
        raise InvalidArgumentError(f"hold_out={fraction}; it must be at least 0 and below 1.")
    triples = [(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS]
    triples.sort(key=lambda triple: digest("vidgen.shapes.hold_out", *triple))
    return frozenset(triples[: round(fraction * len(triples))])


class ShapesDataset(ShapesSource):
    """Videos in which each object keeps its one motion; see the module for what is promised."""

    def __init__(
        self,
        num_videos: int,
        num_frames: int = 16,
        size: int = 64,
        objects: tuple[int, int] = (1, 1),
        seed: int = 0,
        fps: int | float = 8.0,
        split: str = "train",
        hold_out: int | float = 0.0,
        caption_style: str = "short",
    ) -> None:
        """Define ``num_videos`` videos of ``num_frames`` frames, ``size`` x ``size`` pixels.

        ``objects`` is the least and the most objects in a video (1 to 3), of different colours.
        ``split`` is ``"train"`` or ``"test"``: different videos, and with ``hold_out`` above 0
        that share of the colour x shape x motion combinations occurs in the test split only, which
        then shows nothing else. ``caption_style`` is one of ``phrases.CAPTION_STYLES``.

        Raises InvalidArgumentError for values out of range, UnknownNameError for unknown names.
        """
        super().__init__(num_videos, num_frames, size, fps, caption_style)
        check_name("split", split, SPLITS)
        check_objects(objects)
        self.objects, self.seed, self.split, self.hold_out = objects, seed, split, hold_out
        held = held_out_combinations(hold_out)
        triples = [(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS]
        only_held = split == "test" and bool(held)
        self._allowed = [triple for triple in triples if (triple in held) == only_held]
        colours = len({triple[0] for triple in self._allowed})
        if colours < objects[1]:
            raise InvalidArgumentError(
                f"hold_out={hold_out} leaves {colours} colours to the {split} split, too few for "
                f"{objects[1]} objects of different colours; change hold_out or objects."
            )

    def scene(self, index: int) -> Scene:
        """Return the scene of video ``index``; InvalidArgumentError if there is no such video."""
        self._check_index(index)
        draws = Draws("vidgen.shapes", self.seed, self.split, index)
        count = self.objects[0] + draws.integer(self.objects[1] - self.objects[0] + 1)
        background = draws.choice(tuple(BACKGROUNDS))
        specs: list[ShapeSpec] = []
        for _ in range(count):
            taken = {spec.colour for spec in specs}
            free = [triple for triple in self._allowed if triple[0] not in taken]
            colour, shape, motion = draws.choice(free)
            specs.append(ShapeSpec(shape, colour, motion, draws.choice(tuple(SIZES))))
        return place(specs, background, draws)

    def caption(self, index: int) -> str:
        """Return the caption of video ``index``, e.g. ``"a red circle moves left"``."""
        return self._describe(self.scene(index))

    def segments(self, index: int) -> tuple[Segment, ...]:
        """Return the one segment of video ``index``."""
        return (Segment(0, self.num_frames, self.scene(index)),)

    def content_key(self, index: int) -> str:
        """Name video ``index``'s content: equal names, equal frames."""
        fields = (self.seed, self.split, repr(self.objects), repr(self.hold_out), self.size, index)
        return digest("vidgen.shapes", *fields).hex()


def check_objects(objects: tuple[int, int]) -> None:
    """Raise InvalidArgumentError unless ``objects`` is a range within 1 to 3."""
    low, high = objects
    if not 1 <= low <= high <= 3:
        raise InvalidArgumentError(
            f"objects={objects}; give the least and the most objects in a video, within 1 to 3."
        )
