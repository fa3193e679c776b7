"""How fast random 16-frame clips, and whole files, are read: vidgen against other readers.

Run ``python benchmarks/clip_reading.py --out benchmarks/results/clip_reading.json``; with
``--data FOLDER`` on one's own files instead of those that the script writes. All readers take
turns on the same clips in one run, so that only ratios of one record are compared.
"""

from __future__ import annotations

import argparse
import importlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import numpy as np
import record

from vidgen.video import FrameIndex, VideoReader, VideoWriter

Read = Callable[[int, int], np.ndarray]
"""(first frame, count) -> uint8 (f, h, w, 3)."""

SUFFIXES = {".avi", ".mkv", ".mov", ".mp4", ".webm"}


class Ours:
    """``VideoReader`` with the index at hand, as a dataset has it."""

    def __init__(self, path: Path, index: FrameIndex) -> None:
        self.reader = VideoReader(path, index=index)

    def __call__(self, start: int, count: int) -> np.ndarray:
        return self.reader.read(start, count)

    def sequential(self) -> Iterator[np.ndarray]:
        return iter(self.reader)


class PlainLoop:
    """What one writes by hand with PyAV: seek, decode, skip to the clip, convert; one thread."""

    to_rgb: Mapping[str, Any] = {"format": "rgb24", "threads": 1}
    threads = 1

    def __init__(self, path: Path, index: FrameIndex) -> None:
        self.container = av.open(str(path))
        streams = self.container.streams.video
        self.stream = max(streams, key=lambda s: s.width * s.height)
        self.stream.thread_count = self.threads
        self.pts = index.pts

    def __call__(self, start: int, count: int) -> np.ndarray:
        self.container.seek(self.pts[start], stream=self.stream)
        frames = []
        for frame in self.container.decode(self.stream):
            if frame.pts < self.pts[start]:
                continue
            frames.append(frame.to_ndarray(**self.to_rgb))
            if len(frames) == count:
                break
        return np.stack(frames)

    def sequential(self) -> Iterator[np.ndarray]:
        self.container.seek(self.pts[0], stream=self.stream)
        for frame in self.container.decode(self.stream):
            yield frame.to_ndarray(**self.to_rgb)


class PlainLoopDefaults(PlainLoop):
    """The same with PyAV's own thread counts, one per core for decoding and for converting."""

    to_rgb: Mapping[str, Any] = {"format": "rgb24"}
    threads = 0


class TorchCodec:
    def __init__(self, path: Path, index: FrameIndex) -> None:
        module = importlib.import_module("torchcodec.decoders")
        self.decoder = module.VideoDecoder(str(path), dimension_order="NHWC")
        self.frames = len(index)

    def __call__(self, start: int, count: int) -> np.ndarray:
        return self.decoder.get_frames_in_range(start, start + count).data.numpy()

    def sequential(self) -> Iterator[np.ndarray]:
        for number in range(self.frames):
            yield self.decoder[number].numpy()


class Decord:
    def __init__(self, path: Path, index: FrameIndex) -> None:
        self.reader = importlib.import_module("decord").VideoReader(str(path))
        self.frames = len(index)

    def __call__(self, start: int, count: int) -> np.ndarray:
        return self.reader.get_batch(range(start, start + count)).asnumpy()

    def sequential(self) -> Iterator[np.ndarray]:
        for number in range(self.frames):
            yield self.reader[number].asnumpy()


READERS = {
    "vidgen": Ours,
    "pyav_loop": PlainLoop,
    "pyav_loop_defaults": PlainLoopDefaults,
    "torchcodec": TorchCodec,
    "decord": Decord,
}


