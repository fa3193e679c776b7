"""Videos whose frames say their own number, encoded with PyAV alone."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

HEIGHT, WIDTH = 48, 64


def barcode(number: int) -> np.ndarray:
    """A frame that says its own number, one bit per eight columns."""
    bits = np.unpackbits(np.array([number], np.uint8))
    return np.broadcast_to(np.repeat(bits * 255, 8)[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def numbers(frames: Sequence[np.ndarray]) -> list[int]:
    columns = [frame[4:-4, 4::8].mean((0, 2)) > 127 for frame in frames]
    return [int(np.packbits(bits)[0]) for bits in columns]


def encode(
    path: Path,
    codec: str = "libx264",
    *,
    frames: Sequence[np.ndarray] | None = None,
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    bframes: int | None = None,
    rotation: tuple[float, bool] | None = None,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> Path:
    """Encode with PyAV alone, so that reader and writer are tested apart."""
    pictures = [barcode(i) for i in range(60)] if frames is None else frames
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {"sc_threshold": "0"})
        stream.height, stream.width = size
        stream.pix_fmt, stream.gop_size = pix_fmt, gop
        stream.codec_context.time_base = time_base
        if bframes is not None:
            stream.max_b_frames = bframes
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        for position, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts = position if pts is None else pts[position]
            frame.time_base = time_base
            container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        container.mux(stream.encode(None))
    return path
