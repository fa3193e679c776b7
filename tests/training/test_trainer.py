"""The trainer: learns, saves, resumes exactly, stops on losses that are not finite."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from trainings import RECIPE, Noise, log, raw, trainer, weights

from toy import Toy, ToyStage, toy
from vidgen import checkpoint
from vidgen.codecs import PixelCodec
from vidgen.errors import (
    CheckpointError,
    InvalidArgumentError,
    RunFolderError,
    TrainingError,
    UnknownNameError,
)
from vidgen.strategies.vdm import VDM, VDMConfig
from vidgen.trainable import Loss, OptimizerGroup
from vidgen.training import Trainer
from vidgen.training.batches import StepSampler
from vidgen.video.dataset import open_dataset


def test_run_writes_checkpoints_log_and_recipe(tmp_path):
    last = trainer(tmp_path, data=open_dataset(RECIPE.data), steps=40).run()
    assert last == tmp_path / "checkpoints" / "step-00000040"
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000035", "step-00000040"]  # keep_checkpoints=2, nothing half-written
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [*range(3, 40, 3), 40]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert 0 < lines[0]["mean_t"] < 1000
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["training"]["steps"] == 40
    assert recipe["model"] == {"window": 8, "context": 3, "dropout": 0.0, "stages": 1}


def test_interrupted_run_resumes_to_the_same_weights(tmp_path):
    """With dropout, which draws from torch's random state."""
    whole = trainer(tmp_path / "whole", toy(dropout=0.3)).run()
    cut = trainer(tmp_path / "cut", toy(dropout=0.3))
    losses, count = ToyStage.losses, 0

    def interrupting(self, batch, step):
        nonlocal count
        count += 1
        if count == 8:  # Ctrl-C in the middle of a step
            import signal

            signal.raise_signal(signal.SIGINT)
        yield from losses(self, batch, step)

    ToyStage.losses = interrupting
    try:
        with pytest.raises(KeyboardInterrupt):
            cut.run()
    finally:
        ToyStage.losses = losses
    assert cut.folder.steps()[-1] == 8  # the step was finished and saved
    resumed = trainer(tmp_path / "cut", toy(dropout=0.3)).run()
    for a, b in ((weights(whole), weights(resumed)), (raw(whole), raw(resumed))):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "cut")]
    steps = [[json.loads(line)["step"] for line in log.splitlines()] for log in logs]
    assert steps[0] == steps[1]


def test_longer_run_goes_on_from_the_raw_weights(tmp_path):
    whole = trainer(tmp_path / "whole").run()
    trainer(tmp_path / "cut", steps=7).run()
    resumed = trainer(tmp_path / "cut").run()
    assert all(torch.equal(weights(whole)[k], weights(resumed)[k]) for k in weights(whole))
    assert trainer(tmp_path / "cut").run() == resumed  # nothing left to do


def test_workers_read_the_same_and_resume_exactly(tmp_path):
    alone = trainer(tmp_path / "alone", toy(dropout=0.3), steps=6).run()
    whole = trainer(tmp_path / "whole", toy(dropout=0.3), steps=6, num_workers=2).run()
    trainer(tmp_path / "cut", toy(dropout=0.3), steps=3, num_workers=2).run()
    resumed = trainer(tmp_path / "cut", toy(dropout=0.3), steps=6, num_workers=2).run()
    for other in (whole, resumed):
        assert all(torch.equal(raw(other)[key], value) for key, value in raw(alone).items())


