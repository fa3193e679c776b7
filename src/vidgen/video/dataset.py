"""The data of a training run, from one config: a folder of videos, or a dataset that a package registers."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from vidgen import config as configs
from vidgen import plugins
from vidgen.errors import InvalidArgumentError, UnknownNameError, VidgenError
from vidgen.paths import expanded
from vidgen.video.clips import ClipBatch, ClipDataset, ClipSample, ClipSubset, ClipView, collate, split
from vidgen.video.folder import VideoFolder

__all__ = [
    "ClipBatch",
    "ClipDataset",
    "ClipSample",
    "ClipSubset",
    "ClipView",
    "DataConfig",
    "DataSource",
    "FolderOptions",
    "FolderSource",
    "VideoFolder",
    "check_data",
    "collate",
    "is_registered",
    "open_dataset",
    "source_of",
    "split",
    "summarize",
]

_ONCE_FLAT = {"crop", "captions", "videos", "frames", "objects", "split", "hold_out", "caption_style"}
"""Options that older files hold beside the other fields, whatever the data is."""


@dataclass(frozen=True)
class FolderOptions:
    """What only a folder of videos is asked.

    Args:
        crop: ``"center"``, ``"random"``, or ``"none"`` to squeeze.
        captions: where captions are, see ``captions.load_captions``.
    """

    crop: str = "center"
    captions: str = "auto"


@dataclass(frozen=True)
class DataConfig:
    """Which clips to train on.

    Args:
        path: a folder of videos, or the name of a dataset (entry point group ``vidgen.datasets``); a folder
            of the same name is ``./name``. Empty: not named yet.
        clip_length: frames of a clip.
        stride: source frames from one frame of a clip to the next.
        size: pixels, ``(height, width)`` or one number for both.
        flip: mirror half of the clips whose caption does not speak of left or right.
        fps: rate to resample to, instead of a stride; of data made on the fly, the rate it has.
        seed: keys what is random in clips, and data made on the fly.
        cache_dir: where what is learnt of files is kept; default ``$VIDGEN_CACHE``,
            ``$XDG_CACHE_HOME/vidgen`` or ``~/.cache/vidgen``.
        options: what only this kind of data is asked, an instance of its ``DataSource.Options``
            (``FolderOptions`` for a folder); None is its defaults.

    Raises:
        InvalidArgumentError: options of another kind of data.
    """

    path: str = field(default="", metadata={"decides": "options"})
    clip_length: int = 16
    stride: int = 1
    size: int | tuple[int, int] = 64
    flip: bool = False
    fps: int | float | None = None
    seed: int = 0
    cache_dir: str | None = None
    options: Any = None

    def __post_init__(self) -> None:
        """Fill in the options, or check whose they are."""
        kind = source_of(self.path).Options
        if self.options is None:
            object.__setattr__(self, "options", kind())
        elif not isinstance(self.options, kind):
            raise InvalidArgumentError(
                f"data.path is {self.path!r} and options {self.options!r}; expected {kind.__name__} or None. "
                "`config.changed(path=...)` changes the path and takes that data's default options."
            )

    @classmethod
    def of(cls, path: str | os.PathLike[str], **values: Any) -> DataConfig:
        """Return the config of ``path``; ``values`` are fields, or options by their own names."""
        return cls(os.fspath(path)).changed(**values)

    def changed(self, **values: Any) -> DataConfig:
        """Return the config with other values of fields, or of options by their own names.

        Another ``path`` brings its own default options.

        Raises:
            UnknownNameError: a name is neither a field nor an option.
        """
        names = {each.name for each in dataclasses.fields(self)}
        own = {name: value for name, value in values.items() if name in names}
        if own.get("path", self.path) != self.path:
            own.setdefault("options", None)
        config = dataclasses.replace(self, **own)
        options = {name: value for name, value in values.items() if name not in names}
        known = [each.name for each in dataclasses.fields(config.options)]
        for name in options:
            if name not in known:
                raise UnknownNameError("field of data", name, [*names, *known])
        return dataclasses.replace(config, options=dataclasses.replace(config.options, **options))

    @classmethod
    def read_older(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return plain ``values`` of a file with the options as an instance of their own class.

        Older files hold the options of all kinds of data beside the other fields; those of other kinds than
        ``path``'s never had an effect and are left out.
        """
        kind = source_of(str(values.get("path", ""))).Options
        known = {each.name for each in dataclasses.fields(kind)}
        flat = {name: values[name] for name in _ONCE_FLAT & values.keys()}
        # An option that was None there had a default that depended on the data.
        options = {name: value for name, value in flat.items() if name in known and value is not None}
        options |= values.get("options") or {}
        kept = {name: value for name, value in values.items() if name not in flat}
        return {**kept, "options": configs.from_dict(kind, options, where="options.")}


