"""A stranger's checkpoint: whatever stands in it, it loads as it was saved or is refused, in seconds."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from safetensors.torch import load_file, save_file

from vidgen import checkpoint, load
from vidgen.components import at_most
from vidgen.errors import CheckpointError, SchedulerError, UnknownNameError, VidgenError
from vidgen.weights import load_weights, write_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture(autouse=True)
def quick():
    """Nothing of this takes long, on any machine: nothing is built of what is refused."""
    began = time.process_time()
    yield
    assert time.process_time() - began < 20


# Configurations that describe other networks than the weights are of.


@pytest.mark.parametrize(
    ("component", "changes"),
    [
        ("unet", {"block_out_channels": [20_000, 20_000]}),
        ("unet", {"layers_per_block": 10**8}),
        ("unet", {"cross_attention_dim": 10**9}),
        ("unet", {"down_block_types": ["DownBlock2D"] * 2000}),
        ("unet", {"transformer_layers_per_block": 10**8}),
        ("unet", {"block_out_channels": [10**18, 10**18]}),
        ("unet", {"norm_num_groups": 0}),
        ("temporal", {"conv_sites": {"conv_in": 20_000}}),
        ("text_encoder", {"width": 20_000}),
        ("text_encoder", {"layers": 10**8}),
        ("text_encoder", {"max_words": 10**10}),
        ("text_encoder", {"words": None}),
        ("text_encoder", {"width": "wide"}),
        ("text_encoder", {"width": -4}),
        ("text_encoder", {"width": float("inf")}),
        ("text_encoder", {"width": 10**4000}),
    ],
)
def test_what_the_weights_do_not_fit_is_never_built(folder, component, changes):
    edit(folder / component / "config.json", **changes)
    with pytest.raises(CheckpointError, match=r"does not fit|does not describe|describes a network of more"):
        load(folder, device="cpu")


def test_a_network_of_other_sizes_is_named_before_its_weights_are_read(folder, monkeypatch):
    edit(folder / "text_encoder" / "config.json", width=32)
    monkeypatch.setattr("vidgen.components.loading.read_tensors", lambda file: pytest.fail(f"{file} was read"))
    with pytest.raises(
        CheckpointError, match=r"(?s)text_encoder.* does not fit VocabularyEncoder: .*size mismatch"
    ):
        checkpoint.load_strategy(folder, device="cpu", codec=torch.nn.Identity(), unet=torch.nn.Identity())


def test_the_count_of_parts_is_this_threads_alone():
    def other():
        torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(50)))

    with at_most(4, "the file"):
        torch.nn.Linear(2, 2)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with pytest.raises(CheckpointError, match="the file describes a network of more parameters"):
            other()
    other()


# Weights without values.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_weights_that_are_not_finite_are_named_when_loaded(folder, component, value):
    file = folder / component / WEIGHTS
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=rf"holds NaN or infinite values in 1 of \d+ tensors \('{name}'"):
        load(folder, device="cpu")


def test_weights_that_half_precision_overflows_are_named(strategy, tmp_path):
    made = checkpoint.build(type(strategy), strategy.config, seed=1)
    with torch.no_grad():
        made.modules["unet"].conv_in.weight.view(-1)[0] = 1e6
    folder = checkpoint.save_strategy(made.to(dtype=torch.float16), tmp_path / "half")
    with pytest.raises(CheckpointError, match="half precision overflowed"):
        load(folder, device="cpu")


class Masked(torch.nn.Module):
    """A table that is meant to hold infinity."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))


def test_tables_that_are_meant_to_hold_infinity_are_taken(tmp_path):
    write_tensors(tmp_path / "w.safetensors", Masked().state_dict())
    load_weights(Masked(), tmp_path / "w.safetensors")


# The noise process.


