"""Checkpoints: exact, safe, and loadable part by part."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import nn

from toy import Toy, ToyNetwork, toy
from vidgen import checkpoint, load, plugins
from vidgen.checkpoint import index
from vidgen.codecs import load_codec
from vidgen.errors import CheckpointError, InvalidArgumentError, SchedulerError, UnknownNameError
from vidgen.frame_codec.task import FrameCodecConfig, FrameCodecTask
from vidgen.sampling import Sampler
from vidgen.strategies.vdm import VDM


def sample(sampler):
    sampler.set_progress_bar_config(disable=True)
    return sampler("red circle", seed=0, num_inference_steps=2, output_type="latent").frames


def test_loaded_strategy_is_bitwise_the_saved_one(strategy, folder, config, same):
    loaded = load(folder, device="cpu")
    assert loaded.strategy.config == config
    assert same(strategy, loaded.strategy)
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


def test_scheduler_is_part_of_the_checkpoint(config, tmp_path):
    other = checkpoint.build(VDM, config)
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
    with pytest.raises(CheckpointError, match=r"model cannot be written: disk full\."):
        checkpoint.save_strategy(strategy, folder)
    assert (folder / "vidgen.json").read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_what_cannot_be_saved_or_read_is_said_by_name(strategy, tmp_path, monkeypatch):
    """What the system refuses is an error of the checkpoint, with what it said."""
    (tmp_path / "file").write_text("mine")
    refused = {
        "file": "file is a file; expected a folder",
        "file/model": r"cannot be written: File exists \(.*/file\)\.",
    }
    for name, message in {**refused, "a" * 300: "cannot be written: File name too long"}.items():
        with pytest.raises(CheckpointError, match=message):
            Sampler(strategy).save_pretrained(tmp_path / name)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint: File name too long"):
        load("a" * 300)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"

    def closed(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", closed)
    with pytest.raises(CheckpointError, match=r"/model cannot be written: Permission denied \(.*\)\."):
        checkpoint.save_strategy(strategy, tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"/model' cannot be read as a checkpoint: Permission denied \("):
        load(tmp_path / "model")


def test_the_working_folder_is_a_source(strategy, folder, same, monkeypatch):
    monkeypatch.chdir(folder)
    assert same(strategy, load(".", device="cpu").strategy)


class Malicious:
    ran = False

    def __reduce__(self):
        return (exec, ("from test_store import Malicious; Malicious.ran = True",))


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
        (
            {"format": 99, "vidgen": "9.1"},
            CheckpointError,
            r"checkpoint format 99; this vidgen .* reads format 1, 2\. .*pip install 'vidgen>=9\.1'",
        ),
        ({"format": 0}, CheckpointError, r"checkpoint format 0.*pip install 'vidgen=="),
        ({"format": "1"}, CheckpointError, "checkpoint format '1'.*was not written by vidgen"),
        ({"format": True}, CheckpointError, "checkpoint format True"),
        ({"format": None}, CheckpointError, "checkpoint format None"),
        ({"strategy": None}, CheckpointError, "gives None as its 'strategy'; expected a str"),
        ({"config": [1]}, CheckpointError, r"gives \[1\] as its 'config'; expected a dict"),
        ({"strategy": "vdn"}, UnknownNameError, "strategy 'vdn'. Did you mean 'vdm'"),
        ({"components": {}}, CheckpointError, "names nothing as its component 'codec'"),
        ({"components": {"codec": "os.system"}}, CheckpointError, "expected Codec"),
        ({"config": {"widht": 3}}, UnknownNameError, "widht"),
    ],
)
def test_foreign_index_is_refused_by_name(folder, changes, error, message):
    edit(folder, **changes)
    with pytest.raises(error, match=message):
        load(folder, device="cpu")


def test_older_formats_are_migrated_step_by_step(strategy, folder, same, monkeypatch):
    """Format -1 had neither components nor today's name of the strategy; format 0 lacked the components."""
    whole = json.loads((folder / "vidgen.json").read_text())

    def name(found, where):
        assert found["format"] == -1
        return {**found, "format": 0, "strategy": found["model"]}

    def components(found, where):
        assert where == folder
        return {**found, "format": 1, "components": whole["components"]}

    monkeypatch.setattr(index, "_MIGRATIONS", {-1: name, 0: components, **index._MIGRATIONS})
    before = json.dumps({"format": -1, "model": "vdm", "config": whole["config"]})
    (folder / "vidgen.json").write_text(before)
    assert same(strategy, checkpoint.load_strategy(folder, device="cpu"))
    assert (folder / "vidgen.json").read_text() == before  # loading changes no file
    edit(folder, format=-2)
    with pytest.raises(CheckpointError, match=r"format -2; this vidgen .* reads format -1, 0, 1, 2"):
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


