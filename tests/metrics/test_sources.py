"""Sets of videos as they are scored: strict, in order, named by their content."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from vidgen.errors import InvalidArgumentError, UnknownNameError, VideoError
from vidgen.metrics import sources
from vidgen.metrics.sources import View, choose, open_videos
from vidgen.shapes.clips import ShapesClips
from vidgen.shapes.export import write_folder
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.video import VideoWriter
from vidgen.video.dataset import DataConfig


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))


def write(path, frames, fps=8.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps) as writer:
        writer.extend(frames)


def grey(*levels, size=(16, 16)):
    """Frames of one brightness each."""
    return np.stack([np.full((*size, 3), level, np.uint8) for level in levels])


def brightness(clip):
    return ((clip.mean(dim=(0, 2, 3)) + 1) * 127.5).round().int().tolist()


def test_frames_from_the_first_on_at_a_stride(tmp_path):
    write(tmp_path / "v" / "a.mp4", grey(*range(0, 250, 25)))
    found = open_videos(tmp_path / "v", View(num_frames=3, stride=4))
    assert len(found) == 1
    assert found.clip(0).shape == (3, 3, 16, 16)
    np.testing.assert_allclose(brightness(found.clip(0)), [0, 100, 200], atol=3)
    assert found.size == (16, 16)
    assert found.names == ("a",)
    assert found.rates == (8.0,)


def test_rates_that_decide_what_is_seen(tmp_path):
    for name, fps in (("a", 24), ("b", 8), ("c", 24)):
        write(tmp_path / "v" / f"{name}.mp4", grey(*range(0, 250, 25)), fps=fps)
    assert open_videos(tmp_path / "v", View(num_frames=2)).seen_rates == [8, 24]
    assert open_videos(tmp_path / "v", View(num_frames=2, fps=8)).seen_rates is None
    assert open_videos(tmp_path / "v", View(num_frames=1)).seen_rates is None
    # The source's rate, which a stride divides, and as folders have it.
    assert open_videos("shapes", View(num_frames=2, size=16, stride=2), videos=2).seen_rates == [8]


def test_frames_at_a_rate(tmp_path):
    write(tmp_path / "v" / "a.mp4", grey(*range(0, 240, 20)), fps=12)
    found = open_videos(tmp_path / "v", View(num_frames=3, fps=4))
    np.testing.assert_allclose(brightness(found.clip(0)), [0, 60, 120], atol=3)
    with pytest.raises(VideoError, match=r"shorter than 5 frames at 4 fps .*a.mp4, 12 frames"):
        open_videos(tmp_path / "v", View(num_frames=5, fps=4))


def test_size_is_one_or_given(tmp_path):
    write(tmp_path / "v" / "a.mp4", grey(10, 20, size=(16, 32)))
    write(tmp_path / "v" / "b.mp4", grey(10, 20, size=(16, 16)))
    with pytest.raises(InvalidArgumentError, match=r"2 sizes .*1 of 32 x 16.*give the size .*--size 64"):
        open_videos(tmp_path / "v", View(num_frames=2))
    found = open_videos(tmp_path / "v", View(num_frames=2, size=(16, 24)))
    assert [found.clip(i).shape for i in range(2)] == [(3, 2, 16, 24)] * 2


def test_squeezed_or_cropped(tmp_path):
    halves = np.zeros((2, 16, 32, 3), np.uint8)
    halves[:, :, 24:] = 255
    write(tmp_path / "v" / "a.mp4", halves)
    cropped = open_videos(tmp_path / "v", View(num_frames=2, size=16)).clip(0)
    squeezed = open_videos(tmp_path / "v", View(num_frames=2, size=16, crop="none")).clip(0)
    assert cropped[..., :15].max() < -0.9  # the bright quarter is cut off
    assert squeezed[..., 13:].min() > 0.9


def test_broken_and_short_videos_are_errors(tmp_path):
    write(tmp_path / "v" / "a.mp4", grey(*range(8)))
    write(tmp_path / "v" / "b.mp4", grey(*range(3)))
    with pytest.raises(
        VideoError, match=r"1 of 2 videos .*shorter than 4 frames at stride 1 \(first: b.mp4, 3"
    ):
        open_videos(tmp_path / "v", View(num_frames=4))
    (tmp_path / "v" / "b.mp4").write_bytes(b"no video at all")
    with pytest.raises(VideoError, match=r"1 videos .* cannot be read \(first: b.mp4"):
        open_videos(tmp_path / "v", View(num_frames=4))


def test_missing_and_empty_folders_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, said in ((tmp_path / "empty", "holds no video"), (tmp_path / "none", "does not exist")):
        with pytest.raises(VideoError, match=said):
            open_videos(folder, View())


def test_captions_and_spans(tmp_path):
    for name in "ab":
        write(tmp_path / "v" / f"{name}.mp4", grey(1, 2, 3, 4))
    rows = ['{"path": "a.mp4", "caption": "whole"}']
    rows += [f'{{"path": "b.mp4", "caption": "{i}", "frames": [{i}, {i + 2}]}}' for i in (0, 2)]
    (tmp_path / "v" / "captions.jsonl").write_text("\n".join(rows))
    found = open_videos(tmp_path / "v", View(num_frames=2))
    assert found.captions == ("whole", "")  # of several spans none is that of the clip
    assert open_videos(tmp_path / "v", View(num_frames=2), captions="none").captions == ("", "")


def test_digest_names_the_content(tmp_path):
    for i in range(3):
        write(tmp_path / "v" / f"{i}.mp4", grey(i * 20, i * 20 + 5))
    view = View(num_frames=2)
    before = open_videos(tmp_path / "v", view).digest
    shutil.copytree(tmp_path / "v", tmp_path / "w")
    (tmp_path / "w" / "0.mp4").rename(tmp_path / "w" / "z.mp4")
    assert open_videos(tmp_path / "w", view).digest == before
    write(tmp_path / "w" / "1.mp4", grey(99, 98))
    assert open_videos(tmp_path / "w", view).digest != before
    assert open_videos(tmp_path / "v", view, videos=2).digest != before


def test_a_given_number_of_videos_is_drawn_by_the_seed(tmp_path):
    assert choose(5, None, 0) == choose(5, 9, 3) == [0, 1, 2, 3, 4]
    drawn = {tuple(choose(20, 5, seed)) for seed in range(10)}
    assert len(drawn) == 10
    assert all(list(places) == sorted(set(places)) and len(places) == 5 for places in drawn)
    assert choose(20, 5, 1) == choose(20, 5, 1)
    counts = np.bincount([place for seed in range(400) for place in choose(10, 3, seed)])
    assert counts.min() > 80  # 120 each on average
    for i in range(4):
        write(tmp_path / "v" / f"{i}.mp4", grey(i, i))
    found = open_videos(tmp_path / "v", View(num_frames=2), videos=2, seed=5)
    assert found.names == tuple(str(place) for place in choose(4, 2, 5))


def test_procedural_data_by_name(monkeypatch):
    found = open_videos("shapes", View(num_frames=5, size=16, stride=2), videos=7)
    assert (len(found), found.size, found.names) == (7, (16, 16), None)
    data = ShapesDataset(7, num_frames=9, size=16, split="test")
    expected = data.render(3, range(0, 9, 2)).transpose(3, 0, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(found.clip(3), expected, atol=1e-6)
    assert found.captions == tuple(data.caption(i) for i in range(7))
    monkeypatch.setattr(sources, "NUM_DRAWN", 3)
    assert len(open_videos("shapes", View(num_frames=2, size=16))) == 3


def test_procedural_data_at_a_rate():
    data = ShapesDataset(1, num_frames=9, size=16, split="test")
    found = open_videos("shapes", View(num_frames=3, size=16, fps=2), videos=1)
    np.testing.assert_allclose(
        found.clip(0), data.render(0, [0, 4, 8]).transpose(3, 0, 1, 2) / 127.5 - 1, atol=1e-6
    )
    with pytest.raises(InvalidArgumentError, match="fps=3"):
        open_videos("shapes", View(num_frames=3, size=16, fps=3), videos=1)


def test_procedural_data_by_config():
    config = DataConfig.of("shapes", videos=6, size=16, seed=4, split="train", hold_out=0.1)
    found = open_videos(config, View(num_frames=3))
    data = ShapesDataset(6, num_frames=3, size=16, seed=4, hold_out=0.1)
    np.testing.assert_allclose(
        found.clip(5), data.render(5, range(3)).transpose(3, 0, 1, 2) / 127.5 - 1, atol=1e-6
    )


def test_a_dataset_must_be_as_the_view_says():
    clips = ShapesClips(ShapesDataset(4, num_frames=9, size=16), clip_length=3)
    found = open_videos(clips, View(num_frames=3))
    assert torch.equal(found.clip(2), clips.read(2, 0).clip)
    assert found.captions[2] == clips.read(2, 0).caption
    for view in (View(num_frames=4), View(num_frames=3, size=32)):
        with pytest.raises(InvalidArgumentError, match=r"clip 0 of the dataset has the shape \(3, 3, 16, 16\)"):
            open_videos(clips, view)
    moved = ShapesClips(ShapesDataset(4, num_frames=9, size=16), clip_length=3, seed=1)
    assert open_videos(moved, View(num_frames=3)).digest != found.digest


def test_clips_whose_place_is_not_said_are_named_by_their_pixels(monkeypatch):
    monkeypatch.setattr(ShapesClips, "locate", lambda self, index, draw: None)
    data = ShapesDataset(4, num_frames=30, size=16)
    one, same, other = (
        open_videos(ShapesClips(data, clip_length=3, seed=seed), View(num_frames=3)) for seed in (0, 0, 1)
    )
    assert one.digest == same.digest
    assert one.digest != other.digest  # other parts of the same videos
    assert one.captions == tuple(data.caption(i) for i in range(4))


def test_batches_hold_every_video_once(tmp_path):
    write_folder(ShapesDataset(5, num_frames=2, size=16), tmp_path / "v")
    found = open_videos(tmp_path / "v", View(num_frames=2))
    batches = list(found.batches(2))
    assert [batch.indices for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [len(batch.captions) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([b.clips for b in batches]), torch.stack([found.clip(i) for i in range(5)]))


def test_a_bar_counts_videos(tmp_path, capsys):
    found = open_videos("shapes", View(num_frames=2, size=16), videos=3)
    list(found.batches(2, progress=True))
    assert "scoring shapes" in capsys.readouterr().err
    list(found.batches(2))
    assert not capsys.readouterr().err


def test_impossible_views_are_refused():
    for fields in ({"num_frames": 0}, {"stride": 0}, {"size": 0}, {"size": (16, 0)}):
        with pytest.raises(InvalidArgumentError, match="must all be 1 or more"):
            View(**fields)
    for fields in ({"fps": 0}, {"fps": 8, "stride": 2}):
        with pytest.raises(InvalidArgumentError, match="fps"):
            View(**fields)
    with pytest.raises(UnknownNameError, match="random"):
        View(crop="random")
    with pytest.raises(InvalidArgumentError, match="videos=0"):
        open_videos("shapes", View(), videos=0)


def test_generated_videos_carry_their_captions(tmp_path):
    prompts = {"a": "red", "b": {"0": "blue"}, "c": {"0": "red", "2": "blue"}, "d": None}
    for name, prompt in prompts.items():
        (tmp_path / "v").mkdir(exist_ok=True)
        metadata = {} if prompt is None else {"prompt": prompt}
        with VideoWriter(tmp_path / "v" / f"{name}.mp4", 8, metadata=metadata) as writer:
            writer.extend(grey(1, 2))
    view, want = View(num_frames=2), ("red", "blue", "", "")
    for mode in ("auto", "metadata"):
        assert open_videos(tmp_path / "v", view, captions=mode).captions == want
    assert open_videos(tmp_path / "v", view, captions="none").captions == ("",) * 4
    # in folders, whose names say less than the videos themselves
    for name in "ab":
        (tmp_path / "f" / name).mkdir(parents=True)
        shutil.copy(tmp_path / "v" / f"{name}.mp4", tmp_path / "f" / name / "0.mp4")
    assert open_videos(tmp_path / "f", view).captions == ("red", "blue")
    assert open_videos(tmp_path / "f", view, captions="folder").captions == ("a", "b")
    # what was written beside them says more
    (tmp_path / "v" / "a.txt").write_text("green")
    assert open_videos(tmp_path / "v", view).captions == ("green", "", "", "")
    write(tmp_path / "plain" / "a" / "x.mp4", grey(1, 2))
    write(tmp_path / "plain" / "b" / "y.mp4", grey(1, 2))
    assert open_videos(tmp_path / "plain", view).captions == ("a", "b")
    assert open_videos(tmp_path / "plain", view, captions="metadata").captions == ("", "")


def test_short_videos_are_left_out_and_counted_where_asked(tmp_path, caplog):
    for name, count in (("a", 8), ("b", 3), ("c", 4)):
        write(tmp_path / "v" / f"{name}.mp4", grey(*range(count)))
    found = open_videos(tmp_path / "v", View(num_frames=4), skip_short=True)
    assert found.names == ("a", "c")
    assert "1 of 3 videos" in caplog.text
    assert "left out" in caplog.text
    with pytest.raises(VideoError, match=r"3 of 3 videos .*--num-frames.*--skip-short"):
        open_videos(tmp_path / "v", View(num_frames=9), skip_short=True)
