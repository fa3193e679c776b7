"""Sets of videos to be scored: a folder, procedural data or a dataset, each video once and in order.

Scoring is strict where training is lenient: a file that is broken, too short or of another size is an error,
since a score over other videos than were meant is no score. Short ones are left out where that is asked for.
"""

from __future__ import annotations

import logging
import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vidgen import plugins
from vidgen.errors import InvalidArgumentError, VideoError, VideoNotFoundError
from vidgen.paths import expanded
from vidgen.video.checks import check_name
from vidgen.video.clips import ClipDataset, ClipSample
from vidgen.video.dataset import DataConfig, is_registered, open_dataset
from vidgen.video.draws import Draws, digest
from vidgen.video.folder import VideoFolder
from vidgen.video.index import FrameIndex
from vidgen.video.index_cache import VideoRecord
from vidgen.video.reader import VideoReader
from vidgen.video.transforms import crop_box, scaled_size, to_clip
from vidgen.video.writer import read_metadata
from vidgen.weights import digest_of

__all__ = ["Batch", "Source", "VideoSet", "View", "check_there", "choose", "is_procedural", "open_videos"]

CROPS = ("center", "none")

METADATA = "metadata"
"""The captions that generated videos carry in themselves."""

logger = logging.getLogger("vidgen.metrics")

NUM_DRAWN = 2048
"""Videos of procedural data where nothing else is said: FVD's usual number."""

Source = str | os.PathLike[str] | DataConfig | ClipDataset
"""A folder of videos, ``"shapes"`` or ``"story"``, a ``DataConfig`` that names either, or a dataset."""


@dataclass(frozen=True)
class View:
    """What is looked at of each video: its first frames, scaled and cropped.

    Args:
        num_frames: frames of a video, from its first on.
        size: pixels, ``(height, width)`` or one number for both; None keeps the videos' own, which must then
            be one.
        crop: ``"center"`` scales to cover ``size`` and crops, ``"none"`` squeezes.
        stride: source frames from one frame to the next.
        fps: rate to resample to instead, so that sets of different rates show the same seconds.

    Raises:
        InvalidArgumentError: a number out of range, or both ``stride`` and ``fps``.
        UnknownNameError: another ``crop``.
    """

    num_frames: int = 16
    size: int | tuple[int, int] | None = None
    crop: str = "center"
    stride: int = 1
    fps: int | float | None = None

    def __post_init__(self) -> None:
        check_name("crop", self.crop, CROPS)
        if min(self.num_frames, self.stride, *(self.pixels or (1, 1))) < 1:
            raise InvalidArgumentError(
                f"num_frames={self.num_frames}, stride={self.stride} and size={self.size} must all be 1 or "
                "more."
            )
        if self.fps is not None and not (self.fps > 0 and self.stride == 1):
            raise InvalidArgumentError(
                f"fps={self.fps} with stride={self.stride}: fps must be above 0 and already says how far apart "
                "frames are; leave stride at 1."
            )

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Height and width, or None to keep the videos' own."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def reach(self) -> int:
        """Frames from the first to the last, both counted, without ``fps``."""
        return (self.num_frames - 1) * self.stride + 1

    def to_json(self) -> dict[str, Any]:
        """Return what belongs to a protocol, in plain values; size and rates are added when they are known."""
        return {"frames": self.num_frames, "crop": self.crop, "stride": self.stride, "fps": self.fps}


@dataclass(frozen=True)
class Batch:
    """Some videos of a set.

    Attributes:
        clips: pixels in [-1, 1].
        captions: empty where there is none.
        indices: of each within the set.
    """

    clips: Float[Tensor, "b 3 f h w"]
    captions: list[str]
    indices: list[int]