def test_the_callers_random_state_is_left_alone(tmp_path):
    strategy = toy(dropout=0.3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trainer(tmp_path, strategy, steps=2).run()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_group_may_have_betas_of_its_own(tmp_path, monkeypatch):
    seen = []

    def optimizers(self):
        weight, bias = self.strategy.parameters_of("network")
        return (OptimizerGroup("denoiser", (weight,), betas=(0.0, 0.9)), OptimizerGroup("denoiser", (bias,)))

    step = torch.optim.AdamW.step
    monkeypatch.setattr(ToyStage, "optimizers", optimizers)
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self: (seen.append([g["betas"] for g in self.param_groups]), step(self)),
    )
    run = trainer(tmp_path, steps=1, betas=(0.8, 0.95), warmup_steps=0, max_grad_norm=None, ema_decay=None)
    before = [p.detach().clone() for p in run.strategy.parameters_of("network")]
    state = raw(run.run())
    assert seen == [[(0.0, 0.9), (0.8, 0.95)]]
    first = {key.rpartition("/")[2]: state[key] for key in state if "state/0/" in key}
    second = {key.rpartition("/")[2]: state[key] for key in state if "state/1/" in key}
    # After one step: m = (1 - beta1) g, v = (1 - beta2) g^2 (Adam, algorithm 1).
    for found, (one, two) in ((first, (0.0, 0.9)), (second, (0.8, 0.95))):
        gradient = found["exp_avg"] / (1 - one)
        torch.testing.assert_close(found["exp_avg_sq"], (1 - two) * gradient.square())
    assert all(
        (p - q).abs().max() > 0 for p, q in zip(before, run.strategy.parameters_of("network"), strict=True)
    )


def test_another_seed_gives_other_weights(tmp_path):
    a, b = trainer(tmp_path / "a").run(), trainer(tmp_path / "b", seed=1).run()
    assert not torch.equal(weights(a)["conv.weight"], weights(b)["conv.weight"])


def test_checkpoint_holds_the_average_and_state_the_raw_weights(tmp_path):
    last = trainer(tmp_path / "ema").run()
    key = "/weights/network/conv.weight"
    assert not torch.equal(weights(last)["conv.weight"], raw(last)[key])
    plain = trainer(tmp_path / "plain", ema_decay=None).run()
    assert torch.equal(weights(plain)["conv.weight"], raw(plain)[key])
    assert torch.equal(raw(plain)[key], raw(last)[key])  # averaging does not steer training


def test_stages_run_in_order_and_a_later_one_never_changes_an_earlier(tmp_path):
    two = trainer(tmp_path / "two", toy(stages=2), learning_rate=0.05, ema_decay=0.5, keep_checkpoints=9)
    last = two.run()
    assert two.folder.steps() == [5, 10, 12, 17, 22, 24]
    first = tmp_path / "two" / "checkpoints" / "step-00000012"
    assert all(torch.equal(weights(first)[k], weights(last)[k]) for k in weights(first))
    # The second stage built on the averaged weights of the first, and learnt their mean.
    average, number = weights(last)["conv.weight"].mean(), raw(last)["/weights/scale/weight"]
    assert not torch.equal(raw(first)["/weights/network/conv.weight"], weights(first)["conv.weight"])
    torch.testing.assert_close(raw(last)["/weights/network/conv.weight"], weights(last)["conv.weight"])
    assert abs(number - average) < abs(1 - average)
    lines = log(tmp_path / "two")
    assert [line["stage"] for line in lines] == ["denoiser"] * 4 + ["scale"] * 4
    assert [line["step"] for line in lines] == list(range(3, 25, 3))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "polynomial", "cosine_with_restarts"])
def test_a_longer_run_begins_at_the_rate_of_its_own_schedule(tmp_path, schedule):
    settings = {"lr_schedule": schedule, "warmup_steps": 0, "log_every": 1}
    trainer(tmp_path / "whole", steps=6, **settings).run()
    trainer(tmp_path / "cut", steps=3, **settings).run()
    before = raw(tmp_path / "cut" / "checkpoints" / "step-00000003")["/weights/network/conv.weight"]
    longer = trainer(tmp_path / "cut", steps=6, checkpoint_every=4, **settings)
    longer.run()
    after = raw(longer.folder.checkpoint(4))["/weights/network/conv.weight"]
    assert (after - before).abs().max() > 1e-3  # Adam's steps are of the rate's size
    rates = [[line["lr/denoiser"] for line in log(tmp_path / name)[3:]] for name in ("whole", "cut")]
    assert rates[0] == rates[1]


def test_stages_that_others_build_on_are_not_extended(tmp_path):
    trainer(tmp_path, toy(stages=2), steps=4).run()
    recipe = (tmp_path / "recipe.json").read_text()
    for steps in (3, 6):
        with pytest.raises(
            RunFolderError, match=rf"first 1 stage\(s\) took 4 steps; .* {steps} now.*give the same steps"
        ):
            trainer(tmp_path, toy(stages=2), steps=steps)
    assert (tmp_path / "recipe.json").read_text() == recipe
    assert trainer(tmp_path, toy(stages=2), steps=4).run().name == "step-00000008"
    trainer(tmp_path / "one", steps=5).run()
    with pytest.raises(RunFolderError, match=r"has taken 5 steps; the recipe gives 4"):
        trainer(tmp_path / "one", steps=4)


