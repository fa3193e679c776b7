"""The frames of files whose packets say less, or other, than what is shown."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from barcodes import HEIGHT, WIDTH, barcode, encode, numbers

from vidgen.video import VideoReader


def found(path: Path) -> list[int]:
    """The frames of a file in order; also those of a reader each, last first."""
    with VideoReader(path) as reader:
        index, straight = reader.index, numbers(list(reader))
    single = []
    for number in reversed(range(len(index))):
        with VideoReader(path, index=index) as reader:
            single += numbers(reader.read(number, 1))
    assert single[::-1] == straight
    return straight


def test_frames_of_one_time_are_all_read(tmp_path: Path) -> None:
    times = [0, 40, 80, 80, 120, 160, 200, 200, 240]
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        packets = []
        for number in range(len(times)):
            frame = av.VideoFrame.from_ndarray(barcode(number)).reformat(format="yuvj420p")
            frame.pts = number
            packets += stream.encode(frame)
        for packet, time in zip([*packets, *stream.encode(None)], times, strict=True):
            packet.pts = packet.dts = time
            packet.time_base = Fraction(1, 1000)
            container.mux(packet)
    assert found(tmp_path / "a.mkv") == list(range(len(times)))


def test_packed_b_frames(tmp_path: Path) -> None:
    """As DivX and XviD write them: two frames in a packet, then a packet that stands for the second."""
    frames = [barcode(i) for i in range(25)]
    encode(
        tmp_path / "plain.m4v",
        "mpeg4",
        frames=frames,
        bframes=1,
        options={"bf": "1", "b_strategy": "0", "q:v": "2"},
    )
    with av.open(str(tmp_path / "plain.m4v")) as container:
        parts = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    first, *rest = parts
    start = first.index(b"\0\0\1\xb6")
    packed = [first[:start] + b"\0\0\1\xb2DivX503b1393p" + first[start:]]
    while rest:
        follows = len(rest) > 1 and rest[1][rest[1].index(b"\0\0\1\xb6") + 4] >> 6 == 2  # a B-frame
        packed += [rest[0] + rest[1], b"\0\0\1\xb6\x51\x00\x7f"] if follows else [rest[0]]
        rest = rest[2 if follows else 1 :]
    assert any(len(packet) == 7 for packet in packed)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number, data in enumerate(packed):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            container.mux(packet)
    assert found(tmp_path / "a.avi") == list(range(25))


@pytest.mark.parametrize(("name", "codec"), [("rle.mov", "qtrle"), ("raw.mov", "rawvideo")])
def test_palettes_of_the_container_survive_a_seek(tmp_path: Path, name: str, codec: str) -> None:
    frames = [barcode(i) for i in range(8)]
    encode(tmp_path / name, codec, frames=frames, pix_fmt="gray", options={})
    assert found(tmp_path / name) == list(range(8))


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_intra_refresh_has_one_place_to_start(tmp_path: Path, suffix: str) -> None:
    options = {"x264-params": "intra-refresh=1:bframes=0:keyint=12"}
    path = encode(tmp_path / f"a{suffix}", options=options, gop=12, frames=[barcode(i) for i in range(40)])
    assert found(path) == list(range(40))


def test_joined_transport_streams_are_read_whole(tmp_path: Path) -> None:
    parts = [
        encode(tmp_path / f"{k}.ts", frames=[barcode(i) for i in range(20 * k, 20 * k + 20)]) for k in (0, 1)
    ]
    (tmp_path / "a.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert found(tmp_path / "a.ts") == list(range(40))


def test_dropped_frames_of_an_avi_are_no_damage(tmp_path: Path) -> None:
    keep = [i for i in range(30) if i not in (5, 6, 17)]
    path = encode(
        tmp_path / "a.avi", "mpeg4", frames=[barcode(i) for i in keep], pts=keep, options={"q:v": "2"}
    )
    assert found(path) == keep
    assert np.all(np.diff(VideoReader(path).index.pts) > 0)
