"""Cached latents: the codec's own bit by bit, whatever was cached before, and never stale."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sqlite3
import threading
import time
import zlib
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save
from torch import nn

from temporal_codec import TemporalCodec
from vidgen.codecs import FrameCodec, ImageCodec, PixelCodec
from vidgen.errors import InvalidArgumentError, TrainingError
from vidgen.shapes.export import write_folder
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.trainable import Stage
from vidgen.training.batches import StepSampler, batches, micro_batches
from vidgen.training.latents import LatentCache, LatentStore, codec_fingerprint
from vidgen.video.clips import ClipDataset, ClipSample, ClipSubset
from vidgen.video.dataset import DataConfig, VideoFolder, open_dataset

SHAPES = DataConfig.of("shapes", clip_length=4, size=16, videos=5, frames=9, seed=3)
KEYS = [bytes([i]) * 16 for i in range(8)]


class Net(FrameCodec):
    """A small network; ``offset`` is neither weight nor setting, as constants in code are."""

    channels, space_factor, decode_frames = 4, 2, None

    def __init__(self, seed: int = 0, offset: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 2, stride=2))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.net.parameters():
            nn.init.normal_(parameter, 0, 0.3, generator=generator)
        self.move, self.seen = lambda latents: latents + offset, []
        self.eval().requires_grad_(False)

    def encode_frames(self, frames):
        self.seen.append(len(frames))
        return self.move(self.net(frames))


def load(dataset, cache, steps=8, workers=0, batch_size=3, start=0):
    sampler = StepSampler(len(dataset), 0, batch_size, range(start, steps), 0, 1)
    return list(batches(dataset, sampler, workers, cache))


def equal(one, two):
    return all(torch.equal(a.latents, b.latents) for a, b in zip(one, two, strict=True))


def shown(found):  # the video and the frames of every clip
    return [(i, tuple(f)) for b in found for i, f in zip(b.index.tolist(), b.frames.tolist(), strict=True)]


def counted(dataset, monkeypatch):  # the clips that it reads
    reads, read = [], dataset.read
    monkeypatch.setattr(dataset, "read", lambda *key: reads.append(key) or read(*key))
    return reads


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    return write_folder(ShapesDataset(3, num_frames=8, size=32, seed=5), root / "videos")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))


def folder(root: Path, **changes) -> VideoFolder:
    return VideoFolder(root, **{"clip_length": 4, "size": 16, "progress": False, **changes})


def test_latents_are_the_codecs_own_and_everything_else_is_as_without(tmp_path):
    dataset, codec = open_dataset(SHAPES), Net()
    plain = load(dataset, None)
    for _ in range(2):  # first encoded, then found
        for got, batch in zip(load(dataset, LatentCache(tmp_path, codec)), plain, strict=True):
            assert got.clip.shape == (3, 3, 0, 16, 16)
            assert got.latents.dtype == torch.float32
            torch.testing.assert_close(got.latents, codec.encode(batch.clip))
            for clip, latents in zip(batch.clip, got.latents, strict=True):
                for f in range(4):  # a frame by itself, to the last bit
                    assert torch.equal(latents[:, f], codec.encode(clip[None, :, f : f + 1].clone())[0, :, 0])
            assert (got.captions, got.index.tolist()) == (batch.captions, batch.index.tolist())
            for name in ("labels", "fps", "draw", "frames"):
                assert torch.equal(getattr(got, name), getattr(batch, name))
    (first, second) = [micro for _, micro in micro_batches(got, 2)]
    assert torch.equal(torch.cat([first.latents, second.latents]), got.latents)


def test_a_second_run_reads_no_pixels_whatever_the_files_are_called(videos, tmp_path, monkeypatch):
    first = load(folder(videos), LatentCache(None, Net()))
    (tmp_path / "moved").symlink_to(videos)
    again = folder(tmp_path / "moved", captions="none")

    def refuse(*_, **__):
        raise AssertionError("a video was decoded")

    monkeypatch.setattr("vidgen.video.folder.VideoReader", refuse)
    codec = Net()
    cache = LatentCache(None, codec)
    codec.seen.clear()
    assert equal(load(again, cache), first)
    assert codec.seen == []
    assert (cache.encoded, cache.found) == (0, 8 * 3 * 4)
    assert list((tmp_path / "cache" / "latents-1").glob("*.sqlite")) == [cache.store.file]


def test_frames_that_clips_share_are_encoded_once_and_alone(tmp_path, monkeypatch):
    dataset, codec = open_dataset(SHAPES), Net()
    reads = counted(dataset, monkeypatch)
    cache = LatentCache(tmp_path, codec)
    codec.seen.clear()
    found = load(dataset, cache)
    frames = {(index, f) for index, numbers in shown(found) for f in numbers}
    assert codec.seen == [1] * len(frames)
    assert (len(cache), cache.encoded) == (len(frames), len(frames))
    assert cache.encoded + cache.found == 8 * 3 * 4 > 2 * len(frames)
    assert len(reads) < 8 * 3  # those whose frames all came with others were not drawn
    files = [file for file in cache.store.file.parent.iterdir() if not file.name.endswith("-shm")]
    assert cache.nbytes == sum(file.stat().st_size for file in files) > 4 * 4 * 8 * 8 * len(frames)
    assert f"the latents of {len(frames)} frames ({cache.nbytes / 1e6:.1f} MB)" in str(cache)


def test_workers_find_what_this_process_encoded_and_never_inherit_its_file(tmp_path):
    dataset, codec = open_dataset(SHAPES), Net()
    cache = LatentCache(tmp_path, codec)
    alone = load(dataset, cache, steps=5)
    assert len(cache) > 0  # opens the file again: workers must not get it
    both = load(dataset, cache, workers=2)
    assert equal(both[:5], alone)
    assert equal(both, load(dataset, LatentCache(tmp_path / "other", codec)))
    cache.store.get(KEYS)
    assert cache.store._connection is not None
    child = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(0 if cache.store._connection is None else 1)
    )
    child.start()
    child.join()
    assert child.exitcode == 0
    copy = pickle.loads(pickle.dumps(cache.store))
    assert len(copy) == len(cache)


def test_random_crops_are_encoded_by_the_strategy_each_time(videos, tmp_path, caplog):
    random = folder(videos, size=(16, 12), crop="random")
    cache = LatentCache(tmp_path, Net())
    found, plain = load(random, cache), load(random, None)
    assert all(a.latents is None and torch.equal(a.clip, b.clip) for a, b in zip(found, plain, strict=True))
    assert len(cache) == 0
    assert sum("their latents are not cached" in record.message for record in caplog.records) == 1


def test_both_sides_of_mirrored_clips_are_kept(tmp_path, monkeypatch):
    config = DataConfig.of("shapes", clip_length=9, size=16, videos=5, frames=9, flip=True)
    dataset, codec = open_dataset(config), Net()
    cache = LatentCache(tmp_path, codec)
    found = load(dataset, cache, steps=20)
    keys = {key for b in found for key in zip(b.index.tolist(), b.draw.tolist(), strict=True)}
    contents = {dataset.locate(*key).content for key in keys}
    assert 5 < len(contents) <= 10
    assert len(cache) == 9 * len(contents)
    reads = counted(dataset, monkeypatch)
    again = load(dataset, LatentCache(tmp_path, codec), steps=20)
    assert reads == []
    for batch, plain in zip(again, load(dataset, None, steps=20), strict=True):
        torch.testing.assert_close(batch.latents, codec.encode(plain.clip))


def test_another_codec_view_or_content_is_never_taken_for_this_one(videos, tmp_path):
    root = tmp_path / "own"
    root.mkdir()
    for video in videos.glob("*.mp4"):
        (root / video.name).write_bytes(video.read_bytes())

    def encoded(codec=None, **view):
        cache = LatentCache(None, codec or Net())
        data = folder(root, clip_length=8, captions="none", **view)
        for batch, plain in zip(load(data, cache, 1), load(data, None, 1), strict=True):
            torch.testing.assert_close(batch.latents, cache.codec.encode(plain.clip))
        return cache.encoded

    assert encoded() == 24
    assert encoded() == 0
    assert encoded(Net(seed=1)) == 24
    assert encoded(Net(offset=0.5)) == 24  # same class and weights, another code
    assert encoded(size=8) == 24
    assert encoded(size=(16, 12)) == 24
    assert encoded(size=(16, 12), crop="none") == 24
    assert encoded() == 0
    other = write_folder(ShapesDataset(3, num_frames=8, size=32, seed=6), tmp_path / "changed")
    (root / "00001.mp4").write_bytes((other / "00001.mp4").read_bytes())
    assert encoded() == 8


def test_fingerprint_follows_every_setting_and_not_how_the_codec_came_to_be(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2)
    names = {
        codec_fingerprint(codec.eval())
        for codec in (
            ImageCodec(vae),
            ImageCodec(vae, mean=0.1, std=1.0),
            ImageCodec(vae, tile=32),
            ImageCodec(vae, tile=64),  # none of the tiles is as small as the test picture
        )
    }
    assert len(names) == 4
    codec = ImageCodec(AutoencoderKL.from_config(vae.config)).eval()
    codec.save_pretrained(tmp_path)
    assert codec_fingerprint(ImageCodec.from_pretrained(tmp_path).eval()) == codec_fingerprint(codec)
    pixels, loaded = PixelCodec(2), PixelCodec(2)
    loaded.register_to_config(_name_or_path="somewhere")
    assert codec_fingerprint(pixels) == codec_fingerprint(loaded) != codec_fingerprint(PixelCodec(4))


def test_a_broken_file_is_replaced_and_its_replacement_kept_under_its_own_name(videos, tmp_path):
    root = tmp_path / "own"
    root.mkdir()
    for video in videos.glob("*.mp4"):
        (root / video.name).write_bytes(video.read_bytes())
    data = folder(root, clip_length=8, captions="none")
    whole = (root / "00000.mp4").read_bytes()
    (root / "00000.mp4").write_bytes(b"gone")
    sampler = [[(0, 0)], [(1, 0)]]
    codec = Net()
    replaced, right = batches(ClipSubset(data, [0, 1]), sampler, 0, LatentCache(None, codec))
    assert (replaced.index.tolist(), right.index.tolist()) == ([1], [1])
    assert torch.equal(replaced.latents, right.latents)
    (root / "00000.mp4").write_bytes(whole)
    cache = LatentCache(None, codec)
    mended, right = batches(data, sampler, 0, cache)
    assert (cache.encoded, cache.found) == (8, 8)
    torch.testing.assert_close(mended.latents[0], codec.encode(data[0].clip[None])[0])


class Doubtful(ClipDataset):
    """Names the content of its even clips only."""

    def __len__(self):
        return 4

    def read(self, index, draw):
        clip = torch.full((3, 2, 4, 4), float(index))
        return ClipSample(clip, "", -1, 8.0, index, draw, (0, 1), None if index % 2 else f"clip {index}")

    def content_key(self, index):
        return str(index)

    def texts(self):
        return [""]


def test_a_batch_may_mix_what_can_be_kept_and_what_cannot(tmp_path):
    codec = Net()
    cache = LatentCache(tmp_path, codec)
    for _ in range(2):
        (batch,) = batches(Doubtful(), [[(0, 0), (1, 0), (2, 0), (3, 0)]], 0, cache)
        clip = torch.stack([Doubtful()[i].clip for i in range(4)])
        torch.testing.assert_close(batch.latents, codec.encode(clip))
        assert batch.clip.shape == (4, 3, 0, 4, 4)
    assert (len(cache), cache.encoded, cache.found) == (4, 4, 4)


def trained(cache, dataset, resume_at=None):
    """Weights of a tiny network after 8 steps on latents, perhaps with a cut after some of them."""
    torch.manual_seed(0)
    network = nn.Conv3d(4, 4, 3, padding=1)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for steps in ((0, 8),) if resume_at is None else ((0, resume_at), (resume_at, 8)):
        for batch in load(dataset, cache, steps=steps[1], start=steps[0]):
            optimizer.zero_grad()
            (network(batch.latents) - batch.latents).square().mean().backward()
            optimizer.step()
    return [parameter.detach() for parameter in network.parameters()]


def test_cold_warm_partial_and_no_usable_cache_train_to_the_same_weights(tmp_path, caplog):
    dataset, codec = open_dataset(SHAPES), Net()
    cold = trained(LatentCache(tmp_path / "a", codec), dataset)
    load(dataset, LatentCache(tmp_path / "b", codec), steps=3, batch_size=2)
    (tmp_path / "file").write_text("in the way")
    others = {
        "warm": trained(LatentCache(tmp_path / "a", codec), dataset),
        "partial": trained(LatentCache(tmp_path / "b", codec), dataset),
        "resumed": trained(LatentCache(tmp_path / "a", codec), dataset, resume_at=3),
        "resumed cold": trained(LatentCache(tmp_path / "c", codec), dataset, resume_at=5),
        "unusable": trained(LatentCache(tmp_path / "file", codec), dataset),
    }
    for name, weights in others.items():
        assert all(torch.equal(a, b) for a, b in zip(cold, weights, strict=True)), name
    assert sum("cannot use the latents" in record.message for record in caplog.records) == 1


def test_a_codec_that_joins_frames_keeps_whole_clips(tmp_path, monkeypatch):
    config = DataConfig.of("shapes", clip_length=9, size=16, videos=3, frames=11, seed=3)
    dataset, codec = open_dataset(config), TemporalCodec().eval()
    cache = LatentCache(tmp_path, codec)
    for batch, plain in zip(load(dataset, cache), load(dataset, None), strict=True):
        assert batch.latents.shape[2] == 3
        assert torch.equal(batch.latents, codec.encode(plain.clip))
    clips = set(shown(load(dataset, None)))
    assert len(cache) == cache.encoded == len(clips) > 3
    reads = counted(dataset, monkeypatch)
    load(dataset, cache)
    assert reads == []


def test_two_processes_may_write_at_once(tmp_path):
    """Each of many new files is laid out, filled and read by four processes together."""

    def fill(number):
        for i in range(20):
            store = LatentStore(tmp_path / str(i), "codec", per_frame=True)
            store.put({key: torch.full((2, 3), float(key[0])) for key in KEYS[:4]})
            store.put({bytes([number, k]) * 8: torch.zeros(1) for k in range(5)})
            assert all((value == key[0]).all() for key, value in store.get(KEYS[:4]).items())
        os._exit(0)

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=fill, args=(100 + number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0] * 4
    for i in range(20):
        assert len(LatentStore(tmp_path / str(i), "codec", per_frame=True)) == 4 + 4 * 5


def test_killed_while_writing_leaves_a_usable_file_without_half_a_clip(tmp_path):
    context = multiprocessing.get_context("fork")

    def write_for_ever(begun):
        store = LatentStore(tmp_path, "codec", per_frame=True)
        for i in range(1 << 30):
            if i == 3:
                begun.set()
            store.put({i.to_bytes(8, "big") + bytes([k]): torch.full((40, 40), float(k)) for k in range(4)})

    for delay in (0.0, 0.05, 0.08, 0.12):
        begun = context.Event()
        process = context.Process(target=write_for_ever, args=(begun,))
        process.start()
        assert begun.wait(600)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        store = LatentStore(tmp_path, "codec", per_frame=True)
        (row,) = sqlite3.connect(store.file).execute("PRAGMA integrity_check").fetchall()
        assert row == ("ok",)
        assert len(store) % 4 == 0
        assert len(store) > 8
        keys = [i.to_bytes(8, "big") + bytes([k]) for i in range(len(store) // 4) for k in range(4)]
        found = store.get(keys)
        assert len(found) == len(store)
        assert all((value == key[8]).all() for key, value in found.items())
        store.close()
        for file in tmp_path.iterdir():
            file.unlink()


def test_a_store_waits_for_another_process_and_keeps_what_was_first(tmp_path):
    store = LatentStore(tmp_path, "codec", per_frame=True)
    store.put({KEYS[0]: torch.zeros(2)})
    other = sqlite3.connect(store.file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    assert len(store.get(KEYS)) == 1  # reading goes on meanwhile
    timer = threading.Timer(0.3, other.execute, ("COMMIT",))
    timer.start()
    store.put({KEYS[0]: torch.ones(2), KEYS[1]: torch.ones(2)})
    timer.join()
    assert {key: float(value[0]) for key, value in store.get(KEYS).items()} == {KEYS[0]: 0.0, KEYS[1]: 1.0}


def ruined(tmp_path, how):
    """A store's file that ``how`` did something to."""
    store = LatentStore(tmp_path, "codec", per_frame=True)
    store.put({key: torch.ones(30, 30) for key in KEYS})
    store.close()
    how(store.file)
    return store.file


