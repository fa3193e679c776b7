"""Checks of how a strategy makes videos: the same one however it is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidgen.conditioning import Conditioning
from vidgen.diffusion import Denoiser
from vidgen.errors import InvalidArgumentError
from vidgen.level_model import CallBatch, LevelModel
from vidgen.plans import Call
from vidgen.strategy import Strategy
from vidgen.testing.report import Broken, Skipped, expect
from vidgen.testing.subject import Subject, unmoved
from vidgen.video import Video

__all__ = [
    "batches",
    "denoisers",
    "keyed",
    "pins",
    "plans",
    "prompts",
    "resumed",
    "seeds",
    "settings",
    "spans",
    "streamed",
]

_UNKNOWN = "xyzzyqua"


class _Cut(BaseException):
    """Ends a generation in the middle, as a kill would."""


def plans(subject: Subject) -> str:
    """A plan for every length covers it, and is accepted."""
    strategy, refused = subject.strategy, []
    lengths = subject.lengths(strategy)
    for frames in sorted(lengths):
        count = strategy.codec.latent_frames(frames)
        try:
            plan = strategy.plan(count)
        except InvalidArgumentError:
            refused.append(frames)
            continue
        expect(plan.num_frames == count, f"plan({count}) covers {plan.num_frames} frames; expected {count}.")
        made = {slot for call in plan.calls for slot in call.emits}
        missing = [i for i in range(count) if (plan.video.name, i) not in made]
        expect(not missing, f"plan({count}) emits no frame {missing[:3]}; expected all of 0..{count - 1}.")
        try:
            strategy.check_plan(plan)
        except InvalidArgumentError as error:
            raise Broken(f"check_plan() refuses the strategy's own plan({count}): {error}") from error
    usual = strategy.defaults.num_frames
    expect(usual not in refused, f"plan refuses {usual} frames, which are the strategy's default.")
    detail = f"{', '.join(str(n) for n in sorted(lengths) if n not in refused)} frames"
    return detail + (f"; refused: {', '.join(map(str, refused))}" if refused else "")


def seeds(subject: Subject) -> str:
    """The same seed makes the same video, another seed another."""
    expect(
        torch.isfinite(subject.video).all(),
        "the video has values that are not finite. Check the scale of the prediction and prediction_type.",
    )
    again = subject.latents(subject.fresh())
    expect(torch.equal(again, subject.video), "the same seed made another video the second time.")
    same = torch.equal(subject.latents(subject.strategy, seed=subject.seed + 1), subject.video)
    expect(not same, "another seed made the same video: the start noise is not used.")
    return f"{subject.num_frames} frames"


def batches(subject: Subject) -> str:
    """A video does not depend on what is made beside it."""
    strategy, prompts = subject.strategy, list(subject.prompts[:2])
    alone = torch.cat([subject.video, subject.latents(strategy, prompts[1])])
    hint = "A layer that mixes the batch (batch norm, a mean over it) does this"
    details = []
    for size in (None, 64):
        both = subject.latents(strategy, prompts, batch_size=size)
        what = f"two prompts with batch_size={size} are not as one by one. {hint}"
        details.append(subject.expect_close(both, alone, what))
    return details[0]


def spans(subject: Subject) -> str:
    """Any span can be rendered alone and agrees with the whole."""
    strategy, n = subject.strategy, subject.num_frames
    whole = subject.frames
    details = []
    for span in ([0], list(range(n // 2, min(n, n // 2 + 2))), [n - 1]):
        part = subject.sample(strategy, output_type="pt", frames=span).frames
        details.append(subject.expect_close(part, whole[:, span], f"frames {span} alone differ from the whole"))
    return details[-1]


def streamed(subject: Subject) -> str:
    """Written to a file call by call it is the same video as in memory."""
    frames = (subject.frames[0] * 255).round().permute(0, 2, 3, 1).numpy()
    out = subject.sample(subject.fresh(), out=subject.folder / "streamed")
    written = Video.load(out.paths[0]).frames
    apart = np.abs(written.astype(int) - frames.astype(int)).max()
    expect(
        apart <= 1,  # rounding to 8 bits
        f"pixels written to a file differ by up to {apart} of 255 from those in memory, where calls run in "
        "another order: an answer depends on more than its call, conditions and noise.",
    )
    return f"apart by {apart} of 255 at most"


def pins(subject: Subject) -> str:
    """A given picture stays as it is."""
    strategy, clip = subject.strategy, subject.dataset[0].clip
    places = [0] if strategy.codec.time_factor != 1 else sorted({0, subject.num_frames // 2})
    pictures = {frame: clip[:, k % clip.shape[1]] for k, frame in enumerate(places)}
    try:
        video = subject.latents(strategy, pins=pictures)
    except InvalidArgumentError as error:
        raise Skipped(f"it takes no given pictures: {error}") from error
    detail = ""
    for frame, picture in pictures.items():
        wanted = strategy.codec.encode(picture[None, :, None])[:, :, 0]
        what = f"the picture given for frame {frame} changed"
        detail = subject.expect_close(video[:, :, frame], wanted, what)
    return detail


def resumed(subject: Subject) -> str:
    """A generation that was cut off goes on from its finished calls to the same video."""
    work = subject.folder / "work"
    strategy = subject.fresh()
    calls = _counted(strategy, cut=2)
    try:
        subject.latents(strategy, work=work)
    except _Cut:
        finished = len(calls) - 1
    else:
        finished = len(calls)
    strategy = subject.fresh()
    rest = _counted(strategy, cut=None)
    video = subject.latents(strategy, work=work)
    expect(
        torch.equal(video, subject.video),
        "a generation that was cut off went on to another video: an answer depends on calls made before it in "
        "the same process.",
    )
    again = {call.id for call in calls[:finished]} & {call.id for call in rest}
    expect(not again, f"finished calls were made again: {sorted(again)}.")
    return f"{finished} call kept, {len(rest)} made after it"


def denoisers(subject: Subject) -> str:
    """A level's prediction has the shape of its latents, and is a finite number everywhere."""
    strategy, seen = subject.fresh(), list[str]()
    for name, model in strategy.levels.items():
        _override(model, "denoise", _looking(name, model.denoise, seen))
    subject.latents(strategy)
    if not seen:
        return "its answers need no denoiser"
    return ", ".join(f"{count} evaluations of {name}" for name, count in Counter(seen).items())


