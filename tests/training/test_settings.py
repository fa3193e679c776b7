"""Settings that cannot be: refused before the folder of the run is touched."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
from trainings import RECIPE, log, trainer

from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.training import processes
from vidgen.training.settings import check_training

NAN, INF = float("nan"), float("inf")
COUNTS = ("steps", "batch_size", "micro_batch_size", "checkpoint_every", "log_every", "keep_checkpoints")
COUNTS += ("validate_every", "validation_batches", "sample_every")


def checked(**changes) -> None:
    check_training(replace(RECIPE.training, **changes))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *[(name, (0, -3, NAN, INF, 1.5)) for name in COUNTS],
        *[(name, (-1, NAN, 0.5)) for name in ("warmup_steps", "num_workers", "seed")],
        *[(name, (0.0, -1.0, NAN, INF)) for name in ("learning_rate", "max_grad_norm")],
        ("seed", (1 << 63,)),
        ("weight_decay", (-0.1, NAN, INF)),
        *[(name, (-0.1, 1.0, NAN, INF)) for name in ("ema_decay", "validation")],
        ("betas", ((0.9, 1.0), (-0.1, 0.9), (NAN, 0.9), (0.9,), (0.9, 0.9, 0.9))),
    ],
)
def test_numbers_out_of_range_are_named(name, values):
    for value in values:
        with pytest.raises(InvalidArgumentError, match=rf"training\.{name} is .*; expected .*[012]"):
            checked(**{name: value})


def test_the_ends_of_the_ranges_are_allowed():
    checked(**dict.fromkeys(COUNTS, 1))
    checked(warmup_steps=0, num_workers=0, weight_decay=0.0, betas=(0.0, 0.0), validation=0.0)
    checked(micro_batch_size=None, sample_every=None, max_grad_norm=None, ema_decay=None, seed=(1 << 63) - 1)
    checked(ema_decay=0.0, max_grad_norm=1e-9, weight_decay=3, learning_rate=1)


@pytest.mark.parametrize("name", ["learning_rate", "steps", "weight_decay", "validation", "seed"])
def test_only_some_may_be_none(name):
    with pytest.raises(InvalidArgumentError, match=f"training.{name} is None"):
        checked(**{name: None})


def test_unknown_names_are_met_with_the_known_ones():
    with pytest.raises(
        UnknownNameError, match=r"lr_schedule 'cosin'. Did you mean 'cosine'\? Known:.*polynomial"
    ):
        checked(lr_schedule="cosin")
    with pytest.raises(UnknownNameError, match=r"mixed_precision 'fp8'.*Known: auto, bf16, fp16, no"):
        checked(mixed_precision="fp8")


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
)
def test_every_known_schedule_trains(tmp_path, name):
    trainer(tmp_path, lr_schedule=name, steps=2, warmup_steps=1).run()
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"] == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"max_grad_norm": 0.0},
        {"validation": 1.0},
        {"lr_schedule": "sawtooth"},
        {"lr_schedule": "piecewise_constant"},  # would need rules
        {"mixed_precision": "fp8"},
        {"gradient_checkpointing": True},  # the toy cannot
    ],
)
def test_nothing_is_left_in_a_new_folder(tmp_path, changes):
    with pytest.raises((InvalidArgumentError, UnknownNameError)):
        trainer(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_processes_cannot_share_leaves_nothing_either(tmp_path, monkeypatch):
    begin = processes.Processes.__init__

    def three(self, device=None):
        begin(self, device)
        self.world = 3

    monkeypatch.setattr(processes.Processes, "__init__", three)
    with pytest.raises(InvalidArgumentError, match="multiple of the 3 process"):
        trainer(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
def test_the_learning_rate_follows_its_schedule_and_goes_on_with_it(tmp_path, schedule):
    changes = {"lr_schedule": schedule, "warmup_steps": 4, "learning_rate": 0.01, "log_every": 1}
    trainer(tmp_path, **changes, steps=12, checkpoint_every=5).run()
    shutil.rmtree(tmp_path / "checkpoints/step-00000012")  # as if cut off after step 10
    trainer(tmp_path, **changes, steps=12, checkpoint_every=5).run()
    rates = [line["lr/denoiser"] for line in log(tmp_path)]
    left = [(12 - step) / (12 - 4) for step in range(1, 13)]  # of what comes after the warm-up
    after = {
        "linear": left,
        "cosine": [0.5 * (1 + math.cos(math.pi * (1 - share))) for share in left],
        "constant_with_warmup": [1.0] * 12,
    }[schedule]
    expected = [0.01 * (step / 4 if step < 4 else after[step - 1]) for step in range(1, 13)]
    assert rates == pytest.approx(expected, abs=1e-9)
