"""Check sums that a video carries and FFmpeg's decoder only logs: those of FFV1's slices (RFC 9043)."""

from __future__ import annotations

import zlib

__all__ = ["slices_agree"]

_TRAILER = 8  # of a slice with a check sum: 3 bytes of size, 1 of status, 4 of check sum
_STARTS = (0, 0x79408C7A)  # of versions 3 and 4
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def slices_agree(packet: bytes) -> bool:
    """Say whether the slices of an FFV1 packet have the check sums they end with; True if they have none."""
    slices = _slices(packet)
    return all(_agrees(part) for part in slices)


def _slices(packet: bytes) -> list[bytes]:
    """Cut ``packet`` into slices, from the last on; none if they are not of the kind with check sums."""
    found = []
    end = len(packet)
    while end > 0:
        start = end - _TRAILER - int.from_bytes(packet[end - 8 : end - 5], "big") if end >= _TRAILER else -1
        if start < 0:
            return []
        found.append(packet[start:end])
        end = start
    return found


def _agrees(part: bytes) -> bool:
    # The check sum is zlib's with the bits of each byte mirrored, and without its two inversions.
    mirrored = part.translate(_MIRRORED)
    return any(
        zlib.crc32(mirrored, ~_mirror(start) & 0xFFFFFFFF) ^ 0xFFFFFFFF == _mirror(start) for start in _STARTS
    )


def _mirror(word: int) -> int:
    return int(f"{word:032b}"[::-1], 2)
