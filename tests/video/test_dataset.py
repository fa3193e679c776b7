"""A folder of real video files: clips, spans, crops, the cache, and everything that is broken."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vidgen.errors import InvalidArgumentError, UnknownNameError, VideoError
from vidgen.shapes.export import write_folder
from vidgen.shapes.story import ShapesStory
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.video import folder as folder_module
from vidgen.video.clips import split
from vidgen.video.dataset import DataConfig, VideoFolder, open_dataset, summarize
from vidgen.video.transforms import to_clip
from vidgen.video.writer import VideoWriter

SHAPES = ShapesDataset(5, num_frames=40, seed=11)
STORY = ShapesStory(2, num_frames=120, segment=(32, 48), seed=11)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(SHAPES, tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture
def copy(shapes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes, tmp_path / "copy"))


def videos_in(root: Path) -> VideoFolder:
    return VideoFolder(root, clip_length=8, progress=False)


def write_columns(path: Path, width: int, height: int, count: int = 20) -> None:
    """A still video in which brightness rises evenly from the first column to the last."""
    frame = np.zeros((height, width, 3), dtype=np.uint8)
    frame[:] = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    with VideoWriter(path, 10, crf=1) as writer:
        writer.extend([frame] * count)


def test_clips_are_the_frames_that_were_written(shapes: Path) -> None:
    data = VideoFolder(shapes, clip_length=6, stride=3, progress=False)
    assert len(data) == 5
    starts = set()
    for index in range(5):
        for draw in range(4):
            sample = data[index, draw]
            starts.add(sample.frames[0])
            assert np.diff(sample.frames).tolist() == [3] * 5
            assert sample.caption == SHAPES.caption(index)
            assert sample.fps == pytest.approx(8 / 3)
            truth = to_clip(SHAPES.render(index, sample.frames))
            assert (sample.clip - truth).abs().mean() < 0.04
            late = to_clip(SHAPES.render(index, [min(f + 6, 39) for f in sample.frames]))
            if (late - truth).abs().mean() > 0.05:
                assert (sample.clip - late).abs().mean() > (sample.clip - truth).abs().mean()
    assert len(starts) > 8


def test_fps_resamples_by_time(shapes: Path) -> None:
    data = VideoFolder(shapes, clip_length=7, fps=3, progress=False)
    starts = set()
    for draw in range(60):
        frames = data[2, draw].frames
        starts.add(frames[0])
        exact = frames[0] + np.arange(7) * 8 / 3
        assert np.abs(np.array(frames) - exact).max() <= 0.5 + 1e-9
    assert data[2].fps == 3.0
    assert max(starts) == 40 - 1 - 16
    assert min(starts) == 0
    faster = VideoFolder(shapes, clip_length=8, fps=16, progress=False)[0]
    assert 3 <= faster.frames[-1] - faster.frames[0] <= 4


def test_a_clip_keeps_to_its_captions_span(tmp_path: Path) -> None:
    root = write_folder(STORY, tmp_path / "story")
    data = VideoFolder(root, clip_length=8, stride=2, progress=False)
    spans = [(index, *span) for index in range(2) for span in STORY.captions(index)]
    assert len(data) == len(spans)
    for number, (video, start, stop, caption) in enumerate(spans):
        frames = [data[number, draw].frames for draw in range(25)]
        assert data[number].caption == caption
        assert data.items[number].video == f"{video:05d}.mp4"
        assert min(min(f) for f in frames) >= start
        assert max(max(f) for f in frames) < stop
        assert len({f[0] for f in frames}) > 5


def test_ranges_in_seconds_and_past_the_end(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"path": "00000.mp4", "caption": "early", "seconds": [0, 1.25]},
        {"path": "00000.mp4", "caption": "late", "seconds": [1.25, 99]},
        {"path": "00001.mp4", "caption": "over", "frames": [30, 41]},
        {"path": "00002.mp4", "caption": "out", "frames": [40, 60]},
        {"path": "00003.mp4", "caption": "brief", "frames": [0, 7]},
        {"path": "00004.mp4", "caption": "exact", "seconds": [0, 5]},
    ]
    (copy / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with caplog.at_level(logging.WARNING):
        data = videos_in(copy)
    found = {item.caption: (item.start, item.stop) for item in data.items}
    assert found == {"early": (0, 10), "late": (10, 40), "over": (30, 40), "exact": (0, 40)}
    assert data.short == ["00003.mp4 frames 0 to 7"]
    text = caplog.text
    for line in (2, 3, 4):
        assert f"captions.jsonl, line {line}: " in text
    assert "reach beyond 00001.mp4, which has 40 frames (5.00 s)" in text
    assert "line 6" not in text
    assert "shorter than a clip of 8 frames at stride 1" in text


def test_classes_and_depth(shapes: Path, tmp_path: Path) -> None:
    for number, place in enumerate(("Walk/g1", "Run", "Walk", "Run")):
        target = tmp_path / "ucf" / place / f"v{number}.MP4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes / f"{number:05d}.mp4", target)
    (tmp_path / "ucf/.hidden").mkdir()
    (tmp_path / "ucf/.hidden/x.mp4").write_bytes(b"")
    data = videos_in(tmp_path / "ucf")
    assert data.classes == ("Run", "Walk", "g1")
    assert [(item.video, item.label) for item in data.items] == [
        ("Run/v1.MP4", 0),
        ("Run/v3.MP4", 0),
        ("Walk/g1/v0.MP4", 2),
        ("Walk/v2.MP4", 1),
    ]
    assert (data[3].caption, data[3].label) == ("walk", 1)


def test_crops_and_mirroring_show_the_columns_they_should(tmp_path: Path) -> None:
    write_columns(tmp_path / "wide.mp4", 160, 64)
    scale = torch.linspace(-1, 1, 160)

    def left_of(**arguments: object) -> list[int]:
        data = VideoFolder(tmp_path, clip_length=2, size=64, progress=False, **arguments)
        found = []
        for draw in range(20):
            row = data[0, draw].clip.mean((0, 1, 2))
            errors = [(row - scale[at : at + 64]).abs().mean() for at in range(97)]
            flipped = [(row - scale[at : at + 64].flip(0)).abs().mean() for at in range(97)]
            assert min(errors + flipped) < 0.02
            best = int(np.argmin(errors + flipped))
            found.append(best if best < 97 else 96 - best - 1)
        return found

    assert all(abs(at - 48) <= 1 for at in left_of(crop="center"))
    places = left_of(crop="random")
    assert len(set(places)) > 12
    assert max(places) - min(places) > 60
    assert places == left_of(crop="random")
    assert places != left_of(crop="random", seed=1)
    mirrored = [at < 0 for at in left_of(crop="center", flip=True)]
    assert 4 < sum(mirrored) < 16
    squeezed = VideoFolder(tmp_path, clip_length=2, size=(32, 40), crop="none", progress=False)
    row = squeezed[0].clip.mean((0, 1, 2))
    assert squeezed[0].clip.shape == (3, 2, 32, 40)
    torch.testing.assert_close(row, torch.linspace(-1, 1, 40), atol=0.06, rtol=0)


SCRIPT = """
import hashlib, sys
from vidgen.video.dataset import DataConfig, open_dataset
data = open_dataset(DataConfig.of(sys.argv[1], clip_length=4, crop="random", flip=True, size=48,
                               captions="none"), progress=False)
