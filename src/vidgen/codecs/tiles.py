"""Overlapping spatial tiles: work on large frames in pieces, and blend the results."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["tiled"]

Work = Callable[[Tensor, int], Tensor]


def tiled(work: Work, video: Tensor, tile: int | None, unit_in: int, unit_out: int) -> Tensor:
    """Apply ``work`` to square tiles of ``video`` that overlap by a quarter, blended linearly.

    Args:
        work: turns tile number ``i`` into its result, ``(b c f h w, i) -> b c f h w``; the same
            tile has the same number in every call with frames of one size.
        video: ``b c f h w``.
        tile: side of a tile in latent pixels, a multiple of 4; None takes frames whole.
        unit_in, unit_out: side of a latent pixel in ``video``, and in the result.
    """
    height, width = video.shape[-2:]
    if tile is None or max(height, width) <= tile * unit_in:
        return work(video, 0)
    size, stride = tile * unit_in, tile * 3 // 4 * unit_in
    kept, overlap = tile * 3 // 4 * unit_out, tile // 4 * unit_out
    above: list[Tensor] = []
    strips, index = [], 0
    for top in range(0, height, stride):
        row: list[Tensor] = []
        for column, left in enumerate(range(0, width, stride)):
            result = work(video[..., top : top + size, left : left + size], index)
            index += 1
            if above:
                result = _blended(above[column], result, overlap, dim=-2)
            if row:
                result = _blended(row[-1], result, overlap, dim=-1)
            row.append(result)
        strips.append(torch.cat([result[..., :kept, :kept] for result in row], -1))
        above = row
    return torch.cat(strips, -2)


def _blended(before: Tensor, after: Tensor, overlap: int, dim: int) -> Tensor:
    """Return ``after``, fading in from the end of ``before`` along ``dim``."""
    overlap = min(overlap, before.shape[dim], after.shape[dim])
    ramp = torch.arange(overlap, device=after.device, dtype=after.dtype) / overlap
    ramp = ramp.reshape(-1, *[1] * (-dim - 1))
    end = before.narrow(dim, before.shape[dim] - overlap, overlap)
    start = after.narrow(dim, 0, overlap)
    rest = after.narrow(dim, overlap, after.shape[dim] - overlap)
    return torch.cat([end * (1 - ramp) + start * ramp, rest], dim)
