"""The trainer's state on disk: whole and of this run, or refused by name."""

from __future__ import annotations

import json
import os

import pytest
import torch

from vidgen import config as configs
from vidgen.errors import CheckpointError, InvalidArgumentError
from vidgen.training.state import load_state, progress_of, restoring, save_state

STATE = {
    "stage": 0,
    "offset": 0,
    "weights": {"network": {"weight": torch.arange(6.0).reshape(2, 3)}},
    "running": {"step": 3, "optimizers": {"all": {"state": {0: {"exp_avg": torch.ones(2)}}, "lr": 0.1}}},
}


@pytest.fixture
def folder(tmp_path):
    save_state(tmp_path, STATE)
    return tmp_path


def test_a_state_comes_back_exactly_and_is_as_readable_as_other_files(folder):
    found = load_state(folder)
    assert torch.equal(found["weights"]["network"]["weight"], STATE["weights"]["network"]["weight"])
    assert found["running"]["optimizers"]["all"]["state"][0]["exp_avg"].tolist() == [1.0, 1.0]
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize(
    "state",
    [
        None,
        3,
        [],
        {"__items__": 3},
        {"__items__": [["stage", 0]]},
        {"__items__": [["stage", None], ["offset", 0], ["running", {"__items__": [["step", 1]]}]]},
        {"__items__": [["stage", {}], ["offset", 0]]},
        {"__tensor__": "nowhere"},
        {"__items__": [[[], 1]]},
        {"__items__": [["stage", float("inf")], ["offset", 0], ["running", {"__items__": [["step", 1]]}]]},
    ],
)
def test_a_state_of_other_values_is_refused(folder, state):
    (folder / "trainer.json").write_text(json.dumps({"format": 2, "state": state}))
    with pytest.raises(CheckpointError, match=r"holds no training state of this run .*delete this checkpoint"):
        load_state(folder)
    assert progress_of(folder) is None


@pytest.mark.parametrize("value", ["[" * 100_000 + "]" * 100_000, "[" * 400 + "]" * 400, "9" * 5000, "{"])
def test_json_without_end_is_an_error_of_the_file(folder, value):
    (folder / "trainer.json").write_text(f'{{"format": 2, "state": {value}}}')
    with pytest.raises(CheckpointError, match=r"no complete training state .*trainer\.json"):
        load_state(folder)
    assert progress_of(folder) is None
    with pytest.raises(InvalidArgumentError, match=r"trainer\.json is "):
        configs.read_json(folder / "trainer.json")


def test_what_does_not_fit_the_run_is_named(folder):
    network = torch.nn.Linear(2, 2)
    with (
        pytest.raises(CheckpointError, match=r"(?s)of this run \(RuntimeError.*size mismatch"),
        restoring(folder),
    ):
        network.load_state_dict({"weight": torch.ones(3, 3), "bias": torch.ones(2)})
