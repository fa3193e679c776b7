"""Latents of a frozen codec, kept on disk by what they were encoded from.

A clip whose pixels have a name (``ClipSample.content``) is encoded once, whoever asks and in whatever
run. What is kept is a *unit*: one frame, where the codec treats every frame alone, so that overlapping
clips share it; else the clip, which a codec with temporal context sees as a whole. A unit is always
encoded by itself, never in a batch with others, so that its latents depend on nothing else: a training
gives bitwise the same weights whether it finds all latents, some or none (on one device and thread
count; latents from another one may differ by rounding).

    latents-1/
      <codec>.sqlite      one file per codec: key -> float32 latents as safetensors

The codec's name is a digest of its class, settings, weights and of the latents of a test picture, which
tell codecs apart that differ in code alone. Nothing is ever deleted: remove the folder, or a file
in it, to get the space back.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from vidgen.codecs import Codec, FrameCodec
from vidgen.errors import InvalidArgumentError, TrainingError
from vidgen.paths import expanded
from vidgen.trainable import Stage
from vidgen.video.clips import ClipBatch, ClipDataset, ClipSample, collate
from vidgen.video.draws import digest
from vidgen.video.index_cache import default_cache_dir
from vidgen.weights import digest_of, weight_hash

__all__ = ["LatentCache", "LatentSample", "LatentStore", "codec_fingerprint"]

logger = logging.getLogger("vidgen")

T = TypeVar("T")

FORMAT = 1
_APPLICATION = 0x76674C74  # "vgLt", in the header of the files: what tells them from other SQLite files
_AT_ONCE = 500  # keys in one query; SQLite allows 999 in its older versions
_PATIENCE = 60.0  # seconds to wait for another process that writes


class LatentStore:
    """One SQLite file of latents; it may be shared by any number of processes, killed at any time.

    A store that cannot be opened or written (no permission, full disk) says so once and is then empty:
    it costs time, not the training. It is handed to workers by fork or pickle; each process opens the
    file for itself. Its folder should be on a local disk: SQLite's log needs memory that processes share.

    Args:
        folder: holds the files of all codecs; created if need be.
        codec: the codec's fingerprint, which names the file.
        per_frame: whether a unit is a frame, or a whole clip.

    Raises:
        TrainingError: the file is damaged or something else (now or at any later use).
    """

    def __init__(self, folder: Path, codec: str, *, per_frame: bool) -> None:
        self.file = folder / f"{codec}.sqlite"
        self.codec, self.per_frame = codec, per_frame
        self._usable = True
        self._connection: sqlite3.Connection | None = None
        _STORES.add(self)
        self._run(lambda _: None, None)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_connection": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        _STORES.add(self)

    def keys(self, content: str, frames: Sequence[int]) -> list[bytes]:
        """Return the keys of a clip's units, in order.

        Args:
            content: what the pixels are made of, see ``ClipSample``.
            frames: absolute numbers of the clip's frames.
        """
        if self.per_frame:
            return [digest("vidgen.latents", self.codec, content, frame) for frame in frames]
        return [digest("vidgen.latents", self.codec, content, *frames)]

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """Return those of ``keys`` that are there, with their latents (float32, on the CPU)."""

        def read(connection: sqlite3.Connection) -> list[tuple[bytes, object, object]]:
            rows: list[tuple[bytes, object, object]] = []
            for start in range(0, len(keys), _AT_ONCE):
                part = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, value, checksum FROM latents WHERE key IN ({marks})"
                rows += connection.execute(query, part).fetchall()
            return rows

        none: list[tuple[bytes, object, object]] = []
        return {key: self._decoded(value, checksum) for key, value, checksum in self._run(read, none)}

    def put(self, latents: Mapping[bytes, Tensor]) -> None:
        """Keep ``latents`` (all or none of them); what is there already stays."""
        values = [(key, save({"latents": tensor.contiguous()})) for key, tensor in latents.items()]
        rows = [(key, value, zlib.crc32(value)) for key, value in values]

        def write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("INSERT OR IGNORE INTO latents VALUES (?, ?, ?)", rows)

        self._run(write, None)

    def __len__(self) -> int:
        """Return the number of units kept."""
        rows = self._run(lambda c: c.execute("SELECT COUNT(*) FROM latents").fetchone(), (0,))
        return int(rows[0])

    @property
    def nbytes(self) -> int:
        """Bytes on disk, those that SQLite has not moved from its log into the file included."""
        files = (self.file, self.file.with_name(f"{self.file.name}-wal"))
        return sum(file.stat().st_size for file in files if file.is_file())

    def close(self) -> None:
        """Close the file in this process; it is opened again when needed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _run(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Return ``work`` of this process's connection, or ``otherwise`` if the store cannot be used."""
        if not self._usable:
            return otherwise
        try:
            if self._connection is None:
                self._connection = self._open()
            return work(self._connection)
        except (sqlite3.OperationalError, OSError) as error:
            self._usable = False
            logger.warning(
                "cannot use the latents in %s (%s): clips are read and encoded anew each time. Set "
                "VIDGEN_CACHE or cache_dir to a folder on a local disk that can be written and has room.",
                self.file,
                error,
            )
            return otherwise
        except sqlite3.DatabaseError as error:
            raise self._refusal(f"is damaged or no file of latents ({error})") from error

    def _open(self) -> sqlite3.Connection:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # Any one thread at a time may use it, not just the one that opened it.
        connection = sqlite3.connect(self.file, _PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            with connection:
                connection.execute("BEGIN")
                new = self._is_new(connection)
            if new:
                self._create(connection)
            # With a write-ahead log, processes read while another writes. The file keeps the mode; it
            # cannot be set while others have the file open, which works without the log as well.
            with suppress(sqlite3.OperationalError):
                connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self, connection: sqlite3.Connection) -> None:
        """Lay out a new file; of several processes that try, the first does it."""
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if self._is_new(connection):
                columns = "key BLOB PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER NOT NULL"
                connection.execute(f"CREATE TABLE latents ({columns})")
                connection.execute(f"PRAGMA application_id={_APPLICATION}")
                connection.execute(f"PRAGMA user_version={FORMAT}")

    def _is_new(self, connection: sqlite3.Connection) -> bool:
        """Return whether the file is empty; refuse one that is not ours, before it is changed."""
        ((application,),) = connection.execute("PRAGMA application_id")
        ((version,),) = connection.execute("PRAGMA user_version")
        ((tables,),) = connection.execute("SELECT COUNT(*) FROM sqlite_master")
        if (application, version, tables) == (0, 0, 0):
            return True
        if application != _APPLICATION:
            raise self._refusal("is an SQLite file of something else")
        if version != FORMAT:
            raise self._refusal(f"has format {version}; expected {FORMAT}")
        return False

    def _decoded(self, value: object, checksum: object) -> Tensor:
        # SQLite keeps values of any type in any column.
        if not isinstance(value, bytes) or zlib.crc32(value) != checksum:
            raise self._refusal("is damaged (latents do not match their checksum)")
        try:
            latents = load(value)["latents"]
        except (SafetensorError, KeyError, ValueError, RecursionError) as error:
            raise self._refusal(f"holds something else than latents ({error})") from error
        if latents.dtype != torch.float32:
            raise self._refusal(f"holds something else than latents ({latents.dtype}, not torch.float32)")
        return latents

    def _refusal(self, problem: str) -> TrainingError:
        return TrainingError(
            f"{self.file} {problem}; expected latents that vidgen cached. Delete the file (and those beside "
            "it that end in -wal and -shm): latents are encoded again when they are needed."
        )


_STORES: weakref.WeakSet[LatentStore] = weakref.WeakSet()


def _close_all() -> None:
    for store in list(_STORES):
        store.close()


if hasattr(os, "register_at_fork"):
    # A child that inherits an open file believes to hold locks that only its parent holds.
    os.register_at_fork(before=_close_all)


@dataclass(frozen=True)
class LatentSample:
    """A clip as a worker hands it over: its latents, or its pixels if they are not all in the store.

    ``latents`` are ``c f h w``; where they are given, ``sample.clip`` holds no frames.
    """

    sample: ClipSample
    latents: Tensor | None = None

    @classmethod
    def of(cls, dataset: ClipDataset, store: LatentStore, index: int, draw: int) -> LatentSample:
        """Take clip ``(index, draw)`` of ``dataset`` from ``store`` if it is there, else read it."""
        view = dataset.locate(index, draw)
        if view is not None and view.content is not None:
            keys = store.keys(view.content, view.frames)
            found = store.get(keys)
            if len(found) == len(set(keys)):
                return cls(view.sample(torch.empty(3, 0, *view.size)), _joined(found, keys, store.per_frame))
        return cls(dataset[index, draw])


class LatentCache:
    """The latents of a frozen codec: from the store where they are there, else from the codec.

    Args:
        folder: where caches are kept, as ``DataConfig.cache_dir``; None is ``default_cache_dir()``.
        codec: the codec, where it is to encode.

    Raises:
        InvalidArgumentError: the codec is in training mode or may be trained.
        TrainingError: what lies in ``folder`` under the codec's name is damaged or something else.

    Attributes:
        store: where the latents are.
        encoded: units encoded so far.
        found: units taken from the store so far.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, codec: Codec) -> None:
        if codec.training or any(parameter.requires_grad for parameter in codec.parameters()):
            raise InvalidArgumentError(
                f"the {type(codec).__name__} is being trained, so its latents change and cannot be kept. "
                "Call codec.eval().requires_grad_(False) if it is to stay as it is."
            )
        self.codec = codec
        base = default_cache_dir() if folder is None else expanded(folder)
        per_frame = isinstance(codec, FrameCodec)
        self.store = LatentStore(base / f"latents-{FORMAT}", codec_fingerprint(codec), per_frame=per_frame)
        self.encoded = self.found = 0
        self._warned = False

    @classmethod
    def for_stage(
        cls, stage: Stage, codec: Codec, folder: str | os.PathLike[str] | None = None
    ) -> LatentCache | None:
        """Return the cache that ``stage`` may use: None if it needs pixels or trains the codec.

        Call it when the stage begins, with its frozen components in evaluation mode: an earlier stage may
        have trained the codec. Latents of a codec without a network, such as ``PixelCodec``, take four
        bytes for every colour of every pixel, and save the reading of videos only.
        """
        if stage.needs_pixels or "codec" in stage.components:
            why = "needs pixels" if stage.needs_pixels else "trains the codec"
            logger.info("stage %r %s, so no latents are cached for it", stage.name, why)
            return None
        return cls(folder, codec)

    def __len__(self) -> int:
        """Return the number of units kept, of this codec."""
        return len(self.store)

    @property
    def nbytes(self) -> int:
        """Bytes on disk, of this codec."""
        return self.store.nbytes

    def __str__(self) -> str:
        """Say in one line what is kept and what was done."""
        unit = "frames" if self.store.per_frame else "clips"
        return (
            f"{self.encoded} {unit} encoded and {self.found} found; {self.store.file} keeps the latents of "
            f"{len(self)} {unit} ({self.nbytes / 1e6:.1f} MB)"
        )

    def batch(self, samples: Sequence[LatentSample]) -> ClipBatch:
        """Stack ``samples`` into a batch of latents without pixels (``clip`` is ``b c 0 h w``).

        Samples without content are encoded each time, clip by clip; if no sample has any, the batch is
        one of pixels, for the strategy to encode.
        """
        if any(item.latents is None and item.sample.content is None for item in samples):
            self._warn()
        if all(item.latents is None and item.sample.content is None for item in samples):
            return collate([item.sample for item in samples])
        latents = torch.stack([self._latents(item) for item in samples])
        bare = [replace(item.sample, clip=item.sample.clip[:, :0]) for item in samples]
        return replace(collate(bare), latents=latents)

    def _warn(self) -> None:
        if not self._warned:
            logger.warning(
                "some clips have no content that could be named (random crops, a changed file, or data that "
                "do not say): their latents are not cached. Crop at the center, or turn cache_latents off."
            )
        self._warned = True

    def _latents(self, item: LatentSample) -> Tensor:
        """Return the latents ``c f h w`` of one clip, on the CPU; keep those that are new."""
        sample, store = item.sample, self.store
        if item.latents is not None:
            self.found += len(sample.frames) if store.per_frame else 1
            return item.latents
        if sample.content is None:
            return _encode(self.codec, sample.clip)
        keys = store.keys(sample.content, sample.frames)
        found = store.get(keys)  # anew: another clip or process may have brought them by now
        new: dict[bytes, Tensor] = {}
        for position, key in enumerate(keys):
            if key in found or key in new:
                continue
            if store.per_frame:
                new[key] = _encode(self.codec, sample.clip[:, position : position + 1])[:, 0]
            else:
                new[key] = _encode(self.codec, sample.clip)
        if new:
            store.put(new)
        self.encoded += len(new)
        self.found += len(found)
        return _joined(found | new, keys, store.per_frame)


def codec_fingerprint(codec: Codec) -> str:
    """Name a codec by all that its latents depend on: 32 hexadecimal digits.

    Its class, settings and weights, and how it encodes a test picture here.
    """
    kind = f"{type(codec).__module__}.{type(codec).__qualname__}"
    settings = [f"{name}: {_settings(module)}" for name, module in codec.named_modules()]
    side = 4 * codec.space_factor
    count = codec.video_frames(1)
    values = torch.arange(3 * count * side * side, dtype=torch.float64) * 7919 % 511  # exact everywhere
    picture = (values / 255 - 1).float().reshape(3, count, side, side)
    probe = digest_of(_encode(codec, picture))
    return digest("vidgen.codec", FORMAT, kind, *settings, weight_hash(codec), probe).hex()


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _settings(module: nn.Module) -> str:
    """Return as text the plain values that a module keeps (tile sizes, say), and its configuration."""
    own = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
    plain = {name: value for name, value in own.items() if _is_plain(value)}
    config = getattr(module, "config", None)  # diffusers'; what begins with "_" says how it was loaded
    given = config.items() if isinstance(config, Mapping) else ()
    kept = {name: value for name, value in given if not name.startswith("_")}
    # JSON, because a configuration comes back from disk with lists where there were tuples.
    return json.dumps([plain, kept], sort_keys=True, default=str)


def _is_plain(value: object) -> bool:
    """Say whether ``value`` is a setting; lists are more often records of what happened."""
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _encode(codec: Codec, pixels: Tensor) -> Tensor:
    """Encode ``pixels`` (c f h w) by themselves; the latents c f h w are float32 and on the CPU."""
    tensors = (*codec.parameters(), *codec.buffers())
    device = tensors[0].device if tensors else torch.device("cpu")
    # A copy, so that neither strides nor alignment of the clip it was cut from can change a bit.
    clip = pixels[None].to(device, copy=True, memory_format=torch.contiguous_format)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return codec.encode(clip)[0].float().cpu()


def _joined(units: Mapping[bytes, Tensor], keys: Sequence[bytes], per_frame: bool) -> Tensor:
    """Put a clip's units together, c f h w."""
    return torch.stack([units[key] for key in keys], dim=1) if per_frame else units[keys[0]]
