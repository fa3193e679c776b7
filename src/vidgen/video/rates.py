"""What the frame rates of a folder's videos mean for the clips that are cut from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vidgen.video.checks import printable
from vidgen.video.index_cache import VideoRecord

__all__ = ["rate_problems"]

_SAME = 1.01
"""Rates whose ratio is below this pass for one: 29.97 and 30, or what milliseconds round to."""


def rate_problems(
    records: Mapping[str, VideoRecord], uneven: Sequence[str], fps: int | float | None
) -> list[str]:
    """Say what is wrong with the rates of ``records`` (by name) if clips are cut at ``fps``.

    Without ``fps``, clips have their videos' own rates: if those differ, or frames are ``uneven``, so does
    the speed of all that moves. With it, a slower video shows some frames more than once.
    """
    rates = {video: record.fps for video, record in records.items()}
    if not rates:
        return []
    if fps is not None:
        slow = {video: rate for video, rate in rates.items() if rate * _SAME < fps}
        if not slow:
            return []
        first = next(iter(slow))
        return [
            f"{len(slow)} of {len(rates)} videos have fewer than fps={fps:g} frames per second (first: "
            f"{printable(first)}, {slow[first]:.4g}): some of their frames come twice in a clip. Lower fps."
        ]
    problems = []
    if max(rates.values()) > min(rates.values()) * _SAME:
        counts = Counter(f"{rate:.4g}" for rate in rates.values()).most_common()
        shown = ", ".join(f"{count} at {rate}" for rate, count in counts[:5])
        more = f" and {len(counts) - 5} other rates" if len(counts) > 5 else ""
        problems.append(
            f"the videos have different frame rates ({shown}{more}), and clips take frames as they come, so "
            "the same motion has different speeds. Set fps, and all clips are resampled to it by time."
        )
    if uneven:
        problems.append(
            f"{len(uneven)} of {len(rates)} videos have frames that are not evenly spaced (first: "
            f"{printable(uneven[0])}), and clips take frames as they come. Set fps, and all clips are "
            "resampled to it by time."
        )
    return problems