def test_building_leaves_ambient_random_state_alone(config):
    state = torch.get_rng_state()
    a, b, c = (checkpoint.build(VDM, config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    key = "conv_in.weight"
    weights = [m.modules["unet"].state_dict()[key] for m in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_strategy_checks_its_components(strategy, config):
    with pytest.raises(InvalidArgumentError, match="component 'unet'; expected UNet2DConditionModel"):
        VDM(config, {**strategy.modules, "unet": ToyNetwork()}, strategy.scheduler)


def test_loading_leaves_ambient_random_state_alone(folder):
    state = torch.get_rng_state()
    checkpoint.load_strategy(folder, device="cpu")
    assert torch.equal(state, torch.get_rng_state())


def test_ready_components_are_used_and_their_files_never_read(strategy, folder, same):
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(CheckpointError, match=r"text_encoder is missing.*give the component: text_encoder="):
        checkpoint.load_strategy(folder, device="cpu")
    encoder = strategy.modules["text_encoder"]
    loaded = checkpoint.load_strategy(folder, device="cpu", text_encoder=encoder)
    assert loaded.modules["text_encoder"] is encoder
    assert same(strategy, loaded)


def test_ready_components_are_checked(folder):
    with pytest.raises(
        InvalidArgumentError, match="ToyNetwork as its component 'text_encoder'; expected Vocab"
    ):
        checkpoint.load_strategy(folder, device="cpu", text_encoder=ToyNetwork())
    with pytest.raises(UnknownNameError, match=r"'text_encodr'.*Did you mean 'text_encoder'"):
        checkpoint.load_strategy(folder, device="cpu", text_encodr=ToyNetwork())


def test_another_scheduler_of_the_same_process_may_be_given(strategy, folder):
    other = UniPCMultistepScheduler.from_config(strategy.scheduler.config)
    loaded = checkpoint.load_strategy(folder, device="cpu", scheduler=other)
    assert loaded.scheduler is other
    with pytest.raises(SchedulerError, match="process"):
        checkpoint.load_strategy(folder, device="cpu", scheduler=FlowMatchEulerDiscreteScheduler())


def test_half_precision_on_disk_is_float32_in_memory(strategy, folder, config, tmp_path):
    half = checkpoint.load_strategy(folder, device="cpu", dtype=torch.float16)
    checkpoint.save_strategy(half, tmp_path / "half")
    files = [tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors" for name in ("model", "half")]
    assert files[1].stat().st_size < 0.6 * files[0].stat().st_size
    loaded = checkpoint.load_strategy(tmp_path / "half", device="cpu").modules["unet"].conv_in.weight
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, strategy.modules["unet"].conv_in.weight.half().float())


def test_weights_in_shards_are_joined(strategy, folder, same):
    shutil.rmtree(folder / "unet")
    strategy.modules["unet"].save_pretrained(folder / "unet", max_shard_size="100KB")
    shards = sorted((folder / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    assert same(strategy, checkpoint.load_strategy(folder, device="cpu"))
    table = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    whole = table.read_text()
    table.write_text(whole.replace(shards[0].name, "../" + shards[0].name))
    with pytest.raises(CheckpointError, match="expected files beside it"):
        load(folder, device="cpu")
    table.write_text("[]")
    with pytest.raises(CheckpointError, match="cannot be read as diffusers' index"):
        load(folder, device="cpu")
    table.write_text(whole)
    shards[0].write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(folder, device="cpu")
    assert not Malicious.ran


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_weights_are_refused(folder, share):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="may be truncated"):
        load(folder, device="cpu")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
def test_other_formats_are_named_and_not_opened(folder, suffix):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    file.with_suffix(suffix).write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError, match=rf"found: config.json, diffusion_pytorch_model\{suffix}"):
        load(folder, device="cpu")
    assert not Malicious.ran


def test_unknown_fields_of_a_component_are_ignored_as_diffusers_does(strategy, folder, same):
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_the_future": 1}))
    assert same(strategy, checkpoint.load_strategy(folder, device="cpu"))


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"_class_name": "VocabularyEncoder"})])
def test_broken_configuration_of_a_component_is_named(folder, text):
    (folder / "text_encoder" / "config.json").write_text(text)
    with pytest.raises(
        CheckpointError, match=r"config.json (is no configuration of|does not describe) a Vocabul"
    ):
        load(folder, device="cpu")
    (folder / "text_encoder" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        load(folder, device="cpu")


class Foreign(nn.Module):
    """Saves and loads itself, and is no ModelMixin."""

    def __init__(self, weight=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def save_pretrained(self, folder):
        folder.mkdir(parents=True)
        (folder / "own.json").write_text(json.dumps({"weight": self.weight.item()}))

    @classmethod
    def from_pretrained(cls, folder):
        torch.rand(1)  # as whoever builds a network before its weights are read
        return cls(json.loads((folder / "own.json").read_text())["weight"])


class WithForeign(Toy):
    name = "with_foreign"
    component_types = {**Toy.component_types, "foreign": (Foreign, nn.Identity)}  # noqa: RUF012


def test_wrappers_keep_their_own_layout(tmp_path, monkeypatch):
    made = toy()
    strategy = WithForeign(made.config, {**made.modules, "foreign": Foreign(2.5)}, made.scheduler)
    folder = checkpoint.save_strategy(strategy, tmp_path / "model")
    assert [path.name for path in (folder / "foreign").iterdir()] == ["own.json"]
    assert json.loads((folder / "vidgen.json").read_text())["components"]["foreign"] == "Foreign"
    load = plugins.load
    monkeypatch.setattr(
        plugins,
        "load",
        lambda group, name: WithForeign if group == plugins.STRATEGIES else load(group, name),
    )
    state = torch.get_rng_state()
    loaded = checkpoint.load_strategy(folder, device="cpu")
    assert torch.equal(state, torch.get_rng_state())
    assert loaded.modules["foreign"].weight.item() == 2.5
    assert not loaded.modules["foreign"].training


def frame_codec():
    config = FrameCodecConfig(block_out_channels=(8, 8), norm_num_groups=4, sample_size=16)
    return checkpoint.build(FrameCodecTask, config, seed=1)


def test_what_is_no_strategy_is_saved_as_one_and_refused_as_one(tmp_path):
    task = frame_codec()
    folder = checkpoint.save_strategy(task, tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["codec", "vidgen.json"]  # it has no scheduler
    described = json.loads((folder / "vidgen.json").read_text())
    assert (described["strategy"], described["components"]) == ("frame_codec", {"codec": "ImageCodec"})
    for source in (folder, str(folder)):
        with pytest.raises(
            CheckpointError, match=r"'frame_codec' trained.*no videos.*component instead: codec\."
        ):
            load(source)
    checkpoint.save_strategy(frame_codec(), folder)  # replaced like any other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    loaded = load_codec(folder)
    weights = task.codec.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())


def test_a_codec_is_found_by_the_name_of_a_bundled_model(tmp_path, monkeypatch):
    bundled = ModuleType("bundled_models")
    bundled.codec = lambda: tmp_path / "bundled"
    monkeypatch.setitem(sys.modules, "bundled_models", bundled)
    point = EntryPoint("shapes/demo", "bundled_models:codec", plugins.MODELS)._for(SimpleNamespace(name="demo"))
    installed = plugins.entry_points
    monkeypatch.setattr(
        plugins,
        "entry_points",
        lambda group: [point] if group == plugins.MODELS else installed(group=group),
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="model 'shapes/demo' of package 'demo'"):
        load_codec("shapes/demo")
    task = frame_codec()
    checkpoint.save_strategy(task, tmp_path / "bundled")
    loaded = load_codec("shapes/demo")
    assert torch.equal(loaded.vae.quant_conv.bias, task.codec.vae.quant_conv.bias)
    with pytest.raises(CheckpointError, match=r"no vae/config\.json"):
        load_codec("shapes/demo", subfolder="vae")
    task.codec.save_pretrained(Path("shapes/demo/vae"))  # an existing folder comes first
    (tmp_path / "bundled" / "codec" / "config.json").unlink()
    assert load_codec("shapes/demo").channels == 4
