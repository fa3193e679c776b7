"""Mixed precision: networks in half precision, everything that is kept in float32, fp16's skipped steps."""

from __future__ import annotations

import json
import platform
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from trainings import log, raw, trainer, weights

from toy import ToyStage, toy
from vidgen.errors import CheckpointError, InvalidArgumentError, TrainingError
from vidgen.shapes.bench.build import model_recipe
from vidgen.trainable import Loss, OptimizerGroup
from vidgen.training import precision as precision_module
from vidgen.training import trainer as trainer_module
from vidgen.training.precision import Precision, computes_bf16


@pytest.fixture
def on_cpu(monkeypatch):
    """Let fp16 train on the CPU: slow and of no use, but the same steps as on a GPU."""
    monkeypatch.setattr(precision_module, "check_precision", lambda *_: None)


def test_fp16_without_cuda_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"'fp16' on device 'cpu'; fp16 needs a CUDA device.*'bf16'"):
        trainer(tmp_path / "run", mixed_precision="fp16")
    assert not (tmp_path / "run").exists()


@pytest.fixture(params=[True, False], ids=["native", "emulated"])
def native(request, monkeypatch):
    """A machine that computes in bfloat16 itself, and one that does not."""
    monkeypatch.setattr(trainer_module, "computes_bf16", lambda device: request.param)
    return request.param


def precision_in(out):
    return json.loads((out / "recipe.json").read_text())["training"]["mixed_precision"]


def test_auto_is_bf16_where_it_is_native_and_is_kept_with_the_run(tmp_path, caplog, native):
    caplog.set_level("INFO", "vidgen")
    strategy, seen = toy(), set()
    strategy.modules["network"].conv.register_forward_hook(lambda *call: seen.add(call[-1].dtype))
    run = trainer(tmp_path / "run", strategy, mixed_precision="auto", steps=2)
    chosen = "bf16" if native else "no"
    assert run.config.mixed_precision == run.recipe.training.mixed_precision == chosen
    assert f"training in mixed_precision={chosen!r} on device 'cpu'" in caplog.text
    assert "slower" not in caplog.text
    run.run()
    assert seen == {torch.bfloat16 if native else torch.float32}
    assert precision_in(tmp_path / "run") == chosen


@pytest.mark.parametrize("begun", ["bf16", "no"])
def test_auto_goes_on_with_what_the_run_was_begun_in(tmp_path, caplog, native, begun):
    """Begun on another machine, or by a recipe that named it."""
    whole = trainer(tmp_path / "whole", toy(dropout=0.2), mixed_precision=begun).run()
    trainer(tmp_path / "cut", toy(dropout=0.2), mixed_precision=begun, steps=7).run()
    caplog.clear()
    resumed = trainer(tmp_path / "cut", toy(dropout=0.2), mixed_precision="auto").run()
    assert precision_in(tmp_path / "cut") == begun
    assert all(torch.equal(raw(whole)[key], raw(resumed)[key]) for key in raw(whole) if "log" not in key)
    slow = begun == "bf16" and not native
    assert ("begin another run" in caplog.text) == slow


def test_a_run_that_trained_nothing_yet_is_settled_anew(tmp_path, monkeypatch):
    for known, kept in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(trainer_module, "computes_bf16", lambda device, known=known: known)
        trainer(tmp_path, mixed_precision="auto")
        assert precision_in(tmp_path) == kept


def test_auto_does_not_go_on_in_what_the_device_cannot(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(precision_module, "check_precision", lambda *_: None)
        trainer(tmp_path, mixed_precision="fp16", steps=2).run()
    with pytest.raises(InvalidArgumentError, match=r"'fp16' on device 'cpu'.*begun in fp16"):
        trainer(tmp_path, mixed_precision="auto")


def test_a_run_in_another_precision_than_a_named_one_is_refused(tmp_path, native):
    trainer(tmp_path, mixed_precision="auto", steps=2).run()
    other = "no" if native else "bf16"
    with pytest.raises(CheckpointError, match=rf"mixed_precision: '\w+' there, '{other}' now"):
        trainer(tmp_path, mixed_precision=other)


def test_emulated_bf16_is_said_to_be_slow(tmp_path, caplog, native):
    trainer(tmp_path / "bf16", mixed_precision="bf16")
    assert ("'auto', or 'no'" in caplog.text) == (not native)
    caplog.clear()
    trainer(tmp_path / "no", mixed_precision="no")
    assert not caplog.text


def test_one_process_that_emulates_bf16_decides_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "computes_bf16", lambda device: True)
    asked = []

    def another_emulates(self, flag):
        asked.append(flag)
        return True

    monkeypatch.setattr(trainer_module.Processes, "any", another_emulates)
    assert trainer(tmp_path, mixed_precision="auto").config.mixed_precision == "no"
    assert asked == [False]


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "known"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_f": False, "avx512_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, False),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
        ({"architecture": "s390x"}, False),
    ],
)
def test_which_processors_compute_bf16(monkeypatch, capabilities, known):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert computes_bf16(CPU) == known
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # no kernels for it
    assert not computes_bf16(CPU)


