"""What is read of damaged video files: errors, right prefixes, skips that are counted.

Run ``python benchmarks/mutated_videos.py --out benchmarks/results/mutated_videos.json``. Small files
of many containers and codecs are damaged in seeded ways (flipped bits, runs of bytes that are zeroed,
overwritten, cut out or doubled, missing ends), and read in order, frame by frame in random order, and
with damaged frames skipped. Each is held against the frames of the whole file. A frame with other
pixels is *silently different* unless PyAV alone decodes the same pixels without any mark of damage:
flipped bits may say another picture that is a valid one, which codecs without check sums cannot know.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import av
import numpy as np
import record

from vidgen.errors import VideoError
from vidgen.video import VideoReader
from vidgen.video.color import FrameConverter, Orientation

FRAMES, HEIGHT, WIDTH = 24, 64, 96
TIMEOUT = 60  # seconds for one file, after which it counts as a hang

SOURCES: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264.mp4": ("libx264", "yuv420p", {"x264-params": "log-level=none"}),
    "h264.mkv": ("libx264", "yuv420p", {"x264-params": "log-level=none"}),
    "h264.ts": ("libx264", "yuv420p", {"x264-params": "log-level=none"}),
    "h264.avi": ("libx264", "yuv420p", {"x264-params": "log-level=none:bframes=0"}),
    "h264.flv": ("libx264", "yuv420p", {"x264-params": "log-level=none"}),
    "refresh.mp4": ("libx264", "yuv420p", {"x264-params": "log-level=none:intra-refresh=1:bframes=0"}),
    "hevc.mp4": ("libx265", "yuv420p", {"x265-params": "log-level=none:pools=none:ctu=32"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"bf": "2"}),
    "mpeg4.mp4": ("mpeg4", "yuv420p", {}),
    "mpeg2.ts": ("mpeg2video", "yuv420p", {"bf": "2"}),
    "mpeg1.mpg": ("mpeg1video", "yuv420p", {}),
    "vp8.webm": ("libvpx", "yuv420p", {"cpu-used": "8", "deadline": "realtime"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"cpu-used": "8", "deadline": "realtime"}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}),
    "ffv1.mkv": ("ffv1", "yuv420p", {"level": "3", "slicecrc": "1"}),
    "png.mov": ("png", "rgb24", {}),
    "qtrle.mov": ("qtrle", "rgb24", {}),
    "wmv2.wmv": ("wmv2", "yuv420p", {}),
    "flv1.flv": ("flv", "yuv420p", {}),
    "animated.gif": ("gif", "rgb8", {}),
}


def write_source(path: Path, codec: str, pix_fmt: str, options: dict[str, str]) -> None:
    """A moving texture, so that a wrong frame or a shifted block shows."""
    random = np.random.default_rng(0)
    canvas = np.kron(random.integers(0, 256, (16, 24, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, pix_fmt, 8
        for i in range(FRAMES):
            frame = np.ascontiguousarray(np.roll(canvas, (i, 2 * i), (0, 1))[:HEIGHT, :WIDTH])
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pix_fmt)
            picture.pts = i
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def flip(data: bytearray, random: np.random.Generator) -> None:
    for place in random.integers(0, len(data), random.integers(1, 12)):
        data[place] ^= 1 << int(random.integers(8))


def run_of(data: bytearray, random: np.random.Generator) -> slice:
    start = int(random.integers(len(data)))
    return slice(start, start + int(random.integers(4, 400)))


def zero(data: bytearray, random: np.random.Generator) -> None:
    where = run_of(data, random)
    data[where] = bytes(len(data[where]))


def overwrite(data: bytearray, random: np.random.Generator) -> None:
    where = run_of(data, random)
    data[where] = random.bytes(len(data[where]))


def cut_out(data: bytearray, random: np.random.Generator) -> None:
    del data[run_of(data, random)]


def double(data: bytearray, random: np.random.Generator) -> None:
    where = run_of(data, random)
    data[where] = data[where] * 2


def shorten(data: bytearray, random: np.random.Generator) -> None:
    del data[int(random.integers(len(data) // 8, len(data))) :]


MUTATIONS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    flip,
    zero,
    overwrite,
    cut_out,
    double,
    shorten,
)


def digest(frame: np.ndarray) -> str:
    return hashlib.blake2b(frame.tobytes(), digest_size=8).hexdigest()


def in_order(path: Path) -> list[str]:
    with VideoReader(path) as reader:
        return [digest(frame) for frame in reader]


def one_by_one(path: Path, order: np.ndarray) -> dict[int, str | None]:
    """Every frame by its number, in ``order``; None for an error."""
    found: dict[int, str | None] = {}
    with VideoReader(path) as reader:
        for number in order[order < len(reader)]:
            try:
                found[int(number)] = digest(reader.read(int(number), 1)[0])
            except VideoError:
                found[int(number)] = None
    return found


def unmarked(path: Path) -> set[str]:
    """Frames that PyAV alone decodes without a mark of damage, from any packet flagged as a keyframe."""
    found: set[str] = set()
    start, starts = 0, 1
    while start < starts:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            stream.codec_context.options, stream.thread_count = {"err_detect": "explode"}, 1
            size = stream.codec_context.height, stream.codec_context.width
            starts, over = 0, False
            try:
                for packet in container.demux(stream):
                    starts += packet.is_keyframe
                    if starts <= start or not (packet.size or packet.dts is None):
                        continue
                    over |= packet.is_corrupt
                    if over:
                        continue
                    frames = decoded(stream, packet)
                    over = frames is None
                    found.update(digest(rgb(frame, size)) for frame in frames or ())
                    if over:
                        found.update(digest(rgb(frame, size)) for frame in drained(stream))
            except av.error.FFmpegError:
                pass
        start += 1
    return found


def decoded(stream: Any, packet: Any) -> list[av.VideoFrame] | None:
    try:
        return [frame for frame in stream.decode(packet) if not frame.is_corrupt]
    except av.error.FFmpegError:
        return None


def drained(stream: Any) -> list[av.VideoFrame]:
    """What was decoded before a mark of damage."""
    try:
        return [frame for frame in stream.decode(None) if not frame.is_corrupt]
    except av.error.FFmpegError:
        return []


def rgb(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    out = np.empty((*size, 3), np.uint8)
    FrameConverter().write(frame, out, Orientation())
    return out


def outcome(path: Path, whole: list[str], seed: int) -> str:
    """What became of one damaged file; the worst that was seen of it."""
    with VideoReader(path) as reader:
        length = len(reader)
    order = np.random.default_rng(seed).permutation(length)
    random_access = one_by_one(path, order)
    again = one_by_one(path, np.arange(length))
    if random_access != again:
        return "depends on the way"
    good = {number: value for number, value in again.items() if value is not None}
    others = {value for value in good.values() if value not in whole}
    if length == len(whole):
        others = {value for number, value in good.items() if whole[number] != value}
    if others:
        return "silently different" if others - unmarked(path) else "different, without a mark"
    if len(good) == length:
        return "whole" if length == len(whole) else "whole frames, fewer or more"
    if not good:
        return "error"
    return skipped(path, again)


def skipped(path: Path, found: dict[int, str | None]) -> str:
    """Skipping has to give all good frames as they are, and to count the others."""
    with VideoReader(path, damaged="skip") as reader:
        shown = [digest(frame) for frame in reader]
        counted = reader.skipped
    same = all(value is None or shown[number] == value for number, value in found.items())
    return "skips counted" if same and counted == {n for n, v in found.items() if v is None} else "skips wrong"


def judge(path: Path, whole: list[str], seed: int) -> str:
    logging.disable(logging.WARNING)
    try:
        return outcome(path, whole, seed)
    except VideoError:
        return "error"
    except Exception as error:
        return f"raw {type(error).__name__}"


def damaged_copy(source: Path, folder: Path, number: int) -> Path:
    random = np.random.default_rng(number)
    data = bytearray(source.read_bytes())
    MUTATIONS[number % len(MUTATIONS)](data, random)
    path = folder / f"{number}-{source.name}"
    path.write_bytes(data)
    return path


def measure(folder: Path, files: int) -> dict[str, Any]:
    """Judge ``files`` damaged files, spread over the sources, each in a process that may hang or crash."""
    found: dict[str, Counter[str]] = {}
    names = list(SOURCES)
    wholes = {}
    for name, (codec, pix_fmt, options) in SOURCES.items():
        write_source(folder / name, codec, pix_fmt, options)
        wholes[name] = in_order(folder / name)
        found[name] = Counter()
        if len(wholes[name]) != FRAMES:
            raise RuntimeError(f"{name} has {len(wholes[name])} frames before it is damaged")
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context)
    for number in range(files):
        name = names[number // len(MUTATIONS) % len(names)]
        path = damaged_copy(folder / name, folder, number)
        try:
            found[name][pool.submit(judge, path, wholes[name], number).result(TIMEOUT)] += 1
        except (TimeoutError, BrokenProcessPool) as error:
            found[name]["hang" if isinstance(error, TimeoutError) else "crash"] += 1
            pool.kill_workers() if hasattr(pool, "kill_workers") else pool.shutdown(wait=False)
            pool = ProcessPoolExecutor(1, mp_context=context)
        path.unlink()
    pool.shutdown()
    total = sum(found.values(), Counter[str]())
    return {
        "outcomes": dict(total.most_common()),
        "sources": {n: dict(c.most_common()) for n, c in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.files)
    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    head = record.header("mutated_videos", record.cpu(), "uint8", pyav=av.__version__, ffmpeg=ffmpeg)
    seconds = round(time.perf_counter() - started)
    record.write({**head, "files": options.files, "seconds": seconds, **found}, options.out)
    print(json.dumps(found["outcomes"]))


if __name__ == "__main__":
    main()
