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
from vidgen.diffusion import Denoiser, Source
from vidgen.errors import InvalidArgumentError
from vidgen.noise import NoiseKey
from vidgen.plans import Call, Slot
from vidgen.sampling.arguments import Generation
from vidgen.sampling.work import WorkFolder
from vidgen.strategy import Canvas, Strategy

__all__ = ["Engine", "Job", "StepHook"]

_LOG = getLogger(__name__)

StepHook = Callable[[list["Job"], int, Tensor, Tensor], Tensor]
"""``(jobs of the batch, step, timestep, latents) -> latents`` after every solver step."""


@dataclass(frozen=True)
class Job:
    """One call for one video.

    Args:
        call: what is to be made.
        video: which of the videos.
        share: of the plan's call that this is: less than 1 where it was parted.
    """

    call: Call
    video: int
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
        on_lost: called with the steps (of calls) that have to be taken again, where memory ran out after them.
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
        on_lost: Callable[[float], None] | None = None,
        work: WorkFolder | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InvalidArgumentError(f"batch_size is {batch_size}; expected 1 or more, or None.")
        self.strategy, self.generation = strategy, generation
        self.plan, self.requests = generation.plan, generation.requests
        self.batch_size = batch_size or len(self.requests)
        self.stream, self.on_step, self.on_lost, self.work = stream, on_step, on_lost, work
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
            jobs = alike.setdefault(self.strategy.batch_key(call), [])
            jobs.extend(Job(call, video) for video in range(len(self.requests)))
        size = self.batch_size
        return [jobs[i : i + size] for jobs in alike.values() for i in range(0, len(jobs), size)]

    def run(self) -> Iterator[list[Job]]:
        """Execute the plan; yield the jobs of every finished round, their slots on the canvases."""
        for batches in self.rounds():
            results = self._share(batches)
            jobs = [job for batch in batches for job in batch]
            for job, latents in zip(jobs, results, strict=True):
                self._store(job, latents)
            yield jobs
            self._forget({job.call for job in jobs})

    def _share(self, batches: list[list[Job]]) -> list[Tensor]:
        """Answer ``batches``, each on one process, and return all results on every process."""
        distributed = dist.is_available() and dist.is_initialized()
        rank, world = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        mine = {i: self._finished(batch) for i, batch in enumerate(batches) if i % world == rank}
        results = []
        for i, batch in enumerate(batches):
            results += mine[i] if world == 1 else self._broadcast(batch, mine.get(i), i % world)
        return results

    def _broadcast(self, batch: list[Job], found: list[Tensor] | None, source: int) -> list[Tensor]:
        device = self.strategy.device if dist.get_backend() == "nccl" else torch.device("cpu")
        results = []
        for k, job in enumerate(batch):
            c, h, w = self.strategy.slot_shape(job.call, self.requests[job.video])
            shape = (c, len(self.plan.kept(job.call)), h, w)
            tensor = torch.empty(shape, device=device) if found is None else found[k].to(device)
            dist.broadcast(tensor, source)
            results.append(tensor.cpu())
        return results

    def _finished(self, batch: list[Job]) -> list[Tensor]:
        """Return the kept latents (c f h w) of every job, from the work folder or computed."""
        if self.work is not None:
            loaded = [self.work.load(job.call, job.video) for job in batch]
            found = [latents for latents in loaded if latents is not None]
            if len(found) == len(batch):
                return found
        results = self._answered(batch)
        if self.work is not None:
            for job, latents in zip(batch, results, strict=True):
                self.work.save(job.call, job.video, latents)
        return results

    def _answered(self, batch: list[Job]) -> list[Tensor]:
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
                if self.on_lost is not None:
                    self.on_lost(self._taken - taken)
                _LOG.warning(
                    "no memory for %d frames of %s at once; going on with %d", frames, level, frames // 2
                )
            clear_device_cache(garbage_collection=True)  # here the error no longer holds what failed
        answers = [self._answered(part) for part in parts]
        if len(batch) > 1:
            return [latents for answer in answers for latents in answer]
        return [torch.cat([latents for answer in answers for latents in answer], dim=1)]

    def _halves(self, batch: list[Job]) -> list[list[Job]] | None:
        """Part a batch of several jobs, or the call of a single one; None where that cannot be."""
        if len(batch) > 1:
            middle = len(batch) // 2
            return [batch[:middle], batch[middle:]]
        (job,) = batch
        calls = self.strategy.halves(job.call)
        if calls is None:
            return None
        part = job.share / len(job.call.emits)
        parts = [[replace(job, call=call, share=part * len(call.emits))] for call in calls]
        return [jobs for jobs in parts if self.plan.kept(jobs[0].call)]  # not what lies past the end

    def _compute(self, batch: list[Job]) -> list[Tensor]:
        strategy, device = self.strategy, self.strategy.device
        conds = [
            strategy.condition(job.call, self.canvases[job.video], self.requests[job.video]) for job in batch
        ]
        cond = Conditioning.collate(conds).to(device)
        start = self._noise(batch, "start").to(device)
        source, solved = self._source(batch), []

        def solve(denoise: Denoiser, start: Tensor, cond: Conditioning) -> Tensor:
            solved.append(True)
            return self.generation.diffusion.solve(
                denoise,
                start,
                cond,
                num_inference_steps=self.generation.num_inference_steps,
                step_noise=lambda i: self._noise(batch, f"step-{i}").to(device),
                eta=self.generation.eta,
                source=source,
                on_step=partial(self._stepped, batch),
            )

        latents = strategy.answer(batch[0].call, solve, start, cond).float().cpu()
        if source is not None and not solved:
            raise InvalidArgumentError(
                f"{strategy.name!r} answers call {batch[0].call.id!r} in one pass, without a solver; "
                "strength and masks of pixels need its steps. Give whole frames (pins, a mask of frames)."
            )
        return [
            torch.stack([clip[:, job.call.frames.index(frame)] for _, frame in self.plan.kept(job.call)], 1)
            for job, clip in zip(batch, latents, strict=True)
        ]

    def _stepped(self, batch: list[Job], step: int, t: Tensor, latents: Tensor) -> Tensor:
        self._taken += sum(job.share for job in batch)
        return latents if self.on_step is None else self.on_step(batch, step, t, latents)

    def _source(self, batch: list[Job]) -> Source | None:
        """Return what the solver starts from or keeps: the given video's latents of each call's frames."""
        device, latents, kept = self.strategy.device, [], []
        for job in batch:
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

    def _noise(self, batch: list[Job], stream: str) -> Tensor:
        """Return noise ``b c f h w`` keyed by (seed, stream, level, absolute frame)."""
        rows, given = [], self.generation.latents
        for job in batch:
            request, call = self.requests[job.video], job.call
            shape = self.strategy.slot_shape(call, request)
            key = NoiseKey(request.seed, stream, call.level)
            rows.append(self.generation.prior.sample(call.frames, shape, key))
            if stream == "start" and given is not None and call.level == self.video_level:
                for k, frame in enumerate(call.frames):
                    if frame < given.shape[2]:
                        rows[-1][:, k] = given[job.video, :, frame].to(rows[-1])
        return torch.stack(rows)

    def _store(self, job: Job, latents: Tensor) -> None:
        for k, slot in enumerate(self.plan.kept(job.call)):
            self.canvases[job.video][slot] = latents[:, k]

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
