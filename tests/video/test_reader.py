"""Exact frames, times, colours and rotation from files that the tests encode themselves."""

from __future__ import annotations

import pickle
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from barcodes import HEIGHT, WIDTH, barcode, encode, numbers
from PIL import Image

import vidgen.video.reader as reader_module
from vidgen.errors import InvalidArgumentError, UnknownNameError, VideoError
from vidgen.video import FrameIndex, VideoReader, probe

OPEN_GOP = "open-gop=1:keyint=10:bframes=3:scenecut=0:b-adapt=0"

FILES: dict[str, dict[str, Any]] = {
    "bframes.mp4": {},
    "closed.mkv": {},
    "transport.ts": {},
    "intra.mp4": {"gop": 1},
    "one_key.mp4": {"gop": 250},
    "opengop.mp4": {"options": {"x264-params": OPEN_GOP}},
    "opengop.ts": {"options": {"x264-params": OPEN_GOP}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "ten_bit.mp4": {"pix_fmt": "yuv420p10le"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=10"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "xvid.avi": {"codec": "mpeg4", "bframes": 2, "options": {"q:v": "2"}},
    "reordered.avi": {},
    "raw.h264": {},
    "animated.gif": {"codec": "gif", "pix_fmt": "gray"},
    "animated.apng": {"codec": "apng", "pix_fmt": "rgb24"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, options in FILES.items():
        encode(folder / name, **options)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_any_frame_by_number(folder: Path, name: str) -> None:
    with VideoReader(folder / name) as reader:
        assert len(reader) == 60
        assert numbers(list(reader)) == list(range(60))
        for start, count, stride in [(37, 5, 1), (0, 3, 1), (11, 4, 3), (59, 1, 1), (2, 4, 16)]:
            expected = [start + k * stride for k in range(count)]
            assert numbers(reader.read(start, count, stride)) == expected
        assert numbers(reader.read_frames([40, 40, 7, 8, 41])) == [40, 40, 7, 8, 41]
        # Each picture of these is drawn over the one before, whatever its packets claim.
        assert not name.startswith("animated") or len(reader.index.keyframes) == 1
    assert probe(folder / name).fps == 25
    assert probe(folder / name).duration == pytest.approx(60 / 25, abs=0.002)


@pytest.mark.parametrize("thread_type", ["AUTO", "FRAME", "SLICE", "NONE"])
def test_threads_change_nothing(folder: Path, thread_type: Any) -> None:
    with VideoReader(folder / "bframes.mp4", threads=3, thread_type=thread_type) as reader:
        assert numbers(reader.read(21, 9)) == list(range(21, 30))
        assert numbers(reader.read(50, 10)) == list(range(50, 60))
        assert numbers(reader.read(3, 2)) == [3, 4]


def test_only_the_frames_since_the_keyframe_are_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    original = reader_module.decode

    def counting(*args: Any) -> Any:
        for frame in original(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(reader_module, "decode", counting)
    with VideoReader(folder / "bframes.mp4") as reader:
        assert not decoded  # the index needs none
        reader.read(50, 4)
        assert len(decoded) == 6  # keyframe 48 to frame 53
        reader.read(54, 2)
        assert len(decoded) == 8  # the same decoder goes on
    with VideoReader(folder / "bframes.mp4") as reader:
        reader.read(0, 1)
        decoded.clear()
        reader.read(49, 1)
        assert len(decoded) == 2  # skips to keyframe 48 instead of decoding on


def test_variable_rate(tmp_path: Path) -> None:
    gaps = np.random.default_rng(0).integers(10, 90, 59)
    pts = [0, *np.cumsum(gaps).tolist()]
    path = encode(tmp_path / "vfr.mp4", pts=pts, time_base=Fraction(1, 1000))
    with VideoReader(path) as reader:
        assert reader.info.variable_rate
        assert [round(reader.index.time(i) * 1000) for i in range(60)] == pts
        assert float(reader.info.fps) == pytest.approx(60 / reader.info.duration, rel=1e-4)
        assert numbers(reader.read(17, 5)) == [17, 18, 19, 20, 21]
        nearest = [int(np.abs(np.array(pts) - 1000 * (0.3 + k / 12)).argmin()) for k in range(12)]
        assert numbers(reader.read_times(0.3, 1.0, 12)) == nearest


def test_times_of_a_constant_rate(folder: Path) -> None:
    with VideoReader(folder / "transport.ts") as reader:  # its first timestamp is not 0
        assert not reader.info.variable_rate
        assert numbers(reader.read_times(0.4, 0.8, 12.5)) == list(range(10, 30, 2))
        assert numbers(reader.read_times(0, 0.08, 50)) == [0, 0, 1, 1]
        assert len(reader.read_times(0, reader.info.duration, 25)) == 60


def test_edit_list_hides_frames_before_the_start(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "edit.mp4",
        pts=range(-5, 55),
        container_options={"avoid_negative_ts": "disabled"},
    )
    with VideoReader(path) as reader:
        assert len(reader) == 55
        assert numbers(reader.read(0, 3)) == [5, 6, 7]
        assert numbers(reader.read(54, 1)) == [59]
        assert numbers(list(reader)) == list(range(5, 60))


@pytest.mark.parametrize(("name", "early", "first"), [("bframes", 3, 12), ("opengop", 0, 10)])
def test_stream_cut_before_a_keyframe(folder: Path, tmp_path: Path, name: str, early: int, first: int) -> None:
    cut = tmp_path / "cut.mkv"
    with av.open(str(folder / f"{name}.mp4")) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = list(source.demux(source.streams.video[0]))
        second = [i for i, packet in enumerate(packets) if packet.is_keyframe][1]
        for packet in packets[second - early : -1]:
            packet.stream = stream
            target.mux(packet)
    with VideoReader(cut) as reader:
        assert numbers(list(reader)) == list(range(first, 60))
        assert numbers(reader.read(30, 2)) == [first + 30, first + 31]


@pytest.mark.parametrize("name", ["ntsc.mp4", "ntsc.webm"])
def test_true_rate_is_kept(tmp_path: Path, name: str) -> None:
    codec = "libx264" if name.endswith("mp4") else "libvpx-vp9"
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(30000, 1001))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(barcode(i))))
        container.mux(stream.encode(None))
    assert probe(path).fps == Fraction(30000, 1001)
    assert not probe(path).variable_rate


MATRICES = {"bt601": (6, 0.299, 0.114), "bt709": (1, 0.2126, 0.0722), "bt2020": (9, 0.2627, 0.0593)}
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 100, 50)]


