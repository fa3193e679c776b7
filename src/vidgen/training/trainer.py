"""The trainer: runs a strategy's stages in order, and goes on exactly where it was cut off."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from vidgen import checkpoint, plugins
from vidgen.devices import checked_device
from vidgen.errors import InvalidArgumentError, TrainingError
from vidgen.recipe import Recipe, TrainingConfig
from vidgen.strategy import Stage, Strategy, TrainingStep
from vidgen.training.batches import StepSampler, batches, micro_batches
from vidgen.training.run import RunFolder
from vidgen.training.state import random_state, restore_random_state, save_state
from vidgen.video.dataset import ClipBatch, ClipDataset, open_dataset

__all__ = ["Trainer", "train"]

logger = logging.getLogger("vidgen")


@dataclass
class _Running:
    """One stage while it runs."""

    stage: Stage
    optimizers: dict[str, Any]
    schedules: dict[str, Any]
    parameters: list[nn.Parameter]
    ema: EMAModel | None
    step: int = 0
    logs: dict[str, list[float]] = field(default_factory=dict)


class Trainer:
    """Trains a strategy by a recipe.

    Args:
        recipe: what to train, on what, how.
        out: folder of the run; if it holds one of the same recipe, training goes on where that stands.
        dataset: the clips, if not those that ``recipe.data`` names.
        strategy: the strategy to train (a pretrained one, say) instead of a fresh one; the recipe's
            strategy and model are then its own.
        resume: False refuses a folder that already holds a run.
        progress: show a progress bar.
        device: where to train; None leaves it to accelerate.

    Raises:
        CheckpointError: ``out`` holds something else, or a run of another recipe.
        VideoError: the data cannot be read.
        UnknownNameError: no such strategy.
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
        strategy: Strategy | None = None,
        resume: bool = True,
        progress: bool = True,
        device: str | None = None,
    ) -> None:
        _check_training(recipe.training)
        self.dataset = open_dataset(recipe.data) if dataset is None else dataset
        if strategy is not None:
            recipe = replace(recipe, strategy=strategy.name, model=strategy.config)
        else:
            strategy_class = plugins.load(plugins.STRATEGIES, recipe.strategy)
            recipe = replace(recipe, model=strategy_class.prepare(recipe.model, self.dataset))
            strategy = checkpoint.build(strategy_class, recipe.model, seed=recipe.training.seed)
        self.recipe, self.config = recipe, recipe.training
        wanted = checked_device(device)
        if wanted.type == "cuda" and device is not None:
            torch.cuda.set_device(wanted)
        self.folder = RunFolder(Path(out).expanduser(), recipe, resume=resume)
        self.accelerator = Accelerator(
            mixed_precision=self.config.mixed_precision,
            cpu=wanted.type == "cpu",
            step_scheduler_with_optimizer=False,
        )
        self.strategy = strategy.to(self.accelerator.device)
        self.progress = progress and self.accelerator.is_main_process
        self._stop = False
        self._offset = 0  # global step at which the current stage began

    def run(self) -> Path:
        """Train to the end and return the folder of the last checkpoint.

        An interrupt (Ctrl-C) ends the current step, saves, and is raised again.

        Raises:
            TrainingError: a loss or gradient is not finite; the last checkpoint stays as it was.
        """
        torch.manual_seed(self.config.seed)
        state = self.folder.load()
        stages = self.strategy.stages()
        first = 0 if state is None else int(state["stage"])
        if state is None:
            self._cut_log(0)  # of a run that ended before its first checkpoint
        with self._graceful_interrupt():
            for number in range(first, len(stages)):
                running = self._start(stages[number])
                if state is not None:
                    self._restore(running, state)
                    state = None
                self._run_stage(running, number)
        return self.folder.checkpoint(self.folder.steps()[-1])

    def _start(self, stage: Stage) -> _Running:
        for name, module in self.strategy.modules.items():
            trained = name in stage.components
            module.train(trained).requires_grad_(trained)
        named: dict[str, list[dict[str, Any]]] = {}
        parameters: list[nn.Parameter] = []
        for group in stage.optimizers():
            decay = self.config.weight_decay if group.weight_decay is None else group.weight_decay
            lr = self.config.learning_rate * group.lr_scale
            chosen = list(group.parameters)
            named.setdefault(group.name, []).append({"params": chosen, "lr": lr, "weight_decay": decay})
            parameters += chosen
        optimizers = {
            name: self.accelerator.prepare_optimizer(torch.optim.AdamW(groups, betas=self.config.betas))
            for name, groups in named.items()
        }
        schedules = {name: self._schedule(optimizer) for name, optimizer in optimizers.items()}
        return _Running(stage, optimizers, schedules, parameters, self._average(parameters))

    def _schedule(self, optimizer: Any) -> Any:
        try:
            return get_scheduler(
                self.config.lr_schedule,
                optimizer,
                num_warmup_steps=self.config.warmup_steps,
                num_training_steps=self.config.steps,
            )
        except ValueError as error:
            raise InvalidArgumentError(f"lr_schedule {self.config.lr_schedule!r}: {error}.") from error

    def _average(self, parameters: list[nn.Parameter]) -> EMAModel | None:
        if self.config.ema_decay is None:
            return None
        # The warm-up lets the average forget the initial weights in short runs.
        return EMAModel(parameters, decay=self.config.ema_decay, use_ema_warmup=True, power=0.75)

    def _run_stage(self, running: _Running, number: int) -> None:
        # Data go on from stage to stage.
        steps = range(self._offset + running.step, self._offset + self.config.steps)
        sampler = StepSampler(
            len(self.dataset),
            self.config.seed,
            self.config.batch_size,
            steps,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        bar = tqdm(
            total=self.config.steps,
            initial=running.step,
            desc=f"training {running.stage.name}",
            unit="step",
            disable=not self.progress,
        )
        with bar:
            for batch in batches(self.dataset, sampler, self.config.num_workers):
                began = time.perf_counter()
                logs = self._step(running, batch, sampler.positions)
                running.step += 1
                logs["seconds"] = time.perf_counter() - began
                bar.update()
                bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
                self._after_step(running, number, logs)
        self._finish_stage(running, number)

    def _after_step(self, running: _Running, number: int, logs: dict[str, float]) -> None:
        for name, value in logs.items():
            running.logs.setdefault(name, []).append(value)
        done = running.step == self.config.steps
        if running.step % self.config.log_every == 0 or done:
            self._log(running)
        self._stop = self._any_process(self._stop)
        if self._stop or (not done and running.step % self.config.checkpoint_every == 0):
            self._save(running, number)
        if self._stop:
            raise KeyboardInterrupt

    def _any_process(self, flag: bool) -> bool:
        """Whether ``flag`` is set anywhere: processes must stop at the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.accelerator.device)
        dist.all_reduce(votes)
        return bool(votes > 0)

    def _log(self, running: _Running) -> None:
        means = {name: sum(values) / len(values) for name, values in running.logs.items() if values}
        running.logs.clear()
        rates = {f"lr/{name}": s.get_last_lr()[0] for name, s in running.schedules.items()}
        step = self._offset + running.step
        if self.accelerator.is_main_process:
            self.folder.log({"step": step, "stage": running.stage.name, **means, **rates})

    def _step(self, running: _Running, batch: ClipBatch, positions: tuple[int, ...]) -> dict[str, float]:
        """Descend every loss of one step once; micro-batches are accumulated loss by loss."""
        batch = replace(batch, clip=batch.clip.to(self.accelerator.device))
        total = batch.clip.shape[0]
        pieces = []
        for piece, micro in micro_batches(batch, self.config.micro_batch_size):
            where = TrainingStep(self.config.seed, running.stage.name, running.step, positions[piece])
            pieces.append((micro.clip.shape[0] / total, running.stage.losses(micro, where)))
        logs: dict[str, float] = {"loss": 0.0}
        while self._descend(running, pieces, logs):
            pass
        for schedule in running.schedules.values():
            schedule.step()
        if running.ema is not None:
            running.ema.step(running.parameters)
        return logs

    def _descend(self, running: _Running, pieces: list[Any], logs: dict[str, float]) -> bool:
        """Advance the losses of all micro-batches by one and step its optimiser; False at the end."""
        name = None
        for weight, losses in pieces:
            with self.accelerator.autocast():
                loss = next(losses, None)
            if loss is None:
                return False
            self._check_finite(running, loss.value, "loss")
            name = loss.optimizer
            self.accelerator.backward(loss.value * weight)
            logs["loss"] += float(loss.value.detach()) * weight
            for key, value in loss.logs.items():
                logs[key] = logs.get(key, 0.0) + value * weight
        if name is None:
            return False
        optimizer = running.optimizers[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._average_gradients(parameters)
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm or math.inf)
        if self.accelerator.scaler is None:  # with fp16 the scaler skips such steps itself
            self._check_finite(running, norm, "gradient norm")
        logs[f"grad_norm/{name}"] = float(norm)
        optimizer.step()
        for other in running.optimizers.values():  # a loss may reach what another optimiser trains
            other.zero_grad()
        return True

    def _check_finite(self, running: _Running, value: Tensor, what: str) -> None:
        if torch.isfinite(value).all():
            return
        steps = self.folder.steps()
        kept = f"The checkpoint of step {steps[-1]} is kept" if steps else "No checkpoint was written yet"
        raise TrainingError(
            f"the {what} of stage {running.stage.name!r} is {float(value.detach())} at step "
            f"{running.step}; expected a finite number. {kept}. Lower learning_rate "
            f"({self.config.learning_rate}) or max_grad_norm ({self.config.max_grad_norm}), or train with "
            "mixed_precision='no', and start again."
        )

    def _average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Average gradients over processes, after the whole loss and so in any order of networks."""
        if self.accelerator.num_processes == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        dist.all_reduce(flat)
        flat /= self.accelerator.num_processes
        for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = mean.view_as(parameter)

    def _finish_stage(self, running: _Running, number: int) -> None:
        """Save, then go on with the averaged weights: later stages build on them."""
        if self._offset + running.step not in self.folder.steps():
            self._save(running, number)
        if running.ema is not None:
            running.ema.copy_to(running.parameters)
        self._offset += running.step

    def _save(self, running: _Running, number: int) -> None:
        """Write a checkpoint: the averaged strategy, and the exact state."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:

            def write(folder: Path) -> None:
                with _averaged(running):
                    checkpoint.save_strategy(self.strategy, folder / "model")
                (folder / "state").mkdir()
                save_state(folder / "state", self._state(running, number))

            self.folder.save(self._offset + running.step, write, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _state(self, running: _Running, number: int) -> dict[str, Any]:
        trained = {name for stage in self.strategy.stages() for name in stage.components}
        return {
            "stage": number,
            "offset": self._offset,
            "step": running.step,
            "weights": {name: self.strategy.modules[name].state_dict() for name in sorted(trained)},
            "optimizers": {name: o.state_dict() for name, o in running.optimizers.items()},
            "schedules": {name: s.state_dict() for name, s in running.schedules.items()},
            "ema": None if running.ema is None else running.ema.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "random": random_state(),
        }

    def _restore(self, running: _Running, state: dict[str, Any]) -> None:
        self._offset, running.step = int(state["offset"]), int(state["step"])
        for name, weights in state["weights"].items():
            self.strategy.modules[name].load_state_dict(weights)
        for name, optimizer in running.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, schedule in running.schedules.items():
            schedule.load_state_dict(state["schedules"][name])
        if running.ema is not None:
            running.ema.load_state_dict(state["ema"])
            running.ema.to(self.accelerator.device)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        restore_random_state(state["random"])
        self._cut_log(self._offset + running.step)
        logger.info("resumed stage %r at step %d", running.stage.name, running.step)

    def _cut_log(self, step: int) -> None:
        if self.accelerator.is_main_process:
            self.folder.cut_log(step)

    @contextmanager
    def _graceful_interrupt(self) -> Iterator[None]:
        """Let the first Ctrl-C end the current step; the second one is immediate."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_: Any) -> None:
            self._stop = True
            signal.signal(signal.SIGINT, previous)

        previous = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


@contextmanager
def _averaged(running: _Running) -> Iterator[None]:
    """Put the averaged weights in place for a while."""
    if running.ema is None:
        yield
        return
    running.ema.store(running.parameters)
    running.ema.copy_to(running.parameters)
    try:
        yield
    finally:
        running.ema.restore(running.parameters)


def _check_training(config: TrainingConfig) -> None:
    for name in ("steps", "batch_size", "checkpoint_every", "log_every", "keep_checkpoints"):
        if getattr(config, name) < 1:
            raise InvalidArgumentError(f"training.{name} is {getattr(config, name)}; expected 1 or more.")
    if not config.learning_rate > 0 or not math.isfinite(config.learning_rate):
        raise InvalidArgumentError(f"training.learning_rate is {config.learning_rate}; expected more than 0.")
    if config.ema_decay is not None and not 0 <= config.ema_decay < 1:
        raise InvalidArgumentError(f"training.ema_decay is {config.ema_decay}; expected 0 <= decay < 1.")


def train(recipe: Recipe, out: str | Path, **arguments: Any) -> Path:
    """Train ``recipe`` into ``out`` and return the checkpoint folder; see ``Trainer`` for arguments."""
    return Trainer(recipe, out, **arguments).run()