def test_in_its_first_stage_a_run_of_several_may_be_extended(tmp_path, monkeypatch):
    whole = trainer(tmp_path / "whole", toy(stages=2), steps=6).run()
    _cut_off(monkeypatch, tmp_path / "cut", at=2, stages=2, steps=4)
    longer = trainer(tmp_path / "cut", toy(stages=2), steps=6).run()
    assert all(torch.equal(raw(whole)[k], raw(longer)[k]) for k in raw(whole))


def _cut_off(monkeypatch, out, *, at, kind=signal.SIGINT, stages=1, **changes):
    """Train until the process is sent a signal in step ``at``; return what is raised."""
    losses, count = ToyStage.losses, 0

    def interrupting(self, batch, step):
        nonlocal count
        count += 1
        if count == at:
            signal.raise_signal(kind)
        yield from losses(self, batch, step)

    run = trainer(out, toy(stages=stages), **changes)
    with monkeypatch.context() as patch:
        patch.setattr(ToyStage, "losses", interrupting)
        with pytest.raises(KeyboardInterrupt) as raised:
            run.run()
    return str(raised.value)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves_it(tmp_path, monkeypatch, kind):
    before = signal.getsignal(kind)
    said = _cut_off(monkeypatch, tmp_path, at=4, kind=kind)
    assert said == "The checkpoint of step 4 is kept; started again, the training goes on from there"
    assert trainer(tmp_path).folder.steps() == [4]
    assert signal.getsignal(kind) is before


def test_a_signal_to_all_processes_does_not_reach_those_that_read(tmp_path, monkeypatch):
    """As a terminal's Ctrl-C and a batch system's SIGTERM do."""

    class Slow(Noise):
        def read(self, index, draw):
            time.sleep(0.02)
            return super().read(index, draw)

    losses = ToyStage.losses

    def interrupting(self, batch, step):
        if step.index == 2:
            readers = [str(process.pid) for process in multiprocessing.active_children()]
            for kind in ("-TERM", "-INT"):  # from elsewhere: a reader that its own parent ends is no failure
                subprocess.run(["kill", kind, *readers], check=True)
            time.sleep(0.2)
            signal.raise_signal(signal.SIGTERM)
        yield from losses(self, batch, step)

    monkeypatch.setattr(ToyStage, "losses", interrupting)
    run = trainer(tmp_path, data=Slow(), num_workers=2)
    with pytest.raises(KeyboardInterrupt, match="step 3 is kept"):
        run.run()


def _record(folder):
    return json.loads((folder / "model" / "vidgen.json").read_text())["training"]


def test_checkpoints_say_how_far_the_training_is(tmp_path, monkeypatch):
    _cut_off(monkeypatch, tmp_path, at=2, stages=2, steps=4)
    data = {"name": "Noise", "videos": 5}
    stages = [{"name": "denoiser", "step": 2, "steps": 4}, {"name": "scale", "step": 0, "steps": 4}]
    assert _record(tmp_path / "checkpoints/step-00000002") == {
        "stages": stages,
        "finished": False,
        "data": data,
    }
    run = trainer(tmp_path, toy(stages=2), steps=4)
    run.run()
    for name, step, finished in (("step-00000004", 0, False), ("step-00000008", 4, True)):
        found = _record(tmp_path / "checkpoints" / name)
        assert found["finished"] is finished
        assert [stage["step"] for stage in found["stages"]] == [4, step]
    assert str(run.strategy.training_record) == "finished: denoiser 4 steps, scale 4 steps"


def test_data_are_named_without_their_place(tmp_path):
    data = RECIPE.data.changed(videos=3)
    run = Trainer(replace(RECIPE, data=data), tmp_path, strategy=toy(), progress=False, device="cpu")
    assert run._data == {"name": "shapes", "videos": 3}


