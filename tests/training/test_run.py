"""The run folder: where its data is, what may change on resume, and what the file system refuses."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
from trainings import RECIPE

from vidgen.checkpoint import replaced_folder
from vidgen.errors import CheckpointError, VideoError
from vidgen.recipe import Recipe
from vidgen.strategies.vdm import VDMConfig
from vidgen.training.run import RunFolder


def opened(out: Path, data: dict, *, saved: bool = True) -> dict:
    """Open a run with changes to the recipe's data and return what it wrote; ``saved`` leaves a checkpoint."""
    folder = RunFolder(out, replace(RECIPE, data=RECIPE.data.changed(**data)), resume=True)
    if saved:
        folder.save(1, lambda _: None, 1)
    return json.loads((out / "recipe.json").read_text())


def test_a_relative_folder_of_videos_is_the_same_from_elsewhere(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    assert opened(tmp_path / "run", {"path": "clips"})["data"]["path"] == str(here.resolve() / "clips")
    opened(tmp_path / "run", {"path": "./clips/../clips"})
    monkeypatch.chdir(there)
    opened(tmp_path / "run", {"path": str(here / "clips")})
    with pytest.raises(
        CheckpointError, match=r"another recipe \(data.path: '.*here/clips' there, '.*there/clips'"
    ):
        opened(tmp_path / "run", {"path": "clips"})


@pytest.mark.parametrize("name", ["shapes", "story"])
def test_procedural_data_is_named_and_no_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert opened(tmp_path / "run", {"path": name})["data"]["path"] == name
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened(tmp_path / "run", {"path": name})
    with pytest.raises(CheckpointError, match=f"data.path: '{name}' there, '.*elsewhere/{name}' now"):
        opened(tmp_path / "run", {"path": f"./{name}"})


def test_the_cache_may_move_and_other_data_may_not_come(tmp_path):
    opened(tmp_path / "run", {"cache_dir": "a"})
    assert opened(tmp_path / "run", {"cache_dir": "b"})["data"]["cache_dir"] == "b"
    with pytest.raises(CheckpointError, match=r"another recipe \(data.size: 16 there, 24 now\)"):
        opened(tmp_path / "run", {"size": 24})


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, out):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=rf"{out}, cannot be made or written.*give another --out"):
        opened(tmp_path / out, {})
    assert (tmp_path / "file").read_text() == "x"


def test_a_full_disk_keeps_what_is_saved(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run", RECIPE, resume=True)
    folder.save(1, lambda _: None, 2)
    full = OSError(errno.ENOSPC, "No space left on device")

    def failing(*_, **__):
        raise full

    with pytest.raises(CheckpointError, match="No space left on device"):
        folder.save(2, failing, 2)
    assert folder.steps() == [1]
    folder.log({"step": 1})
    for name, call in {
        "open": lambda: folder.log({"step": 2}),
        "write_text": lambda: folder.cut_log(1),
        "glob": folder.clean,
        "mkdir": lambda: RunFolder(tmp_path / "other", RECIPE, resume=True),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, failing)
            with pytest.raises(CheckpointError, match=r"No space left.*make room and start again"):
                call()


@pytest.mark.parametrize("method", ["log", "cut_log"])
def test_a_write_that_fails_leaves_nothing_of_itself(tmp_path, monkeypatch, method):
    folder = RunFolder(tmp_path / "run", RECIPE, resume=True)
    folder.log({"step": 1})
    before = {path.name: path.read_bytes() for path in folder.folder.iterdir()}
    opened = Path.open

    def full(path, mode="r", *arguments, **keywords):
        file = opened(path, mode, *arguments, **keywords)
        if mode in ("a", "w"):
            write = file.write

            def half(text):
                write(text[: len(text) // 2])
                file.flush()
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(file, "write", half, raising=False)
        return file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(CheckpointError, match="No space left"):
        folder.log({"step": 2}) if method == "log" else folder.cut_log(0)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.folder.iterdir()} == before


def test_errors_of_our_own_pass_as_they_are(tmp_path):
    """Those of videos are OSErrors, too."""
    folder = RunFolder(tmp_path / "run", RECIPE, resume=True)

    def failing(_):
        raise VideoError("no such codec")

    with pytest.raises(VideoError, match="no such codec"):
        folder.save(1, failing, 1)
    with replaced_folder(tmp_path / "run" / "checkpoints" / "step-00000002") as temporary:
        (temporary / "x").write_text("x")
    assert folder.steps() == [2]


@pytest.mark.parametrize("part", ["model", "data", "training"])
def test_a_run_from_before_a_field_was_there_goes_on(tmp_path, part):
    field, other = {
        "model": ("noise_bias", 1.0),
        "data": ("flip", True),
        "training": ("weight_decay", 0.5),
    }[part]
    recipe = Recipe("vdm", VDMConfig())
    run = RunFolder(tmp_path / "run", recipe, resume=True)
    run.checkpoint(1).mkdir(parents=True)
    kept = json.loads((tmp_path / "run/recipe.json").read_text())
    del kept[part][field]
    (tmp_path / "run/recipe.json").write_text(json.dumps(kept))
    changed = replace(recipe, **{part: replace(getattr(recipe, part), **{field: other})})
    with pytest.raises(CheckpointError, match=rf"another recipe \({part}.{field}: .* there, {other} now\)"):
        RunFolder(tmp_path / "run", changed, resume=True)
    RunFolder(tmp_path / "run", recipe, resume=True)
    assert field in json.loads((tmp_path / "run/recipe.json").read_text())[part]