state = hashlib.sha256()
for key in [(4, 2), (0, 9), (1, 1)]:
    sample = data[key]
    state.update(repr((sample.frames, sample.caption)).encode() + sample.clip.numpy().tobytes())
print(state.hexdigest())
"""


def test_another_process_reads_the_same_in_another_order(shapes: Path) -> None:
    config = DataConfig.of(str(shapes), clip_length=4, crop="random", flip=True, size=48, captions="none")
    data = open_dataset(config, progress=False)
    samples = {key: data[key] for key in [(1, 1), (4, 2), (0, 9)]}
    state = hashlib.sha256()
    for key in [(4, 2), (0, 9), (1, 1)]:
        frames, caption = samples[key].frames, samples[key].caption
        state.update(repr((frames, caption)).encode() + samples[key].clip.numpy().tobytes())
    command = [sys.executable, "-c", SCRIPT, str(shapes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == state.hexdigest()


def test_a_second_opening_reads_no_video(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = videos_in(copy)
    (copy / "00002.mp4").rename(copy / "renamed.mp4")
    (copy / "renamed.txt").write_text("renamed")
    (copy / "00003.mp4").touch()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a cached video was opened")

    monkeypatch.setattr(folder_module, "VideoReader", refuse)
    second = videos_in(copy)
    assert second.records["renamed.mp4"] == first.records["00002.mp4"]
    assert second.records["00003.mp4"] == first.records["00003.mp4"]
    monkeypatch.undo()


def test_changed_files_and_damaged_entries_are_indexed_again(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "elsewhere"
    before = VideoFolder(copy, clip_length=8, cache_dir=cache, progress=False)
    write_columns(copy / "00000.mp4", 96, 64, count=12)
    entries = sorted((cache / "videos-1").rglob("*.json"))
    assert len(entries) == 5
    for entry, text in zip(entries, ("", "{}", "[]", '{"key": 1}'), strict=False):
        entry.write_text(text)
    after = VideoFolder(copy, clip_length=8, cache_dir=cache, progress=False)
    assert (after.records["00000.mp4"].num_frames, after.records["00000.mp4"].width) == (12, 96)
    for name in ("00001.mp4", "00002.mp4", "00003.mp4", "00004.mp4"):
        assert after.records[name] == before.records[name]
    assert not list(cache.rglob("*.tmp"))


def test_two_files_that_agree_at_head_middle_and_tail_are_two_contents(copy: Path) -> None:
    """A large file is padded by a box that readers skip; the files differ in one byte of it."""
    whole, size = (copy / "00000.mp4").read_bytes(), 6 << 20
    for name, place in (("one.mp4", 3 << 19), ("two.mp4", 5 << 19)):
        box = bytearray(size)
        box[:8] = size.to_bytes(4, "big") + b"free"
        box[place] = 1
        (copy / name).write_bytes(whole + box)
    data = videos_in(copy)
    index = {item.video: number for number, item in enumerate(data.items)}
    views = [data.locate(index[name], 0).content for name in ("one.mp4", "two.mp4", "00000.mp4")]
    assert len({*views}) == 3
    assert len({data.content_key(number) for number in index.values()}) == 7


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def break_files(root: Path) -> set[str]:
    """Add one file of each broken kind to ``root``."""
    whole = (root / "00000.mp4").read_bytes()
    (root / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("not a video, " * 50)
    write_sound(root / "sound.mp4")
    with av.open(str(root / "nothing.mkv"), "w") as container:
        stream = container.add_stream("h264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    return {"truncated.mp4", "empty.mp4", "text.mp4", "sound.mp4", "nothing.mkv"}


def test_broken_files_are_reported_once_counted_and_skipped(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = break_files(copy)
    with caplog.at_level(logging.WARNING):
        data = VideoFolder(copy, clip_length=8, captions="none", progress=False)
        list(data)
        list(data)
    assert set(data.broken) == bad
    assert len(data) == 5
    assert "only audio" in data.broken["sound.mp4"]
    for name in bad:
        assert sum(f"skipping {name}: " in line for line in caplog.messages) == 1
        assert name in data.broken[name]


def test_damage_found_while_reading_is_replaced_the_same_way_whatever_came_before(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = copy / "00001.mp4"
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        damage = [packet.pos for packet in container.demux(video=0)][24]
    content[damage:] = b"\xff" * (len(content) - damage)
    path.write_bytes(content)
    data = videos_in(copy)
    assert data.broken == {}
    with caplog.at_level(logging.WARNING):
        forwards = {draw: data[1, draw] for draw in range(12)}
    assert list(data.broken) == ["00001.mp4"]
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == 1
    again = videos_in(copy)
    for draw in reversed(range(12)):
        sample = again[1, draw]
        assert torch.equal(sample.clip, forwards[draw].clip)
        assert sample.index in (1, 2)
        if sample.index == 2:
            assert torch.equal(sample.clip, data[2, draw].clip)
            assert sample.caption == SHAPES.caption(2)
    assert {sample.index for sample in forwards.values()} == {1, 2}


def test_files_that_vanish_while_training_are_replaced_until_none_is_left(copy: Path) -> None:
    data = videos_in(copy)
    for number in (0, 1):
        (copy / f"{number:05d}.mp4").unlink()
    assert [data[index].index for index in range(5)] == [2, 2, 2, 3, 4]
    assert list(data.broken) == ["00000.mp4", "00001.mp4"]
    shutil.rmtree(copy)
    with pytest.raises(VideoError, match="none of the 5 items can be read any more"):
        data[3]


def test_folders_that_cannot_be_used(tmp_path: Path, shapes: Path) -> None:
    for name, make, words in (
        ("missing", lambda root: None, "does not exist"),
        ("file", lambda root: root.write_text(""), "is a file"),
        ("empty", lambda root: root.mkdir(), "holds no video"),
    ):
        make(tmp_path / name)
        with pytest.raises(VideoError, match=words):
            open_dataset(DataConfig(str(tmp_path / name)), progress=False)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.mp4").write_text("nothing")
    with pytest.raises(VideoError, match=r"none of the 1 video files .* x\.mp4"):
        videos_in(tmp_path / "bad")
    with pytest.raises(VideoError, match="long enough for a clip of 16 frames at stride 9"):
        VideoFolder(shapes, stride=9, progress=False)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"clip_length": 0}, InvalidArgumentError, "clip_length=0"),
        ({"size": (64, 0)}, InvalidArgumentError, r"size=\(64, 0\)"),
        ({"fps": -1.0}, InvalidArgumentError, "fps=-1.0"),
        ({"fps": 8.0, "stride": 2}, InvalidArgumentError, "leave stride at 1"),
        ({"crop": "centre"}, UnknownNameError, "'center'"),
        ({"captions": "cvs"}, UnknownNameError, "'csv'"),
    ],
)
def test_bad_arguments(shapes: Path, arguments: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        VideoFolder(shapes, progress=False, **arguments)


def test_summary_and_split_go_by_content(copy: Path) -> None:
    write_columns(copy / "sub.mp4", 96, 64)
    shutil.copy(copy / "00000.mp4", copy / "twin.mp4")
    data = videos_in(copy)
    facts = summarize(data)
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["videos"], facts["items"], facts["frames"]) == (7, 7, 6 * 40 + 20)
    assert facts["seconds"] == pytest.approx(6 * 5 + 2)
    assert facts["sizes"] == {"64x64": 6, "96x64": 1}
    assert facts["fps"] == {"8": 6, "10": 1}
    assert (facts["caption_mode"], facts["uncaptioned"]) == ("txt", 2)
    assert facts["captions"][0] == SHAPES.caption(0)
    for seed in range(10):
        _, held = split(data, 0.3, seed)
        names = {data.items[index].video for index in held.indices}
        assert ("twin.mp4" in names) == ("00000.mp4" in names)
        assert 2 <= len(names) <= 3


def test_written_folders_hold_captions_truth_and_h264(shapes: Path) -> None:
    assert len(list(shapes.iterdir())) == 5 * 2 + 1
    with av.open(str(shapes / "00003.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].average_rate == 8
    told = json.loads((shapes / "truth/00003.json").read_text())
    truth = SHAPES.truth(3, range(40))
    np.testing.assert_allclose(told["positions"], truth.positions, atol=5e-4)
    assert told["objects"][0]["colour"] == truth.colours[0]
    assert told["motions"][7] == list(truth.motions[7])
    assert told["captions"] == [[0, 40, SHAPES.caption(3)]]


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "keep.txt").write_text("mine")
    with pytest.raises(VideoError, match="is not empty"):
        write_folder(SHAPES, full)
    with pytest.raises(InvalidArgumentError, match="count=6"):
        write_folder(SHAPES, tmp_path / "new", count=6)
    with pytest.raises(InvalidArgumentError, match=r"'\.mp4'"):
        write_folder(SHAPES, tmp_path / "new", suffix="mp4")

    def fail(index: int, frames: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SHAPES, "render", fail)
    with pytest.raises(KeyboardInterrupt):
        write_folder(SHAPES, tmp_path / "new")
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    empty = tmp_path / "empty"
    empty.mkdir()
    write_folder(SHAPES, empty, count=1, fps=12, suffix=".webm")
    assert sorted(p.name for p in empty.iterdir()) == ["00000.txt", "00000.webm", "truth"]
    assert videos_in(empty)[0].fps == pytest.approx(12, abs=0.01)


def test_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(ShapesDataset(2, num_frames=8, size=16), tmp_path / "clips")
    (tmp_path / "file").write_text("in the way")
    taken = tmp_path / "file"
    with caplog.at_level(logging.WARNING, "vidgen.video"):
        found = VideoFolder(tmp_path / "clips", clip_length=4, size=16, cache_dir=taken, progress=False)
    assert (len(found), found.broken) == (2, {})
    assert sum("cannot write the index cache" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize(
    "view",
    [{}, {"stride": 3}, {"fps": 3.0}, {"size": (24, 40), "crop": "none", "flip": True}, {"crop": "random"}],
)
def test_locate_says_what_read_will_return_without_opening_a_file(
    shapes: Path, monkeypatch: pytest.MonkeyPatch, view: dict
) -> None:
    data = VideoFolder(shapes, clip_length=4, progress=False, **view)
    keys = [(index, draw) for index in range(5) for draw in range(3)]
    samples = [data.read(*key) for key in keys]
    monkeypatch.setattr(folder_module, "VideoReader", None)
    for key, sample in zip(keys, samples, strict=True):
        told = {**vars(data.locate(*key)), "clip": sample.clip}
        assert told.pop("size") == sample.clip.shape[2:]
        assert told == vars(sample)


def test_content_names_what_the_pixels_are_made_of(shapes: Path, copy: Path) -> None:
    def content(root: Path = shapes, index: int = 0, **view) -> str | None:
        return VideoFolder(root, clip_length=4, progress=False, **view).locate(index, 0).content

    (copy / "00000.mp4").rename(copy / "00009.mp4")
    same = [content(), content(copy, 4), content(seed=5), content(stride=2), content(fps=4.0)]
    assert len(set(same)) == 1
    assert content(crop="random") == content()  # 64 x 64 videos at 64 x 64: no room to move
    assert content(size=(32, 48), crop="random") is None
    sizes = (32, (32, 48), (63, 64))
    others = [content(index=1), *(content(size=size) for size in sizes)]
    others += [content(size=size, crop="none") for size in sizes[1:]]
    assert len({*others, content()}) == 7
    assert None not in others


def test_both_sides_of_a_mirrored_video_have_a_content_each(shapes: Path) -> None:
    data = VideoFolder(shapes, clip_length=40, flip=True, captions="none", progress=False)
    sides = {sample.content: sample.clip for sample in (data[0, draw] for draw in range(12))}
    one, other = sides.values()
    assert torch.equal(one, other.flip(-1))


def test_a_file_that_changes_while_it_is_in_use_has_no_content(copy: Path) -> None:
    data = VideoFolder(copy, clip_length=40, captions="none", progress=False)
    name = data[0].content
    assert name is not None
    (copy / "00000.mp4").touch()
    assert data[0].content == name
    other = write_folder(ShapesDataset(1, num_frames=40, seed=12), copy.parent / "other")
    shutil.copy(other / "00000.mp4", copy / "00000.mp4")
    assert data[0].content is None
    assert data[1].content is not None
    assert data.locate(0, 0).content == name  # what was found under this name before is still right


@pytest.mark.parametrize("fps", [float("inf"), float("nan"), 0])
def test_rates_that_are_none_are_refused(shapes: Path, fps: float) -> None:
    with pytest.raises(InvalidArgumentError, match="a number above 0"):
        VideoFolder(shapes, fps=fps, progress=False)
