"""Check sums of FFV1's slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest
from barcodes import barcode, encode

from vidgen.video.checksums import slices_agree


def packets(path: Path, options: dict[str, str]) -> list[bytes]:
    encode(path, "ffv1", frames=[barcode(i) for i in range(4)], options=options)
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize(
    "options",
    [{"level": "3"}, {"level": "3", "slices": "9"}, {"level": "4", "strict": "experimental", "slicecrc": "1"}],
)
def test_a_changed_bit_anywhere_shows(tmp_path: Path, options: dict[str, str]) -> None:
    for packet in packets(tmp_path / "a.mkv", options):
        assert slices_agree(packet)
        for place in range(0, len(packet) - 8, 7):  # the last slice's trailer says where slices begin
            changed = bytearray(packet)
            changed[place] ^= 16
            # a size of a slice that is wrong breaks the chain of slices, which the decoder refuses itself
            assert not slices_agree(bytes(changed)) or _is_size(packet, place)


def _is_size(packet: bytes, place: int) -> bool:
    end = len(packet)
    while end > 0:
        if end - 8 <= place < end - 5:
            return True
        end -= 8 + int.from_bytes(packet[end - 8 : end - 5], "big")
    return False


@pytest.mark.parametrize("options", [{"level": "1"}, {"level": "3", "slicecrc": "0"}])
def test_what_has_none_passes(tmp_path: Path, options: dict[str, str]) -> None:
    assert all(slices_agree(packet) for packet in packets(tmp_path / "a.mkv", options))
    assert slices_agree(b"")


def test_the_other_start_of_version_4(tmp_path: Path) -> None:
    options: dict[str, Any] = {"level": "4", "strict": "experimental", "slicecrc": "2"}
    try:
        found = packets(tmp_path / "a.mkv", options)
    except (ValueError, av.error.FFmpegError) as error:
        pytest.skip(f"this FFmpeg does not write it: {error}")
    assert all(slices_agree(packet) for packet in found)
    assert not any(slices_agree(packet[:20] + bytes([packet[20] ^ 1]) + packet[21:]) for packet in found)
