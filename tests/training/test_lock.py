"""One process writes a run's folder: a second one is told who does, and a dead one does not count."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from trainings import RECIPE, trainer

import vidgen.training.lock as lock_module
from vidgen.errors import CheckpointError, InvalidArgumentError, RunFolderError
from vidgen.training.run import RunFolder

# Without torch: what holds a folder is a lock of the system, not a training.
HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1] + "/.lock")
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Another process that holds ``tmp_path / 'run'``."""
    monkeypatch.setattr(lock_module, "_PATIENCE", 0.2)
    run = tmp_path / "run"
    run.mkdir()
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        note = {"pid": process.pid, "host": "node7", "since": "2026-01-02 03:04:05"}
        (run / ".holder.json").write_text(json.dumps(note))
        yield process
        process.kill()


def test_a_second_writer_is_told_who_the_first_is(tmp_path, holder):
    said = rf"run is being trained by process {holder.pid} on node7 since 2026-01-02 03:04:05;"
    with pytest.raises(RunFolderError, match=said):
        RunFolder(tmp_path / "run", RECIPE, resume=True)
    assert not (tmp_path / "run" / "recipe.json").exists()
    with pytest.raises(RunFolderError, match=said):
        trainer(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", ".holder.json"}
    (tmp_path / "run" / ".holder.json").write_text("{")
    with pytest.raises(RunFolderError, match="is being trained by another process;"):
        RunFolder(tmp_path / "run", RECIPE, resume=True)


def test_who_comes_while_a_prepared_run_waits_keeps_it_from_starting(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "_PATIENCE", 0.1)
    first, second = trainer(tmp_path), trainer(tmp_path)
    with first.folder.held():
        with pytest.raises(RunFolderError, match=f"process {os.getpid()} on "):
            second.run()
        assert first.folder.steps() == []
    assert second.run().name == "step-00000012"
    assert not (tmp_path / ".holder.json").exists()


def test_a_dead_holder_frees_it(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert trainer(tmp_path / "run").run().name == "step-00000012"


def test_one_that_dies_soon_is_waited_for(tmp_path, monkeypatch, holder):
    """A killed training's readers hold the lock until they notice."""
    monkeypatch.setattr(lock_module, "_PATIENCE", 30.0)
    monkeypatch.setattr(lock_module._logger, "info", lambda *_: holder.kill())
    began = time.monotonic()
    RunFolder(tmp_path / "run", RECIPE, resume=True)
    assert time.monotonic() - began < 20


def test_a_failed_run_frees_it(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    monkeypatch.setattr(run, "_run", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.run()
    trainer(tmp_path).run()


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    def refuse(self, timeout):
        raise NotImplementedError

    monkeypatch.setattr(lock_module.FileLock, "acquire", refuse)
    with caplog.at_level("WARNING"), lock_module.held(tmp_path):
        pass
    assert "knows no locks" in caplog.text


def test_a_refused_folder_is_wrong_use_and_a_checkpoint_error():
    assert issubclass(RunFolderError, CheckpointError)
    assert issubclass(RunFolderError, InvalidArgumentError)