def test_a_flow_in_place_of_the_process_is_refused(folder):
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    with pytest.raises(
        CheckpointError, match=r"another noise process .*kind 'flow', was 'variance_preserving'"
    ):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type 'sample', was"),
        ({"beta_schedule": "linear"}, "beta_schedule 'linear', was"),
        ({"beta_end": 0.5}, "beta_end 0.5, was 0.02"),
        ({"num_train_timesteps": 500}, "num_train_timesteps 500, was 1000"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr True, was False"),
        ({"trained_betas": [0.1] * 1000}, "trained_betas .*, was None"),
    ],
)
def test_another_process_than_the_trained_one_is_refused(folder, changes, message):
    edit(folder / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(CheckpointError, match=rf"another noise process .*{message}.*scheduler=\.\.\."):
        load(folder, device="cpu")


def test_another_solver_of_the_same_process_may_stand_in_the_file(folder):
    config = DDIMScheduler.from_pretrained(folder / "scheduler").config
    UniPCMultistepScheduler.from_config(config).save_pretrained(folder / "scheduler")
    loaded = checkpoint.load_strategy(folder, device="cpu")
    assert type(loaded.scheduler) is UniPCMultistepScheduler


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_timesteps": 10**10},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": 1.5},
        {"num_train_timesteps": None},
        {"num_train_timesteps": True},
        {"beta_schedule": "nothing"},
        {"beta_start": "much", "beta_schedule": "linear"},
        {"trained_betas": {"a": 1}},
        {"trained_betas": [2.0] * 1000},
        {"beta_start": float("nan"), "beta_schedule": "linear"},
        {"_class_name": "FlaxDDIMScheduler"},
        {"_class_name": ["DDIMScheduler"]},
        {"_class_name": "os.system"},
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_schedulers_that_cannot_be_are_refused(folder, changes, recorded):
    """Also where the checkpoint is of a version that did not note the process."""
    edit(folder / "scheduler" / "scheduler_config.json", **changes)
    if not recorded:
        index = json.loads((folder / "vidgen.json").read_text())
        del index["process"]
        (folder / "vidgen.json").write_text(json.dumps({**index, "format": 1}))
    with pytest.raises((CheckpointError, UnknownNameError, SchedulerError)):
        load(folder, device="cpu")


# JSON.

DEEP = "[" * 100_000 + "]" * 100_000
DEEP_ENOUGH = "[" * 500 + "]" * 500
LONG = "9" * 5_000


@pytest.mark.parametrize("value", [DEEP, DEEP_ENOUGH, LONG, '{"a":' * 50_000 + "1" + "}" * 50_000])
@pytest.mark.parametrize(
    "name",
    ["vidgen.json", "unet/config.json", "scheduler/scheduler_config.json", f"unet/{WEIGHTS}.index.json"],
)
def test_json_without_end_is_an_error_of_the_file(folder, name, value):
    (folder / name).write_text(f'{{"x": {value}}}')
    with pytest.raises(CheckpointError, match=rf"{os.path.basename(name)}"):  # noqa: PTH119
        load(folder, device="cpu")


@pytest.mark.parametrize("value", [None, 3, "text", [], [1], True, 1e300, {"a": {"b": []}}, -1, "9" * 4000])
@pytest.mark.parametrize("field", ["format", "strategy", "config", "components", "process", "training"])
def test_values_of_another_type_are_refused_or_of_no_account(folder, field, value):
    edit(folder / "vidgen.json", **{field: value})
    if field in ("process", "training"):  # notes of the trainer, not needed to load
        with suppress(CheckpointError):
            load(folder, device="cpu")
    else:
        with pytest.raises(VidgenError):
            load(folder, device="cpu")


@pytest.mark.parametrize("value", [None, "text", [], [1], {"a": 1}, float("nan"), 1e300, -(10**4000)])
@pytest.mark.parametrize("field", ["sample_frames", "sample_size", "words", "prior", "window", "codec"])
def test_settings_of_another_type_never_end_in_a_raw_error(folder, field, value):
    index = json.loads((folder / "vidgen.json").read_text())
    index["config"][field] = value
    (folder / "vidgen.json").write_text(json.dumps(index))
    with suppress(CheckpointError, UnknownNameError):
        load(folder, device="cpu")


# Modes.


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_are_as_readable_as_the_umask_says(strategy, tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = checkpoint.save_strategy(strategy, tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(folder, dtype):
    """PyTorch would cast them: whole numbers in place of real ones are zeros, mostly."""
    file = folder / "unet" / WEIGHTS
    write_tensors(file, {name: value.to(dtype) for name, value in load_file(file).items()})
    with pytest.raises(CheckpointError, match=f"{dtype!s}.*float16, bfloat16 or float32"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken(folder, dtype):
    file = folder / "unet" / WEIGHTS
    saved = {name: value.to(dtype) for name, value in load_file(file).items()}
    write_tensors(file, saved)
    loaded = load(folder).strategy.modules["unet"].state_dict()
    assert saved
    assert all(torch.equal(loaded[name], value.float()) for name, value in saved.items())


def test_a_counter_may_be_stored_as_a_real_number_but_no_fraction(tmp_path):
    """A bundled model has one dtype throughout, its batch norms' counters too."""
    module = torch.nn.BatchNorm1d(2)
    module.num_batches_tracked += 7
    for stored, fits in ((torch.tensor(7.0).half(), True), (torch.tensor(7.5), False)):
        write_tensors(tmp_path / WEIGHTS, {**module.state_dict(), "num_batches_tracked": stored})
        fresh = torch.nn.BatchNorm1d(2)
        if fits:
            load_weights(fresh, tmp_path / WEIGHTS)
            assert fresh.num_batches_tracked == 7
        else:
            with pytest.raises(CheckpointError, match="num_batches_tracked"):
                load_weights(fresh, tmp_path / WEIGHTS)
