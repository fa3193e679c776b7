"""What a checkpoint says of its training: kept from folder to folder, and said where it is not finished."""

from __future__ import annotations

import json

import pytest

from vidgen import checkpoint
from vidgen.trainable import StageRecord, TrainingRecord

STAGES = (StageRecord("global", 500, 500), StageRecord("video", 120, 500), StageRecord("last", 0, 500))


@pytest.fixture
def described(folder):
    """Write what a checkpoint says of its training, and load it."""

    def write(record):
        index = json.loads((folder / "vidgen.json").read_text())
        (folder / "vidgen.json").write_text(json.dumps(index | {"training": record}))
        return checkpoint.load_strategy(folder, device="cpu")

    return write


def test_an_unfinished_model_is_said_to_be_one(strategy, tmp_path, caplog, monkeypatch):
    for finished in (True, False):
        record = TrainingRecord(STAGES, finished, {"name": "clips", "videos": 9})
        monkeypatch.setattr(strategy, "training_record", record)
        first = checkpoint.load_strategy(checkpoint.save_strategy(strategy, tmp_path / "a"), device="cpu")
        assert first.training_record == record
        second = checkpoint.load_strategy(checkpoint.save_strategy(first, tmp_path / "b"), device="cpu")
        assert second.training_record == record
        assert ("not finished" in caplog.text) is not finished
    assert "a is not finished: global 500 steps, video 120 of 500 steps, last untrained. What it" in caplog.text


def test_checkpoints_without_a_record_load_as_before(folder, caplog):
    assert "training" not in json.loads((folder / "vidgen.json").read_text())
    assert checkpoint.load_strategy(folder, device="cpu").training_record is None
    assert not caplog.records


@pytest.mark.parametrize(
    "record",
    [
        None,
        3,
        "finished",
        {},
        {"stages": 3, "finished": True},
        {"stages": [{"name": "a", "step": "many", "steps": 3}], "finished": True},
        {"stages": [], "finished": True, "data": {}, "more": 1},
    ],
)
def test_a_record_of_something_else_is_said_and_left_out(described, caplog, record):
    assert described(record).training_record is None
    assert "what it says of its training cannot be read" in caplog.text