def test_releases_that_tell_less_of_the_processor(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for told in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda told=told: told, raising=False)
        assert computes_bf16(CPU) == told
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert not computes_bf16(CPU)


def test_this_processor_is_what_its_system_says():
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        pytest.skip("no /proc/cpuinfo here")
    if "x86_64" not in platform.machine() or not torch.backends.mkldnn.is_available():
        pytest.skip("another processor")
    assert computes_bf16(CPU) == ("avx512_bf16" in flags or "amx_bf16" in flags)


@pytest.mark.parametrize("supported", [True, False])
def test_which_gpus_compute_bf16(monkeypatch, supported):
    asked = []

    def is_bf16_supported(including_emulation=True):
        asked.append(including_emulation)
        return supported

    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert computes_bf16(torch.device("cuda:1")) == supported
    assert asked == [False]
    assert not computes_bf16(torch.device("mps"))


def test_bundled_recipes_leave_the_precision_to_the_machine():
    for name in ("shapes/codec", "shapes/classifier", "shapes/ldm", "shapes/vdm", "shapes/glober"):
        assert model_recipe(name).training.mixed_precision == "auto"


def test_bf16_trains_in_bf16_keeps_float32_and_resumes_exactly(tmp_path, monkeypatch):
    strategy, seen = toy(dropout=0.2), set()
    strategy.modules["network"].conv.register_forward_hook(lambda *call: seen.add(call[-1].dtype))
    whole = trainer(tmp_path / "whole", strategy, mixed_precision="bf16", log_every=1).run()
    assert seen == {torch.bfloat16}
    state = raw(whole)
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}
    plain = trainer(tmp_path / "plain", toy(dropout=0.2), log_every=1).run()
    full = raw(plain)["/weights/network/conv.weight"]
    difference = (state["/weights/network/conv.weight"] - full).abs().max()
    assert 0 < difference < 0.02  # 12 steps of 0.01: the rounding of bf16, not another training
    assert abs(log(tmp_path / "whole")[-1]["loss"] - log(tmp_path / "plain")[-1]["loss"]) < 0.01
    trainer(tmp_path / "cut", toy(dropout=0.2), mixed_precision="bf16", steps=7).run()
    resumed = trainer(tmp_path / "cut", toy(dropout=0.2), mixed_precision="bf16").run()
    assert all(torch.equal(raw(resumed)[key], value) for key, value in state.items() if "log" not in key)


def test_precisions_may_differ_within_one_process(tmp_path):
    kinds = []
    for kind in ("no", "bf16", "no"):
        strategy = toy()
        strategy.modules["network"].conv.register_forward_hook(lambda *call: kinds.append(call[-1].dtype))
        trainer(tmp_path / f"{len(kinds)}", strategy, steps=1, mixed_precision=kind).run()
    assert kinds == [torch.float32, torch.bfloat16, torch.float32]


def test_loss_in_half_precision_is_refused(tmp_path, monkeypatch):
    losses = ToyStage.losses

    def careless(self, batch, step):
        for loss in losses(self, batch, step):
            yield Loss(loss.optimizer, loss.value.bfloat16())

    monkeypatch.setattr(ToyStage, "losses", careless)
    with pytest.raises(InvalidArgumentError, match=r"'denoiser' is torch.bfloat16; expected.*call .float\(\)"):
        trainer(tmp_path, mixed_precision="bf16").run()


def test_a_weight_used_without_gradients_first_still_learns():
    """As when a critic sees the generator's output before the generator learns from the critic."""
    layer, precision = nn.Linear(3, 3), Precision("bf16", torch.device("cpu"), ["a"])
    with precision.autocast():
        with torch.no_grad():
            layer(torch.ones(1, 3))
        loss = layer(torch.ones(1, 3)).float().square().sum()
    precision.backward("a", loss)
    assert layer.weight.grad.abs().sum() > 0


class Adversary:
    """Two optimisers in one stage; the critic's gradients overflow at the steps in ``at``."""

    def __init__(self, monkeypatch, at=()):
        self.at, self.norms = at, {}

        def optimizers(stage):
            weight, bias = stage.strategy.parameters_of("network")
            return (OptimizerGroup("critic", (bias,), betas=(0.0, 0.9)), OptimizerGroup("generator", (weight,)))

        losses = ToyStage.losses

        def pair(stage, batch, step):
            big = 1e37 if step.index in self.at else 1.0  # finite, until it is multiplied by the scale
            for loss in losses(stage, batch, step):
                yield Loss("critic", loss.value * big)
            for loss in losses(stage, batch, step):
                yield Loss("generator", loss.value)

        monkeypatch.setattr(ToyStage, "optimizers", optimizers)
        monkeypatch.setattr(ToyStage, "losses", pair)