def encode_patches(path: Path, matrix: str, full: bool, bits: int, tagged: bool = True) -> None:
    """Colour patches turned to Y'CbCr by the defining formula (Rec. ITU-R BT.709-6, 3)."""
    code, kr, kb = MATRICES[matrix]
    scale, top = 1 << (bits - 8), (1 << bits) - 1
    pix_fmt = "yuv420p" if bits == 8 else "yuv420p10le"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        if tagged:
            stream.codec_context.colorspace = code
        stream.codec_context.color_range = 2 if full else 1
        for r, g, b in np.array(COLORS) / 255:
            y = kr * r + (1 - kr - kb) * g + kb * b
            chroma = [(b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)]
            if full:
                levels = [y * top, *(c * top + 128 * scale for c in chroma)]
            else:
                levels = [(16 + 219 * y) * scale, *((128 + 224 * c) * scale for c in chroma)]
            samples = np.empty((HEIGHT * 3 // 2, WIDTH), np.uint8 if bits == 8 else np.uint16)
            rows = [0, HEIGHT, HEIGHT * 5 // 4, HEIGHT * 3 // 2]
            for plane, level in enumerate(levels):
                samples[rows[plane] : rows[plane + 1]] = min(round(level), top)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(samples, format=pix_fmt)))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colors_follow_matrix_and_range(tmp_path: Path, matrix: str, full: bool, bits: int) -> None:
    path = tmp_path / "patches.mp4"
    encode_patches(path, matrix, full, bits)
    for accurate, tolerance in ((False, 3), (True, 1)):
        with VideoReader(path, accurate=accurate) as reader:
            patches = reader.read(0, len(COLORS)).astype(int)
            color = reader.info.color
        assert np.abs(patches - np.array(COLORS)[:, None, None]).max() <= tolerance
        assert (color.matrix, color.full_range, color.guessed) == (matrix, full, False)
    assert probe(path).bit_depth == bits


def test_untagged_small_video_is_bt601(tmp_path: Path) -> None:
    encode_patches(tmp_path / "patches.mp4", "bt601", False, 8, tagged=False)
    with VideoReader(tmp_path / "patches.mp4") as reader:
        assert np.abs(reader.read(0, 1)[0].astype(int) - np.array(COLORS[0])).max() <= 3
        assert reader.info.color.guessed


def test_untagged_large_video_is_bt709(tmp_path: Path) -> None:
    path = encode(tmp_path / "hd.mp4", frames=[np.zeros((720, 16, 3), np.uint8)], size=(720, 16))
    assert probe(path).color.matrix == "bt709"


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_display_matrix_is_applied(tmp_path: Path, degrees: int, flip: bool) -> None:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:16, :32] = 255  # the marked corner breaks every symmetry
    rotation = (degrees, flip) if degrees or flip else None
    path = encode(tmp_path / "turned.mp4", frames=[picture] * 3, rotation=rotation)
    with VideoReader(path) as reader:
        info, shown = reader.info, reader.read(0, 1)[0]
    upright = np.rot90(picture, degrees // 90)  # counter-clockwise
    upright = upright[:, ::-1] if flip else upright
    assert shown.shape == upright.shape == (info.height, info.width, 3)
    assert np.abs(shown.astype(int) - upright).mean() < 4
    if not flip:
        assert info.rotation == -degrees % 360
    with VideoReader(path, size=(24, 40)) as reader:
        small = reader.read(0, 1)[0]
    expected = Image.fromarray(upright).resize((40, 24), Image.Resampling.BICUBIC)
    assert np.abs(small.astype(int) - np.asarray(expected)).mean() < 8


@pytest.mark.parametrize("resample", ["bicubic", "area"])
def test_shrinking_does_not_alias(tmp_path: Path, resample: Any) -> None:
    stripes = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stripes[:, ::2] = 255
    path = encode(tmp_path / "stripes.mp4", frames=[stripes] * 2, options={"crf": "1"})
    with VideoReader(path, size=(12, 16), resample=resample) as reader:
        inner = reader.read(1, 1)[0, :, 2:-2].astype(int)
    assert np.abs(inner - 127).max() < 12  # nearest-neighbour sampling gives 0 or 255


def test_index_is_plain_data_and_spares_the_scan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with VideoReader(folder / "bframes.mp4") as reader:
        index = reader.index
    assert FrameIndex.from_json(index.to_json()) == index == pickle.loads(pickle.dumps(index))

    def refuse(*args: object) -> None:
        raise AssertionError("scanned again")

    monkeypatch.setattr(reader_module, "build_index", refuse)
    with VideoReader(folder / "bframes.mp4", index=index) as reader:
        assert numbers(reader.read(30, 2)) == [30, 31]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":99}'])
def test_broken_index_is_refused(text: str) -> None:
    with pytest.raises(VideoError, match="frame index"):
        FrameIndex.from_json(text)


def test_index_of_another_file_is_noticed(folder: Path, tmp_path: Path) -> None:
    path = encode(tmp_path / "other.mp4", pts=range(0, 180, 3))
    with VideoReader(folder / "bframes.mp4") as reader:
        index = reader.index
    with (
        VideoReader(path, index=index) as reader,
        pytest.raises(VideoError, match="another file's"),
    ):
        reader.read(1, 1)


def test_header_only_probe(folder: Path) -> None:
    info = probe(folder / "vp9.webm", exact=False)
    assert (info.num_frames, info.num_frames_exact, info.codec) == (60, False, "vp9")
    assert probe(folder / "vp9.webm").num_frames_exact
    assert (info.width, info.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("start", "count", "stride"), [(-1, 2, 1), (59, 2, 1), (60, 1, 1), (0, 7, 10)])
def test_frames_outside_the_video(folder: Path, start: int, count: int, stride: int) -> None:
    with (
        VideoReader(folder / "bframes.mp4") as reader,
        pytest.raises(VideoError, match=r"has frames 0 to 59"),
    ):
        reader.read(start, count, stride)


def test_wrong_arguments(folder: Path) -> None:
    path = folder / "bframes.mp4"
    with VideoReader(path) as reader:
        for call in (
            lambda: reader.read(0, 0),
            lambda: reader.read(0, 1, 0),
            lambda: reader.read_frames([]),
            lambda: reader.read_times(0, 0, 10),
            lambda: reader.read_times(0, 1, -1),
        ):
            with pytest.raises(InvalidArgumentError):
                call()
        for t0, seconds in ((-0.1, 1), (2, 0.5)):
            with pytest.raises(VideoError, match=r"0 to 2\.400"):
                reader.read_times(t0, seconds, 10)
    with pytest.raises(VideoError, match="closed"):
        reader.read(0, 1)
    with pytest.raises(InvalidArgumentError, match="threads"):
        VideoReader(path, threads=-1)
    with pytest.raises(InvalidArgumentError, match="size"):
        VideoReader(path, size=(0, 4))


def write_broken(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (30, HEIGHT, WIDTH, 3), np.uint8)
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("hello there\n" * 50)
    elif kind == "garbage":
        path.write_bytes(noise.tobytes()[:10_000])
    elif kind == "picture":
        path = folder / "picture.png"
        Image.fromarray(noise[0]).save(path)
    elif kind == "no_frames":
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            container.start_encoding()
    elif kind == "audio_only":
        with av.open(str(path), "w") as container:
            sound: Any = container.add_stream("aac", rate=16000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), "s16", "mono")
            frame.sample_rate = 16000
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    elif kind in ("header_cut", "data_cut", "tail_cut", "webm_cut"):
        front = {"movflags": "faststart"} if kind in ("data_cut", "tail_cut") else {}
        codec = "libvpx-vp9" if kind == "webm_cut" else "libx264"
        path = folder / ("cut.webm" if kind == "webm_cut" else path.name)
        encode(path, codec, frames=noise, container_options=front)
        whole = path.read_bytes()
        path.write_bytes(whole[:-10] if kind == "tail_cut" else whole[: len(whole) * 6 // 10])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("folder", "is a folder"),
        ("empty", "0 bytes"),
        ("text", "not a video"),
        ("garbage", "damaged|not a video"),
        ("picture", "still picture"),
        ("no_frames", "zero frames"),
        ("audio_only", "only audio"),
        ("header_cut", "truncated"),
        ("data_cut", "truncated: its header announces 30 frames"),
        ("tail_cut", "truncated: its header announces 30 frames"),
        ("webm_cut", "truncated: .* bytes short of the end"),
    ],
)
def test_broken_files_say_what_is_wrong(tmp_path: Path, kind: str, message: str) -> None:
    path = write_broken(tmp_path, kind)
    with pytest.raises(VideoError, match=message) as caught:
        VideoReader(path)
    assert path.name in str(caught.value)