class DataSource(ABC):
    """A kind of data: the class that an entry point of the group ``vidgen.datasets`` names.

    ``DataConfig.path`` is the entry point's name. A subclass sets ``Options``, a frozen dataclass whose fields
    have defaults, and ``open``.
    """

    Options: ClassVar[type[Any]]
    """What only this data is asked."""

    @classmethod
    @abstractmethod
    def open(cls, config: DataConfig, *, progress: bool = True) -> ClipDataset:
        """Return the clips that ``config`` asks for; ``config.options`` is an instance of ``Options``."""

    @classmethod
    def make(
        cls, config: DataConfig, folder: Path, *, count: int, num_frames: int | None, progress: bool = True
    ) -> None:
        """Write ``count`` videos as files with captions to ``folder`` (``vidgen data make``).

        Raises:
            InvalidArgumentError: this data is not made, which is the default.
        """
        del folder, count, num_frames, progress
        raise InvalidArgumentError(
            f"the dataset {config.path!r} cannot be written as files. Use it by its name: --data {config.path}."
        )


class FolderSource(DataSource):
    """A folder of videos."""

    Options = FolderOptions

    @classmethod
    def open(cls, config: DataConfig, *, progress: bool = True) -> ClipDataset:
        """See ``VideoFolder``; VideoError if the folder cannot be used."""
        if not config.path:
            raise InvalidArgumentError(
                f"no data was named; expected {_EXPECTED}{_named()}. Give it as --data, or as data.path."
            )
        return VideoFolder(
            expanded(config.path),
            clip_length=config.clip_length,
            stride=config.stride,
            size=config.size,
            crop=config.options.crop,
            flip=config.flip,
            fps=config.fps,
            captions=config.options.captions,
            seed=config.seed,
            cache_dir=config.cache_dir,
            progress=progress,
        )


_EXPECTED = "a folder of videos"


def _named() -> str:
    names = plugins.available(plugins.DATASETS)
    return f", or {' or '.join(names)}" if names else ""


def is_registered(path: str) -> bool:
    """Say whether ``path`` names a dataset of an entry point, and not a folder; imports nothing."""
    return bool(path) and Path(path).name == path and path in plugins.available(plugins.DATASETS)


def source_of(path: str) -> type[DataSource]:
    """Return the kind of data that ``path`` is of.

    Raises:
        VidgenError: the package that registers it gives no ``DataSource``.
        ImportError: the package's own, unchanged.
    """
    if not is_registered(path):
        return FolderSource
    found = plugins.load(plugins.DATASETS, path)
    if not (isinstance(found, type) and issubclass(found, DataSource)):
        raise VidgenError(
            f"the dataset {path!r} of package {plugins.available(plugins.DATASETS)[path]!r} is {found!r}; "
            "expected a subclass of vidgen.video.dataset.DataSource. Tell its authors."
        )
    return found


def check_data(path: str) -> None:
    """Refuse what is no data to read, before anything else is done.

    Raises:
        InvalidArgumentError: ``path`` is no folder, and no dataset's name either.
    """
    if not path or not (is_registered(path) or expanded(path).is_dir()):
        what = "is no folder" if expanded(path).exists() else "does not exist"
        given = f"{path} was given as data and {what}" if path else "no data was given"
        raise InvalidArgumentError(f"{given}; expected {_EXPECTED}{_named()}.")


def open_dataset(config: DataConfig, *, progress: bool = True) -> ClipDataset:
    """Open the data that ``config`` names; ``progress`` shows a bar while files are indexed.

    Raises VideoError if a folder cannot be used, InvalidArgumentError and UnknownNameError for
    fields out of range.
    """
    return source_of(config.path).open(config, progress=progress)


def summarize(dataset: ClipDataset) -> dict[str, Any]:
    """Return what ``dataset`` holds in plain values (``vidgen data inspect``).

    Always ``items``, ``broken`` (name to reason) and ``classes``; the datasets here add
    ``videos``, ``seconds``, ``sizes``, ``fps`` and example ``captions``.
    """
    return dataset.summary()