def _looking(name: str, denoise: Denoiser, seen: list[str]) -> Denoiser:
    def look(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        answer = denoise(x, t, cond)
        where = f"denoise() of level {name!r}"
        expect(
            answer.shape == x.shape,
            f"{where} answers {tuple(x.shape)} with {tuple(answer.shape)}; expected the same shape.",
        )
        expect(answer.is_floating_point(), f"{where} answers in {answer.dtype}; expected floating point.")
        expect(torch.isfinite(answer).all(), f"{where} answers with values that are not finite.")
        seen.append(name)
        return answer

    return look


def settings(subject: Subject) -> str:
    """The solver steps of a level, given by its name, are those that it takes."""
    strategy = subject.strategy
    plan = strategy.plan(strategy.codec.latent_frames(subject.num_frames))
    asked = [name for name in strategy.levels if name in {call.level for call in plan.calls}]
    names = [name for name in asked if strategy.levels[name].diffusion is not None]
    if not names:
        raise Skipped("no level has a noise process.")
    usual = dict.fromkeys(strategy.levels, subject.steps)
    same = subject.latents(strategy, num_inference_steps=usual)
    expect(torch.equal(same, subject.video), "steps given by level make another video than the same for all.")
    for name in names:
        more = subject.latents(strategy, num_inference_steps={**usual, name: subject.steps + 1})
        expect(
            not torch.equal(more, subject.video),
            f"level {name!r} makes the same of {subject.steps} and {subject.steps + 1} solver steps: its "
            "answer() ignores them. Use batch.solve, or batch.settings in a loop of its own.",
        )
    return ", ".join(names)


def prompts(subject: Subject) -> str:
    """A word that was never learnt is refused; where words are free, they make a difference."""
    if not any(subject.prompts):
        raise Skipped("it takes no prompts.")
    usual = subject.latents(subject.strategy, subject.prompts[1])
    expect(
        subject.prompts[0] == subject.prompts[1] or not torch.equal(usual, subject.video),
        f"{subject.prompts[:2]} make the same video. Use the prompt in condition(), or give check_strategy "
        "prompts=() if the strategy takes none.",
    )
    try:
        odd = subject.latents(subject.strategy, _UNKNOWN)
    except InvalidArgumentError as error:
        expect(_UNKNOWN in str(error), f"the error for an unknown prompt does not name it: {error}")
        return "unknown words are refused"
    expect(
        not torch.equal(odd, subject.latents(subject.strategy, "")),
        f"the prompt {_UNKNOWN!r} makes the video of no prompt at all: what is not understood must be refused "
        "with an InvalidArgumentError that names it.",
    )
    return "any words are taken"


def keyed(subject: Subject) -> str:
    """Sampling neither reads nor moves the ambient random state."""
    strategy = subject.fresh()
    with unmoved("sampling", ambient=1):
        video = subject.latents(strategy)
    expect(
        torch.equal(video, subject.video),
        "the video depends on the ambient random state. Take all noise from the prior, by keys.",
    )
    return "nothing is drawn"


def _counted(strategy: Strategy, cut: int | None) -> list[Call]:
    """Let the levels note the calls that they answer, and end at the ``cut``-th."""
    calls: list[Call] = []

    def noting(answer: Callable[[CallBatch], Tensor]) -> Callable[[CallBatch], Tensor]:
        def note(batch: CallBatch) -> Tensor:
            calls.extend(batch.calls)
            if cut is not None and len(calls) >= cut:
                raise _Cut
            return answer(batch)

        return note

    for model in strategy.levels.values():
        _override(model, "answer", noting(model.answer))
    return calls


def _override(model: LevelModel, method: str, by: Callable[..., Any]) -> None:
    setattr(model, method, by)  # on the object: its class stays as it is
