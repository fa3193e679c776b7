"""Components stored once: written as references where asked, found again, and never believed unseen."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub_server import Repo
from vidgen import checkpoint, load, plugins
from vidgen.codecs import load_codec
from vidgen.components import component_hash, find_component
from vidgen.errors import CheckpointError
from vidgen.frame_codec.task import FrameCodecConfig, FrameCodecTask
from vidgen.recipe import Recipe, TrainingConfig
from vidgen.sampling import Sampler
from vidgen.strategies.glober import GLOBER, GLOBERConfig
from vidgen.strategies.ldm import LDM, LDMConfig
from vidgen.training import Trainer
from vidgen.video.dataset import DataConfig
from vidgen.weights import weight_hash

WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALL = {"sample_size": (16, 16), "words": ("circle", "red"), "widths": (16, 32), "head_dim": 16}
SMALL |= {"text_width": 16, "text_layers": 1}


def components(folder):
    return json.loads((folder / "vidgen.json").read_text())["components"]


def rewrite(folder, **changes):
    index = json.loads((folder / "vidgen.json").read_text())
    index["components"] |= changes
    (folder / "vidgen.json").write_text(json.dumps(index))


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A codec and an image model over it in half precision, installed as ``toys/codec`` and ``toys/image``."""
    folders = {"toys/codec": tmp_path / "installed/codec", "toys/image": tmp_path / "installed/image"}
    real = plugins.available
    found = dict.fromkeys(folders, "toys")
    monkeypatch.setattr(plugins, "available", lambda g: found if g == plugins.MODELS else real(g))
    monkeypatch.setattr(plugins, "model_folder", lambda name: folders[name])
    config = FrameCodecConfig(block_out_channels=(8, 8), norm_num_groups=4, sample_size=16)
    codec = checkpoint.build(FrameCodecTask, config, seed=1).to(dtype=torch.float16)
    checkpoint.save_strategy(codec, folders["toys/codec"])
    image = checkpoint.build(LDM, LDMConfig(codec="toys/codec", **SMALL), seed=2).to(dtype=torch.float16)
    checkpoint.save_strategy(image, folders["toys/image"], whole=False)
    return folders


def test_what_a_bundled_model_holds_already_is_referred_to(models):
    folder = models["toys/image"]
    found = components(folder)
    digest = component_hash(models["toys/codec"] / "codec")
    assert found["codec"] == {"from": "toys/codec", "hash": digest}
    assert (found["unet"], found["text_encoder"]) == ("UNet2DConditionModel", "VocabularyEncoder")
    assert not (folder / "codec").exists()
    loaded = checkpoint.load_strategy("toys/image", device="cpu")
    assert weight_hash(loaded.codec) == weight_hash(load_codec("toys/codec"))
    assert weight_hash(load_codec("toys/image")) == weight_hash(loaded.codec)
    assert loaded.config.codec == "toys/codec"


