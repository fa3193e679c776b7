"""Damage never passes for a picture; the stream that is read is the film."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
import pytest
from barcodes import HEIGHT, WIDTH, barcode, encode, numbers

from vidgen.errors import UnknownNameError, VideoError
from vidgen.video import Video, VideoReader


def texture(count: int) -> list[np.ndarray]:
    canvas = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
    return [np.ascontiguousarray(np.roll(canvas, (i, 2 * i), (0, 1))[:HEIGHT, :WIDTH]) for i in range(count)]


def packets_of(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def read_singly(path: Path) -> dict[int, np.ndarray | None]:
    """Every frame by its number, last first; None for an error."""
    found: dict[int, np.ndarray | None] = {}
    with VideoReader(path) as reader:
        for number in reversed(range(len(reader))):
            try:
                found[number] = reader.read(number, 1)[0]
            except VideoError:
                found[number] = None
    return found


def test_frames_wait_for_the_mark_of_what_they_are_built_on(tmp_path: Path) -> None:
    """B-frames are decoded after a frame that is shown after them, and marked only then."""
    path = encode(tmp_path / "a.mpg", "mpeg2video", frames=texture(24), gop=8, bframes=2, options={"bf": "2"})
    with VideoReader(path) as reader:
        whole = list(reader)
    keys = [packet for packet in packets_of(path) if packet.is_keyframe]
    data, key = bytearray(path.read_bytes()), bytes(keys[2])
    place = data.index(key[200:240])
    data[place : place + 80] = np.random.default_rng(1).bytes(80)
    path.write_bytes(data)
    found = read_singly(path)
    for number, frame in found.items():
        assert frame is None or np.array_equal(frame, whole[number])
    with av.open(str(path)) as container:
        first = [frame.key_frame for frame in container.decode(video=0)].index(True, 10)
    assert first > 10
    assert all(found[number] is None for number in (first - 2, first - 1, first))
    assert sum(frame is None for frame in found.values()) < 12


@pytest.mark.parametrize("place", [1, 2])
def test_a_lost_packet_of_a_transport_stream_is_noticed_from_where_it_was(tmp_path: Path, place: int) -> None:
    path = encode(
        tmp_path / "a.ts", frames=texture(36), gop=12, bframes=0, options={"sc_threshold": "0", "crf": "5"}
    )
    with VideoReader(path) as reader:
        whole = list(reader)
    key = [packet for packet in packets_of(path) if packet.is_keyframe][1]
    data = path.read_bytes()
    after = range(key.pos, len(data), 188)  # among packets of 188 bytes are some of tables
    begin = [start for start in after if data[start + 1] & 31 == 1 and data[start + 2] == 0][place]
    path.write_bytes(data[:begin] + data[begin + 188 :])
    found = read_singly(path)
    for number, frame in found.items():
        if 12 <= number < 24:
            assert frame is None
        elif number != 11:  # the mark may be meant for the one before
            assert frame is not None
            assert np.array_equal(frame, whole[number])


def test_a_mark_may_be_meant_for_the_packet_after(tmp_path: Path) -> None:
    """Bytes of a keyframe are doubled, which its decoder takes; the one before it bears the mark."""
    path = encode(tmp_path / "a.ts", frames=texture(24), gop=8, options={})
    with VideoReader(path) as reader:
        whole = list(reader)
    place = [packet for packet in packets_of(path) if packet.is_keyframe][1].pos + 24
    data = path.read_bytes()
    path.write_bytes(data[: place + 342] + data[place:])
    for number, frame in read_singly(path).items():
        if 8 <= number < 16:
            assert frame is None
        else:
            assert frame is None or np.array_equal(frame, whole[number])


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """A file of two groups of 6 frames, of which frame 2 has a changed bit that its decoder only logs."""
    path = encode(
        tmp_path / "a.mkv", "ffv1", frames=[barcode(i) for i in range(12)], gop=6, options={"level": "3"}
    )
    with VideoReader(path) as reader:
        whole = list(reader)
    with av.open(str(path)) as container:
        packet = [bytes(p) for p in container.demux(video=0) if p.size][2]
    data = bytearray(path.read_bytes())
    data[data.index(packet) + len(packet) // 3] ^= 4
    path.write_bytes(data)
    return path, whole


def test_frames_after_damage_are_errors_whatever_the_way(damaged: tuple[Path, list[np.ndarray]]) -> None:
    path, whole = damaged
    for order in (range(12), range(11, -1, -1), [7, 3, 1, 2, 0, 5, 11, 4, 6, 8, 10, 9]):
        with VideoReader(path) as reader:
            for number in order:
                if 2 <= number < 6:
                    with pytest.raises(
                        VideoError, match=rf"a.mkv: frame {number} .*\(a check sum does not fit"
                    ):
                        reader.read(number, 1)
                else:
                    assert np.array_equal(reader.read(number, 1)[0], whole[number])


def test_damaged_frames_are_skipped_where_asked_said_once_and_counted(
    damaged: tuple[Path, list[np.ndarray]], caplog: pytest.LogCaptureFixture
) -> None:
    path, whole = damaged
    with VideoReader(path, damaged="skip") as reader:
        shown = list(reader)
        assert reader.skipped == {2, 3, 4, 5}
    for frame, number in zip(shown, [0, 1, 1, 1, 1, 1, 6, 7, 8, 9, 10, 11], strict=True):
        assert np.array_equal(frame, whole[number])
    (warning,) = caplog.messages
    assert "Damaged frames are skipped: the one before is shown" in warning
    wrong: Any = "ignore"
    with pytest.raises((UnknownNameError, TypeError), match="skip"):
        VideoReader(path, damaged=wrong)


def test_the_film_is_read_and_no_larger_still(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        film, still = (container.add_stream("libx264", rate=25) for _ in range(2))
        (film.height, film.width), (still.height, still.width) = (HEIGHT, WIDTH), (4 * HEIGHT, 4 * WIDTH)
        for number in range(12):
            for stream in (film, still)[: 2 if number == 0 else 1]:
                scale = stream.height // HEIGHT
                picture = barcode(number if stream is film else 99).repeat(scale, 0).repeat(scale, 1)
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(film.encode(None))
        container.mux(still.encode(None))
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert numbers(list(reader)) == list(range(12))


def test_a_reader_does_not_wait_for_messages_of_its_own_threads(tmp_path: Path) -> None:
    """Older torchvisions have FFmpeg's messages handed to Python; its threads then wait for the interpreter."""
    video = tmp_path / "a.mp4"
    Video(np.zeros((4, 16, 16, 3), np.uint8), 8.0).save(video)
    before = av.logging.get_level()
    try:
        av.logging.set_level(av.logging.ERROR)
        reader = VideoReader(video)
        assert av.logging.get_level() is None
        av.logging.set_level(av.logging.ERROR)  # by an import in the middle of it
        reader.read_frames([0])
        assert av.logging.get_level() is None
    finally:
        av.logging.set_level(before)
