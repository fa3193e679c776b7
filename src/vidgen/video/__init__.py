"""Video files in and out: exact reading, streaming writing, and the ``Video`` result."""

from __future__ import annotations

from vidgen.video.color import ColorInfo
from vidgen.video.index import FrameIndex
from vidgen.video.reader import VideoInfo, VideoReader, probe
from vidgen.video.result import Video
from vidgen.video.writer import VideoWriter, read_metadata

__all__ = [
    "ColorInfo",
    "FrameIndex",
    "Video",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "probe",
    "read_metadata",
]
