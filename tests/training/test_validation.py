"""Validation: held-out clips, fixed noise, averaged weights, and a training that does not notice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from trainings import RECIPE, Noise, log, raw, trainer

from toy import ToyStage, toy
from vidgen.errors import InvalidArgumentError
from vidgen.trainable import Loss
from vidgen.training import trainer as trainer_module
from vidgen.training.validation import hold_out
from vidgen.video.dataset import open_dataset


def curve(out: Path, name: str = "validation/loss") -> dict[int, float]:
    return {line["step"]: line[name] for line in log(out) if name in line}


def test_loss_on_held_out_clips_is_logged_and_falls(tmp_path):
    # The shapes data: what is learnt from some videos holds for others.
    data = open_dataset(RECIPE.data)
    trainer(tmp_path, data=data, steps=20, validation=0.2, validate_every=4).run()
    values = curve(tmp_path)
    assert list(values) == [4, 8, 12, 16, 20]
    assert values[20] < 0.9 * values[4]
    assert list(curve(tmp_path, "loss")) == [*range(3, 20, 3), 20]
    assert list(curve(tmp_path, "validation/mean_t")) == [4, 8, 12, 16, 20]


def test_training_never_sees_a_held_out_clip_and_validation_no_other(tmp_path, monkeypatch):
    seen = {True: set(), False: set()}
    losses = ToyStage.losses

    def spying(self, batch, step):
        seen[step.stage == "denoiser"].update(batch.index.tolist())
        yield from losses(self, batch, step)

    monkeypatch.setattr(ToyStage, "losses", spying)
    trainer(tmp_path, validation=0.4, validate_every=6).run()
    assert len(seen[True]) == 3
    assert len(seen[False]) == 2
    assert not seen[True] & seen[False]


def test_the_split_is_by_content_and_not_by_seed(tmp_path):
    parts = [trainer(tmp_path / f"{seed}", validation=0.4, seed=seed).dataset.indices for seed in (0, 1, 2)]
    assert parts[0] == parts[1] == parts[2]


def test_validation_leaves_training_as_it_is(tmp_path, monkeypatch):
    """Bitwise, with dropout: and what the networks were in (train or eval) is put back."""
    frequent = trainer(tmp_path / "a", toy(dropout=0.3), validation=0.2, validate_every=1).run()
    monkeypatch.setattr(trainer_module.Validation, "__call__", lambda *_: {})
    never = trainer(tmp_path / "b", toy(dropout=0.3), validation=0.2, validate_every=1).run()
    assert raw(frequent).keys() == raw(never).keys()
    assert all(torch.equal(raw(frequent)[key], value) for key, value in raw(never).items())
    assert curve(tmp_path / "a", "loss") == curve(tmp_path / "b", "loss")


def test_same_clips_same_noise_every_time_and_no_dropout(tmp_path):
    trainer(tmp_path, toy(dropout=0.5), validation=0.2, validate_every=1, learning_rate=1e-30, steps=4).run()
    values = list(curve(tmp_path).values())
    assert len(values) == 4
    assert len(set(values)) == 1
    assert len(set(curve(tmp_path, "validation/mean_t").values())) == 1


def test_averaged_weights_are_measured(tmp_path, monkeypatch):
    measured, strategy = [], toy()
    losses = ToyStage.losses

    def spying(self, batch, step):
        if step.stage != "denoiser":
            measured.append(self.strategy.modules["network"].conv.weight.detach().clone())
        yield from losses(self, batch, step)

    monkeypatch.setattr(ToyStage, "losses", spying)
    last = trainer(tmp_path, strategy, validation=0.2, validate_every=12, validation_batches=1).run()
    shadows = [value for key, value in raw(last).items() if "shadow" in key]
    assert any(torch.equal(shadow, measured[0]) for shadow in shadows)
    assert not torch.equal(raw(last)["/weights/network/conv.weight"], measured[0])


def test_the_mean_over_batches_whatever_the_micro_batches(tmp_path):
    changes = {"validation": 0.4, "validate_every": 12, "learning_rate": 1e-30}
    values = {}
    for name, change in {
        "one": {"validation_batches": 1},
        "two": {"validation_batches": 2},
        "cut": {"validation_batches": 2, "micro_batch_size": 1},
    }.items():
        trainer(tmp_path / name, **changes, **change).run()
        values[name] = curve(tmp_path / name)[12]
    assert values["cut"] == pytest.approx(values["two"], rel=1e-5)
    assert values["one"] != pytest.approx(values["two"], rel=1e-3)
    assert 0.5 < values["one"] / values["two"] < 2  # a mean, no sum


def test_a_loss_may_take_gradients_of_its_own(tmp_path, monkeypatch):
    """As gradient penalties do; and no gradient is left behind."""

    def penalised(self, batch, step):
        (weight, *_) = self.strategy.parameters_of("network")
        assert all(p.grad is None for p in self.strategy.parameters_of("network"))
        value = weight.square().sum()
        (gradient,) = torch.autograd.grad(value, weight, create_graph=True)
        yield Loss("denoiser", value + gradient.square().sum())
        yield Loss("denoiser", weight.square().sum())

    monkeypatch.setattr(ToyStage, "losses", penalised)
    trainer(tmp_path, validation=0.2, validate_every=1, steps=2).run()
    assert len(curve(tmp_path)) == 2


def test_validation_runs_in_the_precision_of_training(tmp_path, monkeypatch):
    strategy, casts, outputs = toy(), [], set()
    losses = ToyStage.losses

    def spying(self, batch, step):
        if step.stage != "denoiser":
            casts.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
            hook = strategy.modules["network"].conv.register_forward_hook(
                lambda *call: outputs.add(call[-1].dtype)
            )
        yield from losses(self, batch, step)
        if step.stage != "denoiser":
            hook.remove()

    monkeypatch.setattr(ToyStage, "losses", spying)
    changes = {"validation": 0.2, "validate_every": 2, "validation_batches": 1}
    trainer(tmp_path, strategy, mixed_precision="bf16", steps=2, **changes).run()
    assert casts == [(True, torch.bfloat16)]
    assert outputs == {torch.bfloat16}


def test_every_stage_is_validated(tmp_path):
    trainer(tmp_path, toy(stages=2), validation=0.2, validate_every=12).run()
    assert list(curve(tmp_path)) == [12, 24]


def test_changing_how_often_keeps_a_run_and_changing_the_share_does_not(tmp_path):
    trainer(tmp_path, validation=0.2, steps=4).run()
    trainer(tmp_path, validation=0.2, validate_every=3, validation_batches=1).run()
    assert list(curve(tmp_path)) == [4, 6, 9, 12]
    with pytest.raises(Exception, match=r"training.validation: 0.2 there, 0.4 now"):
        trainer(tmp_path, validation=0.4)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_bad_share(share):
    with pytest.raises(InvalidArgumentError, match=r"training\.validation is"):
        hold_out(Noise(), share)


def test_nothing_to_hold_out():
    class Single(Noise):
        def content_key(self, index):
            return "one file"

    with pytest.raises(InvalidArgumentError, match="a single source"):
        hold_out(Single(), 0.5)
    whole = Noise()
    assert hold_out(whole, 0) == (whole, None)
