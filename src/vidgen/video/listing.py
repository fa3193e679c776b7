"""Which files in a folder are videos, and which are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vidgen.errors import VideoError
from vidgen.video.checks import printable

__all__ = ["SUFFIXES", "Listing", "find_videos", "list_videos"]

SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".webm", ".mkv", ".avi", ".divx", ".gif", ".apng"),
        *(".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".ts", ".m2ts", ".mts", ".m2t", ".wmv", ".asf"),
        *(".flv", ".f4v", ".ogv", ".ogm", ".mxf", ".dv", ".rm", ".rmvb", ".y4m", ".mjpg", ".mjpeg"),
        *(".h264", ".264", ".avc", ".h265", ".265", ".hevc", ".ivf", ".obu", ".nut"),
    }
)
"""Suffixes, in lower case, of files that are taken for videos; any case is found."""

_CAPTIONS = frozenset({"captions.csv", "captions.jsonl"})


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    ``videos`` are sorted posix paths relative to it; ``left_out`` counts the files that are neither
    videos nor captions, by suffix; ``problems`` names the folders that cannot be listed.
    """

    videos: tuple[str, ...]
    left_out: Mapping[str, int]
    problems: tuple[str, ...] = ()


def find_videos(root: Path) -> list[str]:
    """Return the videos in ``root``, at any depth, as sorted relative posix paths.

    Hidden files and folders are left out. Raises VideoError for a missing folder or one without
    videos.
    """
    return list(list_videos(root).videos)


def list_videos(root: Path) -> Listing:
    """List the videos in ``root`` at any depth, and count the other files.

    Hidden files and folders are left out. Raises VideoError for a missing folder or one without
    videos.
    """
    if not os.path.isdir(root):  # noqa: PTH112  # unlike Path's, no error for names that cannot be
        kind = "is a file" if os.path.exists(root) else "does not exist"  # noqa: PTH110
        raise VideoError(f"{printable(str(root))} {kind}; give a folder of videos.")
    found: list[str] = []
    others: Counter[str] = Counter()
    problems: list[str] = []

    def note(error: OSError) -> None:
        folder = printable(str(error.filename))
        problems.append(f"the folder {folder} cannot be listed ({error.strerror}); what is in it is left out.")

    seen = set()
    for folder, inner, files in os.walk(root, followlinks=True, onerror=note):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder above
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in files:
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in SUFFIXES:
                found.append((Path(folder) / name).relative_to(root).as_posix())
            elif suffix != ".txt" and name.lower() not in _CAPTIONS:
                others[printable(suffix) or "no suffix"] += 1
    listing = Listing(tuple(sorted(found)), dict(others.most_common()), tuple(problems))
    if not found:
        raise _no_video(root, listing)
    return listing


def _no_video(root: Path, listing: Listing) -> VideoError:
    others = ", ".join(f"{count} x {suffix}" for suffix, count in listing.left_out.items())
    there = "".join([f" There is: {others}." if others else "", *(f" {text}" for text in listing.problems)])
    return VideoError(
        f"{printable(str(root))} holds no video; expected files that end in {', '.join(sorted(SUFFIXES))}, at "
        f"any depth.{there}"
    )
