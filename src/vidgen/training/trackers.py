"""Trackers: where a run's values go besides its own log."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from accelerate import tracking

from vidgen.errors import MissingDependencyError, UnknownNameError
from vidgen.video import Video

__all__ = [
    "AccelerateTracker",
    "TensorBoardTracker",
    "Tracker",
    "VideoTracker",
    "check_trackers",
    "open_trackers",
]


class Tracker(Protocol):
    """What a tracker must do; only the main process has trackers."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the values of one line of the log."""

    def close(self) -> None:
        """Finish; the run is over."""


@runtime_checkable
class VideoTracker(Protocol):
    """A tracker that shows sample videos, too."""

    def log_video(self, name: str, video: Video, step: int) -> None:
        """Take a video, whose frames are ``uint8`` of shape ``(f, h, w, 3)``."""


class TensorBoardTracker:
    """Writes event files for TensorBoard: values as scalars, videos as animated pictures.

    Args:
        folder: of the event files.
        step: where the run begins; what an earlier one wrote after it is hidden.

    Raises:
        MissingDependencyError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path, *, step: int = 0) -> None:
        _check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_video(self, name: str, video: Video, step: int) -> None:
        """Write an animated GIF."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        # The writer's own add_video needs moviepy for the same bytes.
        with tempfile.TemporaryDirectory() as folder:
            data = video.save(Path(folder) / "video.gif").read_bytes()
        picture = Summary.Image(height=video.height, width=video.width, colorspace=3, encoded_image_string=data)
        summary = Summary(value=[Summary.Value(tag=name, image=picture)])
        self._writer.file_writer.add_summary(summary, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class AccelerateTracker:
    """Any tracker of accelerate, such as ``WandBTracker("project", name="run")``.

    Args:
        tracker: not started yet.
    """

    def __init__(self, tracker: tracking.GeneralTracker) -> None:
        self._tracker: Any = tracker
        self._tracker.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand over the values."""
        self._tracker.log(dict(values), step=step)

    def log_video(self, name: str, video: Video, step: int) -> None:
        """Hand over a contact sheet, where the tracker takes pictures."""
        if hasattr(self._tracker, "log_images"):
            self._tracker.log_images({name: np.asarray(video.contact_sheet())[None]}, step=step)

    def close(self) -> None:
        """Finish the tracker's run."""
        self._tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Check that every tracker in ``names`` can be opened.

    Raises:
        UnknownNameError: no such tracker.
        MissingDependencyError: its package is not installed.
    """
    known = [str(name) for name in tracking.LOGGER_TYPE_TO_CLASS]
    for name in names:
        if name not in known:
            raise UnknownNameError("tracker", name, known)
        if name == "tensorboard":
            _check_tensorboard()
        elif importlib.util.find_spec(name) is None:
            raise MissingDependencyError(
                f"training.trackers names {name!r}, whose package is not installed. Install it: "
                f"pip install {name}"
            )


def open_trackers(names: Sequence[str], folder: Path, *, step: int) -> list[Tracker]:
    """Open the trackers called ``names`` for the run in ``folder``, which begins at ``step``."""
    opened: list[Tracker] = []
    for name in names:
        if name == "tensorboard":
            opened.append(TensorBoardTracker(folder / "tensorboard", step=step))
            continue
        kind = tracking.LOGGER_TYPE_TO_CLASS[name]
        place = {"logging_dir": folder} if kind.requires_logging_directory else {}
        opened.append(AccelerateTracker(kind(folder.name, **place)))
    return opened


def _check_tensorboard() -> None:
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingDependencyError(
            "the tracker 'tensorboard' needs the package tensorboard, which is not installed. Install it: "
            'pip install "vidgen[tensorboard]"'
        )
