"""The trainer: runs a strategy's stages in order, and goes on exactly where it was cut off."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vidgen import checkpoint, plugins
from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.nn import batch_norm
from vidgen.paths import expanded
from vidgen.recipe import Recipe, TrainingConfig
from vidgen.strategy import Strategy
from vidgen.trainable import StageRecord, Trainable, TrainingRecord
from vidgen.training.batches import StepSampler, batches, share_of
from vidgen.training.descent import Descent
from vidgen.training.latents import LatentCache
from vidgen.training.precision import computes_bf16, settle_precision
from vidgen.training.processes import Processes
from vidgen.training.run import RunFolder, begun_precision
from vidgen.training.running import Running, begin_stage, check_stage
from vidgen.training.samples import Samples
from vidgen.training.settings import check_training
from vidgen.training.state import Progress, restoring, save_state
from vidgen.training.trackers import Tracker, VideoTracker, check_trackers, open_trackers
from vidgen.training.validation import Validation, hold_out
from vidgen.video.dataset import ClipDataset, DataConfig, is_registered, open_dataset

__all__ = ["Trainer", "resolve", "train"]

logger = logging.getLogger("vidgen")


class Trainer:
    """Trains a strategy by a recipe.

    Args:
        recipe: what to train, on what, how.
        out: folder of the run; if it holds one of the same recipe, training goes on where that stands.
        dataset: the clips, if not those that ``recipe.data`` names.
        strategy: the strategy (or other trainable) to train, a pretrained one, say, instead of a fresh one;
            the recipe's strategy and model are then its own. Words of the captions that it never learnt are
            added to its vocabulary.
        trackers: objects that take the log's values, besides those that the recipe names.
        resume: False refuses a folder that already holds a run.
        progress: show a progress bar.
        device: where to train; None leaves it to accelerate.

    Raises:
        CheckpointError: ``out`` holds something else, or a run of another recipe, or cannot be written.
        VideoError: the data cannot be read.
        UnknownNameError: no such strategy, tracker, learning-rate schedule or precision.
        MissingDependencyError: a tracker's package is not installed.
        InvalidArgumentError: no such device, or settings that cannot be.

    Attributes:
        strategy: with the raw weights while training, the averaged ones after ``run``.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: str | Path,
        *,
        dataset: ClipDataset | None = None,
        strategy: Trainable | None = None,
        trackers: Sequence[Tracker] = (),
        resume: bool = True,
        progress: bool = True,
        device: str | None = None,
    ) -> None:
        self.config = recipe.training
        self.dataset, held_out = _opened(recipe, dataset, progress)
        count = len(self.dataset) + (0 if held_out is None else len(held_out))
        self._data = _data_record(recipe.data, dataset, count)
        if strategy is not None:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                torch.manual_seed(self.config.seed)
                strategy.adapt(self.dataset)
            recipe = replace(recipe, strategy=strategy.name, model=strategy.config)
            checkpoint.complete(strategy, seed=self.config.seed)
        else:
            strategy_class = plugins.load_trainable(recipe.strategy)
            recipe = replace(recipe, model=strategy_class.prepare(recipe.model, self.dataset))
            strategy = checkpoint.build(strategy_class, recipe.model, seed=self.config.seed)
        if not strategy.stages():
            raise InvalidArgumentError(
                f"strategy {strategy.name!r} has no stages of training; it runs the weights of another one. "
                "Train that one."
            )
        self.processes = Processes(device)
        for stage in strategy.stages():
            share_of(recipe.training_of(stage.name).batch_size, self.processes.world)
        out = expanded(out)
        self.config = self._settled(out)
        self.recipe = replace(recipe, training=self.config)
        self.strategy = strategy.to(self.processes.device)
        self._prepare(out, held_out)
        names = [stage.name for stage in self.strategy.stages()]
        self.folder = RunFolder(out, self.recipe, resume=resume, main=self.processes.main, stages=names)
        self.progress = progress and self.processes.main
        self._own_trackers, self._trackers = tuple(trackers), list[Tracker]()
        self._stop = False
        self._offset = 0  # global step at which the current stage began

    def _settled(self, out: Path) -> TrainingConfig:
        """Return the settings with one precision for every process, which the run's recipe keeps."""
        asked, device = self.config.mixed_precision, self.processes.device
        native = not self.processes.any(not computes_bf16(device))
        return replace(
            self.config, mixed_precision=settle_precision(asked, begun_precision(out), device, native=native)
        )

    def _prepare(self, out: Path, held_out: ClipDataset | None) -> None:
        """Make what runs beside the training, and refuse now what would fail later."""
        config, stages = self.config, self.strategy.stages()
        for name in self.recipe.stages:
            if name not in [stage.name for stage in stages]:
                raise UnknownNameError(f"stage of {self.strategy.name!r}", name, [s.name for s in stages])
        for stage in stages:
            own = self.recipe.training_of(stage.name)
            check_training(own)
            check_stage(self.strategy, stage, own)
            if self.processes.world > 1:
                for name in stage.components:
                    batch_norm.convert(self.strategy.modules[name])
        self._descent = Descent(config.seed, self.processes, self.kept)
        self._validation = None if held_out is None else Validation(held_out, config, self.processes)
        self._samples = None
        if not isinstance(self.strategy, Strategy):
            self._refuse_latents()
        elif config.sample_every is not None:
            self._samples = Samples(out, self.strategy, self.dataset, config)

    def _refuse_latents(self) -> None:
        """Refuse what only a strategy can do: it alone has a codec, and samples."""
        for name, off in (("cache_latents", False), ("sample_every", None)):
            if getattr(self.config, name) != off:
                raise InvalidArgumentError(
                    f"training.{name} is {getattr(self.config, name)}; {self.strategy.name!r} is no strategy "
                    f"and has neither a codec to encode with nor videos to show. Set training.{name}={off}."
                )

    def run(self) -> Path:
        """Train to the end and return the folder of the last checkpoint.

        An interrupt (Ctrl-C, or the SIGTERM of a batch system) ends the current step, saves, and is raised
        as ``KeyboardInterrupt``.

        Raises:
            TrainingError: a loss or gradient is not finite; the last checkpoint stays as it was.
            RunFolderError: another process trains in the folder.
            CheckpointError: the folder cannot be written (a full disk, say).
        """
        with self.folder.held() if self.processes.main else nullcontext():
            return self._run()

    def _run(self) -> Path:
        self.processes.wait()  # all have opened the folder
        if self.processes.main:
            self.folder.clean()
        self.processes.wait()
        state = self.folder.load()
        progress = None if state is None else Progress.of(state)
        step = 0 if progress is None else progress.offset + progress.step
        if self.processes.main:
            self.folder.cut_log(step)
            opened = open_trackers(self.config.trackers, self.folder.folder, step=step)
            self._trackers = [*self._own_trackers, *opened]
        devices = range(torch.cuda.device_count())
        try:
            with self._graceful_interrupt(), torch.random.fork_rng(devices=devices):
                self._run_stages(state)
        finally:
            for tracker in self._trackers:
                tracker.close()
        return self.folder.checkpoint(self.folder.steps()[-1])

    def _run_stages(self, state: Mapping[str, Any] | None) -> None:
        stages = self.strategy.stages()
        first = 0 if state is None else int(state["stage"])
        for number in range(first, len(stages)):
            own = self.recipe.training_of(stages[number].name)
            running = begin_stage(self.strategy, stages[number], own, self.processes.device)
            if state is not None:
                self._restore(running, state)
                state = None
            self._run_stage(running, number)
        self._complete()

    def _complete(self) -> None:
        """Let the trained components be finished, and keep the result in the last checkpoint."""
        if type(self.strategy).finish is Trainable.finish:
            return
        for module in self.strategy.modules.values():
            module.eval()
        self.strategy.finish(self.dataset)
        last = len(self.strategy.stages()) - 1
        steps = self.recipe.training_of(self.strategy.stages()[last].name).steps
        self.strategy.training_record = self._record(last, steps, finished=True)
        if self.processes.main:
            checkpoint.save_strategy(self.strategy, self.folder.checkpoint(self.folder.steps()[-1]) / "model")
        self.processes.wait()

    def _run_stage(self, running: Running, number: int) -> None:
        # Data go on from stage to stage.
        config, dataset = running.config, self._dataset_of(running.stage.name)
        steps = range(self._offset + running.step, self._offset + config.steps)
        sampler = StepSampler(
            len(dataset),
            config.seed,
            config.batch_size,
            steps,
            self.processes.rank,
            self.processes.world,
        )
        bar = tqdm(
            total=config.steps,
            initial=running.step,
            desc=f"training {running.stage.name}",
            unit="step",
            disable=not self.progress,
        )
        if config.cache_latents and isinstance(self.strategy, Strategy):
            # Only now has the codec the weights that it will keep.
            cache_dir = self.recipe.data.cache_dir
            running.cache = LatentCache.for_stage(running.stage, self.strategy.codec, cache_dir)
        with bar:
            for batch in batches(dataset, sampler, config.num_workers, running.cache):
                began = time.perf_counter()
                logs = self._descent(running, batch, sampler.positions)
                running.note(logs | {"seconds": time.perf_counter() - began})
                bar.update()
                bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
                self._after_step(running, number)
        self._finish_stage(running, number)

    def _dataset_of(self, stage: str) -> ClipDataset:
        """Return the clips of a stage: those of the run, or others where the recipe says so."""
        data = self.recipe.data_of(stage)
        if data == self.recipe.data:
            return self.dataset
        return hold_out(open_dataset(data, progress=self.progress), self.config.validation)[0]

    def _after_step(self, running: Running, number: int) -> None:
        """Validate, log, sample and save where it is time to.

        In this order: a run killed on the way goes on from the checkpoint before, and does it all again.
        """
        line: dict[str, float] = {}
        if self._validation is not None and self._due(running, self.config.validate_every):
            line = self._validation(running)
        if self._due(running, self.config.log_every):
            running.share_logs(self.processes)
            line = running.take_means() | line
        if line and self.processes.main:
            self._log(running, line)
        last = number == len(self.strategy.stages()) - 1
        if last and self.config.sample_every is not None and self._due(running, self.config.sample_every):
            self._sample(running)
        done = running.step == running.config.steps
        self._stop = self.processes.any(self._stop)
        if self._stop or (not done and running.step % self.config.checkpoint_every == 0):
            self._save(running, number)
        if self._stop:
            raise KeyboardInterrupt(f"{self.kept()}; started again, the training goes on from there")

    def _due(self, running: Running, every: int) -> bool:
        return running.step % every == 0 or running.step == running.config.steps

    def _log(self, running: Running, line: Mapping[str, float]) -> None:
        step = self._offset + running.step
        self.folder.log({"step": step, "stage": running.stage.name, **line})
        for tracker in self._trackers:
            tracker.log(line, step)

    def _sample(self, running: Running) -> None:
        if self._samples is None:
            return
        step = self._offset + running.step
        grid = self._samples(running, step, write=self.processes.main)
        for tracker in self._trackers:
            if isinstance(tracker, VideoTracker):
                tracker.log_video("samples", grid, step)

    def kept(self) -> str:
        """Say in a sentence what is saved."""
        steps = self.folder.steps()
        return f"The checkpoint of step {steps[-1]} is kept" if steps else "No checkpoint was written yet"

    def _record(self, number: int, step: int, *, finished: bool = False) -> TrainingRecord:
        """Return how far the training is in ``step`` of the stage of this number."""
        stages = []
        for i, stage in enumerate(self.strategy.stages()):
            total = self.recipe.training_of(stage.name).steps
            stages.append(StageRecord(stage.name, total if i < number else step if i == number else 0, total))
        whole = all(stage.step >= stage.steps for stage in stages)
        finished = finished or (whole and type(self.strategy).finish is Trainable.finish)
        return TrainingRecord(tuple(stages), finished, self._data)

    def _finish_stage(self, running: Running, number: int) -> None:
        """Save, then go on with the averaged weights: later stages build on them."""
        if self._offset + running.step not in self.folder.steps():
            self._save(running, number)
        if running.ema is not None:
            running.ema.copy_to(running.parameters)
        self._offset += running.step

    def _save(self, running: Running, number: int) -> None:
        """Write a checkpoint: the averaged strategy, and the exact state."""
        running.share_logs(self.processes)
        self.strategy.training_record = self._record(number, running.step)
        if self.processes.main:

            def write(folder: Path) -> None:
                with running.averaged():
                    checkpoint.save_strategy(self.strategy, folder / "model")
                (folder / "state").mkdir()
                save_state(folder / "state", self._state(running, number))

            self.folder.save(self._offset + running.step, write, self.config.keep_checkpoints)
        self.processes.wait()

    def _state(self, running: Running, number: int) -> dict[str, Any]:
        trained = {name for stage in self.strategy.stages() for name in stage.components}
        return {
            "stage": number,
            "offset": self._offset,
            "weights": {name: self.strategy.modules[name].state_dict() for name in sorted(trained)},
            "running": running.state_dict(),
        }

    def _restore(self, running: Running, state: Mapping[str, Any]) -> None:
        with restoring(self.folder.checkpoint(self.folder.steps()[-1])):
            self._offset = int(state["offset"])
            for name, weights in state["weights"].items():
                self.strategy.modules[name].load_state_dict(weights)
            running.load_state_dict(state["running"], self.processes.device)
        name, steps = running.stage.name, running.config.steps
        logger.info("resumed stage %r at step %d of %d", name, running.step, steps)

    @contextmanager
    def _graceful_interrupt(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM end the current step; the second one is immediate."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_: Any) -> None:
            self._stop = True
            restore()

        def restore() -> None:
            for kind, handler in previous.items():
                signal.signal(kind, handler)

        # A handler that Python did not set (None) could not be put back.
        kinds = [kind for kind in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(kind) is not None]
        previous = {kind: signal.signal(kind, stop) for kind in kinds}
        try:
            yield
        finally:
            restore()


def _opened(recipe: Recipe, own: ClipDataset | None, progress: bool) -> tuple[ClipDataset, ClipDataset | None]:
    """Check the settings, and return the clips to train on and those to validate on."""
    check_training(recipe.training)
    check_trackers(recipe.training.trackers)
    whole = open_dataset(recipe.data, progress=progress) if own is None else own
    return hold_out(whole, recipe.training.validation)


def resolve(recipe: Recipe, *, progress: bool = True) -> Recipe:
    """Return ``recipe`` with what only its data tell, as a run keeps it; nothing is written.

    Raises:
        VideoError, UnknownNameError, MissingDependencyError, InvalidArgumentError: see ``Trainer``.
    """
    dataset, _ = _opened(recipe, None, progress)
    strategy_class = plugins.load_trainable(recipe.strategy)
    return replace(recipe, model=strategy_class.prepare(recipe.model, dataset))


def _data_record(config: DataConfig, own: ClipDataset | None, count: int) -> dict[str, Any]:
    """Return in plain values what is trained on; of a folder its name alone, since checkpoints are shared."""
    if own is not None:
        return {"name": type(own).__name__, "videos": count}
    name = config.path if is_registered(config.path) else expanded(config.path).resolve().name
    return {"name": name, "videos": count}


def train(recipe: Recipe, out: str | Path, **arguments: Any) -> Path:
    """Train ``recipe`` into ``out`` and return the checkpoint folder; see ``Trainer`` for arguments."""
    return Trainer(recipe, out, **arguments).run()
