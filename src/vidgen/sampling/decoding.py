"""From latents to frames: in order, as soon as the latents are known, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.codecs import Codec
from vidgen.request import Canvas
from vidgen.sampling.given import Shown, pasted

__all__ = ["Delivery", "Span", "latents_of", "spans"]

_LATENTS_AT_ONCE = 16  # bounds memory, never changes pixels


@dataclass(frozen=True)
class Span:
    """Consecutive latents that are decoded in one stream.

    Args:
        begin: the first latent to push: what a codec with a past needs before ``first``.
        first: the first latent whose frames come out.
        last: the last latent.
    """

    begin: int
    first: int
    last: int


def latents_of(codec: Codec, frames: Sequence[int]) -> tuple[int, ...]:
    """Return the latents that stand for these video frames, ascending."""
    return tuple(sorted({codec.latent_of_frame(frame) for frame in frames}))


def spans(codec: Codec, frames: Sequence[int]) -> tuple[Span, ...]:
    """Return the streams that decode these video frames; no latent is pushed twice."""
    found: list[Span] = []
    for latent in latents_of(codec, frames):
        begin = codec.warm_up(latent)
        if found and begin <= found[-1].last + 1:  # going on costs less than beginning anew
            found[-1] = Span(found[-1].begin, found[-1].first, latent)
        else:
            found.append(Span(begin, latent, latent))
    return tuple(found)


class Delivery:
    """Decodes the wanted frames of one video.

    Args:
        codec: decodes.
        frames: the wanted video frames, ascending.
        canvas: where latents appear.
        level: the level of the video.
        device: where the codec is.
        shown: given pixels that take the place of decoded ones.
    """

    def __init__(
        self,
        codec: Codec,
        frames: Sequence[int],
        canvas: Canvas,
        level: str,
        device: torch.device,
        shown: Shown | None = None,
    ) -> None:
        self.codec, self.canvas, self.level, self.device = codec, canvas, level, device
        self._wanted, self._shown = frozenset(frames), shown or {}
        self._spans = list(spans(codec, frames))
        self._begin()

    def _begin(self) -> None:
        if self._spans:
            span = self._spans[0]
            self._next = span.begin
            self._frame = self.codec.frames_of_latent(span.first).start
            self._stream = self.codec.stream(span.first)

    @property
    def released(self) -> int | None:
        """Latents before this one are not needed any more; None when all frames are out."""
        return self._next if self._spans else None

    def ready(self) -> Iterator[Tensor]:
        """Yield the pixels ``c f h w`` of the next wanted frames whose latents are known."""
        for latents in self._known():
            clip = self._stream.push(self.canvas.stack(latents)[None].to(self.device))[0]
            first, count = self._frame, clip.shape[1]
            wanted = [i for i in range(count) if first + i in self._wanted]
            self._frame += count
            if wanted:
                frames = [first + i for i in wanted]
                yield pasted(clip[:, wanted].float().cpu(), frames, self._shown)
            self._advance(len(latents))

    def skip(self) -> None:
        """Go past what is known without decoding it (another process does)."""
        for latents in self._known():
            self._advance(len(latents))

    def _known(self) -> Iterator[tuple[tuple[str, int], ...]]:
        while self._spans:
            end = min(self._next + _LATENTS_AT_ONCE, self._spans[0].last + 1)
            slots = []
            for index in range(self._next, end):
                if (self.level, index) not in self.canvas:
                    break
                slots.append((self.level, index))
            if not slots:
                return
            yield tuple(slots)

    def _advance(self, count: int) -> None:
        self._next += count
        if self._next > self._spans[0].last:
            del self._spans[0]
            self._begin()
