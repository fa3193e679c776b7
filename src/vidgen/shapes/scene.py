"""Scenes of the shapes data: which objects there are and where each is at any frame.

Lengths are in frame sides and x, y in ``[0, 1)`` on a torus (an object that leaves on one side
enters on the other), so a scene has no resolution, no last frame, and an object that moves left
does so in every span of every length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from vidgen.errors import InvalidArgumentError
from vidgen.video.checks import check_name
from vidgen.video.draws import Draws

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "FrameNumbers",
    "Scene",
    "ShapeObject",
    "ShapeSpec",
    "compose_scene",
    "continue_object",
]

SHAPES = ("circle", "square", "triangle")
MOTIONS = ("left", "right", "up", "down", "circle", "bounce", "still")
COLOURS = MappingProxyType(
    {
        "red": (230, 45, 40),
        "green": (50, 200, 70),
        "blue": (55, 95, 245),
        "yellow": (250, 220, 50),
        "magenta": (225, 65, 225),
        "cyan": (60, 215, 230),
    }
)
BACKGROUNDS = MappingProxyType(
    {"black": (12, 12, 14), "grey": (66, 66, 68), "navy": (16, 22, 66), "brown": (62, 38, 22)}
)
SIZES = MappingProxyType({"small": 0.085, "large": 0.14})
"""Radius of the circle with an object's area, in frame sides."""

