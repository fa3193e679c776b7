"""Checkpoints: exact, safe, and loadable part by part."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from toy import ToyNetwork
from vidgen import checkpoint, load
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from vidgen.sampling import Sampler
from vidgen.strategies.vdm import VDM, VDMConfig

CONFIG = VDMConfig(
    sample_frames=4,
    sample_size=(16, 16),
    words=("circle", "red"),
    widths=(16, 32),
    head_dim=16,
    text_width=16,
    text_layers=1,
    context=1,
    pixel_mean=0.1,
    pixel_std=0.4,
)


@pytest.fixture(scope="module")
def strategy():
    built = checkpoint.build(VDM, CONFIG, seed=3)
    with torch.no_grad():  # so that no layer is zero, as at initialisation
        for p in built.parameters_of("unet", "temporal", "text_encoder"):
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    return built


@pytest.fixture
def folder(strategy, tmp_path):
    return checkpoint.save_strategy(strategy, tmp_path / "model")


def sample(sampler):
    sampler.set_progress_bar_config(disable=True)
    return sampler("red circle", seed=0, num_inference_steps=2, output_type="latent").frames


def test_loaded_strategy_is_bitwise_the_saved_one(strategy, folder):
    loaded = load(folder, device="cpu")
    assert loaded.strategy.config == CONFIG
    for name, module in strategy.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(loaded.strategy.modules[name].state_dict()[key], value)
    for module in strategy.modules.values():
        module.eval()
    assert torch.equal(sample(loaded), sample(Sampler(strategy)))


def test_every_component_loads_alone_with_its_diffusers_class(strategy, folder):
    for name, module in strategy.modules.items():
        alone = type(module).from_pretrained(folder, subfolder=name)
        for key, value in module.state_dict().items():
            assert torch.equal(alone.state_dict()[key], value)
    scheduler = type(strategy.scheduler).from_pretrained(folder, subfolder="scheduler")
    own = {k: v for k, v in strategy.scheduler.config.items() if not k.startswith("_")}
    assert {k: scheduler.config[k] for k in own} == own


def test_scheduler_is_part_of_the_checkpoint(strategy, tmp_path):
    other = checkpoint.build(VDM, CONFIG)
    other.scheduler = "UniPC"
    loaded = checkpoint.load_strategy(checkpoint.save_strategy(other, tmp_path / "m"), device="cpu")
    assert type(loaded.scheduler).__name__ == "UniPCMultistepScheduler"


def test_dtype_is_cast_on_request(folder):
    loaded = load(folder, device="cpu", dtype=torch.float64)
    assert {p.dtype for p in loaded.strategy.parameters_of("unet", "temporal")} == {torch.float64}


def test_saving_replaces_a_checkpoint_and_nothing_else(strategy, folder, tmp_path):
    checkpoint.save_strategy(strategy, folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("x")
    with pytest.raises(CheckpointError, match="is not overwritten"):
        checkpoint.save_strategy(strategy, tmp_path / "photos")
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_failed_save_leaves_the_old_checkpoint(strategy, folder, tmp_path, monkeypatch):
    before = (folder / "vidgen.json").read_text()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(type(strategy.scheduler), "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save_strategy(strategy, folder)
    assert (folder / "vidgen.json").read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


class Malicious:
    ran = False

    def __reduce__(self):
        return (exec, ("from test_checkpoint import Malicious; Malicious.ran = True",))


def test_pickle_is_never_loaded(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError, match=r"not a safetensors file.*it is not loaded"):
        load(folder, device="cpu")
    file.rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="other formats are never loaded"):
        load(folder, device="cpu")
    assert not Malicious.ran


def edit(folder, **changes):
    index = json.loads((folder / "vidgen.json").read_text())
    (folder / "vidgen.json").write_text(json.dumps({**index, **changes}))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"format": 99}, CheckpointError, "checkpoint format 99; this vidgen .* reads format 1"),
        ({"strategy": "vdn"}, UnknownNameError, "strategy 'vdn'. Did you mean 'vdm'"),
        ({"components": {}}, CheckpointError, "names nothing as its component 'codec'"),
        ({"components": {"codec": "os.system"}}, CheckpointError, "expected PixelCodec"),
        ({"config": {"widht": 3}}, UnknownNameError, "widht"),
    ],
)
def test_foreign_index_is_refused_by_name(folder, changes, error, message):
    edit(folder, **changes)
    with pytest.raises(error, match=message):
        load(folder, device="cpu")


def test_missing_things_are_named(folder, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load(tmp_path)
    (folder / "vidgen.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(folder)


def test_weights_of_another_shape_are_refused(folder):
    other = ToyNetwork()
    other.save_pretrained(folder / "text_encoder", safe_serialization=True)
    (folder / "text_encoder" / "config.json").write_text(
        json.dumps({"_class_name": "VocabularyEncoder", "words": ["red"], "width": 16, "layers": 1})
    )
    with pytest.raises(CheckpointError, match="does not fit VocabularyEncoder"):
        load(folder, device="cpu")


def test_building_leaves_ambient_random_state_alone():
    state = torch.get_rng_state()
    a, b, c = (checkpoint.build(VDM, CONFIG, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    key = "conv_in.weight"
    weights = [m.modules["unet"].state_dict()[key] for m in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_strategy_checks_its_components(strategy):
    with pytest.raises(InvalidArgumentError, match="component 'unet'; expected UNet2DConditionModel"):
        VDM(CONFIG, {**strategy.modules, "unet": ToyNetwork()}, strategy.scheduler)
