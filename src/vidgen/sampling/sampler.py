"""The sampler: diffusers' way of calling, for any strategy and any plan."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from html import escape
from inspect import get_annotations
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from tqdm import tqdm

from vidgen import checkpoint
from vidgen.devices import checked_dtype, is_dtype_name
from vidgen.errors import GenerationInterruptedError, InvalidArgumentError, UnknownNameError
from vidgen.noise import NoisePrior
from vidgen.paths import expanded
from vidgen.plans import Plan, Slot
from vidgen.request import Prompt
from vidgen.sampling.arguments import Arguments, Generation
from vidgen.sampling.checks import checked_call
from vidgen.sampling.cost import Cost, Pace
from vidgen.sampling.decoding import Delivery, latents_of
from vidgen.sampling.engine import Engine, Job
from vidgen.sampling.given import Picture
from vidgen.sampling.output import OUTPUT_TYPES, FileSink, SamplerOutput, check_memory, formatted, output_paths
from vidgen.sampling.replacing import MARK, marks_of, refuse_foreign, refuse_inputs
from vidgen.sampling.work import WorkFolder, fingerprint, kept_seed
from vidgen.strategy import Strategy

__all__ = ["Sampler", "load"]

logger = logging.getLogger("vidgen")

Callback = Callable[["Sampler", int, Tensor, dict[str, Any]], Mapping[str, Any] | None]
_CALLBACK_INPUTS = ("latents", "call")


class Sampler:
    """Generates videos with a strategy.

    Args:
        strategy: any ``Strategy``.

    Attributes:
        interrupt: set it (from a callback, say) to stop after the current solver step; ``_interrupt``, as
            diffusers' callbacks have it, is the same.
        scheduler: the solver of calls that name none; set another diffusers scheduler of the same process, or
            its name.

    Example:
        >>> sampler = vidgen.load("runs/demo")
        >>> sampler("a red circle moves left", num_frames=64, seed=0).videos[0].save("circle.mp4")
    """

    strategy: Strategy
    interrupt: bool
    _progress: dict[str, Any]
    _pace: Pace
    _evaluated: float

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.interrupt = False
        self._progress = {}
        self._pace = Pace()
        self._evaluated = 0.0  # a hidden progress bar does not count

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute that exists; anything else would be taken and do nothing.

        Raises:
            UnknownNameError: there is no such attribute; the message names those that are.
        """
        parts = [part for part in type(self).__mro__ if name in vars(part) or name in get_annotations(part)]
        if not parts:
            raise UnknownNameError(
                "attribute of a sampler (give modules to vidgen.load, and settings to the call)",
                name,
                ("interrupt", "scheduler", "strategy"),
            )
        super().__setattr__(name, value)

    @property
    def scheduler(self) -> SchedulerMixin | None:
        """The solver of every call that names none; of several levels, that of the video.

        Setting it raises SchedulerError where the scheduler cannot serve the model.
        """
        return self.strategy.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: SchedulerMixin | str | Mapping[str, SchedulerMixin | str]) -> None:
        self.strategy.scheduler = scheduler

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, interrupt: bool) -> None:
        self.interrupt = interrupt

    def to(self, device: Any = None, dtype: torch.dtype | str | None = None) -> Sampler:
        """Move the strategy, or cast it (``sampler.to("float16")``, say); returns the sampler itself."""
        if isinstance(device, torch.dtype) or is_dtype_name(device):  # as of a module
            device, dtype = None, device
        self.strategy.to(device, checked_dtype(dtype))
        return self

    def __repr__(self) -> str:
        s, d = self.strategy, self.strategy.defaults
        millions = sum(s.num_parameters().values()) / 1e6
        return (
            f"Sampler({s.name}, {millions:.3g} million parameters, {d.num_frames} frames of {d.width} x "
            f"{d.height} at {d.fps:g} fps, {', '.join(self._solvers().values())}, on {s.device})"
        )

    def _solvers(self) -> dict[str, str]:
        """Return what answers the calls of each level, one line for all where they agree."""
        found = {}
        for name, model in self.strategy.levels.items():
            scheduler = None if model.diffusion is None else type(model.diffusion.scheduler).__name__
            found[name] = f"{scheduler}, {model.num_inference_steps} steps" if scheduler else "one pass"
        return {"scheduler": next(iter(found.values()))} if len(set(found.values())) == 1 else found

    def _repr_html_(self) -> str:
        """A table for notebooks: what the sampler makes, and of what."""
        s, d = self.strategy, self.strategy.defaults
        rows = {
            "strategy": s.name,
            "makes": f"{d.num_frames} frames of {d.width} x {d.height} at {d.fps:g} fps",
            **self._solvers(),
            "device": str(s.device),
            **{name: f"{count:,} parameters" for name, count in s.num_parameters().items()},
        }
        cells = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows.items()
        )
        return f"<table>{cells}</table>"

    def save_pretrained(self, folder: str | Path, *, whole: bool = True) -> Path:
        """Write the strategy to ``folder``; ``vidgen.load`` reads it.

        Args:
            folder: made if need be.
            whole: write every component; False refers to the checkpoints that it started from for what is
                unchanged, and leaves out what only training needs. See ``checkpoint.save_strategy``.
        """
        return checkpoint.save_strategy(self.strategy, folder, whole=whole)

    @classmethod
    def from_pretrained(cls, source: str | Path, **arguments: Any) -> Sampler:
        """Load a sampler; see ``vidgen.load``, which is the same."""
        return load(source, **arguments)

    def push_to_hub(self, repo_id: str, **arguments: Any) -> str:
        """Upload the strategy to the hub and return the commit's address; see ``checkpoint.push_strategy``."""
        return checkpoint.push_strategy(self.strategy, repo_id, **arguments)

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Set what is passed to tqdm; ``disable=True`` hides the bar."""
        self._progress = kwargs

    def progress_bar(self, total: int) -> tqdm[Any]:
        """Return the bar over all solver steps of a generation."""
        return tqdm(total=total, **{"desc": "sampling", "unit": "step", **self._progress})

    def cost(self, prompt: Prompt | int | Sequence[Prompt | int] = "", **arguments: Any) -> Cost:
        """Return what a call with these arguments would cost, without generating anything."""
        names = {f.name for f in fields(Arguments)} - {"options"}
        # What a call takes besides decides nothing of the cost.
        elsewhere = {*inspect.signature(self.__call__).parameters} - names - {"options"}
        own = {name: value for name, value in arguments.items() if name in names} | {"prompt": prompt}
        options = {name: value for name, value in arguments.items() if name not in names | elsewhere}
        return Arguments(**own, options=options).resolve(self.strategy).cost(self._pace)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt | int | Sequence[Prompt | int] = "",
        *,
        negative_prompt: str | Sequence[str] | None = "",
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        num_inference_steps: int | Mapping[str, int] | None = None,
        guidance_scale: float | Mapping[str, float] | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        frames: Iterable[int] | None = None,
        plan: Plan | None = None,
        image: Picture | Sequence[Picture] | None = None,
        last_image: Picture | Sequence[Picture] | None = None,
        video: Any = None,
        mask: Any = None,
        strength: float | None = None,
        pins: Mapping[int | Slot, Picture | Sequence[Picture]] | None = None,
        paste_given: bool = True,
        scheduler: Any = None,
        eta: float | Mapping[str, float] = 0.0,
        noise_prior: NoisePrior | str | Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        out: str | Path | None = None,
        overwrite: bool = False,
        work: str | Path | None = None,
        **options: Any,
    ) -> SamplerOutput | tuple[Any]:
        """Generate videos.

        Args:
            prompt: a text, or a list of them, one per video; for a class-conditional model the class's name or
                number. Of one video it may change by frame: ``{first frame: text}``, a list with a text for
                each frame (within the list of videos: ``[[...]]``), or a function of the frame.
            negative_prompt: what guidance moves away from; ``""`` or None is the unconditional prompt.
            num_frames, height, width, fps: of the video; by default what the strategy was trained on.
            num_inference_steps: solver steps of every call. This one, ``guidance_scale``, ``scheduler`` and
                ``eta`` take one value for all levels of the strategy, or ``{level: value}``.
            guidance_scale: strength of classifier-free guidance; 1 turns it off.
            num_videos_per_prompt: videos made of every prompt; video i of a prompt uses ``seed + i``.
            generator: a torch generator, read once per video for its seed, or one per video.
            seed: the short form: the same as a fresh generator seeded with it.
            latents: start noise of the whole video (b c f h w), instead of the prior's.
            prompt_embeds: token embeddings (b n d) that stand for the prompts, as the strategy's
                ``text_encoder.encode`` gives them.
            negative_prompt_embeds: the same for the negative prompts; one, or one per prompt.
            output_type: ``"np"``, ``"pt"``, ``"pil"`` or ``"latent"``.
            return_dict: False returns ``(frames,)``.
            callback_on_step_end: ``callback(sampler, step, t, {"latents": ...})`` after every solver step
                of every call; may return ``{"latents": ...}`` to replace them. A call that memory did not
                hold is made again in parts, and its steps are called again.
            callback_on_step_end_tensor_inputs: what the callback is given: ``latents`` and the plan's
                ``call``.
            frames: render only these frames of the video (a range, say), at the cost of the calls that
                they depend on; they agree with the same frames of the whole video.
            plan: another plan over latent frames, if the strategy accepts it.
            image: a picture that is the first frame: PIL, a path, uint8 (h w c), or floating point in [0, 1],
                an array (h w c) or a tensor (c h w), as results are. Of any size: it is scaled to cover the
                video's and cropped to its centre. A list, or a batch, gives one per prompt.
            last_image: the same for the last frame.
            video: a given video: a ``Video``, the result of another call, a path, pictures, uint8 (f h w c), or
                floating point in [0, 1], an array (f h w c) or a tensor (f c h w). As long as the result and
                without a mask it is made anew with ``strength``; a shorter one is continued. A list of videos,
                or a batch, gives one per prompt.
            mask: what of ``video`` is made anew: True or white, per frame (f) or per pixel (f h w), or the path
                of pictures or a video. Whole frames that stay are conditions of the strategy; pixels that stay
                are held at every step.
            strength: in (0, 1]: share of the solver's steps taken from the noised ``video``; 1 starts from
                noise. By default 0.8 for a whole video without a mask.
            pins: given pictures in general, ``{frame: picture}``; or anything on the way that the strategy's
                plan has a slot for, ``{(level, frame): tensor c h w}``, such as the feature of a whole video.
            paste_given: whether given pixels (``image``, ``pins``, what of ``video`` stays) are shown as they
                were given; else as the codec shows them.
            scheduler: another diffusers scheduler of the same process, or its name.
            eta: share of fresh noise in every DDIM step, in [0, 1].
            noise_prior: another prior over frames than the model was trained on, with a warning: a
                ``NoisePrior``, its kind (such as ``"windowed-shuffle"``, FreeNoise's), or a mapping with a
                ``kind`` and parameters.
            batch_size: most (call, video) pairs answered at once; the result does not depend on it. What
                memory does not hold is answered in halves.
            out: write to this file (for several videos ``NAME-000.EXT``, ...) frame by frame instead of
                returning frames; memory then stays bounded by the plan's window.
            overwrite: whether ``out`` may be a file that was given, or that exists and is no result of the same
                generation.
            work: folder in which finished calls are kept; the same call goes on from there (with the seed
                it had, if none is given).
            **options: the strategy's own options (its ``Options``).

        Raises:
            InvalidArgumentError: an argument does not fit; the message says which and what to do.
            PlanError: the strategy cannot run the plan.
            SchedulerError: the scheduler cannot serve the model.
            GenerationInterruptedError: ``interrupt`` was set.
        """
        given = locals()  # the first statement: exactly the arguments
        checked_call(given)
        if work is not None and seed is None and generator is None:
            given["seed"] = kept_seed(work)  # a repetition without a seed goes on with the one it had
        arguments = Arguments(**{f.name: given[f.name] for f in fields(Arguments)})
        if output_type not in OUTPUT_TYPES:
            raise UnknownNameError("output_type", output_type, OUTPUT_TYPES)
        generation = arguments.resolve(self.strategy)
        target = None if out is None else self._target(out, generation, arguments, overwrite)
        if target is None and output_type != "latent":
            check_memory(generation)
        logger.info("%s", generation.cost(self._pace))
        self.interrupt = False
        with self.progress_bar(generation.evaluations) as bar:
            hook = self._hook(bar, callback_on_step_end, tuple(callback_on_step_end_tensor_inputs))
            options = {"batch_size": batch_size, "on_step": hook, "on_progress": partial(self._moved, bar)}
            kept = self._work(work, generation)
            engine = Engine(self.strategy, generation, stream=out is not None, work=kept, **options)
            result = self._timed(_Run(engine, generation, self.strategy), output_type, target)
        return result if return_dict else (result.frames,)

    def _target(
        self, out: str | Path, generation: Generation, arguments: Arguments, overwrite: bool
    ) -> _Target:
        """Return where the videos go and what they say of themselves, if they may go there."""
        paths = output_paths(out, len(generation.requests))
        marks = marks_of(self.strategy, generation)
        metadata = generation.metadata(self.strategy)
        marked = tuple({**own, MARK: mark} for own, mark in zip(metadata, marks, strict=True))
        if not overwrite:
            refuse_inputs(paths, _files(arguments))
            seeded = arguments.seed is not None or arguments.generator is not None
            refuse_foreign(paths, marked, seeded=seeded)
        return _Target(paths, marked)

    def _timed(self, run: _Run, output_type: str, target: _Target | None) -> SamplerOutput:
        """Run to the end, and remember how long that took."""
        began, self._evaluated = time.perf_counter(), 0.0
        result = run.collect(output_type) if target is None else run.write(target)
        evaluations = round(self._evaluated * run.generation.guided)
        self._pace.measured(run.generation.kind, time.perf_counter() - began, evaluations)
        return result

    def _hook(self, bar: Any, callback: Callback | None, names: tuple[str, ...]) -> Any:
        for name in names:
            if name not in _CALLBACK_INPUTS:
                raise UnknownNameError("callback_on_step_end_tensor_inputs", name, _CALLBACK_INPUTS)

        def hook(jobs: list[Job], step: int, t: Tensor, latents: Tensor) -> Tensor:
            self._evaluated += sum(job.share for job in jobs)
            bar.update(round(self._evaluated) - bar.n)
            if callback is not None:
                inputs = {"latents": latents, "call": jobs[0].call}
                answer = callback(self, step, t, {name: inputs[name] for name in names}) or {}
                latents = answer.get("latents", latents)
            if self.interrupt:
                raise GenerationInterruptedError(
                    f"generation was interrupted in call {jobs[0].call.id!r}, step {step}. Finished calls "
                    "are kept where a work folder was given: repeat the call with the same one to go on."
                )
            return latents

        return hook

    def _moved(self, bar: Any, evaluations: float) -> None:
        self._evaluated += evaluations
        bar.update(round(self._evaluated) - bar.n)

    def _work(self, folder: str | Path | None, generation: Generation) -> WorkFolder | None:
        if folder is None:
            return None
        made = generation
        mark = fingerprint(self.strategy, made.plan, made.requests, made.settings())
        return WorkFolder(expanded(folder), mark, made.requests[0].seed)


def _files(arguments: Arguments) -> list[Path]:
    """Return the files that a generation reads."""
    values = [arguments.image, arguments.last_image, arguments.video, arguments.mask]
    values += (arguments.pins or {}).values()
    found = [entry for value in values for entry in (value if isinstance(value, list | tuple) else [value])]
    return [Path(entry) for entry in found if isinstance(entry, str | PathLike)]


class _Target(NamedTuple):
    paths: tuple[Path, ...]
    metadata: tuple[dict[str, Any], ...]


class _Run:
    """Runs the engine and delivers its frames."""

    def __init__(self, engine: Engine, generation: Generation, strategy: Strategy) -> None:
        self.engine, self.generation, self.strategy = engine, generation, strategy

    def collect(self, output_type: str) -> SamplerOutput:
        """Run to the end and return all frames."""
        for _ in self.engine.run():
            pass
        level, targets = self.engine.video_level, self.generation.targets
        if output_type == "latent":
            slots = tuple((level, i) for i in latents_of(self.strategy.codec, targets))
            frames: Any = torch.stack([canvas.stack(slots) for canvas in self.engine.canvases])
        else:
            clips = [torch.cat(list(delivery.ready()), 1) for delivery in self._deliveries()]
            frames = formatted(clips, output_type)
        return self._output(frames, (), output_type, self.generation.metadata(self.strategy))

    def write(self, target: _Target) -> SamplerOutput:
        """Run to the end, writing frames as they are finished."""
        requests = self.generation.requests
        lead = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
        deliveries = self._deliveries()
        # With several processes the first one writes.
        with FileSink(target.paths if lead else (), requests[0].fps, target.metadata) as files:
            self._deliver(deliveries, files)  # what is pinned needs no call
            for _ in self.engine.run():
                self._deliver(deliveries, files)
        return self._output(None, target.paths, "np", target.metadata)

    def _deliveries(self) -> list[Delivery]:
        codec, targets = self.strategy.codec, self.generation.targets
        level, device = self.engine.video_level, self.strategy.device
        paste, each = self.generation.paste_given, zip(self.engine.canvases, self.generation.given, strict=True)
        return [
            Delivery(codec, targets, canvas, level, device, given.shown if paste else None)
            for canvas, given in each
        ]

    def _deliver(self, deliveries: list[Delivery], files: FileSink) -> None:
        """Write the frames that can be written, and let go of their latents."""
        for video, delivery in enumerate(deliveries):
            if len(files) == 0:
                delivery.skip()
                continue
            for clip in delivery.ready():
                files.append(video, clip)
        released = deliveries[0].released
        self.engine.released = self.engine.plan.num_frames if released is None else released

    def _output(
        self, frames: Any, paths: tuple[Path, ...], output_type: str, metadata: tuple[Mapping[str, Any], ...]
    ) -> SamplerOutput:
        requests = self.generation.requests
        return SamplerOutput(
            frames=frames,
            seeds=tuple(request.seed for request in requests),
            fps=requests[0].fps,
            frame_indices=self.generation.targets,
            height=requests[0].height,
            width=requests[0].width,
            metadata=metadata,
            paths=paths,
            output_type=output_type,
        )


def load(
    source: str | Path,
    *,
    device: Any = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    repositories: Collection[str] = (),
    strategy: str | None = None,
    **components: Any,
) -> Sampler:
    """Load a sampler from wherever a checkpoint is.

    Args:
        source: a checkpoint folder, the folder of a training run (its newest checkpoint), the name of a
            bundled model, or a hub id ``user/repo`` or ``user/repo@revision``; looked for in this order.
        device: None is CUDA where present, else the CPU.
        dtype: cast the weights, to ``torch.float16`` or ``"float16"``, say; None keeps float32.
        revision: branch, tag or commit of a hub id.
        repositories: other repositories of the hub, ``user/repo``, that the checkpoint may have loaded.
        strategy: the name of another strategy to run the weights with, one that wraps the checkpoint's.
        **components: modules that stand in for those of the checkpoint, by component name.

    Raises:
        CheckpointError: no checkpoint there, another format, missing or unsafe files.
        InvalidArgumentError, UnknownNameError: a component does not fit, or the strategy has no such one.
    """
    if "torch_dtype" in components:
        raise InvalidArgumentError(
            f"torch_dtype={components['torch_dtype']} was given; it is called dtype here: "
            f"dtype={components['torch_dtype']}."
        )
    options: dict[str, Any] = {"device": device, "dtype": checked_dtype(dtype), "revision": revision}
    options |= {"repositories": repositories, "strategy": strategy}
    return Sampler(checkpoint.load_strategy(source, **options, **components))
