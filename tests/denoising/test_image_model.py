"""The image model that a strategy starts from: which of its parts are taken, and which are not there."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from vidgen import plugins
from vidgen.codecs import ImageCodec, PixelCodec
from vidgen.conditioning import ClassEncoder, VocabularyEncoder
from vidgen.denoising import ClipConfig, UNetConfig
from vidgen.denoising.image_model import ImageModel
from vidgen.errors import CheckpointError, InvalidArgumentError
from vidgen.nn import build_unet
from vidgen.strategies.glober import GLOBERConfig
from vidgen.video.dataset import DataConfig, open_dataset

WORDS = ("circle", "red", "zebra")


def save_unet(folder, channels=4, width=24):
    torch.manual_seed(0)
    unet = build_unet(channels, channels, 8, (8, 16), cross_attention_dim=width, head_dim=8)
    unet.save_pretrained(folder / "unet")
    return unet


def save_vae(folder, name, scaling=0.5):
    torch.manual_seed(1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=scaling,
    )
    vae.save_pretrained(folder / name)


def save_words(folder, width=24, max_words=7):
    torch.manual_seed(2)
    encoder = VocabularyEncoder(WORDS, width=width, layers=1, max_words=max_words)
    encoder.save_pretrained(folder / "text_encoder")
    return encoder


def save_foreign_text(folder):
    """A text encoder as transformers leaves it: no ``_class_name`` in its configuration."""
    (folder / "text_encoder").mkdir()
    config = {"architectures": ["CLIPTextModel"], "hidden_size": 24, "model_type": "clip_text_model"}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("names", "taken"), [(("vae",), "vae"), (("codec",), "codec"), (("codec", "vae"), "vae")]
)
def test_the_vae_is_found_in_either_place(tmp_path, names, taken):
    """A pipeline of diffusers has a vae, a checkpoint of vidgen a codec."""
    save_unet(tmp_path)
    for name in names:
        save_vae(tmp_path, name, scaling={"vae": 0.5, "codec": 0.25}[name])
    assert ImageModel(str(tmp_path)).vae == tmp_path / taken
    config = ClipConfig(pretrained=str(tmp_path))
    assert config.vae == str(tmp_path / taken)
    codec = config.build_codec()
    assert isinstance(codec, ImageCodec)
    assert codec.std[0] == {"vae": 2.0, "codec": 4.0}[taken]


def test_another_codec_may_be_named(tmp_path):
    save_vae(tmp_path / "model", "vae")
    save_vae(tmp_path / "other", "vae", scaling=0.1)
    config = ClipConfig(pretrained=str(tmp_path / "model"), codec=str(tmp_path / "other"))
    assert config.build_codec().std[0] == pytest.approx(10)


def test_without_a_vae_it_works_on_pixels(tmp_path):
    save_unet(tmp_path, channels=12)
    config = UNetConfig(pretrained=str(tmp_path), patch=2)
    assert ImageModel(str(tmp_path)).vae is config.vae is None
    assert isinstance(config.build_codec(), PixelCodec)
    data = open_dataset(DataConfig.of("shapes", clip_length=2, size=16, videos=4))
    assert config.fitted(data).pixel_std > 0  # measured, as for every pixel codec
    save_vae(tmp_path, "vae")
    assert config.fitted(data).pixel_std is None  # the VAE has a scale of its own
    (tmp_path / "vae" / "config.json").rename(tmp_path / "vae" / "other.json")
    assert config.vae is None  # a folder without a configuration is none


def test_the_unet_is_the_saved_one(tmp_path):
    unet = save_unet(tmp_path, channels=12)
    config = UNetConfig(pretrained=str(tmp_path), widths=(64,), patch=2)
    assert config.token_width == ImageModel(str(tmp_path)).token_width == 24
    built = config.build_unet(config.build_codec(), 24)
    assert all(torch.equal(built.state_dict()[key], value) for key, value in unet.state_dict().items())
    wider = config.build_unet(config.build_codec(), 24, extra_channels=2)
    assert wider.config.in_channels == 14
    assert torch.equal(wider.conv_in.weight[:, :12], unet.conv_in.weight)
    assert not wider.conv_in.weight[:, 12:].any()
    with pytest.raises(InvalidArgumentError, match=r"reads 12 channels; the codec's latents have 48"):
        config.build_unet(PixelCodec(4), 24)
    with pytest.raises(InvalidArgumentError, match=r"reads tokens of width 24; those of .* have 32"):
        config.build_unet(config.build_codec(), 32)


def test_without_pretrained_the_fields_say_what_is_built():
    config = UNetConfig(widths=(8, 16), head_dim=8, patch=2, text_width=20, sample_size=(16, 32))
    assert config.token_width == 20
    unet = config.build_unet(PixelCodec(2), 20, extra_channels=3)
    assert (unet.config.in_channels, unet.config.out_channels, unet.config.sample_size) == (15, 12, 16)
    assert unet.config.block_out_channels == (8, 16)
    assert config.vae is config.learnt_words is None


def test_what_is_missing_or_unfit_is_named(tmp_path):
    model = ImageModel(str(tmp_path))
    for ask in (model.unet, lambda: model.token_width):
        with pytest.raises(InvalidArgumentError, match=r"no 2D UNet in .*expected unet/config\.json"):
            ask()
    assert model.vae is model.text_settings is None
    assert model.process == {}
    save_unet(tmp_path)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    broken = {**config, "cross_attention_dim": [24, 24]}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(broken))
    with pytest.raises(InvalidArgumentError, match=r"cross_attention_dim=\[24, 24\]; expected one number"):
        _ = model.token_width
    (tmp_path / "unet" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"unet/config\.json cannot be read"):
        _ = model.token_width
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        model.unet()


def test_its_own_words_are_taken_with_their_encoder(tmp_path):
    save_unet(tmp_path)
    saved = save_words(tmp_path)
    config = UNetConfig(pretrained=str(tmp_path), text_width=99, text_layers=5)
    encoder = config.build_text_encoder(config.token_width, config.text_layers)
    assert isinstance(encoder, VocabularyEncoder)
    assert (encoder.width, encoder.config.max_words) == (24, 7)
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in saved.state_dict().items())
    fitted = config.fitted(_Captions("red circle"))
    assert (fitted.words, fitted.max_words) == (WORDS, 7)
    # Who trains with classes, or with another encoder of texts, wants none of it.
    other = replace(config, text="classes", classes=("x", "y"))
    assert other.learnt_words is None
    assert isinstance(other.build_text_encoder(other.token_width), ClassEncoder)


def test_the_vocabulary_grows_by_the_words_of_the_captions(tmp_path, caplog):
    save_unet(tmp_path)
    saved = save_words(tmp_path).eval()
    config = UNetConfig(pretrained=str(tmp_path))
    with caplog.at_level("INFO", "vidgen"):
        fitted = config.fitted(_Captions("red circle", "a red dragon"))
    assert "grows by 2 words: a, dragon" in caplog.text
    assert (fitted.words, fitted.max_words) == (("a", "circle", "dragon", "red", "zebra"), 7)
    encoder = fitted.build_text_encoder(24).eval()
    texts = ["red circle", "zebra", ""]
    assert torch.equal(encoder.encode(texts), saved.encode(texts))
    assert encoder.encode(["a red dragon"]).shape == (1, 8, 24)


def test_new_words_of_an_encoder_that_does_not_learn_are_refused(tmp_path):
    save_unet(tmp_path)
    save_words(tmp_path)
    fixed = GLOBERConfig(pretrained=str(tmp_path), train_text=False)
    assert fixed.fitted(_Captions("red circle")).words == WORDS
    with pytest.raises(InvalidArgumentError, match="knows none of the words dragon, and is not trained here"):
        fixed.fitted(_Captions("red dragon"))


def test_words_beside_those_of_the_model_are_learnt_besides(tmp_path):
    save_unet(tmp_path)
    save_words(tmp_path)
    data = _Captions("red circle")
    config = UNetConfig(pretrained=str(tmp_path), words=("circle", "red", "x"), max_words=9)
    assert (config.fitted(data).words, config.fitted(data).max_words) == (("circle", "red", "x", "zebra"), 9)
    with pytest.raises(InvalidArgumentError, match="dragon"):  # named words are all that there are
        config.fitted(_Captions("red dragon"))
    with pytest.raises(InvalidArgumentError, match=r"max_words is 3, .* reads prompts of 7 words"):
        UNetConfig(pretrained=str(tmp_path), max_words=3).fitted(data)
    config = UNetConfig(pretrained=str(tmp_path), words=WORDS, max_words=7)
    assert config.fitted(data).words == WORDS
    assert UNetConfig(pretrained=str(tmp_path)).has_prompts  # before any data was seen


@pytest.mark.parametrize("field", ["pretrained", "codec"])
def test_what_is_not_finished_is_said_where_training_starts_from_it(tmp_path, caplog, field):
    model = tmp_path / "checkpoints" / "step-00000005" / "model"
    save_unet(model)
    save_vae(model, "codec" if field == "codec" else "vae")
    data = _Captions("red circle")
    for record in ({}, {"training": {"finished": True}}, {"training": 3}, {"training": {"finished": False}}):
        assert not caplog.records
        (model / "vidgen.json").write_text(json.dumps(record))
        UNetConfig(**{field: str(tmp_path)}).fitted(data)
    assert f"the training of {tmp_path}, which this one starts from, is not finished" in caplog.text


def test_a_training_run_is_its_newest_checkpoint(tmp_path):
    for step in (5, 12):
        save_words(tmp_path / "checkpoints" / f"step-{step:08d}" / "model", max_words=step)
    settings = ImageModel(str(tmp_path)).text_settings
    assert settings is not None
    assert settings["max_words"] == 12


def test_a_flow_and_an_unknown_process_are_refused(tmp_path):
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(InvalidArgumentError, match=r"trained on a flow .FlowMatchEulerDiscreteScheduler."):
        ClipConfig(pretrained=str(tmp_path)).build_scheduler()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "moon"}')
    with pytest.raises(CheckpointError, match="describes no noise process"):
        ClipConfig(pretrained=str(tmp_path)).build_scheduler()


class _Captions:
    """Data of which only captions and size are asked."""

    def __init__(self, *texts):
        self._texts = texts

    def texts(self):
        return list(self._texts)

    def __getitem__(self, index):
        return SimpleNamespace(clip=torch.rand(3, 2, 16, 16), fps=8.0)

    def __iter__(self):
        yield self[0]


@pytest.mark.parametrize("foreign", [True, False])
def test_a_foreign_text_encoder_is_left_and_words_are_learnt(tmp_path, foreign):
    save_unet(tmp_path)
    if foreign:
        save_foreign_text(tmp_path)
    assert ImageModel(str(tmp_path)).text_settings is None
    config = UNetConfig(pretrained=str(tmp_path)).fitted(_Captions("a red circle", "a square"))
    assert config.learnt_words is None
    assert (config.words, config.max_words) == (("a", "circle", "red", "square"), 3)
    encoder = config.build_text_encoder(config.token_width)
    assert (encoder.width, list(encoder.config.words)) == (24, list(config.words))


PROCESS = {
    "num_train_timesteps": 500,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "trained_betas": [0.01, 0.02, 0.04],
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": True,
}
SOLVER = {"clip_sample": True, "timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}


@pytest.mark.parametrize("field", PROCESS)
def test_the_process_is_taken_over_field_by_field(tmp_path, field):
    own = ClipConfig().build_scheduler().config
    assert own[field] != PROCESS[field]
    folder = tmp_path / "scheduler"
    folder.mkdir()
    text = {"_class_name": "DDIMScheduler", **{name: own[name] for name in PROCESS}, **SOLVER}
    text[field] = PROCESS[field]
    (folder / "scheduler_config.json").write_text(json.dumps(text))
    taken = ClipConfig(pretrained=str(tmp_path)).build_scheduler().config
    changed = {key for key in own if not key.startswith("_") and own[key] != taken[key]}
    assert changed == {field}  # how it is solved stays vidgen's
    assert taken[field] == PROCESS[field]


@pytest.mark.parametrize(
    "kind", [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler]
)
def test_the_process_of_any_solver_is_taken(tmp_path, kind):
    theirs = kind(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="epsilon")
    theirs.save_pretrained(tmp_path / "scheduler")
    built = ClipConfig(pretrained=str(tmp_path)).build_scheduler()
    assert isinstance(built, DDIMScheduler)
    assert torch.equal(built.alphas_cumprod, theirs.alphas_cumprod)
    assert built.config.prediction_type == "epsilon"


def test_what_an_old_configuration_leaves_out_has_diffusers_meaning(tmp_path):
    """Stable Diffusion 1's says nothing of what is predicted, which is the noise."""
    theirs = PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    theirs.save_pretrained(tmp_path / "scheduler")
    file = tmp_path / "scheduler" / "scheduler_config.json"
    text = json.loads(file.read_text())
    del text["prediction_type"]
    file.write_text(json.dumps(text))
    built = ClipConfig(pretrained=str(tmp_path)).build_scheduler()
    assert torch.equal(built.alphas_cumprod, theirs.alphas_cumprod)
    assert built.config.prediction_type == theirs.config.prediction_type == "epsilon"


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """A model called ``shapes/demo``, as a package would register it."""
    module = ModuleType("demo_models")
    module.demo = lambda: tmp_path / "bundled"
    monkeypatch.setitem(sys.modules, "demo_models", module)
    point = EntryPoint("shapes/demo", "demo_models:demo", plugins.MODELS)._for(SimpleNamespace(name="demo"))
    installed = plugins.entry_points
    monkeypatch.setattr(
        plugins,
        "entry_points",
        lambda group: [point] if group == plugins.MODELS else installed(group=group),
    )
    (tmp_path / "bundled").mkdir()
    return tmp_path / "bundled"


def test_a_bundled_name_is_a_source(bundled, tmp_path, monkeypatch):
    unet = save_unet(bundled)
    save_vae(bundled, "codec")
    save_words(bundled)
    config = UNetConfig(pretrained="shapes/demo")
    assert config.vae == str(bundled / "codec")
    assert config.learnt_words["words"] == list(WORDS)
    built = config.build_unet(config.build_codec(), config.token_width)
    assert all(torch.equal(built.state_dict()[key], value) for key, value in unet.state_dict().items())
    monkeypatch.chdir(tmp_path)  # a folder of that name comes first
    save_unet(tmp_path / "shapes" / "demo", width=16)
    assert config.token_width == 16


def test_an_unknown_name_says_what_there_is(bundled):
    with pytest.raises(InvalidArgumentError, match=r"pretrained is 'shapes/dmo'.*\(there are: shapes/demo\)"):
        ImageModel("shapes/dmo")


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    for name in ("unet", "vae", "text_encoder", "scheduler"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("no json")
    assert ImageModel(str(tmp_path)).folder == tmp_path