def test_damage_in_the_middle_spares_the_rest(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, HEIGHT, WIDTH, 3), np.uint8)
    path = encode(tmp_path / "damaged.mp4", frames=noise, bframes=0)
    with VideoReader(path) as reader:
        good = reader.read(40, 2)
        pts = reader.index.pts[30]
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.pts == pts]
        position, size = packets[0].pos, packets[0].size
    data = bytearray(path.read_bytes())
    data[position : position + size] = b"\xff" * size
    path.write_bytes(bytes(data))
    with VideoReader(path) as reader:
        with pytest.raises(VideoError, match="damaged"):
            reader.read(28, 4)
        assert np.array_equal(reader.read(40, 2), good)


def test_unknown_names(folder: Path) -> None:
    path = folder / "bframes.mp4"
    bad: Any = "FRAMES"
    with pytest.raises((UnknownNameError, TypeError), match="FRAME"):
        VideoReader(path, thread_type=bad)


def test_videos_are_read_without_torch() -> None:
    code = "import sys, vidgen.video; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_joined_transport_streams_lose_nothing(tmp_path: Path, codec: str) -> None:
    """Joined with ``cat``, packet counters start anew, which FFmpeg's demuxer flags as a loss."""
    first = encode(tmp_path / "first.ts", codec, bframes=2)
    second = encode(tmp_path / "second.ts", codec, bframes=2, frames=[barcode(i) for i in range(60, 91)])
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    with VideoReader(joined) as reader:
        assert numbers([*reader]) == list(range(91))
        assert numbers(reader.read_frames([90, 58, 59, 60, 61, 0])) == [90, 58, 59, 60, 61, 0]


def test_what_is_lost_within_a_transport_stream_is_no_join(tmp_path: Path) -> None:
    data = encode(tmp_path / "whole.ts", bframes=0).read_bytes()
    lost = tmp_path / "lost.ts"
    middle = len(data) // 376 * 188
    lost.write_bytes(data[:middle] + data[middle + 188 :])
    with VideoReader(lost) as reader, pytest.raises(VideoError, match="damaged"):
        reader.read_frames(range(len(reader)))
