"""Clips of the shapes data, by the interface that training reads."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from vidgen.errors import InvalidArgumentError
from vidgen.shapes.scene import MOTIONS
from vidgen.shapes.synthetic import ShapesSource
from vidgen.video.clips import ClipDataset, ClipSample, ClipView
from vidgen.video.draws import Draws, digest
from vidgen.video.transforms import may_mirror, to_clip

__all__ = ["ShapesClips"]

LOOK = 1
"""Raised whenever the same scene comes to be drawn with other pixels."""


class ShapesClips(ClipDataset):
    """Random clips of a ``ShapesDataset`` or ``ShapesStory``; the classes are the motions.

    A clip lies within one caption's span where one is long enough; else it may lie anywhere, its
    caption being those it crosses, joined by "then", and its label that of its first frame.
    """

    def __init__(
        self,
        source: ShapesSource,
        clip_length: int = 16,
        stride: int = 1,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        """Read clips of ``clip_length`` frames, ``stride`` frames apart, at the source's size.

        ``flip`` mirrors half of the clips whose caption does not speak of left or right.
        Raises InvalidArgumentError for values below 1 or clips longer than the videos.
        """
        super().__init__()
        if min(clip_length, stride) < 1:
            raise InvalidArgumentError(f"{clip_length=} and {stride=} must be 1 or more.")
        self.reach = (clip_length - 1) * stride + 1
        if self.reach > source.num_frames:
            raise InvalidArgumentError(
                f"a clip of {clip_length} frames at stride {stride} spans {self.reach} frames, but "
                f"the videos have {source.num_frames}; lower either, or raise num_frames."
            )
        self.source, self.stride, self.flip, self.seed = source, stride, flip, seed
        self.classes = MOTIONS

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.source)

    def locate(self, index: int, draw: int) -> ClipView:
        """Say what clip ``(index, draw)`` is, without drawing it."""
        return self._view(index, draw)[0]

    def read(self, index: int, draw: int) -> ClipSample:
        """Return the clip of ``(index, draw)``."""
        view, mirror = self._view(index, draw)
        return view.sample(to_clip(self.source.render(index, view.frames), mirror))

    def _view(self, index: int, draw: int) -> tuple[ClipView, bool]:
        """Return what clip ``(index, draw)`` is, and whether it is mirrored."""
        draws = Draws("vidgen.clip", self.seed, index, draw)
        start, caption = self._place(index, draws)
        mirror = self.flip and draws.uniform() < 0.5 and may_mirror(caption)
        view = ClipView(
            caption=caption,
            label=self.source.label(index, start),
            fps=self.source.fps / self.stride,
            index=index,
            draw=draw,
            frames=tuple(range(start, start + self.reach, self.stride)),
            size=(self.source.size, self.source.size),
            content=digest("vidgen.shapes.view", LOOK, self.content_key(index), mirror).hex(),
        )
        return view, mirror

    def _place(self, index: int, draws: Draws) -> tuple[int, str]:
        """Draw a clip's first frame, each possible one being equally likely, and its caption."""
        spans = self.source.captions(index)
        rooms = [max(stop - start - self.reach + 1, 0) for start, stop, _ in spans]
        if not sum(rooms):
            first = draws.integer(self.source.num_frames - self.reach + 1)
            return first, self._crossed(spans, first)
        place = draws.integer(sum(rooms))
        ends = list(accumulate(rooms))
        chosen = bisect_right(ends, place)
        return spans[chosen][0] + place - (ends[chosen] - rooms[chosen]), spans[chosen][2]

    def _crossed(self, spans: Sequence[tuple[int, int, str]], first: int) -> str:
        """Join the captions of the spans that a clip from frame ``first`` on crosses."""
        return " then ".join(text for a, b, text in spans if a < first + self.reach and first < b)

    def content_key(self, index: int) -> str:
        """Name the video behind ``index``."""
        return self.source.content_key(index)

    def texts(self) -> list[str]:
        """Return the captions of all spans, and those joined that a clip must cross."""
        texts = []
        for index in range(len(self)):
            spans = self.source.captions(index)
            if any(stop - start >= self.reach for start, stop, _ in spans):
                texts += [text for *_, text in spans]
            else:
                texts += [self._crossed(spans, stop - 1) for _, stop, _ in spans]
        return texts

    def summary(self) -> dict[str, Any]:
        """Return what there is in plain values."""
        source = self.source
        seconds = len(source) * source.num_frames / source.fps
        return super().summary() | {
            "videos": len(source),
            "seconds": seconds,
            "sizes": {f"{source.size}x{source.size}": len(source)},
            "fps": {f"{source.fps:g}": len(source)},
            "captions": [source.caption_at(index, 0) for index in range(min(5, len(source)))],
        }