def as_pickle(file):
    file.write_bytes(pickle.dumps({"latents": list(range(5000))}))


def as_something_else(file):
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE latents (key, value, checksum)")
    connection.close()


def as_future_format(file):
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version=2")
    connection.close()


def as_truncated(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def as_flipped(file):
    content = bytearray(file.read_bytes())
    content[content.rindex(torch.ones(8).numpy().tobytes())] ^= 1
    file.write_bytes(content)


def as_values(value, checksum=None):
    def how(file):
        given = zlib.crc32(value) if checksum is None else checksum
        with sqlite3.connect(file) as connection:
            connection.execute("UPDATE latents SET value=?, checksum=?", (value, given))
        connection.close()

    return how


ONES = save({"latents": torch.ones(30, 30)})
DEEP = b'{"a":' * 50_000


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (as_pickle, "is damaged or no file of latents"),
        (as_something_else, "is an SQLite file of something else"),
        (as_future_format, "has format 2; expected 1"),
        (as_truncated, "is damaged or no file of latents"),
        (as_flipped, "do not match their checksum"),
        (as_values(save({"weights": torch.ones(1)})), "something else than latents"),
        (as_values(save({"latents": torch.ones(30, 30, dtype=torch.int64)})), "something else than latents"),
        (as_values(len(DEEP).to_bytes(8, "little") + DEEP), "something else than latents"),
        (as_values(b""), "something else than latents"),
        (as_values("text", 7), "do not match their checksum"),
        (as_values(7, 7), "do not match their checksum"),
        (as_values(0.5, "text"), "do not match their checksum"),
        (as_values(ONES, "text"), "do not match their checksum"),
        (as_values(ONES, 0.5), "do not match their checksum"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_and_left_as_it_is(tmp_path, how, message):
    file = ruined(tmp_path, how)
    content = file.read_bytes()
    with pytest.raises(TrainingError, match=rf"codec\.sqlite.*{message}.*Delete the file"):
        LatentStore(tmp_path, "codec", per_frame=True).get(KEYS)
    assert file.read_bytes() == content


def test_a_full_disk_costs_the_cache_and_not_the_training(tmp_path, caplog):
    store = LatentStore(tmp_path, "codec", per_frame=True)
    pages = store._run(lambda c: c.execute("PRAGMA page_count").fetchone(), (0,))[0]
    store._run(lambda c: c.execute(f"PRAGMA max_page_count={pages + 1}").fetchone(), None)
    for key in KEYS:
        store.put({key: torch.zeros(40, 40)})
    (record,) = caplog.records
    assert "full" in record.message
    assert "VIDGEN_CACHE" in record.message
    assert store.get(KEYS) == {}


class Plain(Stage):
    name, components, needs_pixels = "plain", ("unet",), False

    def optimizers(self):
        return ()

    def losses(self, batch, step):
        yield from ()


def test_only_stages_that_leave_codec_and_pixels_alone_have_a_cache(tmp_path, caplog):
    stage, codec = Plain(), Net()
    with caplog.at_level(logging.INFO, "vidgen"):
        assert isinstance(LatentCache.for_stage(stage, codec, tmp_path), LatentCache)
        stage.components = ("unet", "codec")
        assert LatentCache.for_stage(stage, codec, tmp_path) is None
        stage.components, stage.needs_pixels = ("unet",), True
        assert LatentCache.for_stage(stage, codec, tmp_path) is None
    assert [r.message for r in caplog.records] == [
        "stage 'plain' trains the codec, so no latents are cached for it",
        "stage 'plain' needs pixels, so no latents are cached for it",
    ]
    for trained in (Net().train(), Net().requires_grad_(True)):
        with pytest.raises(InvalidArgumentError, match="Net is being trained"):
            LatentCache(tmp_path, trained)


def test_what_was_done_is_logged_even_if_training_stops(tmp_path, caplog):
    cache = LatentCache(tmp_path, Net())
    with caplog.at_level(logging.INFO, "vidgen"):
        running = batches(open_dataset(SHAPES), StepSampler(5, 0, 2, range(9), 0, 1), 0, cache)
        next(running)
        running.close()
    (record,) = caplog.records
    assert "8 frames encoded and 0 found" in record.message
    assert str(cache.store.file) in record.message
