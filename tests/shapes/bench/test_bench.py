"""Making a bundled model again: training, half-precision weights, quality, record and card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from vidgen import config as configs
from vidgen import plugins
from vidgen.checkpoint import find_checkpoint, load_strategy
from vidgen.codecs import load_codec
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from vidgen.frame_codec.task import FrameCodecConfig
from vidgen.metrics.protocol import Protocol
from vidgen.metrics.score import Score
from vidgen.recipe import Recipe
from vidgen.shapes.bench import assess, build_model, renew_card
from vidgen.shapes.bench.build import model_recipe
from vidgen.shapes.bench.card import write_card
from vidgen.shapes.bench.generated import GeneratedClips
from vidgen.strategies.ldm import LDMConfig
from vidgen.video import Video
from vidgen.video.dataset import DataConfig
from vidgen.weights import weight_hash

FROM_DATA = {
    "data",
    "words",
    "max_words",
    "sample_frames",
    "sample_size",
    "sample_fps",
    "pixel_mean",
    "pixel_std",
}


def short_recipe() -> Recipe:
    recipe = model_recipe("shapes/codec")
    return replace(
        recipe,
        model=FrameCodecConfig(block_out_channels=(8, 8), norm_num_groups=4, sample_size=16),
        data=recipe.data.changed(size=16, videos=16),
        training=replace(recipe.training, steps=3, batch_size=4, log_every=2, mixed_precision="no"),
    )


def test_a_model_is_made_whole(tmp_path: Path) -> None:
    build = build_model("shapes/codec", tmp_path, recipe=short_recipe(), device="cpu", quality=False)
    assert build.folder == tmp_path / "model"
    names = {path.name for path in build.folder.iterdir()}
    assert names == {"codec", "vidgen.json", "record.json", "README.md"}
    with safe_open(build.folder / "codec" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    record = json.loads((build.folder / "record.json").read_text())
    assert record == build.record
    assert record["steps"] == 3
    assert record["recipe"]["training"]["steps"] == 3
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 3]
    # By the median of the lines: one may have been held up.
    assert record["training_seconds"] == round(3 * (log[0]["seconds"] + log[1]["seconds"]) / 2)
    size = (build.folder / "codec" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert record["bytes"] == size
    card = (build.folder / "README.md").read_text()
    assert "vidgen models train shapes/codec" in card
    assert f"{record['parameters']['codec']:,}" in card


def test_what_is_made_is_what_was_trained_rounded_to_half(tmp_path: Path) -> None:
    build = build_model("shapes/codec", tmp_path, recipe=short_recipe(), device="cpu", quality=False)
    trained, made = load_codec(tmp_path / "run/checkpoints/step-00000003/model"), load_codec(build.folder)
    for name, weights in trained.state_dict().items():
        assert made.state_dict()[name].dtype == weights.dtype
        torch.testing.assert_close(made.state_dict()[name], weights.to(torch.float16).to(weights.dtype))
    before = (build.folder / "README.md").stat().st_mtime_ns
    again = build_model("shapes/codec", tmp_path, recipe=short_recipe(), device="cpu", quality=False)
    assert again.record["parameters"] == build.record["parameters"]
    assert (build.folder / "README.md").stat().st_mtime_ns > before


def test_what_a_model_starts_from_is_stored_once(tmp_path: Path) -> None:
    """A short training over the bundled codec: the model refers to that, in half precision as it is stored."""
    recipe = model_recipe("shapes/ldm")
    small = LDMConfig(codec="shapes/codec", widths=(16, 32), head_dim=16, text_width=16, text_layers=1)
    short = replace(recipe.training, steps=1, batch_size=2, warmup_steps=0, cache_latents=False)
    recipe = replace(recipe, model=small, data=recipe.data.changed(videos=4), training=short)
    build = build_model("shapes/ldm", tmp_path, recipe=recipe, device="cpu", quality=False, progress=False)
    assert build.record["references"] == {"codec": "shapes/codec"}
    assert build.record["left_out"] == []
    assert not (build.folder / "codec").exists()
    assert "Not stored here: codec is that of `shapes/codec`." in (build.folder / "README.md").read_text()
    sizes = [file.stat().st_size for file in build.folder.rglob("*.safetensors")]
    assert build.record["bytes"] == sum(sizes)
    loaded, bundled = load_strategy(build.folder, device="cpu").codec, load_codec("shapes/codec")
    assert weight_hash(loaded) == weight_hash(bundled)
    whole = load_strategy(tmp_path / "run", device="cpu")  # the run keeps all
    assert (find_checkpoint(tmp_path / "run") / "codec").is_dir()
    assert weight_hash(whole.codec) == weight_hash(bundled)


def test_a_codec_is_assessed_by_what_it_restores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidgen.shapes.bench.quality.NUM_FRAMES", 32)
    recipe = replace(short_recipe(), model=FrameCodecConfig(block_out_channels=(8, 8), norm_num_groups=4))
    build = build_model("shapes/codec", tmp_path, recipe=recipe, device="cpu", quality=False)
    assert "psnr" not in (build.folder / "README.md").read_text()
    renewed = renew_card(build.folder, device="cpu", progress=False)
    assert "| all | `psnr` |" in (build.folder / "README.md").read_text()
    assert json.loads((build.folder / "record.json").read_text()) == renewed.record
    assert renewed.record | {"quality": None} == build.record | {"quality": None}
    quality = assess(build.folder, device="cpu", progress=False)
    assert quality.to_json() == renewed.record["quality"]
    mse, psnr = quality.values["mse"], quality.values["psnr"]
    assert 0.01 < mse < 4  # three steps restore next to nothing
    # Of each video alone, in a range of 2: by Jensen at least that of the mean error.
    assert psnr >= 10 * np.log10(4 / mse) - 1e-6
    assert quality.sheets["sheet.png"].size == (8 * 66, 2 * 66)


def test_only_made_models_have_a_card_to_renew(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"record\.json cannot be read"):
        renew_card(tmp_path)


def test_models_without_a_recipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"shapes/coded.*Did you mean 'shapes/codec'"):
        build_model("shapes/coded", tmp_path)
    assert not any(tmp_path.iterdir())


def test_every_bundled_model_has_a_recipe_of_its_name() -> None:
    for name in plugins.available(plugins.MODELS):
        if plugins.available(plugins.MODELS)[name] == "vidgen":
            recipe = model_recipe(name)
            assert isinstance(recipe.model, plugins.load_trainable(recipe.strategy).Config)
            record = json.loads((plugins.model_folder(name) / "record.json").read_text())
            made = record["recipe"]
            assert made["strategy"] == recipe.strategy
            # What the files were made by is what would make them again.
            now = configs.to_dict(recipe)
            if now["training"]["mixed_precision"] == "auto":  # the machine that made them settled it
                assert made["training"].pop("mixed_precision") in ("bf16", "no")
                del now["training"]["mixed_precision"]
            assert made["training"] == now["training"]
            assert configs.from_dict(DataConfig, made["data"]) == recipe.data  # flat, as older files have it
            # Fields that came later are at their defaults; the data's own were filled in by training.
            before = configs.to_dict(type(recipe.model)()) | made["model"]
            other = {field for field, value in now["model"].items() if value != before[field]}
            assert other <= FROM_DATA, name


def test_generated_videos_are_a_dataset() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), dtype=np.uint8)
    clips = GeneratedClips([Video(frame, 8) for frame in frames], ["a", "b", "c"])
    sample = clips[1]
    assert sample.caption == "b"
    assert np.array_equal(((sample.clip + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy(), frames[1])
    assert len({clips.content_key(i) for i in range(3)}) == 3
    assert clips.texts() == ["a", "b", "c"]
    with pytest.raises(InvalidArgumentError, match="3 videos were given with 1 prompts"):
        GeneratedClips(clips.videos, ["a"])


def test_a_card_shows_scores_with_their_null(tmp_path: Path) -> None:
    protocol = Protocol("fvd_shapes_v1", frames=16)
    score = Score("fvd_shapes_v1", 3.25, protocol, null=1.5, num_real=8, num_generated=8, notes=("Few.",))
    record = {
        "model": "shapes/x",
        "recipe": {"strategy": "vdm"},
        "steps": 10,
        "training_seconds": 120,
        "device": "cpu",
        "parameters": {"unet": 1234},
        "bytes": 2468,
        "quality": {"scores": {"trained": [score.to_json()]}, "values": {"mse": 0.5}},
    }
    picture = Image.new("RGB", (4, 4))
    write_card(tmp_path, record, {"sheet.png": picture, "sheet_long.png": picture})
    card = (tmp_path / "README.md").read_text()
    assert "| trained | `fvd_shapes_v1` | 3.25 | 1.5 | Few. |" in card
    assert "| all | `mse` | 0.5 |" in card
    assert "2 minutes" in card
    assert "(sheet.png)" in card
    assert (tmp_path / "sheet.png").is_file()
    assert "*Four times as many frames as in a clip of the training.*" in card
    write_card(tmp_path, record | {"recipe": {"strategy": "glober"}}, {"sheet_long.png": picture})
    assert "in the same time" in (tmp_path / "README.md").read_text()
