"""Clips of the shapes data, batches, replacement of what cannot be read, and the split."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vidgen.errors import InvalidArgumentError, VideoError
from vidgen.shapes.clips import ShapesClips
from vidgen.shapes.scene import MOTIONS
from vidgen.shapes.story import ShapesStory
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.video.clips import ClipDataset, ClipSample, ClipSubset, collate, split
from vidgen.video.transforms import to_clip

SOURCE = ShapesDataset(24, num_frames=100, size=32, objects=(1, 2), seed=7)


class Numbers(ClipDataset):
    """Clips that hold their own index; those in ``bad`` cannot be read."""

    def __init__(self, names: str, bad: set[int]) -> None:
        super().__init__()
        self.names, self.bad = names, bad

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int, draw: int) -> ClipSample:
        if index in self.bad:
            raise VideoError(f"no {index}")
        return ClipSample(torch.full((3, 1, 2, 2), float(index)), "", -1, 8.0, index, draw, (0,))

    def content_key(self, index: int) -> str:
        return self.names[index]

    def texts(self) -> list[str]:
        return list(self.names)


def test_a_clip_is_the_render_of_its_frames() -> None:
    clips = ShapesClips(SOURCE, clip_length=6, stride=3)
    starts = set()
    for draw in range(40):
        sample = clips[5, draw]
        starts.add(sample.frames[0])
        assert np.diff(sample.frames).tolist() == [3] * 5
        torch.testing.assert_close(sample.clip, to_clip(SOURCE.render(5, sample.frames)))
        assert sample.caption == SOURCE.caption(5)
        assert MOTIONS[sample.label] == SOURCE.scene(5).specs[0].motion
        assert sample.fps == pytest.approx(8 / 3)
        assert (sample.index, sample.draw) == (5, draw)
    assert len(starts) > 20
    assert max(starts) <= 100 - 16


def test_the_draw_keys_everything_and_the_default_is_draw_0() -> None:
    clips, again = ShapesClips(SOURCE, flip=True), ShapesClips(SOURCE, flip=True)
    for draw in range(5):
        assert torch.equal(clips[3, draw].clip, again[3, draw].clip)
    assert clips[3].frames == clips[3, 0].frames
    other = ShapesClips(SOURCE, seed=1)
    assert [clips[3, k].frames for k in range(5)] != [other[3, k].frames for k in range(5)]


def test_half_the_clips_are_mirrored_unless_the_caption_names_a_side() -> None:
    clips = ShapesClips(SOURCE, clip_length=4, flip=True)
    mirrored = Counter()
    for index in range(24):
        for draw in range(10):
            sample = clips[index, draw]
            plain = to_clip(SOURCE.render(index, sample.frames))
            sided = " left" in sample.caption or " right" in sample.caption
            if torch.equal(sample.clip, plain):
                mirrored[sided, False] += 1
            else:
                assert torch.equal(sample.clip, plain.flip(-1))
                mirrored[sided, True] += 1
    assert mirrored[True, True] == 0
    assert mirrored[True, False] > 0
    assert 0.35 < mirrored[False, True] / (mirrored[False, True] + mirrored[False, False]) < 0.65


def test_a_storys_clip_lies_within_its_caption() -> None:
    story = ShapesStory(3, num_frames=300, size=16, seed=1)
    clips = ShapesClips(story, clip_length=16, stride=2)
    captions = set()
    for draw in range(60):
        sample = clips[1, draw]
        captions.add(sample.caption)
        assert story.caption_at(1, sample.frames[0]) == sample.caption
        assert story.caption_at(1, sample.frames[-1]) == sample.caption
    assert len(captions) > 3


def test_a_clip_longer_than_any_span_says_all_that_happens_in_order() -> None:
    story = ShapesStory(1, num_frames=200, size=16, segment=(20, 20))
    sample = ShapesClips(story, clip_length=5, stride=15)[0, 3]
    spans = story.captions(0)
    crossed = [text for a, b, text in spans if a <= sample.frames[-1] and b > sample.frames[0]]
    assert len(crossed) > 2
    assert sample.caption == " then ".join(crossed)


def test_loading_through_workers_keys_gives_batches() -> None:
    clips = ShapesClips(SOURCE, clip_length=4)
    keys = [(index, 9) for index in (3, 1, 4, 1)]
    (batch,) = DataLoader(clips, batch_size=4, sampler=keys, collate_fn=collate)
    assert batch.index.tolist() == [3, 1, 4, 1]
    assert batch.draw.tolist() == [9] * 4
    assert batch.captions == [SOURCE.caption(index) for index, _ in keys]
    assert len(batch) == 4
    for row, key in enumerate(keys):
        sample = clips[key]
        assert torch.equal(batch.clip[row], sample.clip)
        assert tuple(batch.frames[row].tolist()) == sample.frames
        assert batch.labels[row] == sample.label
        assert batch.fps[row] == 8.0
    half = batch.to("meta")
    assert half.clip.device.type == half.labels.device.type == "meta"
    assert half.captions == batch.captions


def test_clips_of_different_shapes_cannot_be_stacked() -> None:
    samples = [ShapesClips(SOURCE, clip_length=n)[0] for n in (2, 3)]
    with pytest.raises(InvalidArgumentError, match=r"\(3, 2, 32, 32\), \(3, 3, 32, 32\)"):
        collate(samples)
    with pytest.raises(InvalidArgumentError, match="0 clips"):
        collate([])


def test_what_cannot_be_read_is_replaced_by_the_next_and_never_by_history() -> None:
    numbers = Numbers("abcdef", bad={2, 3, 5})
    assert [numbers[i, 4].index for i in range(6)] == [0, 1, 4, 4, 4, 0]
    assert numbers[2, 4].draw == 4
    numbers.bad = {4}
    assert [numbers[i].index for i in range(6)] == [0, 1, 2, 3, 5, 5]
    assert len(list(numbers)) == 6


def test_nothing_readable_is_an_error_and_outside_is_an_index_error() -> None:
    with pytest.raises(VideoError, match="none of the 3 items"):
        Numbers("abc", bad={0, 1, 2})[1]
    for index in (3, -1):
        with pytest.raises(IndexError, match="of 3 items"):
            Numbers("abc", set())[index]


def test_split_keeps_content_together_whatever_its_order() -> None:
    names = "aabbccddeeffgghhiijj"
    train, held = split(Numbers(names, set()), 0.3, seed=4)
    assert len(train) == 14
    assert len(held) == 6
    assert not {names[i] for i in train.indices} & {names[i] for i in held.indices}
    backwards = names[::-1]
    _, again = split(Numbers(backwards, set()), 0.3, seed=4)
    assert {backwards[i] for i in again.indices} == {names[i] for i in held.indices}
    _, other = split(Numbers(names, set()), 0.3, seed=5)
    assert other.indices != held.indices


def test_split_sizes_at_the_edges() -> None:
    sizes = [
        [len(part) for part in split(Numbers(names, set()), fraction)]
        for names, fraction in (("abcd", 0.0), ("abcd", 0.01), ("abcd", 0.99), ("a", 0.5))
    ]
    assert sizes == [[4, 0], [3, 1], [1, 3], [1, 0]]
    with pytest.raises(InvalidArgumentError, match=r"fraction=1\.0"):
        split(Numbers("ab", set()), 1.0)


def test_a_part_of_a_split_never_replaces_from_the_other_part() -> None:
    train, held = split(Numbers("abcdefgh", bad={0, 3, 6}), 0.5)
    for part in (train, held):
        assert {sample.index for sample in part} <= set(part.indices) - {0, 3, 6}
        assert part[1, 2].draw == 2


def test_texts_are_all_captions_a_clip_can_have() -> None:
    """The vocabulary of a model is made of them: a caption they lack would stop training."""
    sources = {
        "shapes": ShapesDataset(5, num_frames=20),
        "story": ShapesStory(3, num_frames=200, segment=(20, 30)),
        "story with clips longer than a span": ShapesStory(3, num_frames=200, segment=(20, 30)),
    }
    for name, source in sources.items():
        clips = ShapesClips(source, clip_length=60 if "longer" in name else 16)
        texts = set(clips.texts())
        words = {word for text in texts for word in text.split()}
        longest = max(len(text.split()) for text in texts)
        for index in range(len(clips)):
            for draw in range(20):
                caption = clips[index, draw].caption
                assert caption in texts or "longer" in name
                assert set(caption.split()) <= words
                assert len(caption.split()) <= longest


def test_locate_says_what_read_will_return() -> None:
    story = ShapesStory(3, num_frames=200, size=16, seed=1)
    for clips in (ShapesClips(SOURCE, 6, 3, flip=True), ShapesClips(story, clip_length=16, seed=2)):
        for part in (clips, ClipSubset(clips, [2, 1])):
            for index in range(len(part))[:2]:
                for draw in range(12):
                    view, sample = part.locate(index, draw), part.read(index, draw)
                    assert view.size == sample.clip.shape[2:]
                    told = {**vars(view), "clip": sample.clip}
                    del told["size"]
                    assert told == vars(sample)
    assert Numbers("ab", set()).locate(0, 0) is None
    assert Numbers("ab", set())[0].content is None


def test_equal_content_means_equal_frames_and_a_mirrored_clip_has_its_own() -> None:
    clips = ShapesClips(SOURCE, clip_length=60, flip=True)
    seen: dict[tuple[str | None, int], torch.Tensor] = {}
    contents: dict[int, set[str | None]] = {}
    again = 0
    for index in range(6):
        for draw in range(10):
            sample = clips[index, draw]
            contents.setdefault(index, set()).add(sample.content)
            for position, frame in enumerate(sample.frames):
                key = sample.content, frame
                again += key in seen
                assert torch.equal(seen.setdefault(key, sample.clip[:, position]), sample.clip[:, position])
    assert again > 1000
    assert max(len(names) for names in contents.values()) == 2
    assert len(set().union(*contents.values())) == sum(len(names) for names in contents.values())
    larger = ShapesClips(ShapesDataset(24, num_frames=100, size=48, objects=(1, 2), seed=7), 60)
    assert larger[0].content not in contents[0]


def test_a_batch_of_latents_has_frame_numbers_and_no_frames() -> None:
    sample = ShapesClips(SOURCE, clip_length=4)[0]
    batch = collate([replace(sample, clip=sample.clip[:, :0])] * 2)
    latents = torch.zeros(2, 8, 4, 4, 4)
    moved = replace(batch, latents=latents).to("meta")
    assert (batch.clip.shape, batch.frames.shape) == ((2, 3, 0, 32, 32), (2, 4))
    assert moved.latents is not None
    assert moved.latents.device.type == "meta"


def test_chosen_clips_of_a_batch_are_the_batch_of_those_clips() -> None:
    samples = [ShapesClips(SOURCE)[i] for i in range(4)]
    chosen, expected = collate(samples).select([3, 1]), collate([samples[3], samples[1]])
    assert chosen.captions == expected.captions
    assert chosen.latents is None
    for name in ("clip", "labels", "fps", "index", "draw", "frames"):
        assert torch.equal(getattr(chosen, name), getattr(expected, name)), name
    latents = torch.arange(4.0).reshape(4, 1, 1, 1, 1)
    kept = replace(collate(samples), latents=latents).select(range(2, 4)).latents
    assert kept is not None
    assert kept.flatten().tolist() == [2, 3]
