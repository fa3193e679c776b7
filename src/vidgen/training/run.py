"""The folder of a training run: its recipe, its log, its checkpoints.

out/
  recipe.json                 the resolved recipe
  log.jsonl                   one line per logged step
  checkpoints/step-00000500/
    model/                    the strategy, averaged weights: what is sampled from
    state/                    all that an exact resume needs
  samples/step-00000500/      videos made on the way
  tensorboard/                the log for TensorBoard

A run may be killed at any moment: whatever has its final name is complete, what has not (``.NAME.tmp``,
``.NAME.old``) is removed when the run goes on.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vidgen import config as configs
from vidgen.checkpoint import replaced_folder
from vidgen.errors import CheckpointError, InvalidArgumentError, RunFolderError, VidgenError
from vidgen.paths import expanded
from vidgen.recipe import Recipe
from vidgen.training import lock
from vidgen.training.precision import Kind
from vidgen.training.state import load_state, progress_of
from vidgen.video.dataset import DataConfig, is_registered

__all__ = ["RunFolder", "begun_precision"]

_logger = logging.getLogger("vidgen")

# Changing these leaves what is already trained as it is. With a learning-rate schedule that depends on the
# number of steps, the rest follows the new one. More steps of a stage that others build on are refused.
_FREE = {
    "data.cache_dir",
    "training.steps",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.log_every",
    "training.num_workers",
    "training.gradient_checkpointing",
    "training.cache_latents",
    "training.validate_every",
    "training.validation_batches",
    "training.sample_every",
    "training.sample_prompts",
    "training.trackers",
}

_LEFTOVER = re.compile(r"\.+(recipe\.json|log\.jsonl|step-\d+|model|holder\.json)\b.*\.(tmp|old)")


class RunFolder:
    """Where one run lives.

    Args:
        folder: created if need be.
        recipe: of the run that wants the folder.
        resume: go on with what is there; False refuses a folder with checkpoints.
        main: whether this process is the one of the run that writes.
        stages: the names of its stages, in order.

    Raises:
        RunFolderError: the folder holds something else, or a run of another recipe, or another process
            trains there.
        CheckpointError: it cannot be made or written; the methods that write raise it, too.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, *, resume: bool, main: bool = True, stages: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self._steps, self._stage_steps = recipe.training.steps, [recipe.training_of(s).steps for s in stages]
        described = configs.to_dict(recipe)
        described["data"]["path"] = _resolved(described["data"]["path"])  # may go on from elsewhere
        with _writing(folder):
            self._check(described, recipe, resume)
            if not main:
                return
            folder.mkdir(parents=True, exist_ok=True)
            with lock.held(folder):
                self._check(described, recipe, resume)  # another may have begun in between
                configs.write_json(folder / "recipe.json", described)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep all other processes from training here.

        Raises:
            RunFolderError: one does.
        """
        with _writing(self.folder), lock.held(self.folder):
            yield

    def _check(self, described: Mapping[str, Any], recipe: Recipe, resume: bool) -> None:
        """Refuse the folder if it is not this run's."""
        index = self.folder / "recipe.json"
        if not index.is_file():
            if _strangers(self.folder):
                raise RunFolderError(
                    f"{self.folder} is not empty and holds no recipe.json; expected a new folder, or one of a "
                    "run. Give another --out."
                )
            return
        found = _completed(_kept(index), recipe)
        if not self.steps():
            return
        if not resume:
            raise RunFolderError(
                f"{self.folder} already holds a run at step {self.steps()[-1]}. Give another folder, or let "
                "it resume."
            )
        self._check_same(found, described)
        self._check_steps()

    def _check_same(self, found: Mapping[str, Any], described: Mapping[str, Any]) -> None:
        old, new = _leaves(found), _leaves(described)
        changed = sorted(k for k in {*old, *new} if old.get(k) != new.get(k) and not _is_free(k))
        if changed:
            detail = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in changed)
            raise RunFolderError(
                f"{self.folder} holds a run with another recipe ({detail}). Give another folder, or the same "
                "recipe."
            )

    def _check_steps(self) -> None:
        """Refuse a number of steps that would leave a stage with another one."""
        progress = progress_of(self.checkpoint(self.steps()[-1]) / "state")
        if progress is None:  # who loads the state says what is wrong
            return
        before = [self._steps_of(stage) for stage in range(progress.stage)]
        if progress.offset != sum(before):
            raise RunFolderError(
                f"{self.folder} holds a run whose first {progress.stage} stage(s) took {progress.offset} "
                f"steps; the recipe gives them {' + '.join(map(str, before))} now. What later stages build on "
                "cannot be trained further: give the same steps to go on, or another folder to train all anew."
            )
        steps = self._steps_of(progress.stage)
        if progress.step > steps:
            raise RunFolderError(
                f"{self.folder} holds a run that has taken {progress.step} steps; the recipe gives {steps}. "
                f"Give {progress.step} or more, or another folder."
            )

    def _steps_of(self, stage: int) -> int:
        return self._stage_steps[stage] if stage < len(self._stage_steps) else self._steps

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, ascending."""
        return _steps(self.folder)

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint of ``step``."""
        return self.folder / "checkpoints" / f"step-{step:08d}"

    def save(self, step: int, write: Callable[[Path], None], keep: int) -> Path:
        """Let ``write`` fill a new checkpoint, make it appear at once, delete all but ``keep``."""
        target = self.checkpoint(step)
        with _writing(self.folder):
            with replaced_folder(target) as temporary:
                write(temporary)
                _sync(temporary)
            for old in self.steps()[: -max(keep, 1)]:
                path = self.checkpoint(old)
                doomed = path.with_name(f".{path.name}.tmp")  # half-deleted, it must not pass for a checkpoint
                path.rename(doomed)
                shutil.rmtree(doomed)
        return target

    def clean(self) -> None:
        """Remove what a killed run left half-written."""
        places = (self.folder, self.folder / "samples", self.folder / "checkpoints")
        with _writing(self.folder):
            for place in (*places, *self.folder.glob("checkpoints/step-*")):
                for path in place.glob(".*") if place.is_dir() else ():
                    if path.name == ".model.old" and not (place / "model").exists():
                        path.rename(place / "model")  # killed between the two renames of a replacement
                    elif _LEFTOVER.fullmatch(path.name):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def load(self) -> dict[str, Any] | None:
        """Return the newest checkpoint's state, or None where there is none."""
        steps = self.steps()
        return load_state(self.checkpoint(steps[-1]) / "state") if steps else None

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to the log."""
        path = self.folder / "log.jsonl"
        with _writing(self.folder):
            size = path.stat().st_size if path.exists() else 0
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError:
                with suppress(OSError):
                    os.truncate(path, size)  # no half line
                raise

    def cut_log(self, step: int) -> None:
        """Drop the lines after ``step``: a resumed run writes them again."""
        path = self.folder / "log.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            with _writing(self.folder):
                temporary = path.with_name(f".{path.name}.tmp")
                try:
                    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
                    temporary.replace(path)
                finally:
                    with suppress(OSError):
                        temporary.unlink(missing_ok=True)


def begun_precision(folder: Path) -> Kind | None:
    """Return the ``mixed_precision`` of the run in ``folder``, or None where nothing was trained yet."""
    index = folder / "recipe.json"
    if not _steps(folder) or not index.is_file():
        return None
    training = _kept(index).get("training")
    kept: Kind = training.get("mixed_precision", "no") if isinstance(training, Mapping) else "no"
    return kept


def _kept(index: Path) -> dict[str, Any]:
    """Return the recipe of a run as it was written.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return configs.read_json(index)
    except InvalidArgumentError as error:
        raise CheckpointError(
            f"the recipe of this run cannot be read: {error} Put the file back as it was, or give another "
            "--out."
        ) from error