def test_resume_within_a_later_stage(tmp_path):
    whole = trainer(tmp_path / "whole", toy(stages=2), keep_checkpoints=9).run()
    trainer(tmp_path / "cut", toy(stages=2), keep_checkpoints=9).run()
    for step in (22, 24):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-000000{step}")
    resumed = trainer(tmp_path / "cut", toy(stages=2), keep_checkpoints=9).run()
    assert all(torch.equal(raw(whole)[k], raw(resumed)[k]) for k in raw(whole))


def test_gradients_are_clipped_and_weight_decay_and_warm_up_count(tmp_path):
    plain = weights(trainer(tmp_path / "plain", steps=3, ema_decay=None).run())["conv.weight"]
    for name, change in {
        "clip": {"max_grad_norm": 1e-9},
        "decay": {"weight_decay": 0.5},
        "warmup": {"warmup_steps": 3},
    }.items():
        other = weights(trainer(tmp_path / name, steps=3, ema_decay=None, **change).run())["conv.weight"]
        assert (other - plain).abs().max() > 1e-4


def test_none_means_no_clipping(tmp_path, monkeypatch):
    limits, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda p, limit: (limits.append(limit), clip(p, limit))[1]
    )
    for limit in (None, 0.5):
        trainer(tmp_path / f"{limit}", steps=1, max_grad_norm=limit).run()
    assert limits == [float("inf"), 0.5]


def test_micro_batches_accumulate_to_the_same_gradient(tmp_path):
    whole = trainer(tmp_path / "whole", steps=3).run()
    parts = trainer(tmp_path / "parts", steps=3, micro_batch_size=1).run()
    for key, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[key], value, rtol=1e-4, atol=1e-6)


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    losses = ToyStage.losses

    def broken(self, batch, step):
        for loss in losses(self, batch, step):
            yield Loss(loss.optimizer, loss.value * (float("nan") if step.index == 7 else 1.0))

    monkeypatch.setattr(ToyStage, "losses", broken)
    with pytest.raises(
        TrainingError, match=r"nan at step 7.*checkpoint of step 5 is kept.*Lower learning_rate"
    ):
        trainer(tmp_path).run()
    monkeypatch.undo()
    trainer(tmp_path).run()  # and it can go on from there


def test_gradient_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path, monkeypatch):
    losses = ToyStage.losses

    def broken(self, batch, step):
        for loss in losses(self, batch, step):
            (weight, *_) = self.strategy.parameters_of("network")
            # Its value is 0, its gradient is not a number.
            bad = torch.where(weight > 1e9, weight, weight * 0).sqrt().sum() * 0
            yield Loss(loss.optimizer, loss.value + (bad if step.index == 4 else 0.0))

    monkeypatch.setattr(ToyStage, "losses", broken)
    with pytest.raises(TrainingError, match=r"gradient norm of stage 'denoiser' is nan at step 4"):
        trainer(tmp_path, checkpoint_every=4).run()
    state = raw(tmp_path / "checkpoints" / "step-00000004")
    assert all(value.isfinite().all() for key, value in state.items() if "random" not in key)


def test_a_loss_leaves_nothing_in_what_another_optimiser_trains(tmp_path, monkeypatch):
    """As in adversarial training: the second loss must not descend the first one's gradient."""
    seen = []

    def optimizers(self):
        weight, bias = self.strategy.parameters_of("network")
        return (OptimizerGroup("a", (weight,)), OptimizerGroup("b", (bias,)))

    def losses(self, batch, step):
        weight, bias = self.strategy.parameters_of("network")
        yield Loss("a", 1000 * bias.sum() + weight.sum())
        seen.append(None if bias.grad is None else bias.grad.abs().max())
        yield Loss("b", bias.square().sum())

    monkeypatch.setattr(ToyStage, "optimizers", optimizers)
    monkeypatch.setattr(ToyStage, "losses", losses)
    trainer(tmp_path, steps=2).run()
    assert all(left is None or left == 0 for left in seen)


