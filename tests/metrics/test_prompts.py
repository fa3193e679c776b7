"""Prompt accuracy on readings that are known, and the captions that are scored."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.metrics import prompts
from vidgen.shapes.phrases import parse_caption
from vidgen.shapes.scene import COLOURS, MOTIONS, SHAPES
from vidgen.shapes.synthetic import held_out_combinations


@dataclass(frozen=True)
class Says:
    shape: Tensor
    colour: Tensor
    motion: Tensor


def says(*triples):
    """A reading of these (colour, shape, motion) triples."""
    colours, shapes, motions = zip(*triples, strict=True)

    def logits(names, found):
        return F.one_hot(torch.tensor([list(names).index(name) for name in found]), len(names)).float() - 0.5

    return Says(logits(SHAPES, shapes), logits(COLOURS, colours), logits(MOTIONS, motions))


def pixel_classifier(clips):
    """Reads three classes out of the first three pixels of frame 0, written there by ``painted``."""
    numbers = ((clips[:, 0, 0, 0, :3] + 1) * 10).round().long()
    return Says(*(F.one_hot(numbers[:, i], n).float() for i, n in enumerate((3, 6, 7))))


def painted(*triples, frames=2):
    clips = torch.zeros(len(triples), 3, frames, 4, 4)
    for row, (colour, shape, motion) in enumerate(triples):
        numbers = [SHAPES.index(shape), list(COLOURS).index(colour), MOTIONS.index(motion)]
        clips[row, 0, 0, 0, :3] = torch.tensor(numbers) / 10 - 1
    return clips


RED, BLUE = ("red", "circle", "left"), ("blue", "square", "still")
CAPTIONS = ["a red circle moves left", "a small blue square stays still on a navy background"]


def test_counts_by_attribute_and_all_three():
    counter = prompts.PromptCounter()
    counter.update(says(RED, BLUE), CAPTIONS)
    counter.update(says(("red", "circle", "right"), ("cyan", "triangle", "still")), CAPTIONS)
    found = counter.result()
    counts = {name: (share.correct, share.n) for name, share in found.shares.items()}
    assert counts == {"shape": (3, 4), "colour": (3, 4), "motion": (3, 4), "all": (2, 4)}
    assert found.shares["all"].value == 0.5


def test_right_in_parts_is_not_right_in_all():
    counter = prompts.PromptCounter()
    counter.update(says(("blue", "circle", "left"), ("blue", "circle", "still")), CAPTIONS)
    shares = counter.result().shares
    assert [shares[name].correct for name in ("shape", "colour", "motion", "all")] == [1, 1, 2, 0]


def test_confusion_has_asked_rows_and_read_columns():
    counter = prompts.PromptCounter()
    counter.update(says(("red", "circle", "right"), ("red", "circle", "right"), RED), CAPTIONS[:1] * 3)
    table = counter.result().confusion["motion"]
    assert table.counts[MOTIONS.index("left"), MOTIONS.index("right")] == 2
    assert table.counts.sum() == 3
    assert table.per_class() == {"left": pytest.approx(1 / 3)}
    assert table.to_json() == {"left": {"left": 1, "right": 2}}
    assert counter.result().to_json()["shares"]["colour"]["value"] == 1
    table.counts[:] = 0  # the counter keeps its own
    assert counter.result().confusion["motion"].counts.sum() == 3


def test_a_classifier_reads_batches():
    green = ("green", "triangle", "bounce")
    clips = [painted(RED, BLUE), painted(green)]
    found = prompts.prompt_accuracy(pixel_classifier, clips, [CAPTIONS, ["a green triangle moves up"]])
    counts = {name: share.correct for name, share in found.shares.items()}
    assert counts == {"shape": 3, "colour": 3, "motion": 2, "all": 2}


def test_single_frames_have_no_motion():
    frames = painted(("red", "circle", "up"), ("blue", "circle", "still"), frames=1)
    found = prompts.prompt_accuracy(pixel_classifier, [frames], [CAPTIONS])
    assert {name: share.correct for name, share in found.shares.items()} == {"shape": 1, "colour": 2, "all": 1}
    assert "motion" not in found.confusion
    with pytest.raises(InvalidArgumentError, match="apart"):
        prompts.prompt_accuracy(pixel_classifier, [frames, painted(RED)], [CAPTIONS, CAPTIONS[:1]])


def test_unusable_readings_are_refused_and_count_nothing():
    counter = prompts.PromptCounter()
    with pytest.raises(InvalidArgumentError, match="no video was counted"):
        counter.result()
    with pytest.raises(InvalidArgumentError, match="2 objects"):
        counter.update(says(RED), ["a red circle moves left and a blue square bounces"])
    with pytest.raises(InvalidArgumentError, match="not of the shapes data"):
        counter.update(says(RED), ["a dog runs"])
    with pytest.raises(InvalidArgumentError, match=r"\(2, 3\) for 1 captions"):
        counter.update(says(RED, BLUE), CAPTIONS[:1])
    wide = says(RED)
    with pytest.raises(InvalidArgumentError, match=r"logits for motion .*\(1, 6\)"):
        counter.update(Says(wide.shape, wide.colour, wide.motion[:, :6]), CAPTIONS[:1])
    with pytest.raises(InvalidArgumentError, match="no video was counted"):
        counter.result()
    with pytest.raises(InvalidArgumentError, match="no batch"):
        prompts.prompt_accuracy(pixel_classifier, [], [])


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (90, 100), (500, 512), (1, 1)])
def test_interval_solves_wilsons_equation(correct, n):
    # Its ends x are the roots of n (p - x)^2 = z^2 x (1 - x).
    share = prompts.share_of(correct, n)
    z2, p = 1.959963984540054**2, correct / n
    roots = np.sort(np.roots([1 + z2 / n, -(2 * p + z2 / n), p * p]).real)
    assert (share.low, share.high) == pytest.approx(tuple(roots), abs=1e-9)
    assert 0 <= share.low <= share.value <= share.high <= 1
    assert share.high > share.low


def test_impossible_shares_are_refused():
    for correct, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(InvalidArgumentError, match=f"{correct} of {n}"):
            prompts.share_of(correct, n)


def combinations(captions):
    specs = [parse_caption(caption)[0][0] for caption in captions]
    return Counter((spec.colour, spec.shape, spec.motion) for spec in specs)


def test_prompts_are_balanced_over_the_combinations():
    counts = combinations(prompts.prompt_set(512))
    assert len(counts) == 126
    assert sorted(set(counts.values())) == [4, 5]
    assert set(combinations(prompts.prompt_set(252)).values()) == {2}


def test_prompts_keep_to_their_side_of_the_hold_out():
    held = held_out_combinations(0.1)
    assert set(combinations(prompts.prompt_set(512, 0.1, "held_out"))) == held
    assert set(combinations(prompts.prompt_set(512, 0.1))).isdisjoint(held)
    assert len(combinations(prompts.prompt_set(512, 0.1))) == 126 - len(held)
    assert len(combinations(prompts.prompt_set(512, 0.1, "all"))) == 126


def test_prompts_depend_on_the_seed_alone():
    assert prompts.prompt_set(20, seed=1) == prompts.prompt_set(30, seed=1)[:20]
    assert prompts.prompt_set(20, seed=1) != prompts.prompt_set(20, seed=2)
    assert prompts.prompt_set(3, seed=0) == prompts.prompt_set(3)


def test_impossible_prompt_sets_are_refused():
    with pytest.raises(InvalidArgumentError, match="n=0"):
        prompts.prompt_set(0)
    with pytest.raises(InvalidArgumentError, match="no such combination"):
        prompts.prompt_set(3, 0.0, "held_out")
    with pytest.raises(UnknownNameError, match="held_out"):
        prompts.prompt_set(3, 0.1, "heldout")
    with pytest.raises(InvalidArgumentError, match="hold_out=1"):
        prompts.prompt_set(3, 1.0)
