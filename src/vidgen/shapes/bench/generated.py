"""Generated videos in memory as a dataset, so that metrics read them as any other set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from vidgen.errors import InvalidArgumentError
from vidgen.video import Video
from vidgen.video.clips import ClipDataset, ClipSample

__all__ = ["GeneratedClips"]


class GeneratedClips(ClipDataset):
    """Videos with their prompts.

    Args:
        videos: of one size and length.
        prompts: of each.

    Raises:
        InvalidArgumentError: not one prompt for each video.
    """

    def __init__(self, videos: Sequence[Video], prompts: Sequence[str]) -> None:
        super().__init__()
        if len(videos) != len(prompts):
            raise InvalidArgumentError(
                f"{len(videos)} videos were given with {len(prompts)} prompts; give one for each."
            )
        self.videos, self.prompts = tuple(videos), tuple(prompts)

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.videos)

    def read(self, index: int, draw: int) -> ClipSample:
        """Return the whole video; every draw is the same."""
        video = self.videos[index]
        frames = tuple(range(video.num_frames))
        return ClipSample(video.to_tensor(), self.prompts[index], -1, float(video.fps), index, draw, frames)

    def content_key(self, index: int) -> str:
        """Name the video by its pixels."""
        return hashlib.blake2b(self.videos[index].frames.tobytes(), digest_size=16).hexdigest()

    def texts(self) -> list[str]:
        """Return the prompts."""
        return list(self.prompts)