def test_losses_must_name_an_optimiser_and_reach_it(tmp_path, monkeypatch):
    def losses(name):
        def yielding(self, batch, step):
            weight, _ = self.strategy.parameters_of("network")
            yield Loss(name, weight.square().sum())

        return yielding

    monkeypatch.setattr(ToyStage, "losses", losses("denoise"))
    with pytest.raises(
        UnknownNameError, match=r"optimiser of stage 'denoiser' 'denoise'. Did you mean 'denoiser'"
    ):
        trainer(tmp_path / "a").run()
    parameters = Toy.parameters_of
    monkeypatch.setattr(
        ToyStage,
        "optimizers",
        lambda self: (OptimizerGroup("other", parameters(self.strategy, "network")[1:]),),
    )
    monkeypatch.setattr(ToyStage, "losses", losses("other"))
    with pytest.raises(
        TrainingError, match=r"'other' in stage 'denoiser' gave none of its parameters a gradient"
    ):
        trainer(tmp_path / "b").run()


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(tmp_path):
    trainer(tmp_path, steps=7, keep_checkpoints=9).run()
    (tmp_path / "samples").mkdir()
    ours = [
        ".recipe.json.77.tmp",
        ".log.jsonl.tmp",
        "..holder.json.77.tmp",
        "checkpoints/.step-00000009.tmp",
        "checkpoints/step-00000007/.model.tmp",
        "checkpoints/step-00000007/.model.old",
        "samples/.step-00000009.old",
    ]
    theirs = [".notes.tmp", "checkpoints/.best.old"]
    for name in (*ours, *theirs):
        path = tmp_path / name
        path.mkdir() if "step" in name else path.write_text("x")
    last = tmp_path / "checkpoints" / "step-00000005"
    (last / "model").rename(last / ".model.old")  # as one who was killed while replacing it leaves it
    trainer(tmp_path, keep_checkpoints=9).run()
    assert not any((tmp_path / name).exists() for name in ours)
    assert all((tmp_path / name).exists() for name in theirs)
    assert sorted(path.name for path in last.iterdir()) == ["model", "state"]


def test_state_of_another_format_is_refused(tmp_path):
    file = trainer(tmp_path, steps=2).run() / "state" / "trainer.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 1', 1))
    with pytest.raises(
        CheckpointError, match=r"has state format 1; expected 2. Resume with the vidgen that wrote"
    ):
        trainer(tmp_path).run()


class LearntCodec(PixelCodec):
    """Has a weight, so that its latents are worth keeping; counts what it encodes."""

    def __init__(self, patch=2):
        super().__init__(patch=patch)
        self.scale, self.encoded = nn.Parameter(torch.tensor(0.7)), 0

    def encode_frames(self, frames):
        self.encoded += len(frames)
        return super().encode_frames(frames) * self.scale


def test_latents_from_the_cache_train_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))
    losses = ToyStage.losses

    def through_latents(self, batch, step):
        s, encode = self.strategy, self.strategy.codec.encode
        latents = s.latents(batch)
        s.codec.encode = lambda clip: latents
        try:
            (loss,) = losses(self, batch, step)
        finally:
            s.codec.encode = encode
        yield loss

    monkeypatch.setattr(ToyStage, "losses", through_latents)
    monkeypatch.setattr(ToyStage, "needs_pixels", False)
    results, encoded = [], []
    for name, cached in (("plain", False), ("cold", True), ("warm", True)):
        strategy = toy()
        strategy.modules["codec"] = strategy.codec = LearntCodec()
        run = trainer(
            tmp_path / name,
            strategy,
            data=open_dataset(RECIPE.data),
            cache_latents=cached,
            validation=0.4,
            validate_every=3,
            num_workers=0,
        )
        results.append((raw(run.run()), [line["validation/loss"] for line in log(tmp_path / name)]))
        encoded.append(strategy.codec.encoded)
    assert all(torch.equal(results[1][0][key], value) for key, value in results[2][0].items())
    assert results[1][1] == results[2][1]
    for key, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][key], value, rtol=1e-4, atol=1e-6)
    assert encoded[2] < 10 < encoded[1] < encoded[0] / 2  # the probe that names the codec, and nothing else


def test_torn_log_and_foreign_folders_do_not_stop_a_resume(tmp_path):
    trainer(tmp_path, steps=7).run()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 8, "st')
    (tmp_path / "checkpoints" / "step-best").mkdir()
    trainer(tmp_path).run()
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [3, 6, 7, 9, 12]


