"""What the engine does where memory does not hold a batch."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from toy import toy
from vidgen.plans import Call, chunks
from vidgen.sampling import Sampler

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture
def limited(monkeypatch):
    """A sampler whose strategy fails where a batch has more frames than a limit, and what it was asked."""
    sampler = Sampler(toy())
    sampler.set_progress_bar_config(disable=True)
    strategy, asked = sampler.strategy, []

    def limit(frames, message=MESSAGE, apart=False):
        answer = type(strategy).answer

        def answering(self, call, solve, start, cond):
            asked.append((start.shape[0], start.shape[2]))
            if start.shape[0] * start.shape[2] > frames:
                raise torch.OutOfMemoryError(message)
            return answer(self, call, solve, start, cond)

        monkeypatch.setattr(type(strategy), "answer", answering)
        if apart:
            monkeypatch.setattr(type(strategy), "halves", lambda self, call: call.halves())

    return sampler, limit, asked


def latents(sampler, **kwargs):
    call = {"seed": 5, "num_frames": 12, "plan": chunks(12, 4), "eta": 0.5, **kwargs}
    return sampler(["a", "b"], output_type="latent", **call).frames


def test_what_does_not_fit_is_answered_in_halves_and_remembered(limited, caplog):
    sampler, limit, asked = limited
    whole = latents(sampler)
    limit(8)
    with caplog.at_level(logging.WARNING, "vidgen"):
        torch.testing.assert_close(latents(sampler, batch_size=6), whole, rtol=0, atol=1e-5)
    # All 24 frames at once fail, then 3 jobs of 4; what did not fit once is not tried again.
    assert asked == [(6, 4), (3, 4), (1, 4), (1, 4), (1, 4), (1, 4), (1, 4), (1, 4)]
    assert [record.getMessage() for record in caplog.records] == [
        "no memory for 24 frames at once; going on with 12",
        "no memory for 12 frames at once; going on with 6",
    ]


def test_a_call_is_parted_where_the_strategy_says_so(limited, monkeypatch):
    sampler, limit, asked = limited
    shared = {"plan": chunks(12, 5), "batch_size": 1}
    # The toy's network mixes the frames of a call, so the noise alone can be compared.
    seen = []
    sampler.strategy.denoiser = lambda call: lambda x_t, t, cond: seen.append(call.id) or torch.zeros_like(x_t)
    whole, steps = latents(sampler, **shared), len(seen)
    seen.clear()
    limit(2, apart=True)
    bar = SimpleNamespace(n=0, update=lambda done: setattr(bar, "n", bar.n + done))
    monkeypatch.setattr(sampler, "progress_bar", lambda total: nullcontext(bar))
    torch.testing.assert_close(latents(sampler, **shared), whole, rtol=0, atol=1e-5)
    per_video = [(1, 2), (1, 1), (1, 2)] * 2 + [(1, 2)]
    assert sorted(asked) == sorted([(1, 5), *per_video * 2])
    assert bar.n == steps
    assert {"video/0-1", "video/2", "video/3-4"} <= set(seen)


@pytest.mark.parametrize(
    ("message", "frames"), [(MESSAGE, 3), ("cuBLAS failed", 8)], ids=["cannot be parted", "another error"]
)
def test_other_failures_are_the_callers(limited, message, frames):
    sampler, limit, asked = limited
    limit(frames, message)
    with pytest.raises(torch.OutOfMemoryError, match=message[:6]):
        latents(sampler, batch_size=6)
    assert len(asked) == (3 if frames == 3 else 1)


def test_halves_of_a_call_emit_what_it_emits():
    emits = tuple(("video", frame) for frame in (2, 4, 6, 8))
    call = Call("video/0-8:2", "video", (0, 2, 4, 6, 8), (("global", 0),), emits)
    first, second = call.halves()
    assert first == Call("video/2-4:2", "video", (2, 4), (("global", 0),), (("video", 2), ("video", 4)))
    assert second == Call("video/6-8:2", "video", (6, 8), (("global", 0),), (("video", 6), ("video", 8)))
    assert Call("video/3", "video", (3,), (), (("video", 3),)).halves() is None
