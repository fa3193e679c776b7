"""What a checkpoint may be called: folder, run, bundled model, hub id, in this order."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest

import vidgen
from vidgen import checkpoint, plugins
from vidgen.components import hub
from vidgen.errors import CheckpointError, CheckpointNotFoundError, InvalidArgumentError

MODULE = """
from importlib.resources import files
from pathlib import Path

def as_function():
    return Path(__file__).parent / "demo"

as_path = as_function()
as_text = str(as_path)
as_resource = files("bundle") / "demo"
nothing = 3
gone = Path(__file__).parent / "gone"
"""
NAMES = ("as_function", "as_path", "as_text", "as_resource", "nothing", "gone")


@pytest.fixture
def bundle(tmp_path, folder, monkeypatch):
    """An installed package with a model inside, by every kind of entry point."""
    root = tmp_path / "site"
    (root / "bundle").mkdir(parents=True)
    (root / "bundle" / "__init__.py").write_text(MODULE)
    folder.rename(root / "bundle" / "demo")
    info = root / "bundle-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bundle\nVersion: 1.0\n")
    lines = "".join(f"shapes/{name} = bundle:{name}\n" for name in NAMES)
    (info / "entry_points.txt").write_text(f"[vidgen.models]\n{lines}")
    monkeypatch.syspath_prepend(root)
    yield root / "bundle" / "demo"
    sys.modules.pop("bundle", None)


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", NAMES[:4])
def test_bundled_model_is_found_by_name(bundle, strategy, same, name):
    found = plugins.available(plugins.MODELS)
    assert {n for n, package in found.items() if package == "bundle"} == {f"shapes/{n}" for n in NAMES}
    assert "bundle" not in sys.modules  # listing imports nothing
    assert checkpoint.locate(f"shapes/{name}") == bundle
    assert same(strategy, vidgen.load(f"shapes/{name}", device="cpu").strategy)


@pytest.mark.parametrize("name", NAMES[4:])
def test_a_package_that_names_no_folder_is_named(bundle, name):
    with pytest.raises(
        CheckpointError, match=rf"model 'shapes/{name}' of package 'bundle' is .*; expected the folder"
    ):
        checkpoint.locate(f"shapes/{name}")


def test_an_existing_folder_comes_first(bundle, strategy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = checkpoint.save_strategy(strategy, Path("shapes/as_path"))
    assert checkpoint.locate("shapes/as_path") == own
    assert checkpoint.locate("shapes/as_function") == bundle
    with pytest.raises(CheckpointError, match="does not exist"):  # these are paths and nothing else
        checkpoint.locate("./shapes/as_function")
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.locate(Path("shapes/as_function"))


def test_run_gives_its_newest_checkpoint(strategy, tmp_path):
    for step in (5, 20, 100):
        checkpoint.save_strategy(strategy, tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "model")
    (tmp_path / "run" / "checkpoints" / ".step-00000200.tmp" / "model").mkdir(parents=True)
    assert checkpoint.locate(str(tmp_path / "run")).parent.name == "step-00000100"


def test_checkpoint_set_aside_by_a_killed_writer_is_found(strategy, folder, same):
    folder.rename(folder.with_name(".model.old"))
    assert same(strategy, checkpoint.load_strategy(folder, device="cpu"))
    checkpoint.save_strategy(strategy, folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_what_was_tried_is_named(bundle, tmp_path, caplog):
    with pytest.raises(CheckpointError) as error:
        checkpoint.locate("user/as_path")
    assert "did you mean 'shapes/as_path'?); looking on the hub" in caplog.text  # before the wait for it
    for part in ("no folder user/as_path", "did you mean 'shapes/as_path'", "HF_HUB_OFFLINE"):
        assert part in str(error.value)
    with pytest.raises(
        CheckpointError, match=r"does not exist \(no bundled model is called 'no/such/folder'\)"
    ):
        checkpoint.locate("no/such/folder")
    (tmp_path / "file.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        checkpoint.locate(tmp_path / "file.json")


@pytest.mark.parametrize(
    "name", ["shapes/as_pat", "shapes/vmd", "shapes/x", "shape/vdm", "Shapes/VDM", "shpaes/ldm"]
)
def test_a_mistyped_bundled_name_does_not_ask_the_hub(bundle, monkeypatch, name):
    asked = []
    monkeypatch.setattr(
        hub, "snapshot", lambda source, revision: asked.append((str(source), revision)) or bundle
    )
    with pytest.raises(CheckpointNotFoundError, match=rf"no bundled model is called '{name}'.*'{name}@main'"):
        checkpoint.locate(name)
    assert asked == []
    assert checkpoint.locate(f"{name}@main") == checkpoint.locate(name, revision="main") == bundle
    assert checkpoint.locate("ann/demo") == bundle
    assert asked == [(f"{name}@main", None), (name, "main"), ("ann/demo", None)]


def test_only_hub_ids_have_revisions(bundle, tmp_path):
    for source in (bundle, str(bundle), "shapes/as_path"):
        with pytest.raises(InvalidArgumentError, match="only hub ids have revisions"):
            checkpoint.load_strategy(source, revision="main")


def test_find_checkpoint_names_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="vidgen train"):
        checkpoint.find_checkpoint(tmp_path / "nothing")
    (tmp_path / "vidgen.json").write_text(json.dumps({}))
    assert checkpoint.find_checkpoint(tmp_path) == tmp_path


@pytest.mark.parametrize("source", [None, "", 3, b"shapes/vdm"])
def test_what_is_no_place_is_refused(source):
    with pytest.raises(InvalidArgumentError, match="expected a folder, the name of a bundled model"):
        checkpoint.locate(source)
