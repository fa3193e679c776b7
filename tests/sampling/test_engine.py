"""What the engine does where memory does not hold a batch."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from toy import ToyLevel, toy
from vidgen.plans import Call, Level, Plan, chunks, rooted
from vidgen.plans.call import call_id
from vidgen.sampling import Sampler

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture
def limited(monkeypatch):
    """A sampler whose strategy fails where a batch has more frames than a limit, and what it was asked."""
    sampler = Sampler(toy())
    sampler.set_progress_bar_config(disable=True)
    level, asked = sampler.strategy.levels["video"], []

    def limit(frames, message=MESSAGE, apart=False):
        answer = level.answer

        def answering(batch):
            length = len(batch.calls[0].frames)
            asked.append((len(batch), length))
            if len(batch) * length > frames:
                raise torch.OutOfMemoryError(message)
            return answer(batch)

        monkeypatch.setattr(level, "answer", answering)
        if apart:
            monkeypatch.setattr(level, "halves", lambda call: call.halves())

    return sampler, limit, asked


def bars(sampler, monkeypatch):
    """What the progress bar of the next generation shows."""
    bar = SimpleNamespace(n=0, total=0)
    bar.update = lambda done: setattr(bar, "n", bar.n + done)
    monkeypatch.setattr(sampler, "progress_bar", lambda total: nullcontext(setattr(bar, "total", total) or bar))
    return bar


def latents(sampler, **kwargs):
    call = {"seed": 5, "num_frames": 12, "plan": chunks(12, 4), "eta": 0.5, **kwargs}
    return sampler(["a", "b"], output_type="latent", **call).frames


def test_what_does_not_fit_is_answered_in_halves_and_remembered(limited, caplog, monkeypatch):
    sampler, limit, asked = limited
    whole = latents(sampler)
    limit(8)
    steps = bars(sampler, monkeypatch)
    with caplog.at_level(logging.WARNING, "vidgen"):
        torch.testing.assert_close(latents(sampler, batch_size=6), whole, rtol=0, atol=1e-5)
    # All 24 frames at once fail, then 3 jobs of 4; what did not fit once is not tried again.
    assert asked == [(6, 4), (3, 4), (1, 4), (1, 4), (1, 4), (1, 4), (1, 4), (1, 4)]
    assert [record.getMessage() for record in caplog.records] == [
        "no memory for 24 frames of video at once; going on with 12",
        "no memory for 12 frames of video at once; going on with 6",
    ]
    assert steps.n == steps.total


def test_memory_that_runs_out_later_is_counted_once(limited, monkeypatch):
    sampler, _, asked = limited
    whole = latents(sampler)
    steps, level = bars(sampler, monkeypatch), sampler.strategy.levels["video"]
    network = level.denoise

    def denoise(x_t, t, cond):
        asked.append(int(t.flatten()[0]))
        if x_t.shape[0] > 3 and len(asked) == 3:  # in the third step
            raise torch.OutOfMemoryError(MESSAGE)
        return network(x_t, t, cond)

    monkeypatch.setattr(level, "denoise", denoise)
    torch.testing.assert_close(latents(sampler, batch_size=6), whole, rtol=0, atol=1e-5)
    assert asked[0] == asked[3]  # from the start again
    assert steps.n == steps.total


def test_every_level_has_a_memory_of_its_own(limited, monkeypatch):
    sampler, _, asked = limited
    plan = rooted(chunks(12, 6), "global")
    whole = latents(sampler, plan=plan)
    answer = ToyLevel.answer

    def answering(self, batch):
        asked.append((self.name, len(batch), len(batch.calls[0].frames)))
        if self.name == "global" and len(batch) > 1:
            raise torch.OutOfMemoryError(MESSAGE)
        return answer(self, batch)

    monkeypatch.setattr(ToyLevel, "answer", answering)
    torch.testing.assert_close(latents(sampler, plan=plan, batch_size=4), whole, rtol=0, atol=1e-5)
    assert asked == [("global", 2, 1), ("global", 1, 1), ("global", 1, 1), ("video", 4, 6)]


def test_what_lies_past_the_end_is_left_out_of_the_parts(limited, monkeypatch):
    sampler, limit, asked = limited
    sampler.strategy.levels["video"].denoise = lambda x_t, t, cond: torch.zeros_like(x_t)
    calls = tuple(
        Call(call_id("video", frames), "video", tuple(frames), (), tuple(("video", i) for i in frames))
        for frames in (range(4), range(4, 8))
    )
    plan = Plan(calls, (Level("video", 6, 4),))
    whole = latents(sampler, plan=plan, num_frames=6)
    limit(2, apart=True)
    parted = latents(sampler, plan=plan, num_frames=6, batch_size=1)
    torch.testing.assert_close(parted, whole, rtol=0, atol=1e-5)
    assert asked == [(1, 4), *[(1, 2)] * 6]


def test_a_call_is_parted_where_the_strategy_says_so(limited, monkeypatch):
    sampler, limit, asked = limited
    shared = {"plan": chunks(12, 5), "batch_size": 1}
    # The toy's network mixes the frames of a call, so the noise alone can be compared.
    seen, evaluated, level = [], [], sampler.strategy.levels["video"]
    level.denoise = lambda x_t, t, cond: evaluated.append(1) or torch.zeros_like(x_t)
    answer = level.answer
    level.answer = lambda batch: seen.extend(call.id for call in batch.calls) or answer(batch)
    whole, steps = latents(sampler, **shared), len(evaluated)
    seen.clear()
    limit(2, apart=True)
    bar = bars(sampler, monkeypatch)
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
