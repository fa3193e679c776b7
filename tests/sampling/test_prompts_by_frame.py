"""Prompts that change within a video: every way of saying so is the same video."""

from __future__ import annotations

import pytest
import torch

from toy import toy
from vidgen.errors import InvalidArgumentError
from vidgen.sampling import Sampler
from vidgen.sampling.checks import by_frame

FRAMES = 20  # windows of 8 frames that share 3: calls begin at 0, 5, 10 and 15


@pytest.fixture
def sampler():
    sampler = Sampler(toy())
    sampler.set_progress_bar_config(disable=True)
    return sampler


def latents(sampler, prompt):
    return sampler(prompt, num_frames=FRAMES, seed=1, output_type="latent").frames


def test_a_mapping_a_list_and_a_function_are_the_same_prompt(sampler):
    mapped = latents(sampler, {0: "a", 8: "b"})
    listed = latents(sampler, [["a"] * 8 + ["b"] * 12])
    called = latents(sampler, lambda frame: "a" if frame < 8 else "b")
    assert torch.equal(mapped, listed)
    assert torch.equal(mapped, called)
    assert not torch.equal(mapped, latents(sampler, "a"))
    first, second = latents(sampler, ["a", {0: "a", 8: "b"}])
    assert torch.equal(second[:, :8], first[:, :8])
    torch.testing.assert_close(second, mapped[0])


def test_a_prompt_by_frame_keeps_the_frames_where_it_changes():
    assert by_frame(["a", "a", "b", "a"], 4) == {0: "a", 2: "b", 3: "a"}
    assert by_frame(lambda i: f"{i // 3}", 7) == {0: "0", 3: "1", 6: "2"}
    assert by_frame(lambda i: 7, 2) == {0: "7"}  # the number of a class
    assert by_frame("a", 4) == "a"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([["a", "b"]], "a list of 2 texts.*the video has 20 frames"),
        ([[]], "a prompt is empty"),
        ([["a"] * 19 + [None]], "a prompt is None"),
        (lambda frame: None, "a prompt is None"),
    ],
)
def test_what_says_no_text_for_each_frame_is_refused(sampler, prompt, message):
    with pytest.raises(InvalidArgumentError, match=message):
        latents(sampler, prompt)