class VideoSet(ABC):
    """Videos of one size and length.

    Attributes:
        view: what is looked at of each.
        name: for messages and progress bars.
        size: height and width of the clips.
        names: relative paths without suffix, or None where videos have none.
        rates: frames per second of the sources, each once, rising.
        contents: names what each video shows, whatever its file is called.
        captions: of each video; empty text where there is none.
    """

    view: View
    name: str
    size: tuple[int, int]
    names: tuple[str, ...] | None
    rates: tuple[float, ...]
    contents: tuple[str, ...]
    captions: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Names the whole content: equal videos, in any order, have equal digests."""
        return digest("vidgen.metrics.set", *sorted(self.contents)).hex()

    @property
    def seen_rates(self) -> list[int | float] | None:
        """The sources' rates in hundredths, where they decide what is seen.

        None at a rate that ``view.fps`` gives, and of single frames.
        """
        if self.view.fps is not None or self.view.num_frames == 1:
            return None
        return sorted({round(rate, 2) for rate in self.rates})

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.captions)

    @abstractmethod
    def clip(self, index: int) -> Float[Tensor, "3 f h w"]:
        """Read a video, with pixels in [-1, 1].

        Raises:
            VideoError: it cannot be read.
        """

    def batches(self, batch_size: int, *, progress: bool = False) -> Iterator[Batch]:
        """Yield every video once, in order; ``progress`` shows a bar."""
        with tqdm(total=len(self), desc=f"scoring {self.name}", unit="video", disable=not progress) as bar:
            for at in range(0, len(self), batch_size):
                indices = list(range(at, min(at + batch_size, len(self))))
                clips = torch.stack([self.clip(index) for index in indices])
                yield Batch(clips, [self.captions[index] for index in indices], indices)
                bar.update(len(indices))


def open_videos(
    source: Source,
    view: View,
    *,
    videos: int | None = None,
    captions: str = "auto",
    skip_short: bool = False,
    seed: int = 0,
    cache_dir: str | None = None,
    progress: bool = False,
) -> VideoSet:
    """Open ``source`` as it is seen by ``view``.

    Args:
        source: see ``Source``. Procedural data named by a word is that of the test split.
        view: what is looked at. Of a ``DataConfig``, seed, split, captions and the procedural fields count,
            and the rest comes from ``view``; the clips of a dataset must already be as ``view`` says.
        videos: at most this many, drawn without replacement and kept in order; default all (of procedural
            data named by a word: 2,048).
        captions: where those of a folder are, see ``video.captions``; or ``"metadata"``: the prompts in files
            that vidgen generated, where ``"auto"`` looks too if there is nothing else than names of folders.
        skip_short: leave out, and count, the videos of a folder that are shorter than ``view`` looks at.
        seed: draws ``videos`` of them.
        cache_dir: where what is learnt of files is kept, as in ``DataConfig``.
        progress: show a bar while files are indexed.

    Raises:
        VideoNotFoundError: a folder that is missing.
        VideoError: one that is empty, or holds a broken or too short video.
        InvalidArgumentError: videos of several sizes without ``view.size``, clips of a dataset that are not
            as ``view`` says, or ``videos`` below 1.
    """
    if videos is not None and videos < 1:
        raise InvalidArgumentError(f"videos={videos}; score 1 or more.")
    if isinstance(source, ClipDataset):
        return _DatasetVideos(source, view, "dataset", choose(len(source), videos, seed))
    if not isinstance(source, DataConfig):
        source = _config(os.fspath(source), captions, videos, cache_dir)
    if is_registered(source.path):
        data = open_dataset(_procedural(source, view), progress=progress)
        return _DatasetVideos(data, view, source.path, choose(len(data), videos, seed))
    return _FolderVideos(source, view, videos, seed, progress, skip_short)


def _config(path: str, captions: str, videos: int | None, cache_dir: str | None) -> DataConfig:
    """Return the config of what a word or a path names: of a dataset with such options, other videos of it."""
    config = DataConfig(path, cache_dir=cache_dir)
    options = {"captions": captions, "split": "test", "videos": videos or NUM_DRAWN}
    return config.changed(**{k: value for k, value in options.items() if hasattr(config.options, k)})


def _procedural(config: DataConfig, view: View) -> DataConfig:
    """Return the config of clips that begin with their video and are as ``view`` says."""
    stride, rate = view.stride, config.fps or 8.0
    if view.fps is not None:
        stride = round(rate / view.fps)
        if not math.isclose(stride * view.fps, rate):
            raise InvalidArgumentError(
                f"fps={view.fps}: the procedural data is drawn at {rate:g} frames per second, of which every "
                f"first, second, ... frame can be looked at; give {rate:g}, {rate / 2:g}, {rate / 3:g} ..."
            )
    reach = (view.num_frames - 1) * stride + 1
    size = view.size or config.size
    frames = {"frames": reach} if hasattr(config.options, "frames") else {}
    return config.changed(clip_length=view.num_frames, stride=stride, size=size, flip=False, **frames)


def check_there(source: Source) -> None:
    """Refuse a folder that is not there; quick, whatever else it takes to open one.

    Raises:
        VideoNotFoundError: it does not exist.
    """
    if isinstance(source, ClipDataset) or is_procedural(source):
        return
    path = expanded(source.path if isinstance(source, DataConfig) else source)
    if not path.exists():
        known = "".join(f", or {name}" for name in plugins.available(plugins.DATASETS))
        raise VideoNotFoundError(f"{path} does not exist. Give a folder of videos{known}.")


def is_procedural(source: Source) -> bool:
    """Say whether ``source`` is drawn, at whatever size is asked for."""
    path = source.path if isinstance(source, DataConfig) else source
    return isinstance(path, str) and is_registered(path)


def choose(count: int, videos: int | None, seed: int) -> list[int]:
    """Return the places of at most ``videos`` of ``count``, drawn without replacement, in order."""
    if videos is None or videos >= count:
        return list(range(count))
    draws = Draws("vidgen.metrics.videos", seed)
    ranked = sorted(range(count), key=lambda _: draws.uniform())
    return sorted(ranked[:videos])


def _prompt_in(file: Path) -> str:
    """Return the prompt in the metadata of a video; empty where there is none, or several by frame."""
    prompt = read_metadata(file).get("prompt")
    if isinstance(prompt, dict) and len(prompt) == 1:
        (prompt,) = prompt.values()
    return prompt if isinstance(prompt, str) else ""


class _DatasetVideos(VideoSet):
    """Draw 0 of the clips of a dataset."""

    def __init__(self, data: ClipDataset, view: View, name: str, chosen: list[int]) -> None:
        if not chosen:
            raise InvalidArgumentError(f"the {name} is empty; give one video or more.")
        self.data, self.view, self.name, self.chosen = data, view, name, chosen
        first = self._sample(0)
        self.size = (first.clip.shape[2], first.clip.shape[3])
        self.names = None
        about = [self._about(place) for place in range(len(chosen))]
        self.captions, self.contents, rates = zip(*about, strict=True)
        # A clip's rate is its source's over the stride.
        self.rates = tuple(sorted({rate * view.stride for rate in rates}))

    def clip(self, index: int) -> Float[Tensor, "3 f h w"]:
        """Read a video; see ``VideoSet.clip``."""
        return self._sample(index).clip

    def _about(self, place: int) -> tuple[str, str, float]:
        """Return caption, name of the content and rate of a video, if possible without reading it."""
        index = self.chosen[place]
        found = self.data.locate(index, 0)
        if found is not None and found.content is not None:
            return found.caption, f"{found.content} {found.frames}", found.fps
        sample = self._sample(place)  # its source alone does not say which part of it this is
        return sample.caption, f"{self.data.content_key(index)} {digest_of(sample.clip)}", sample.fps

    def _sample(self, place: int) -> ClipSample:
        sample = self.data.read(self.chosen[place], 0)
        size = self.view.pixels or (self.size if place else tuple(sample.clip.shape[2:]))
        expected = (3, self.view.num_frames, *size)
        if tuple(sample.clip.shape) != expected:
            raise InvalidArgumentError(
                f"clip {self.chosen[place]} of the {self.name} has the shape {tuple(sample.clip.shape)}; "
                f"expected {expected}. Open the dataset with the length and size that are to be scored."
            )
        return sample


class _FolderVideos(VideoSet):
    """The first frames of each video file of a folder."""

    def __init__(
        self,
        source: DataConfig,
        view: View,
        videos: int | None,
        seed: int,
        progress: bool,
        skip_short: bool = False,
    ) -> None:
        self.root, self.view = expanded(source.path), view
        self.name = self.root.name or str(self.root)
        check_there(source)
        # For its index, which is kept between runs, and its captions; its random clips are for training.
        folder = VideoFolder(
            self.root,
            clip_length=1,
            captions="none" if source.options.captions == METADATA else source.options.captions,
            cache_dir=source.cache_dir,
            progress=progress,
        )
        if folder.broken:
            name, reason = next(iter(folder.broken.items()))
            raise VideoError(
                f"{len(folder.broken)} videos in {self.root} cannot be read (first: {name}: {reason}); a score "
                "leaves none out. Remove or replace them."
            )
        everything = self._long_enough(folder.records, skip_short)
        self.files = [everything[place] for place in choose(len(everything), videos, seed)]
        self.records = {file: folder.records[file] for file in self.files}
        self.size = view.pixels or self._one_size()
        self.names = tuple(PurePosixPath(file).with_suffix("").as_posix() for file in self.files)
        self.rates = tuple(sorted({record.fps for record in self.records.values()}))
        self.captions = self._captions(folder, source.options.captions)
        self.contents = tuple(self.records[file].key for file in self.files)

    def clip(self, index: int) -> Float[Tensor, "3 f h w"]:
        """Read a video; see ``VideoSet.clip``."""
        file = self.files[index]
        record = self.records[file]
        frame_index = FrameIndex.from_json(record.frame_index)
        scaled = scaled_size((record.height, record.width), self.size, self.view.crop)
        top, left = crop_box(scaled, self.size, self.view.crop, Draws("vidgen.metrics.crop"))
        with VideoReader(self.root / file, index=frame_index, size=scaled, threads=1) as reader:
            frames = reader.read_frames(self._frames(frame_index))
        return to_clip(frames[:, top : top + self.size[0], left : left + self.size[1]])

    def _frames(self, index: FrameIndex) -> list[int]:
        if self.view.fps is None:
            return list(range(0, self.view.reach, self.view.stride))
        return [index.nearest(tick / self.view.fps) for tick in range(self.view.num_frames)]

    def _captions(self, folder: VideoFolder, mode: str) -> tuple[str, ...]:
        if mode == METADATA or (mode == "auto" and folder.captions.mode in ("none", "folder")):
            prompts = tuple(_prompt_in(self.root / file) for file in self.files)
            if any(prompts) or mode == METADATA:
                return prompts
        spans = [folder.captions.spans[file] for file in self.files]
        return tuple(span[0].caption if len(span) == 1 else "" for span in spans)

    def _long_enough(self, records: Mapping[str, VideoRecord], skip: bool) -> list[str]:
        """Return the files that hold all frames that are looked at."""
        short = sorted(file for file, record in records.items() if self._is_short(record))
        if not short:
            return sorted(records)
        record = records[short[0]]
        rate = f"{self.view.fps:g} fps" if self.view.fps else f"stride {self.view.stride}"
        said = (
            f"{len(short)} of {len(records)} videos in {self.root} are shorter than {self.view.num_frames} "
            f"frames at {rate} (first: {short[0]}, {record.num_frames} frames, {record.duration:.2f} s)"
        )
        if not skip or len(short) == len(records):
            raise VideoError(
                f"{said}; look at fewer frames (--num-frames), leave these out (--skip-short), or give longer "
                "videos."
            )
        logger.warning("%s; they are left out.", said)
        return sorted(records.keys() - set(short))

    def _is_short(self, record: VideoRecord) -> bool:
        if self.view.fps is None:
            return record.num_frames < self.view.reach
        # The last tick may lie half a source frame past the start of the last one.
        last = record.duration - 0.5 / record.fps
        return (self.view.num_frames - 1) / self.view.fps > last

    def _one_size(self) -> tuple[int, int]:
        sizes = Counter((record.height, record.width) for record in self.records.values())
        if len(sizes) > 1:
            found = ", ".join(f"{count} of {w} x {h}" for (h, w), count in sizes.most_common(4))
            raise InvalidArgumentError(
                f"the videos in {self.root} have {len(sizes)} sizes ({found}); give the size at which they are "
                "to be scored, such as --size 64 (View(size=64))."
            )
        return next(iter(sizes))