def test_log_of_a_run_without_checkpoint_is_not_kept(tmp_path):
    trainer(tmp_path, steps=3).folder.log({"step": 1})
    trainer(tmp_path, steps=3).run()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_device_that_is_not_there_is_refused(tmp_path, device):
    with pytest.raises(InvalidArgumentError, match=device):
        Trainer(RECIPE, tmp_path / "run", strategy=toy(), progress=False, device=device)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    trainer(tmp_path / "run").run()
    with pytest.raises(
        CheckpointError, match=r"another recipe \(training.learning_rate: 0.01 there, 0.1 now\)"
    ):
        trainer(tmp_path / "run", learning_rate=0.1)
    with pytest.raises(CheckpointError, match="already holds a run at step 12"):
        Trainer(RECIPE, tmp_path / "run", strategy=toy(), resume=False, progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match=r"holds no recipe.json"):
        trainer(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_damaged_state_is_named(tmp_path):
    last = trainer(tmp_path).run()
    (last / "state" / "tensors.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(CheckpointError, match="no complete training state"):
        trainer(tmp_path).run()


def test_every_epoch_visits_every_clip_once_and_processes_share_the_batch():
    sampler = StepSampler(5, seed=3, batch_size=4, steps=range(10), rank=0, world=1)
    keys = [key for step in sampler for key in step]
    for epoch in range(8):
        assert sorted(index for index, draw in keys if draw == epoch) == list(range(5))
    orders = [[index for index, draw in keys if draw == epoch] for epoch in range(8)]
    assert len({tuple(order) for order in orders}) > 4
    halves = [list(StepSampler(5, 3, 4, range(10), rank, 2)) for rank in (0, 1)]
    assert [key for a, b in zip(*halves, strict=True) for key in (*a, *b)] == keys
    later = [key for step in StepSampler(5, 3, 4, range(6, 10), 0, 1) for key in step]
    assert later == keys[24:]
    with pytest.raises(InvalidArgumentError, match="multiple of the 3"):
        StepSampler(5, 0, 4, range(1), 0, 3)


def test_every_optimiser_has_its_own_loss_in_the_log(tmp_path, monkeypatch):
    def optimizers(self):
        weight, bias = self.strategy.parameters_of("network")
        return (OptimizerGroup("critic", (bias,)), OptimizerGroup("generator", (weight,)))

    losses = ToyStage.losses

    def three(self, batch, step):
        for name, factor in (("critic", 1), ("critic", 2), ("generator", 10)):
            (loss,) = losses(self, batch, step)
            yield Loss(name, factor * loss.value)

    monkeypatch.setattr(ToyStage, "optimizers", optimizers)
    monkeypatch.setattr(ToyStage, "losses", three)
    settings = {"steps": 1, "micro_batch_size": 2, "learning_rate": 1e-12, "validation": 0.4}
    trainer(tmp_path, validate_every=1, validation_batches=1, log_every=1, **settings).run()
    (line,) = log(tmp_path)
    for prefix in ("", "validation/"):
        found = [line[f"{prefix}loss{name}"] for name in ("", "/critic", "/generator")]
        assert found == pytest.approx([found[0], found[0] * 3 / 13, found[0] * 10 / 13], rel=1e-4)


def test_a_given_strategy_learns_the_words_that_its_new_captions_have(tmp_path):
    config = VDMConfig(
        sample_frames=4,
        sample_size=(16, 16),
        words=("clip", "red"),
        max_words=1,
        widths=(16, 16),
        head_dim=16,
        context=1,
    )
    strategy = checkpoint.build(VDM, config)
    state = torch.get_rng_state()
    run = trainer(tmp_path, strategy, steps=1)
    assert torch.equal(torch.get_rng_state(), state)
    words = ("0", "1", "2", "3", "4", "clip", "red")
    assert (run.strategy.config.words, run.strategy.config.max_words) == (words, 2)
    folder = run.run()
    again = trainer(tmp_path, checkpoint.build(VDM, config), steps=1)  # the same words again
    assert again.run() == folder
    loaded = checkpoint.load_strategy(tmp_path, device="cpu")
    assert loaded.config.words == tuple(loaded.text_encoder.config.words) == words
    loaded.text_encoder.check(["clip 3", "red"])


def test_a_strategy_without_stages_is_not_trained(tmp_path):
    strategy = toy()
    strategy.stages = tuple
    with pytest.raises(InvalidArgumentError, match="'toy' has no stages of training"):
        trainer(tmp_path / "run", strategy)
    assert not (tmp_path / "run").exists()