def _steps(folder: Path) -> list[int]:
    found = [re.fullmatch(r"step-(\d+)", path.name) for path in (folder / "checkpoints").glob("step-*")]
    return sorted(int(match[1]) for match in found if match)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into a sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, VidgenError):  # says it better
            raise
        raise CheckpointError(
            f"the folder of the run, {folder}, cannot be made or written: {error}; expected a folder to write "
            "in, on a disk with room. Free it or make room and start again (what is saved there is kept), or "
            "give another --out."
        ) from error


def _strangers(folder: Path) -> list[Path]:
    """Return what is in ``folder`` beside the index that is being written.

    A first start may have been killed just then, or another process of this run may be there.
    """
    paths = folder.iterdir() if folder.exists() else ()
    return [p for p in paths if p.name not in lock.FILES and not _LEFTOVER.fullmatch(p.name)]


def _sync(folder: Path) -> None:
    """Have the disk hold everything in ``folder``, so that its final name never stands for less."""
    if os.name != "posix":  # others cannot open a folder
        return
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return math.inf  # torn off when the run was killed


def _is_free(name: str) -> bool:
    """Whether a setting may change in a run, of one stage as of all."""
    parts = name.split(".")
    return (f"training.{parts[-1]}" if parts[0] == "stages" else name) in _FREE


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    if isinstance(leaves.get("data.path"), str):
        leaves["data.path"] = _resolved(leaves["data.path"])
    return leaves


def _completed(found: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return a kept recipe with the fields that came after it was written, at what they are by default."""
    filled = dict(found)
    if isinstance(found.get("data"), Mapping):
        filled["data"] = configs.to_dict(configs.from_dict(DataConfig, found["data"], where="data."))
    for part in ("model", "training"):
        kind, kept = type(getattr(recipe, part)), found.get(part)
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        plain = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
        if isinstance(kept, Mapping):
            filled[part] = {**json.loads(json.dumps(plain, default=str)), **kept}
    return filled


def _resolved(path: str) -> str:
    """Return the one name of a folder that has many; registered data has its own."""
    return path if not path or is_registered(path) else str(expanded(path).resolve())
