"""A training killed at any moment resumes to the weights and the log of one that was never killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainings import log, trainer

import vidgen.training.run as run_module
import vidgen.training.trainer as trainer_module
from toy import toy

STEPS = 16  # of each of two stages
# Checkpoints and lines of the log do not fall together, and saving takes much of the time.
CHANGES = {"steps": STEPS, "batch_size": 2, "log_every": 3, "checkpoint_every": 2, "warmup_steps": 5}
VALIDATION = {"validation": 0.3, "validate_every": 4, "validation_batches": 1}

# Processes are forked from a server with torch loaded: ten kills cost seconds, not ten imports. Forked from
# pytest itself they would inherit autograd's threads from earlier tests, which torch refuses.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "vidgen.training", "vidgen.sampling", "vidgen.codecs"])


def train(out: Path) -> None:
    trainer(out, toy(dropout=0.2, stages=2), **CHANGES, **VALIDATION).run()


def fork(target: Callable[..., None], *arguments) -> multiprocessing.process.BaseProcess:
    process = SERVER.Process(target=target, args=arguments)
    process.start()
    return process


def finish(out: Path) -> float:
    """Let a process train to the end and return the seconds it took."""
    began, process = time.monotonic(), fork(train, out)
    process.join(600)
    assert process.exitcode == 0
    return time.monotonic() - began


def records(out: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in log(out)]


def assert_same(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    folders = [sorted((out / "checkpoints").iterdir()) for out in (one, other)]
    assert [f.name for f in folders[0]] == [f.name for f in folders[1]]  # and nothing half-written
    files = [sorted(f[-1].rglob("*.safetensors")) for f in folders]
    assert len(files[0]) >= 3
    for a, b in zip(*files, strict=True):
        first, second = load_file(a), load_file(b)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), a.name


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, float]:
    """A run that nobody killed, and how long it took."""
    out = tmp_path_factory.mktemp("whole") / "run"
    fork(time.sleep, 0).join()  # the server starts: its seconds are not the run's
    return out, finish(out)


def traces(out: Path) -> tuple[int, list[str]]:
    log = out / "log.jsonl"
    return log.stat().st_size if log.exists() else 0, sorted(p.name for p in (out / "checkpoints").glob("*"))


def assert_complete(out: Path, whole: Path) -> None:
    """Whatever has a checkpoint's name has all of its files."""
    names = sorted(p.relative_to(f) for f in list((whole / "checkpoints").iterdir())[:1] for p in f.rglob("*"))
    for folder in (out / "checkpoints").glob("step-*"):
        assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == names


def kill_ten_times(out: Path, whole: Path, draw: random.Random, longest: float) -> list[str] | None:
    """Kill ten processes at random moments; return what each left half-written, None if one got done."""
    left = []
    for _ in range(10):
        before, process, early = traces(out), fork(train, out), draw.random() < 0.2
        while not early and process.is_alive() and traces(out) == before:  # until it shows a sign of life
            time.sleep(0.001)
        time.sleep(draw.uniform(0, longest))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            return None
        assert_complete(out, whole)
        left += [name for name in traces(out)[1] if name.startswith(".")]
    return left


def test_killed_ten_times_at_random_moments(tmp_path, whole):
    out, seconds = whole
    for attempt in range(5):  # a machine may become faster than it was in the fixture
        left = kill_ten_times(tmp_path / "run", out, random.Random(attempt), seconds / 6 / 2**attempt)
        if left is not None:
            break
        shutil.rmtree(tmp_path / "run")
    assert left, "none was killed while it saved"
    finish(tmp_path / "run")
    assert_same(out, tmp_path / "run")


PLACES = {
    "before it says who holds the folder": (run_module.configs, "write_json", "before", 1),
    "before that has its name": (Path, "replace", "before", 1),
    "before the index": (run_module.configs, "write_json", "before", 2),
    "before the index has its name": (Path, "replace", "before", 2),
    "before the state or the cut log has its name": (Path, "replace", "before", 4),
    "before the model": (trainer_module.checkpoint, "save_strategy", "before", 4),
    "between model and state": (trainer_module, "save_state", "before", 4),
    "before the checkpoint appears": (trainer_module, "save_state", "after", 4),
    "while an old checkpoint is deleted": (run_module.shutil, "rmtree", "within", 3),
    "within a line of the log": (run_module.RunFolder, "log", "within", 3),
    "after a line of the log": (run_module.RunFolder, "log", "after", 3),
    "while the log is cut": (run_module.RunFolder, "cut_log", "before", 1),
}


def train_to(out: Path, place: str) -> None:
    """Train, and be killed at ``place``."""
    owner, name, when, count = PLACES[place]
    real, calls = getattr(owner, name), 0

    def deadly(*arguments, **keywords):
        nonlocal calls
        if when == "within" and name == "rmtree" and "step-" not in str(arguments[0]):
            return real(*arguments, **keywords)
        calls += 1
        if calls < count:
            return real(*arguments, **keywords)
        if when == "after":
            real(*arguments, **keywords)
        if when == "within":
            half(*arguments)
        return os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, deadly)
    train(out)


def half(place: Path | run_module.RunFolder, line: object = None, **_: object) -> None:
    """Do the first half of what was to be done: delete one file of a folder, or write half of a line."""
    if isinstance(place, Path):
        for path in [path for path in sorted(place.rglob("*")) if path.is_file()][:1]:
            path.unlink()
    else:
        with (place.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line)[:20])


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_a_bad_moment(tmp_path, whole, place):
    for _ in range(2):  # the second in a run that was resumed
        process = fork(train_to, tmp_path / "run", place)
        process.join(600)
        assert process.exitcode == -signal.SIGKILL
        assert_complete(tmp_path / "run", whole[0])
    finish(tmp_path / "run")
    assert_same(whole[0], tmp_path / "run")
