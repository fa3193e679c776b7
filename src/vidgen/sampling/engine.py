"""Runs a plan: batches its calls, shares them among processes, frees what no later call needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from logging import getLogger

import torch
import torch.distributed as dist
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from vidgen.conditioning import Conditioning
from vidgen.diffusion import Source
from vidgen.errors import InvalidArgumentError, PlanError
from vidgen.level_model import CallBatch
from vidgen.plans import Call, Slot
from vidgen.request import Canvas
from vidgen.sampling.arguments import Generation
from vidgen.sampling.work import WorkFolder
from vidgen.strategy import Strategy

__all__ = ["Engine", "Job", "StepHook"]

_LOG = getLogger(__name__)

StepHook = Callable[[list["Job"], int, Tensor, Tensor], Tensor]
"""``(jobs of the batch, step, timestep, latents) -> latents`` after every solver step."""

_LATENTS = "latents"

Answer = dict[str, Tensor]
"""What a call leaves: its kept frames as ``"latents"`` c f h w, and each state, c h w, by its level."""


@dataclass(frozen=True)
class Job:
    """One call for one video.

    Args:
        call: what is to be made.
        video: which of the videos.
        evaluations: of the network, in the whole call.
        share: of the plan's call that this is: less than 1 where it was parted.
    """

    call: Call
    video: int
    evaluations: int
    share: float = 1.0


class Engine:
    """Executes one plan for several videos.

    A batch that memory does not hold is answered in halves: of its jobs, then of a call's frames where the
    strategy can part them. What did not fit is remembered for the batches that follow.

    Args:
        strategy: answers the calls.
        generation: what to run.
        batch_size: most (call, video) pairs per network batch; None takes all videos of one call.
        stream: complete the earliest frames first (depth first) and keep little; otherwise wave by wave,
            which batches calls of one wave together and shares them among processes.
        on_step: called after every solver step.
        on_progress: called with evaluations that ``on_step`` did not see: those of a call that answers without
            a solver, or less than 0 for steps that must be taken again, where memory ran out after them.
        work: where finished calls are kept.

    Attributes:
        released: latents of the video before this one are delivered and need not stay.
    """

    def __init__(
        self,
        strategy: Strategy,
        generation: Generation,
        *,
        batch_size: int | None = None,
        stream: bool = False,
        on_step: StepHook | None = None,
        on_progress: Callable[[float], None] | None = None,
        work: WorkFolder | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InvalidArgumentError(f"batch_size is {batch_size}; expected 1 or more, or None.")
        self.strategy, self.generation = strategy, generation
        self.plan, self.requests = generation.plan, generation.requests
        self.batch_size = batch_size or len(self.requests)
        self.stream, self.on_step, self.on_progress, self.work = stream, on_step, on_progress, work
        self._taken = 0.0  # solver steps of calls
        self._fits: dict[str, int] = {}  # by level: frames in one batch; without an entry as many as come
        self.canvases = [Canvas(given.pins) for given in generation.given]
        self.released = 0
        self._wanted = frozenset(self.plan.frames)
        self._pending = Counter(slot for call in self.plan.calls for slot in call.given)

    @property
    def video_level(self) -> str:
        """The level whose slots are the video."""
        return self.plan.levels[-1].name

    def rounds(self) -> list[list[list[Job]]]:
        """Return rounds of batches of jobs; the batches of one round do not depend on each other."""
        if self.stream:
            groups = [[call] for call in self.plan.order("depth")]
        else:
            groups = [list(wave) for wave in self.plan.waves()]
        return [self._batches(calls) for calls in groups]

    def _batches(self, calls: Sequence[Call]) -> list[list[Job]]:
        alike: dict[tuple[object, ...], list[Job]] = {}
        for call in calls:
            key = (call.level, *self.strategy.levels[call.level].batch_key(call))
            jobs = alike.setdefault(key, [])
            count = self.generation.call_evaluations[call.id]
            jobs.extend(Job(call, video, count) for video in range(len(self.requests)))
        size = self.batch_size
        return [jobs[i : i + size] for jobs in alike.values() for i in range(0, len(jobs), size)]

    def run(self) -> Iterator[list[Job]]:
        """Execute the plan; yield the jobs of every finished round, their slots on the canvases."""
        for batches in self.rounds():
            results = self._share(batches)
            jobs = [job for batch in batches for job in batch]
            for job, answer in zip(jobs, results, strict=True):
                self._store(job, answer)
            yield jobs
            self._forget({job.call for job in jobs})

    def _share(self, batches: list[list[Job]]) -> list[Answer]:
        """Answer ``batches``, each on one process, and return all results on every process."""
        distributed = dist.is_available() and dist.is_initialized()
        rank, world = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        mine = {i: self._finished(batch) for i, batch in enumerate(batches) if i % world == rank}
        results = []
        for i, batch in enumerate(batches):
            results += mine[i] if world == 1 else self._broadcast(batch, mine.get(i), i % world)
        return results

    def _broadcast(self, batch: list[Job], found: list[Answer] | None, source: int) -> list[Answer]:
        device = self.strategy.device if dist.get_backend() == "nccl" else torch.device("cpu")
        results = []
        for k, job in enumerate(batch):
            answer: Answer = {}
            for name, shape in self._shapes(job).items():
                tensor = torch.empty(shape, device=device) if found is None else found[k][name].to(device)
                dist.broadcast(tensor, source)
                answer[name] = tensor.cpu()
            results.append(answer)
        return results

    def _shapes(self, job: Job) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what a job leaves."""
        request, model = self.requests[job.video], self.strategy.levels[job.call.level]
        frames, states = self._kept(job.call)
        c, h, w = model.shape(request)
        shapes: dict[str, tuple[int, ...]] = {_LATENTS: (c, len(frames), h, w)}
        return shapes | {name: model.state_shape(name, request) for name, _ in states}

    def _kept(self, call: Call) -> tuple[list[Slot], list[Slot]]:
        """Return the slots of a call worth storing: its frames, and its states."""
        kept = self.plan.kept(call)
        return [s for s in kept if s[0] == call.level], [s for s in kept if s[0] != call.level]

    def _finished(self, batch: list[Job]) -> list[Answer]:
        """Return what every job leaves, from the work folder or computed."""
        if self.work is not None:
            loaded = [self.work.load(job.call, job.video) for job in batch]
            found = [answer for answer in loaded if answer is not None]
            if len(found) == len(batch):
                return found
        results = self._answered(batch)
        if self.work is not None:
            for job, answer in zip(batch, results, strict=True):
                self.work.save(job.call, job.video, answer)
        return results

    def _answered(self, batch: list[Job]) -> list[Answer]:
        """Compute a batch as a whole, or in halves where memory runs out."""
        parts, level = self._halves(batch), batch[0].call.level  # a batch has one level
        frames = sum(len(job.call.frames) for job in batch)
        if parts is None or frames <= self._fits.get(level, frames):
            taken = self._taken
            try:
                return self._compute(batch)
            except Exception as error:
                if parts is None or not should_reduce_batch_size(error):
                    raise
                self._fits[level] = frames // 2
                if self.on_progress is not None:
                    self.on_progress(taken - self._taken)
                _LOG.warning(
                    "no memory for %d frames of %s at once; going on with %d", frames, level, frames // 2
                )
            clear_device_cache(garbage_collection=True)  # here the error no longer holds what failed
        answers = [answer for part in parts for answer in self._answered(part)]
        if len(batch) > 1:
            return answers
        return [{**answers[-1], _LATENTS: torch.cat([answer[_LATENTS] for answer in answers], dim=1)}]

    def _halves(self, batch: list[Job]) -> list[list[Job]] | None:
        """Part a batch of several jobs, or the call of a single one; None where that cannot be."""
        if len(batch) > 1:
            middle = len(batch) // 2
            return [batch[:middle], batch[middle:]]
        (job,) = batch
        calls = self.strategy.levels[job.call.level].halves(job.call)
        if calls is None:
            return None
        part = job.share / len(job.call.emits)
        parts = [[replace(job, call=call, share=part * len(call.emits))] for call in calls]
        return [jobs for jobs in parts if self.plan.kept(jobs[0].call)]  # not what lies past the end

    def _compute(self, jobs: list[Job]) -> list[Answer]:
        batch = self._batch(jobs)
        latents = batch.level.answer(batch).float().cpu()
        if batch.source is not None and not batch.solved:
            raise InvalidArgumentError(
                f"{self.strategy.name!r} answers call {jobs[0].call.id!r} without its solver; strength and "
                "masks of pixels need its steps. Give whole frames (pins, a mask of frames)."
            )
        self._count_rest(jobs, batch)
        return [self._left(job, latents[i], batch, i) for i, job in enumerate(jobs)]

    def _batch(self, jobs: list[Job]) -> CallBatch:
        strategy, device, level = self.strategy, self.strategy.device, jobs[0].call.level
        model = strategy.levels[level]
        conds = [model.condition(job.call, self.canvases[job.video], self.requests[job.video]) for job in jobs]
        return CallBatch(
            level=model,
            calls=tuple(job.call for job in jobs),
            requests=tuple(self.requests[job.video] for job in jobs),
            cond=Conditioning.collate([cond.to(device) for cond in conds]),
            device=device,
            latents=self._given_noise(jobs),
            source=self._source(jobs),
            on_step=partial(self._stepped, jobs),
        )

    def _left(self, job: Job, clip: Tensor, batch: CallBatch, entry: int) -> Answer:
        """Return what a job leaves of its clip ``c f h w`` and of the batch's states."""
        frames, states = self._kept(job.call)
        missing = sorted({name for name, _ in states} - set(batch.states))
        if missing:
            raise PlanError(
                f"call {job.call.id!r} emits the state {missing[0]!r}, and its answer did not: "
                f"{type(batch.level).__name__} hands it out by batch.emit({missing[0]!r}, value)."
            )
        rows = [job.call.frames.index(frame) for _, frame in frames]
        return {
            _LATENTS: clip[:, rows],
            **{name: batch.states[name][entry].float().cpu() for name, _ in states},
        }

    def _count_rest(self, jobs: list[Job], batch: CallBatch) -> None:
        """Report what a call evaluates that answers without telling its steps."""
        rest = sum(max(0, job.evaluations - batch.steps_taken) * job.share for job in jobs)
        if self.on_progress is not None and rest:
            self.on_progress(rest)

    def _stepped(self, jobs: list[Job], step: int, t: Tensor, latents: Tensor) -> Tensor:
        self._taken += sum(job.share for job in jobs)
        return latents if self.on_step is None else self.on_step(jobs, step, t, latents)

    def _source(self, jobs: list[Job]) -> Source | None:
        """Return what the solver starts from or keeps: the given video's latents of each call's frames."""
        device, latents, kept = self.strategy.device, [], []
        for job in jobs:
            given = self.generation.given[job.video]
            if given.source is None or job.call.level != self.video_level:  # alike in all jobs of a batch
                return None
            # A call may reach past the end of the video: there the last frame goes on.
            row = [min(frame, given.source.shape[1] - 1) for frame in job.call.frames]
            latents.append(given.source[:, row])
            if given.kept is not None:
                kept.append(given.kept[row][None])
        stays = torch.stack(kept).to(device) if kept else None
        return Source(torch.stack(latents).to(device), stays, self.generation.given[0].strength)

    def _given_noise(self, jobs: list[Job]) -> list[dict[int, Tensor]]:
        """Return the start noise that was given for the frames of each job."""
        given = self.generation.latents
        if given is None or jobs[0].call.level != self.video_level:
            return []
        last = given.shape[2]
        return [{i: given[job.video, :, i] for i in job.call.frames if i < last} for job in jobs]

    def _store(self, job: Job, answer: Answer) -> None:
        frames, states = self._kept(job.call)
        for k, slot in enumerate(frames):
            self.canvases[job.video][slot] = answer[_LATENTS][:, k]
        for slot in states:
            self.canvases[job.video][slot] = answer[slot[0]]

    def _forget(self, calls: set[Call]) -> None:
        """Free the slots that no coming call needs and that are not part of the undelivered video."""
        for call in calls:
            self._pending.subtract(call.given)
        for canvas in self.canvases:
            for slot in [slot for slot in canvas if not self._needed(slot)]:
                del canvas[slot]

    def _needed(self, slot: Slot) -> bool:
        level, frame = slot
        if self._pending[slot] > 0:
            return True
        return level == self.video_level and frame >= self.released and frame in self._wanted