def write_files(folder: Path, num_frames: int) -> list[Path]:
    """H.264 files of moving noise in two sizes and two keyframe distances."""
    rng = np.random.default_rng(0)
    paths = []
    for height, width in ((240, 320), (64, 64)):
        canvas = np.kron(rng.integers(0, 256, (64, 64, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        for gop in (12, 250):
            path = folder / f"h264_{width}x{height}_gop{gop}.mp4"
            with VideoWriter(path, 25, options={"g": str(gop)}, crf=23) as writer:
                for i in range(num_frames):
                    shifted = np.roll(canvas, (i, 2 * i), (0, 1))
                    writer.append(shifted[:height, :width])
            paths.append(path)
    return paths


def summary(seconds: list[float], frames: int) -> dict[str, float]:
    """Median, p10 and p90 of frames per second."""
    return record.spread([frames / s for s in seconds], "fps", 1)


def timed(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def open_and_read(kind: type, path: Path, index: FrameIndex, start: int, count: int) -> None:
    kind(path, index)(start, count)


def exhaust(reader: Any) -> None:
    for _ in reader.sequential():
        pass


def agreement(readers: dict[str, Any], start: int, count: int) -> dict[str, int]:
    """Largest difference of pixels from vidgen's; more than a few means other frames."""
    ours = readers["vidgen"](start, count).astype(int)
    return {n: int(np.abs(r(start, count).astype(int) - ours).max()) for n, r in readers.items()}


def measure(path: Path, kinds: dict[str, type], starts: int, warmup: int, whole: int) -> dict[str, Any]:
    """All readers in turn on the same clips of one file."""
    with VideoReader(path) as reader:
        index, info = reader.index, reader.info
    count = min(16, len(index))
    readers = {name: kind(path, index) for name, kind in kinds.items()}
    rng = random.Random(0)
    clips = [rng.randrange(len(index) - count + 1) for _ in range(warmup + starts)]
    times: dict[str, dict[str, list[float]]] = {
        task: {name: [] for name in kinds} for task in ("clips", "open_and_clip", "sequential")
    }
    for position, start in enumerate(clips):
        # In changing order: threads that a reader leaves behind slow down the next.
        for name, kind in rng.sample(list(kinds.items()), len(kinds)):
            kept = timed(partial(readers[name], start, count))
            opened = timed(partial(open_and_read, kind, path, index, start, count))
            if position >= warmup:
                times["clips"][name].append(kept)
                times["open_and_clip"][name].append(opened)
    for _ in range(whole):
        for name in rng.sample(list(kinds), len(kinds)):
            times["sequential"][name].append(timed(partial(exhaust, readers[name])))
    record: dict[str, Any] = {
        "file": path.name,
        "frames": len(index),
        "size": [info.width, info.height],
        "codec": info.codec,
        "keyframes": len(index.keyframes),
        "max_difference": agreement(readers, clips[0], count),
    }
    for task, by_name in times.items():
        frames = len(index) if task == "sequential" else count
        rows = {name: summary(seconds, frames) for name, seconds in by_name.items()}
        # Pairs of neighbours in time, so that a busy machine slows both.
        pairs = zip(by_name["vidgen"], by_name["pyav_loop"], strict=True)
        ratio = statistics.median(plain / ours for ours, plain in pairs)
        record[task] = {"readers": rows, "vidgen_over_pyav_loop": round(ratio, 3)}
    return record


def available(path: Path) -> tuple[dict[str, type], dict[str, str]]:
    """The readers that can read ``path`` here; a version, or why not, for each."""
    with VideoReader(path) as reader:
        index = reader.index
    kinds, versions = {}, {}
    for name, kind in READERS.items():
        try:
            kind(path, index)(0, 1)
            versions[name] = version("av" if name.startswith("pyav") else name)
            kinds[name] = kind
        except PackageNotFoundError:
            versions[name], kinds[name] = "no version", kind
        except ModuleNotFoundError:
            versions[name] = "not installed"
        except (ImportError, OSError, RuntimeError) as error:
            versions[name] = f"not usable: {str(error).splitlines()[0]}"
    return kinds, versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON record goes; else printed")
    parser.add_argument("--data", type=Path, help="folder of videos to read instead")
    parser.add_argument("--frames", type=int, default=600, help="length of the written files")
    parser.add_argument("--repeats", type=int, default=60, help="clips per reader and file")
    parser.add_argument("--warmup", type=int, default=5, help="clips before the measured ones")
    parser.add_argument("--whole", type=int, default=5, help="whole-file passes per reader")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.data:
            paths = sorted(p for p in args.data.rglob("*") if p.suffix.lower() in SUFFIXES)
        else:
            paths = write_files(Path(folder), args.frames)
        kinds, versions = available(paths[0])
        ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
        result = record.header("clip_reading", record.cpu(), "uint8", ffmpeg=ffmpeg, versions=versions)
        result |= {"warmup": args.warmup, "clip_frames": 16, "files": []}
        for path in paths:
            row = measure(path, kinds, args.repeats, args.warmup, args.whole)
            result["files"].append(row)
            for task in ("clips", "open_and_clip", "sequential"):
                rates = {n: r["fps_median"] for n, r in row[task]["readers"].items()}
                print(path.name, task, rates, "ratio", row[task]["vidgen_over_pyav_loop"])
    record.write(result, args.out)


if __name__ == "__main__":
    main()
