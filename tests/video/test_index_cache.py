"""The cache of what was learnt of files: what identifies a content, and entries of any kind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import TextIO

import pytest

from vidgen.errors import VideoError
from vidgen.video import index_cache, parts
from vidgen.video.index import FrameIndex
from vidgen.video.index_cache import FileStamp, IndexCache, VideoRecord, content_hash, default_cache_dir
from vidgen.video.parts import part_beside


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))


def test_content_not_name_or_date_makes_the_key(tmp_path: Path) -> None:
    one, two, large = (tmp_path / name for name in ("one", "two", "large"))
    one.write_bytes(b"abc")
    two.write_bytes(b"abc")
    assert content_hash(one) == content_hash(two) == hashlib.blake2b(b"3abc", digest_size=16).hexdigest()
    two.write_bytes(b"abd")
    assert content_hash(one) != content_hash(two)
    content = bytearray(5 << 20)
    large.write_bytes(content)
    keys = {content_hash(large)}
    for place in (0, 1 << 20, (5 << 19) - (1 << 19) - 1, 7 << 19, len(content) - 1):
        content[place] += 1
        large.write_bytes(content)
        keys.add(content_hash(large))
    assert len(keys) == 6
    with pytest.raises(VideoError, match="cannot read"):
        content_hash(tmp_path / "none")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every file as written long ago."""
    monkeypatch.setattr(index_cache, "SETTLED", -(1 << 60))


def counted_hashes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return content_hash(path)

    monkeypatch.setattr(index_cache, "content_hash", counted)
    return hashed


def test_a_file_is_hashed_once_and_again_when_it_was_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: None
) -> None:
    hashed = counted_hashes(monkeypatch)
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"abc")
    cache = IndexCache(tmp_path / "cache")
    assert [cache.identify(file)[1] for _ in range(3)] == [content_hash(file)] * 3
    assert IndexCache(tmp_path / "cache").identify(file)[1] == content_hash(file)
    assert len(hashed) == 1
    before = file.stat()
    file.write_bytes(b"abd")  # of equal size, and then of equal date
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.identify(file)[1] == content_hash(file)
    other.write_bytes(b"abe")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert cache.identify(file)[1] == content_hash(file)
    assert len(hashed) == 3
    (tmp_path / "link").symlink_to(file)
    for _ in range(2):
        assert cache.identify(tmp_path / "link")[1] == content_hash(file)
    assert len(hashed) == 4


def test_a_file_that_was_just_written_is_hashed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = counted_hashes(monkeypatch)
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    cache = IndexCache(tmp_path / "cache")
    for _ in range(2):
        assert not cache.identify(file)[0].settled
    assert len(hashed) == 2
    later = time.time_ns() + 3 * index_cache.SETTLED
    monkeypatch.setattr(index_cache.time, "time_ns", lambda: later)
    for _ in range(2):
        assert cache.identify(file)[0].settled
    assert len(hashed) == 3


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", '{"stamp": 1}', "[" * 100_000, "9" * 5000, '{"stamp": STAMP, "content": "../../x"}',
     '{"stamp": STAMP, "content": null}'],
)  # fmt: skip
def test_foreign_entries_of_files_are_made_again(tmp_path: Path, settled: None, text: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    cache = IndexCache(tmp_path / "cache")
    cache.identify(file)
    (entry,) = cache.files.rglob("*.json")
    good = entry.read_text()
    entry.write_text(text.replace("STAMP", json.dumps(FileStamp.of(file).fields())))
    assert cache.identify(file)[1] == content_hash(file)
    assert entry.read_text() == good


@pytest.mark.parametrize(
    "change",
    [
        {"key": None},
        {"num_frames": "40"},
        {"num_frames": 41},
        {"fps": None},
        {"fps": "8"},
        {"duration": [5.0]},
        {"height": "64"},
        {"height": 64.5},
        {"height": -64},
        {"width": True},
        {"width": 10**400},
        {"frame_index": 7},
        {"frame_index": "[" * 100_000},
        {"frame_index": ("pts", ["a"])},
        {"frame_index": ("pts", [float("inf")])},
        {"frame_index": ("pts", [3, 2, 1])},
        {"frame_index": ("keyframes", [1])},
        {"frame_index": ("end", 0)},
        {"frame_index": ("end", -7)},
        {"frame_index": ("time_base", "1/0")},
        {"frame_index": ("time_base", "0")},
        {"frame_index": ("time_base", "-1/8")},
        {"frame_index": ("time_base", "1e999999999")},
        {"frame_index": ("rate", "1e-999999999")},
        {"frame_index": ("rate", {})},
        {"more": 1},
    ],
)
def test_records_of_a_wrong_type_are_made_again(tmp_path: Path, change: dict) -> None:
    cache = IndexCache(tmp_path)
    index = FrameIndex(Fraction(1, 8), tuple(range(40)), 40, ((0, 0),), Fraction(8))
    record = VideoRecord.of("ab" * 16, index, 64, 64)
    cache.store(record)
    assert cache.load(record.key) == record
    (entry,) = cache.folder.rglob("*.json")
    fields = json.loads(entry.read_text())
    ((name, value),) = change.items()
    if isinstance(value, tuple):
        value = json.dumps(json.loads(fields[name]) | {value[0]: value[1]}, separators=(",", ":"))
    entry.write_text(json.dumps(fields | {name: value}))
    assert cache.load(record.key) is None


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5000, '{"height": ' + "9" * 5000 + "}", "\udcff", "null"]
)
def test_entries_that_are_no_json_of_ours_are_made_again(tmp_path: Path, text: str) -> None:
    cache = IndexCache(tmp_path)
    entry = cache.folder / "ab" / f"{'ab' * 16}.json"
    entry.parent.mkdir(parents=True)
    entry.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert cache.load("ab" * 16) is None


def test_a_full_disk_and_killed_processes_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = IndexCache(tmp_path)
    index = FrameIndex(Fraction(1, 8), tuple(range(40)), 40, ((0, 0),), Fraction(8))
    record = VideoRecord.of("ab" * 16, index, 64, 64)

    def full(entry: object, file: TextIO) -> None:
        file.write("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(index_cache.json, "dump", full)
        cache.store(record)
    assert "No space left on device" in caplog.text
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    cache.store(record)
    (entry,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    mode = (tmp_path / "other").open("x").close() or (tmp_path / "other").stat().st_mode
    assert entry.stat().st_mode == mode  # so that other users of a shared cache can read it
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [part_beside(cache.folder / entry.name).name for _ in range(2)]
    dead, alive = (cache.folder / name for name in names)
    dead = dead.with_name(dead.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
    for file in (dead, alive):
        file.write_text("{")
    parts._clean_once.cache_clear()  # as in a new process
    cache.store(record)
    assert (dead.exists(), alive.exists(), entry.exists()) == (False, True, True)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("VIDGEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "vidgen"
    (tmp_path / "file").write_text("")
    record = IndexCache(tmp_path)
    assert record.load("ab" * 16) is None


def test_threads_report_such_a_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = IndexCache(tmp_path / "file")
    reports: list[object] = []

    def slowly(*args: object) -> None:
        time.sleep(0.05)
        reports.append(args)

    monkeypatch.setattr("vidgen.video.index_cache.logger.warning", slowly)
    record = VideoRecord("0" * 32, 1, 12.0, 1.0, 16, 16, "{}")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(cache.store, [record] * 4))
    assert len(reports) == 1