def test_fp16_takes_the_same_steps_with_scaled_gradients(tmp_path, monkeypatch, on_cpu):
    Adversary(monkeypatch)
    for kind in ("fp16", "no"):
        trainer(tmp_path / kind, mixed_precision=kind, micro_batch_size=2, log_every=1).run()
    half, full = log(tmp_path / "fp16"), log(tmp_path / "no")
    for a, b in zip(half, full, strict=True):
        for name in ("loss", "grad_norm/critic", "grad_norm/generator"):  # norms of unscaled gradients
            assert a[name] == pytest.approx(b[name], rel=0.02)
        assert a["loss_scale/critic"] == a["loss_scale/generator"] == 65536
    last = "checkpoints/step-00000012"
    for key, value in weights(tmp_path / "no" / last).items():
        torch.testing.assert_close(weights(tmp_path / "fp16" / last)[key], value, rtol=0.05, atol=0.01)


def test_an_overflow_skips_that_optimiser_and_no_other(tmp_path, monkeypatch, on_cpu):
    adversary = Adversary(monkeypatch)
    run = trainer(tmp_path / "few", mixed_precision="fp16", steps=4, checkpoint_every=1, keep_checkpoints=9)
    adversary.at = (1, 2)
    states = [raw(run.run().parent / f"step-0000000{step}") for step in (1, 2, 3, 4)]
    bias, weight = ("/weights/network/conv.bias", "/weights/network/conv.weight")
    moved = [[not torch.equal(a[k], b[k]) for a, b in pairwise(states)] for k in (bias, weight)]
    assert moved == [[False, False, True], [True, True, True]]
    read = json.loads((run.folder.checkpoint(4) / "state" / "trainer.json").read_text())
    state = plain(read["state"])["running"]
    assert state["precision"]["critic"]["scale"] == 65536 / 4
    assert state["precision"]["generator"]["scale"] == 65536
    assert state["schedules"]["critic"]["last_epoch"] == 2
    assert state["schedules"]["generator"]["last_epoch"] == 4
    assert state["ema"]["optimization_step"] == 4  # the generator moved each time


def plain(value):
    """Undo the pairs by which the state says its mappings."""
    if isinstance(value, dict) and "__items__" in value:
        return {key: plain(item) for key, item in value["__items__"]}
    return [plain(item) for item in value] if isinstance(value, list) else value


def test_a_skipped_step_moves_no_average_and_no_schedule(tmp_path, monkeypatch, on_cpu):
    losses = ToyStage.losses

    def overflow(self, batch, step):
        for loss in losses(self, batch, step):
            yield Loss(loss.optimizer, loss.value * (1e37 if step.index in (1, 2) else 1.0))

    monkeypatch.setattr(ToyStage, "losses", overflow)
    last = trainer(tmp_path, mixed_precision="fp16", steps=4, log_every=1).run()
    state = plain(json.loads((last / "state" / "trainer.json").read_text())["state"])["running"]
    assert state["ema"]["optimization_step"] == 2
    assert state["schedules"]["denoiser"]["last_epoch"] == 2
    lines = log(tmp_path)
    assert ["grad_norm/denoiser" in line for line in lines] == [True, False, False, True]
    assert [line["loss_scale/denoiser"] for line in lines] == [65536, 65536, 32768, 16384]


def test_fp16_resumes_with_its_scales(tmp_path, monkeypatch, on_cpu):
    Adversary(monkeypatch, at=(2, 9))
    whole = trainer(tmp_path / "whole", mixed_precision="fp16").run()
    trainer(tmp_path / "cut", mixed_precision="fp16", steps=7).run()
    resumed = trainer(tmp_path / "cut", mixed_precision="fp16").run()
    assert all(torch.equal(raw(whole)[key], raw(resumed)[key]) for key in raw(whole))
    scales = [
        plain(json.loads((last / "state" / "trainer.json").read_text())["state"])["running"]["precision"]
        for last in (whole, resumed)
    ]
    assert scales[0] == scales[1]
    assert scales[0]["critic"]["scale"] == 65536 / 4


def test_fp16_that_always_overflows_stops():
    weight = nn.Parameter(torch.ones(3))
    optimizer, precision = torch.optim.AdamW([weight]), Precision("fp16", torch.device("cpu"), ["a"])
    scales = []

    def overflow():
        for _ in range(99):
            scales.append(precision.scales()["a"])
            precision.backward("a", (weight * float("inf")).sum())
            precision.unscale("a", optimizer)
            assert not precision.step("a", optimizer)

    with pytest.raises(TrainingError, match=r"optimiser 'a' are not finite, however small.*'bf16'"):
        overflow()
    assert scales == [2.0 ** (16 - i) for i in range(31)]
    assert torch.equal(weight, torch.ones(3))