DIRECTIONS = MappingProxyType({"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)})

# Shapes of one size have one area: half side of the square, circumradius of the triangle.
EXTENT = MappingProxyType(
    {
        "circle": 1.0,
        "square": math.sqrt(math.pi) / 2,
        "triangle": math.sqrt(4 * math.pi / (3 * math.sqrt(3))),
    }
)

# Per frame: a span of 16 frames shows 0.4 to 0.7 sides of travel, a whole circle, a whole bounce.
LINEAR_RATE = (0.025, 0.045)
CIRCLE_RATE = (1 / 16, 1 / 11)
BOUNCE_RATE = (1 / 15, 1 / 11)
CIRCLE_REACH = (0.17, 0.22)


FrameNumbers = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class ShapeSpec:
    """What an object is and does, without where: the part that a caption can say."""

    shape: str
    colour: str
    motion: str
    size: str = "large"

    def __post_init__(self) -> None:
        """Raise UnknownNameError for an attribute that the shapes data does not have."""
        check_name("shape", self.shape, SHAPES)
        check_name("colour", self.colour, tuple(COLOURS))
        check_name("motion", self.motion, MOTIONS)
        check_name("object size", self.size, tuple(SIZES))

    @property
    def extent(self) -> float:
        """Distance from the centroid to the farthest edge or corner along an axis, in sides."""
        return EXTENT[self.shape] * SIZES[self.size]

    @property
    def margin(self) -> float:
        """Distance from the border at which the whole object shows, in sides."""
        return self.extent + 0.02


@dataclass(frozen=True)
class ShapeObject:
    """A spec with its path. ``x, y`` is the centroid at frame 0.

    ``rate`` is sides per frame (straight motions) or turns per frame (circle, where the sign is
    the sense, and bounce); ``phase`` in turns and ``reach`` (radius or height, in sides) say where
    on a circle or bounce frame 0 lies.
    """

    spec: ShapeSpec
    x: float
    y: float
    rate: float = 0.0
    phase: float = 0.0
    reach: float = 0.0

    def positions(self, frames: FrameNumbers) -> Float[np.ndarray, "f 2"]:
        """Return the centroid ``(x, y)`` at each of ``frames``, in sides, in ``[0, 1)``."""
        time = np.asarray(frames, dtype=np.float64)
        dx, dy = np.zeros_like(time), np.zeros_like(time)
        motion = self.spec.motion
        if motion in DIRECTIONS:
            across, along = DIRECTIONS[motion]
            dx, dy = across * self.rate * time, along * self.rate * time
        elif motion == "circle":
            angle, first = 2 * np.pi * (self.phase + self.rate * time), 2 * np.pi * self.phase
            dx = self.reach * (np.cos(angle) - np.cos(first))
            dy = self.reach * (np.sin(angle) - np.sin(first))
        elif motion == "bounce":
            dy = self.reach * (_height(self.phase) - _height(self.phase + self.rate * time))
        return np.mod(np.stack([self.x + dx, self.y + dy], axis=-1), 1.0)


def _height(turns: float | np.ndarray) -> np.ndarray:
    """Height of a ball thrown up, 0 at whole ``turns`` and 1 half-way (a parabola)."""
    part = np.mod(turns, 1.0)
    return np.asarray(4 * part * (1 - part))


@dataclass(frozen=True)
class Scene:
    """One to three objects, later ones in front, on a plain background."""

    objects: tuple[ShapeObject, ...]
    background: str = "black"

    def __post_init__(self) -> None:
        """Raise UnknownNameError for an unknown background, InvalidArgumentError for no object."""
        check_name("background", self.background, tuple(BACKGROUNDS))
        if not self.objects:
            raise InvalidArgumentError("a scene got no object; give it one or more.")

    @property
    def specs(self) -> tuple[ShapeSpec, ...]:
        """What each object is and does."""
        return tuple(item.spec for item in self.objects)


def compose_scene(specs: Sequence[ShapeSpec], *, background: str = "black", seed: int = 0) -> Scene:
    """Build a scene with exactly these ``specs``; ``seed`` draws places, speeds and phases.

    Raises UnknownNameError for an unknown background and InvalidArgumentError for no spec.
    """
    return place(specs, background, Draws("vidgen.shapes.compose", seed))


def place(specs: Sequence[ShapeSpec], background: str, draws: Draws) -> Scene:
    """Place ``specs`` one after the other, each away from those before it at frame 0."""
    objects: list[ShapeObject] = []
    for spec in specs:
        tries = [_start(spec, draws) for _ in range(8)]
        objects.append(max(tries, key=lambda item: _clearance(item, objects)))
    return Scene(tuple(objects), background)


def _clearance(item: ShapeObject, others: Sequence[ShapeObject]) -> float:
    """Distance on the torus from ``item`` to the nearest of ``others`` at frame 0."""
    gaps = [(abs(item.x - other.x), abs(item.y - other.y)) for other in others]
    return min((math.hypot(min(a, 1 - a), min(b, 1 - b)) for a, b in gaps), default=1.0)


def _start(spec: ShapeSpec, draws: Draws) -> ShapeObject:
    """Draw a place and a path for ``spec``; only a straight path ever crosses the border."""
    margin = spec.margin
    x, y = draws.uniform(margin, 1 - margin), draws.uniform(margin, 1 - margin)
    if spec.motion in ("left", "right"):
        return ShapeObject(spec, draws.uniform(), y, draws.uniform(*LINEAR_RATE))
    if spec.motion in ("up", "down"):
        return ShapeObject(spec, x, draws.uniform(), draws.uniform(*LINEAR_RATE))
    if spec.motion == "circle":
        reach, phase = draws.uniform(*CIRCLE_REACH), draws.uniform()
        low = margin + reach
        centre_x, centre_y = draws.uniform(low, 1 - low), draws.uniform(low, 1 - low)
        x = centre_x + reach * math.cos(2 * math.pi * phase)
        y = centre_y + reach * math.sin(2 * math.pi * phase)
        return ShapeObject(spec, x, y, _turning(draws), phase, reach)
    if spec.motion == "bounce":
        reach, phase = _bounce_reach(spec, draws), draws.uniform()
        y = 1 - margin - reach * float(_height(phase))
        return ShapeObject(spec, x, y, draws.uniform(*BOUNCE_RATE), phase, reach)
    return ShapeObject(spec, x, y)


def _turning(draws: Draws) -> float:
    """Turns per frame of a circle, in either sense."""
    return draws.uniform(*CIRCLE_RATE) * draws.choice((-1, 1))


def _bounce_reach(spec: ShapeSpec, draws: Draws) -> float:
    """Height of a bounce that keeps the whole object in view."""
    return min(1 - 2 * spec.margin, 0.5) * draws.uniform(0.7, 1.0)


def continue_object(spec: ShapeSpec, x: float, y: float, length: int, draws: Draws) -> ShapeObject:
    """Draw a path of ``length`` frames for ``spec`` that begins at ``(x, y)`` in ``[0, 1)``."""
    if spec.motion in DIRECTIONS:
        return _continue_straight(spec, x, y, length, draws)
    if spec.motion == "circle":
        # The centre lies towards the middle of the frame, so the object keeps off the border.
        phase = math.atan2(y - 0.5, x - 0.5) / (2 * math.pi)
        return ShapeObject(spec, x, y, _turning(draws), phase, draws.uniform(*CIRCLE_REACH))
    if spec.motion == "bounce":
        reach = _bounce_reach(spec, draws)
        # On the lower border if one bounce gets there, else as deep as it gets.
        drop = min(max(1 - spec.margin - y, 0.0), reach)
        root = math.sqrt(1 - drop / reach)
        phase = (1 + draws.choice((-1, 1)) * root) / 2
        return ShapeObject(spec, x, y, draws.uniform(*BOUNCE_RATE), phase, reach)
    return ShapeObject(spec, x, y)


def _continue_straight(spec: ShapeSpec, x: float, y: float, length: int, draws: Draws) -> ShapeObject:
    """Choose among a few speeds the one that ends in full view, where any motion can follow."""
    across, along = DIRECTIONS[spec.motion]
    start, sign = (x, across) if across else (y, along)
    rates = [draws.uniform(*LINEAR_RATE) for _ in range(8)]
    reach = 0.5 - spec.margin
    rate = min(rates, key=lambda rate: max(abs((start + sign * rate * length) % 1 - 0.5), reach))
    return ShapeObject(spec, x, y, rate)