def test_saved_whole_is_the_default_and_needs_no_other_checkpoint(models, tmp_path, monkeypatch):
    loaded = load("toys/image", device="cpu")
    loaded.save_pretrained(tmp_path / "mine")
    assert components(tmp_path / "mine")["codec"] == "ImageCodec"
    shutil.rmtree(models["toys/codec"])
    again = load(tmp_path / "mine", device="cpu")
    for name, module in loaded.strategy.modules.items():
        assert weight_hash(again.strategy.modules[name]) == weight_hash(module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_half_precision_and_float32_of_the_same_values_are_one(models, tmp_path, dtype):
    """Loaded from half precision, a component is unchanged in either."""
    loaded = checkpoint.load_strategy("toys/image", device="cpu", dtype=dtype)
    checkpoint.save_strategy(loaded, tmp_path / "mine", whole=False)
    assert components(tmp_path / "mine")["codec"] == components(models["toys/image"])["codec"]
    again = checkpoint.load_strategy(tmp_path / "mine", device="cpu")
    assert weight_hash(again.codec) == weight_hash(load_codec("toys/codec"))


def test_a_changed_component_is_written_whole(models, tmp_path):
    loaded = checkpoint.load_strategy("toys/image", device="cpu")
    with torch.no_grad():
        next(loaded.codec.parameters()).view(-1)[0] += 1e-3
    checkpoint.save_strategy(loaded, tmp_path / "mine", whole=False)
    assert components(tmp_path / "mine")["codec"] == "ImageCodec"
    again = checkpoint.load_strategy(tmp_path / "mine", device="cpu")
    assert weight_hash(again.codec) == weight_hash(loaded.codec)


def test_a_change_of_the_settings_alone_is_a_change(models, tmp_path):
    """``codec.json`` scales the latents: the same VAE under another scale is another codec."""
    loaded = checkpoint.load_strategy("toys/image", device="cpu")
    loaded.codec.set_extra_state(torch.tensor([[0.0] * 4, [2.0] * 4]))
    checkpoint.save_strategy(loaded, tmp_path / "mine", whole=False)
    assert components(tmp_path / "mine")["codec"] == "ImageCodec"
    assert checkpoint.load_strategy(tmp_path / "mine", device="cpu").codec.std == (2.0,) * 4


def test_a_chain_is_written_to_its_end_and_followed(models, tmp_path):
    """A model over the image model refers to who really holds the codec; longer chains are followed, too."""
    started = checkpoint.build(LDM, LDMConfig(pretrained="toys/image", **SMALL), seed=5)
    checkpoint.save_strategy(started.to(dtype=torch.float16), tmp_path / "next", whole=False)
    found = components(tmp_path / "next")
    assert found["codec"]["from"] == "toys/codec"
    assert found["text_encoder"]["from"] == "toys/image"
    rewrite(tmp_path / "next", codec={**found["codec"], "from": "toys/image"})
    loaded = checkpoint.load_strategy(tmp_path / "next", device="cpu")
    assert weight_hash(loaded.codec) == weight_hash(load_codec("toys/codec"))
    assert loaded.references["codec"].source == "toys/codec"


def test_a_circle_is_refused(models, tmp_path):
    for name, other in (("a", "../b"), ("b", "../a")):
        shutil.copytree(models["toys/image"], tmp_path / name)
        rewrite(tmp_path / name, codec={"from": other, "hash": "x"})
    with pytest.raises(CheckpointError, match=r"comes back to .*none holds it"):
        load(tmp_path / "a", device="cpu")
    rewrite(tmp_path / "a", codec={"from": "./", "hash": "x"})
    with pytest.raises(CheckpointError, match=r"comes back to"):
        load(tmp_path / "a", device="cpu")


def tampered(change):
    def weights(codec):
        tensors = load_file(codec / WEIGHTS)
        name = sorted(tensors)[0]
        tensors[name].view(-1)[-1] += 0.5
        save_file(tensors, codec / WEIGHTS)

    def settings(codec):
        values = json.loads((codec / "codec.json").read_text())
        (codec / "codec.json").write_text(json.dumps(values | {"std": [3.0] * 4}))

    def network(codec):
        values = json.loads((codec / "config.json").read_text())
        (codec / "config.json").write_text(json.dumps(values | {"act_fn": "relu"}))

    return {"weights": weights, "settings": settings, "network": network}[change]


@pytest.mark.parametrize("change", ["weights", "settings", "network"])
def test_a_tampered_reference_is_refused(models, change):
    tampered(change)(models["toys/codec"] / "codec")
    expected = r"component 'codec' .* of 'toys/codec' with hash '\w+'; .* has \w+: it was changed.*codec=\.\.\."
    for read in (lambda: load("toys/image", device="cpu"), lambda: load_codec("toys/image")):
        with pytest.raises(CheckpointError, match=expected):
            read()
    given = load_codec("toys/codec")
    assert checkpoint.load_strategy("toys/image", device="cpu", codec=given).codec is given


def test_a_missing_reference_says_what_to_install_or_give(models, tmp_path, monkeypatch):
    folder = shutil.copytree(models["toys/image"], tmp_path / "mine")
    rewrite(folder, codec={"from": "toys/other", "hash": "x"})
    with pytest.raises(CheckpointError, match=r"that of 'toys/other'.*install the one.*give.*codec=\.\.\."):
        load(folder, device="cpu")
    rewrite(folder, codec={"from": "../nowhere", "hash": "x"})
    with pytest.raises(CheckpointError, match=r"there is no folder .*nowhere.*moves together"):
        load(folder, device="cpu")
    rewrite(folder, unet={"from": "toys/codec", "hash": "x"})
    with pytest.raises(CheckpointError, match=r"'unet' .* that of 'toys/codec', which has none"):
        load(folder, device="cpu", codec=load_codec("toys/codec"))


@pytest.mark.parametrize(
    "entry",
    [
        {"from": "toys/codec"},
        {"from": 3, "hash": "x"},
        {"from": "toys/codec", "hash": None},
        {"from": "toys/codec", "hash": "x", "module": "os"},
        {},
    ],
)
def test_an_entry_that_is_no_reference_is_refused(models, tmp_path, entry):
    folder = shutil.copytree(models["toys/image"], tmp_path / "mine")
    rewrite(folder, codec=entry)
    with pytest.raises(
        CheckpointError, match=r"component 'codec' in .*vidgen.json is \{.*expected the name of"
    ):
        load(folder, device="cpu")


@pytest.mark.parametrize("source", ["../../secret", "./../../secret", "/etc", "~/secret", "a/b/c", ""])
def test_a_reference_out_of_its_surroundings_is_not_followed(models, tmp_path, source):
    folder = shutil.copytree(models["toys/image"], tmp_path / "given/mine")
    shutil.copytree(models["toys/codec"], tmp_path / "secret")
    rewrite(folder, codec={"from": source, "hash": component_hash(models["toys/codec"] / "codec")})
    with pytest.raises(CheckpointError, match=r"It is not followed|expected the name of a bundled model"):
        load(folder, device="cpu")


def test_folders_side_by_side_refer_to_each_other_and_move_together(models, tmp_path):
    shutil.copytree(models["toys/codec"], tmp_path / "set/codec")
    config = LDMConfig(codec=str(tmp_path / "set/codec"), **SMALL)
    made = checkpoint.build(LDM, config, seed=2)
    checkpoint.save_strategy(made, tmp_path / "set/video", whole=False)
    assert components(tmp_path / "set/video")["codec"]["from"] == "../codec"
    checkpoint.save_strategy(
        made, tmp_path / "elsewhere/video", whole=False
    )  # nothing would move the codec there
    assert components(tmp_path / "elsewhere/video")["codec"] == "ImageCodec"
    (tmp_path / "set").rename(tmp_path / "moved")
    loaded = checkpoint.load_strategy(tmp_path / "moved/video", device="cpu")
    assert weight_hash(loaded.codec) == weight_hash(made.codec)
    checkpoint.save_strategy(loaded, tmp_path / "moved/again", whole=False)
    assert components(tmp_path / "moved/again")["codec"]["from"] == "../codec"


def test_a_run_starts_from_a_model_with_references(models, tmp_path):
    """``pretrained=`` takes codec, words and network wherever they lie; checkpoints of the run are whole."""
    data = DataConfig.of("shapes", clip_length=1, size=16, videos=8, frames=4)
    model = LDMConfig(pretrained="toys/image", sample_size=(16, 16))
    training = TrainingConfig(steps=1, batch_size=2)
    assert find_component(models["toys/image"], "codec") == models["toys/codec"] / "codec"
    config = replace(model, words=("circle", "red"), max_words=16)
    strategy = checkpoint.build(LDM, config, seed=0)
    assert weight_hash(strategy.codec) == weight_hash(load_codec("toys/codec"))
    trainer = Trainer(
        Recipe("ldm", config, data, training), tmp_path / "run", strategy=strategy, progress=False
    )
    folder = checkpoint.save_strategy(trainer.strategy, tmp_path / "saved")
    assert components(folder)["codec"] == "ImageCodec"


def test_a_repository_is_loaded_only_where_the_caller_said_so(models, tmp_path, hub):
    shutil.copytree(models["toys/codec"], tmp_path / "codec")
    hub.repos["bob/codec"] = Repo()
    there = [path for path in (tmp_path / "codec").rglob("*") if path.is_file()]
    files = {path.relative_to(tmp_path / "codec").as_posix(): path.read_bytes() for path in there}
    hub.repos["bob/codec"].commit("main", files | {"other/big.safetensors": b"x"}, "codec")
    folder = shutil.copytree(models["toys/image"], tmp_path / "ann")
    digest = component_hash(models["toys/codec"] / "codec")
    rewrite(folder, codec={"from": "bob/codec", "hash": digest})
    with pytest.raises(CheckpointError, match=r"repositories=\['bob/codec'\]"):
        load(folder, device="cpu")
    with pytest.raises(CheckpointError, match=r"repositories=\['bob/codec'\]"):
        load(folder, device="cpu", repositories=["bob/other"])
    assert not hub.requests  # nobody was asked
    loaded = load(folder, device="cpu", repositories=["bob/codec"])
    assert weight_hash(loaded.strategy.codec) == weight_hash(load_codec("toys/codec"))
    assert not [line for line in hub.requests if "big.safetensors" in line]
    loaded.save_pretrained(tmp_path / "again", whole=False)  # a codec of the hub stays one
    assert components(tmp_path / "again")["codec"] == {"from": "bob/codec", "hash": digest}
    with pytest.raises(CheckpointError, match="repositories="):  # permission was for that one time
        load(folder, device="cpu")


def test_a_push_is_whole_or_refers_to_names_as_asked(models, tmp_path, hub):
    shutil.copytree(models["toys/codec"], tmp_path / "codec")
    sampler = load("toys/image", device="cpu")
    sampler.push_to_hub("ann/whole")
    assert "codec/config.json" in hub.repos["ann/whole"].files()
    sampler.push_to_hub("ann/shared", whole=False)
    files = hub.repos["ann/shared"].files()
    assert json.loads(files["vidgen.json"])["components"]["codec"]["from"] == "toys/codec"
    assert "codec/config.json" not in files
    assert weight_hash(load("ann/shared", device="cpu").strategy.codec) == weight_hash(sampler.strategy.codec)
    local = checkpoint.build(LDM, LDMConfig(codec=str(tmp_path / "codec"), **SMALL), seed=2)
    checkpoint.push_strategy(local, "ann/local", whole=False)  # nobody else has that folder
    assert "codec/config.json" in hub.repos["ann/local"].files()


# What only training needs.

GLOBAL = GLOBERConfig(
    sample_frames=4,
    sample_size=(16, 16),
    keyframes=2,
    words=("a", "circle", "red"),
    max_words=3,
    patch=4,
    widths=(8, 16),
    head_dim=8,
    text_width=16,
    text_layers=1,
    global_channels=4,
    encoder_widths=(8, 16),
    encoder_head_dim=8,
    index_channels=8,
    index_dim=16,
    generator_width=16,
    generator_depth=1,
    generator_heads=2,
    discriminator_width=8,
    discriminator_multipliers=(1, 1),
)


def small_glober():
    return checkpoint.build(GLOBER, GLOBAL, seed=3)


def test_what_only_training_needs_is_left_out_of_what_is_shared(tmp_path, caplog):
    made = small_glober()
    checkpoint.save_strategy(made, tmp_path / "whole")
    checkpoint.save_strategy(made, tmp_path / "shared", whole=False)
    assert components(tmp_path / "whole")["discriminator"] == "PairDiscriminator"
    assert "discriminator" not in components(tmp_path / "shared")
    assert not (tmp_path / "shared/discriminator").exists()
    with caplog.at_level(logging.WARNING):
        loaded = checkpoint.load_strategy(tmp_path / "shared", device="cpu")
    assert not caplog.records  # a video needs none
    assert "discriminator" not in loaded.modules
    arguments = {"prompt": "a red circle", "seed": 0, "num_inference_steps": 2, "output_type": "latent"}
    samplers = [Sampler(each) for each in (made, loaded)]
    for each, sampler in zip((made, loaded), samplers, strict=True):
        sampler.set_progress_bar_config(disable=True)
        for module in each.modules.values():
            module.eval()
    assert torch.equal(samplers[0](**arguments).frames, samplers[1](**arguments).frames)


def test_training_begins_again_with_a_fresh_one_and_says_so(tmp_path, caplog):
    checkpoint.save_strategy(small_glober(), tmp_path / "shared", whole=False)
    loaded = checkpoint.load_strategy(tmp_path / "shared", device="cpu")
    data = DataConfig.of("shapes", clip_length=4, size=16, videos=4, frames=4)
    recipe = Recipe("glober", GLOBAL, data, TrainingConfig(steps=1, batch_size=2, seed=7))
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(recipe, tmp_path / "run", strategy=loaded, progress=False, device="cpu")
    assert torch.equal(state, torch.get_rng_state())
    assert "'discriminator' of 'glober' is for training only and was left out" in caplog.text
    fresh = checkpoint.build(GLOBER, GLOBAL, seed=7).modules["discriminator"].state_dict()
    found = trainer.strategy.modules["discriminator"].state_dict()
    assert {k: v.shape for k, v in fresh.items()} == {k: v.shape for k, v in found.items()}
    again = checkpoint.load_strategy(tmp_path / "shared", device="cpu")
    checkpoint.complete(again, seed=7)
    assert weight_hash(again.modules["discriminator"]) == weight_hash(trainer.strategy.modules["discriminator"])


def test_a_needed_component_may_not_be_left_out(tmp_path):
    checkpoint.save_strategy(small_glober(), tmp_path / "model")
    index = json.loads((tmp_path / "model/vidgen.json").read_text())
    del index["components"]["generator"]
    (tmp_path / "model/vidgen.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names nothing as its component 'generator'"):
        load(tmp_path / "model", device="cpu")
