"""Drawing scenes: anti-aliased coverage of each object, painted back to front."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float32, UInt8

from vidgen.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    EXTENT,
    SIZES,
    FrameNumbers,
    Scene,
    ShapeSpec,
)

__all__ = ["coverage", "paint", "pixel_positions", "visibility"]


def pixel_positions(scene: Scene, frames: FrameNumbers, size: int) -> Float[np.ndarray, "f objects 2"]:
    """Return each object's centroid ``(x, y)`` in pixels, where a pixel's centre is its index.

    x counts columns and y rows, both in ``[-0.5, size - 0.5)`` on the torus.
    """
    places = [item.positions(frames) for item in scene.objects]
    return np.stack(places, axis=1) * size - 0.5


def coverage(
    spec: ShapeSpec, positions: Float[np.ndarray, "f 2"], size: int
) -> Float32[np.ndarray, "f size size"]:
    """Return the share of each pixel that the object covers, in ``[0, 1)`` to 1.

    The share is exact for an axis-aligned edge and within a few hundredths elsewhere: half a pixel
    minus the signed distance to the edge, clipped.
    """
    radius = EXTENT[spec.shape] * SIZES[spec.size] * size
    grid = np.arange(size, dtype=np.float64)
    # The nearer of an object and its copies across the border, per axis.
    x, y = (
        (np.mod(grid - positions[:, axis, None] + size / 2, size) - size / 2).astype(np.float32)
        for axis in (0, 1)
    )
    x, y = x[:, None, :], y[:, :, None]
    if spec.shape == "square":
        across, along = _edge(np.abs(x) - radius), _edge(np.abs(y) - radius)
        return np.asarray(across * along)
    if spec.shape == "circle":
        return _edge(np.sqrt(x * x + y * y) - radius)
    # The triangle points up; its three edges lie half a circumradius from the centroid.
    sides = np.maximum(y, np.abs(x) * np.float32(math.sqrt(3) / 2) - y / 2)
    return _edge(sides - radius / 2)


def _edge(distance: np.ndarray) -> np.ndarray:
    """Coverage of a pixel whose centre is ``distance`` pixels outside an edge."""
    return np.clip(np.float32(0.5) - distance, 0, 1).astype(np.float32)


def _masks(scene: Scene, frames: FrameNumbers, size: int) -> list[np.ndarray]:
    places = pixel_positions(scene, frames, size)
    return [coverage(item.spec, places[:, i], size) for i, item in enumerate(scene.objects)]


def paint(scene: Scene, frames: FrameNumbers, size: int) -> UInt8[np.ndarray, "f size size 3"]:
    """Draw ``frames`` of ``scene`` at ``size`` x ``size`` pixels, RGB."""
    canvas = np.empty((len(frames), size, size, 3), dtype=np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    for item, mask in zip(scene.objects, _masks(scene, frames, size), strict=True):
        colour = np.asarray(COLOURS[item.spec.colour], dtype=np.float32)
        touched = mask > 0
        behind = canvas[touched]
        canvas[touched] = behind + mask[touched][:, None] * (colour - behind)
    return np.rint(canvas).astype(np.uint8)


def visibility(scene: Scene, frames: FrameNumbers, size: int) -> Float32[np.ndarray, "f objects"]:
    """Return the share of each object's area that no object in front of it hides."""
    masks = _masks(scene, frames, size)
    uncovered = np.ones_like(masks[0])
    shares = []
    for mask in reversed(masks):
        shares.append((mask * uncovered).sum((1, 2)) / mask.sum((1, 2)))
        uncovered = uncovered * (1 - mask)
    return np.stack(shares[::-1], axis=1)
