from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import save_file

from tiny_clip import TEXTS, TINY, build, of_open_clip
from vidgen.conditioning import OpenClipImageEncoder, OpenClipTextEncoder
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from vidgen.weights import weight_hash


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("clip"), "vidgen-tiny", TINY)


@pytest.fixture(scope="module")
def theirs(file: Path) -> Any:
    return of_open_clip("vidgen-tiny", file)


@pytest.fixture
def text(file: Path) -> OpenClipTextEncoder:
    return OpenClipTextEncoder("vidgen-tiny", file)


@pytest.fixture
def image(file: Path) -> OpenClipImageEncoder:
    return OpenClipImageEncoder("vidgen-tiny", file)


def pictures(size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_pooled_texts_are_open_clips_own(text: OpenClipTextEncoder, theirs: Any) -> None:
    ids = open_clip.get_tokenizer("vidgen-tiny")(TEXTS)
    with torch.no_grad():
        expected = theirs.encode_text(ids)
    assert torch.equal(text.tokenize(TEXTS), ids)
    assert torch.allclose(text.pooled(TEXTS), expected, atol=1e-5)
    assert expected.std() > 0.1
    assert text.pooled_width == 12


@pytest.mark.parametrize(("layer", "blocks"), [("last", 3), ("penultimate", 2)])
def test_tokens_are_the_layer_asked_for_through_the_final_norm(
    file: Path, theirs: Any, layer: str, blocks: int
) -> None:
    encoder = OpenClipTextEncoder("vidgen-tiny", file, layer=layer)
    with torch.no_grad():  # written out, as Stable Diffusion 2 has it
        x = theirs.token_embedding(encoder.tokenize(TEXTS)) + theirs.positional_embedding
        for block in theirs.transformer.resblocks[:blocks]:
            x = block(x, attn_mask=theirs.attn_mask)
        expected = theirs.ln_final(x)
    assert torch.allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    assert encoder.width == expected.shape[2] == 16


def test_pooled_is_the_end_token_of_the_last_layer_projected(text: OpenClipTextEncoder, theirs: Any) -> None:
    ends = text.tokenize(TEXTS).argmax(1)
    end = text.encode(TEXTS)[torch.arange(3), ends]
    assert torch.allclose(end @ theirs.text_projection, text.pooled(TEXTS), atol=1e-5)


def test_a_text_does_not_depend_on_the_texts_beside_it(text: OpenClipTextEncoder) -> None:
    alone = torch.cat([text.encode([t]) for t in TEXTS])
    assert torch.allclose(alone, text.encode(TEXTS), atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=0.1)


def test_too_long_a_text_is_refused_or_cut_when_asked(file: Path, text: OpenClipTextEncoder) -> None:
    fits, over = "a " * 8, "a " * 9  # and start and end
    text.check([fits, *TEXTS])
    with pytest.raises(InvalidArgumentError, match=r"has 11 tokens; 'vidgen-tiny' reads 10.*truncate=True"):
        text.check(["a", over])
    with pytest.raises(InvalidArgumentError, match="11 tokens"):
        text.encode([over])
    cutting = OpenClipTextEncoder("vidgen-tiny", file, truncate=True)
    cutting.check([over])
    assert torch.equal(cutting.encode([over]), text.encode([fits]))


def test_image_embeddings_are_open_clips_own(image: OpenClipImageEncoder, theirs: Any) -> None:
    _, _, preprocess = open_clip.create_model_and_transforms("vidgen-tiny")
    levels = ((pictures() + 1) * 127.5).round().byte()
    prepared = torch.stack([preprocess(Image.fromarray(x.permute(1, 2, 0).numpy())) for x in levels])
    with torch.no_grad():
        expected = theirs.encode_image(prepared)
    found = image.encode(levels.float() / 127.5 - 1)
    assert torch.allclose(found, expected, atol=1e-5)
    assert expected.std() > 0.1
    assert image.width == expected.shape[1] == 12


def test_image_tokens_are_open_clips_patches(image: OpenClipImageEncoder, theirs: Any) -> None:
    theirs.visual.output_tokens = True
    with torch.no_grad():
        _, expected = theirs.visual(image.preprocess(pictures()))
    theirs.visual.output_tokens = False
    assert torch.allclose(image.tokens(pictures()), expected, atol=1e-5)


def test_pictures_get_gradients_and_the_tower_none(image: OpenClipImageEncoder) -> None:
    x = pictures().requires_grad_()
    image.encode(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in image.parameters())


def test_preprocessing_can_be_replaced(file: Path, theirs: Any) -> None:
    changed = OpenClipImageEncoder("vidgen-tiny", file, preprocessing={"mean": [0.0] * 3, "std": [1.0] * 3})
    with torch.no_grad():
        expected = theirs.encode_image((pictures() + 1) / 2)
    assert torch.allclose(changed.encode(pictures()), expected, atol=1e-5)
    with pytest.raises(UnknownNameError, match=r"'means'.*Did you mean 'mean'"):
        OpenClipImageEncoder("vidgen-tiny", file, preprocessing={"means": [0.0] * 3})


def test_a_convolutional_tower_gives_embeddings_and_tokens(tmp_path: Path) -> None:
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
    file = build(tmp_path, "vidgen-tiny-resnet", {**TINY, "vision_cfg": vision})
    encoder = OpenClipImageEncoder("vidgen-tiny-resnet", file)
    encoder.train()  # batch norm must keep its running statistics
    x = pictures(64)
    with torch.no_grad():
        expected = of_open_clip("vidgen-tiny-resnet", file).encode_image(encoder.preprocess(x))
    assert torch.allclose(encoder.encode(x), expected, atol=1e-5)
    assert encoder.tokens(x).shape == (3, 4, 256)
    assert torch.allclose(encoder.tokens(x)[:1], encoder.tokens(x[:1]), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_out_as_float32(
    text: OpenClipTextEncoder, image: OpenClipImageEncoder, dtype: torch.dtype
) -> None:
    exact, pooled, seen = text.encode(TEXTS), text.pooled(TEXTS), image.encode(pictures())
    text.to(dtype)
    image.to(dtype)
    for half, full in [
        (text.encode(TEXTS), exact),
        (text.pooled(TEXTS), pooled),
        (image.encode(pictures()), seen),
    ]:
        assert half.dtype == torch.float32
        assert (half - full).norm() < 0.05 * full.norm()


def test_stays_frozen_and_in_evaluation(text: OpenClipTextEncoder, image: OpenClipImageEncoder) -> None:
    for encoder in (text, image):
        encoder.train()
        assert not any(module.training for module in encoder.modules())
        assert not any(p.requires_grad for p in encoder.parameters())
        assert encoder.frozen


def test_the_other_tower_is_let_go(text: OpenClipTextEncoder, image: OpenClipImageEncoder, theirs: Any) -> None:
    whole = sum(p.numel() for p in theirs.parameters())
    parts = [sum(p.numel() for p in encoder.parameters()) for encoder in (text, image)]
    assert sum(parts) + 1 == whole  # and the logit scale


def test_building_keeps_the_random_state(file: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    OpenClipTextEncoder("vidgen-tiny", file)
    assert torch.equal(torch.rand(4), expected)


# Saving: a reference and a hash.


def test_saves_a_reference_and_loads_the_same_encoder(file: Path, tmp_path: Path) -> None:
    text = OpenClipTextEncoder("vidgen-tiny", file, layer="penultimate", truncate=True)
    image = OpenClipImageEncoder("vidgen-tiny", file, preprocessing={"resize_mode": "squash"})
    text.save_pretrained(tmp_path / "text_encoder", safe_serialization=True)
    image.save_pretrained(tmp_path / "image_encoder")
    assert [p.name for p in sorted(tmp_path.glob("*/*"))] == ["config.json"] * 2
    config = json.loads((tmp_path / "text_encoder/config.json").read_text())
    assert config["_class_name"] == "OpenClipTextEncoder"
    assert (config["model"], config["pretrained"]) == ("vidgen-tiny", str(file))
    assert config["weight_hash"] == weight_hash(text.tower)
    again = OpenClipTextEncoder.from_pretrained(tmp_path / "text_encoder")
    assert torch.equal(again.encode(TEXTS), text.encode(TEXTS))
    assert (again.layer, again.truncate) == ("penultimate", True)
    seen = OpenClipImageEncoder.from_pretrained(tmp_path / "image_encoder")
    assert torch.equal(seen.encode(pictures(40)), image.encode(pictures(40)))
    assert seen.preprocess == image.preprocess


def test_loads_where_the_models_name_is_unknown(file: Path, tmp_path: Path) -> None:
    OpenClipTextEncoder("vidgen-tiny", file).save_pretrained(tmp_path)
    expected = OpenClipTextEncoder("vidgen-tiny", file).pooled(TEXTS).flatten().tolist()
    code = (
        "import json, sys; from vidgen.conditioning import OpenClipTextEncoder as E; "
        "assert not {'open_clip', 'timm'} & set(sys.modules), 'slow imports are for those who use them'; "
        f"e = E.from_pretrained({str(tmp_path)!r}); print(json.dumps(e.pooled({TEXTS!r}).flatten().tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx(expected, abs=1e-5)


def test_other_weights_are_refused_by_their_hash(file: Path, tmp_path: Path) -> None:
    OpenClipTextEncoder("vidgen-tiny", file).save_pretrained(tmp_path / "text_encoder")
    other = build(tmp_path, "vidgen-tiny", TINY, seed=1)
    config = json.loads((tmp_path / "text_encoder/config.json").read_text())
    config["pretrained"] = str(other)
    (tmp_path / "text_encoder/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"hash {config['weight_hash']}.*vidgen.load.*text_encoder="):
        OpenClipTextEncoder.from_pretrained(tmp_path / "text_encoder")


def test_a_moved_file_is_found_in_the_folder_and_a_missing_one_named(file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "weights.safetensors"
    moved.write_bytes(file.read_bytes())
    encoder = OpenClipTextEncoder("vidgen-tiny", moved)
    encoder.save_pretrained(tmp_path / "text")
    moved.rename(tmp_path / "text/weights.safetensors")
    found = OpenClipTextEncoder.from_pretrained(tmp_path / "text")
    assert torch.equal(found.encode(TEXTS), encoder.encode(TEXTS))
    (tmp_path / "text/weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights.safetensors is missing.*vidgen.load.*text="):
        OpenClipTextEncoder.from_pretrained(tmp_path / "text")


def test_changed_weights_are_not_saved_as_a_reference(text: OpenClipTextEncoder, tmp_path: Path) -> None:
    text.to(torch.float16).save_pretrained(tmp_path / "half")  # the source is still the same
    text.to(torch.float32)
    text.tower.ln_final.weight.data += 1
    with pytest.raises(CheckpointError, match="were changed"):
        text.save_pretrained(tmp_path / "changed")
    assert not (tmp_path / "changed").exists()


@pytest.mark.parametrize("content", ["{", '{"_class_name": "OpenClipImageEncoder"}', None])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="configuration of an OpenClipTextEncoder"):
        OpenClipTextEncoder.from_pretrained(tmp_path)


def test_on_meta_nothing_is_read(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = OpenClipTextEncoder("vidgen-tiny", file)
    text.save_pretrained(tmp_path / "text")
    OpenClipImageEncoder("vidgen-tiny", file).save_pretrained(tmp_path / "image")
    monkeypatch.setattr(open_clip, "load_checkpoint", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: pytest.fail("a file was fetched"))
    with torch.device("meta"):
        shapes = OpenClipTextEncoder.from_pretrained(tmp_path / "text")
        seen = OpenClipImageEncoder.from_pretrained(tmp_path / "image")
        known = OpenClipTextEncoder("ViT-B-32", "laion2b_s34b_b79k")
    assert {p.device.type for e in (shapes, seen, known) for p in e.parameters()} == {"meta"}
    expected = sum(p.numel() for p in text.parameters())
    assert sum(p.numel() for p in shapes.parameters()) == expected
    assert known.width == 512
    with torch.device("meta"):
        assert shapes.encode(TEXTS).shape == text.encode(TEXTS).shape
        with pytest.raises(InvalidArgumentError, match="22 tokens"):
            shapes.check(["a " * 20])
    shapes.save_pretrained(tmp_path / "again")  # the hash it came with
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "text/config.json").read_text()
    with pytest.raises(CheckpointError, match="never loaded"):
        known.save_pretrained(tmp_path / "unknown")


# Where weights come from: never a pickle.


class Bomb:
    """Fails the test if it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".SAFETENSORS"])
def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path: Path, file: Path, suffix: str) -> None:
    bomb = tmp_path / f"weights{suffix}"
    bomb.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"(?s)convert it once.*weights_only=True.*save_file"):
        OpenClipTextEncoder("vidgen-tiny", bomb)


def test_a_checkpoint_cannot_point_to_a_pickle(tmp_path: Path, file: Path) -> None:
    OpenClipTextEncoder("vidgen-tiny", file).save_pretrained(tmp_path)
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Bomb()))
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained"] = "weights.pt"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"weights\.pt is not a \.safetensors file"):
        OpenClipTextEncoder.from_pretrained(tmp_path)


def test_a_pickle_under_a_false_name_is_refused(tmp_path: Path, file: Path) -> None:
    bomb = tmp_path / "weights.safetensors"
    bomb.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="pickle under a false name"):
        OpenClipTextEncoder("vidgen-tiny", bomb)


def test_a_configuration_that_cannot_be_built_is_named(tmp_path: Path, file: Path) -> None:
    (tmp_path / "open_clip_model.safetensors").write_bytes(file.read_bytes())
    for wrong in ({}, {**TINY, "text_cfg": {"depth": 3}}, {**TINY, "colour": 3}):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": wrong}))
        with pytest.raises(CheckpointError, match=r"configuration of 'local-dir:.*cannot be built"):
            OpenClipTextEncoder(f"local-dir:{tmp_path}")


def test_weights_of_another_model_are_refused(tmp_path: Path, file: Path) -> None:
    save_file({"visual.proj": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot be loaded as weights of 'vidgen-tiny'"):
        OpenClipTextEncoder("vidgen-tiny", tmp_path / "weights.safetensors")


@pytest.fixture
def tag(file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The tag ``web`` of the tiny model."""
    found: dict[str, Any] = {
        "url": "https://x/y.pt",
        "hf_hub": "org/tiny/",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    found |= {"interpolation": "bilinear", "resize_mode": "squash"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "vidgen-tiny", {"web": found})
    return found


def test_a_tag_is_the_safetensors_file_of_its_repository(
    tag: dict[str, Any], file: Path, theirs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a: asked.append(a) or str(file))
    image = OpenClipImageEncoder("vidgen-tiny", "web")
    assert asked == [("org/tiny", "open_clip_model.safetensors")]
    with torch.no_grad():
        expected = theirs.encode_image(pictures())  # (x / 2 + 1 / 2 - mean) / std is x
    assert torch.allclose(image.encode(pictures()), expected, atol=1e-5)
    assert (image.preprocess.interpolation, image.preprocess.resize_mode) == ("bilinear", "squash")
    tag["hf_hub"] = "org/tiny/pytorch_model.bin"
    text = OpenClipTextEncoder("vidgen-tiny", "web")
    assert asked[1] == ("org/tiny", "pytorch_model.safetensors")
    text.save_pretrained(tmp_path)
    assert torch.equal(OpenClipTextEncoder.from_pretrained(tmp_path).pooled(TEXTS), text.pooled(TEXTS))


@pytest.mark.parametrize(
    ("hub", "error", "message"),
    [
        ("org/tiny/", EntryNotFoundError("404"), r"(?s)has no open_clip_model.safetensors.*convert it once"),
        ("org/tiny/", LocalEntryNotFoundError("offline"), r"neither cached nor can it be fetched"),
        ("", None, "are a pickle"),
    ],
)
def test_tags_without_safetensors_are_refused(
    tag: dict[str, Any], monkeypatch: pytest.MonkeyPatch, hub: str, error: Exception | None, message: str
) -> None:
    def download(*_: str) -> str:
        assert error is not None
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    tag["hf_hub"] = hub
    with pytest.raises(CheckpointError, match=message):
        OpenClipTextEncoder("vidgen-tiny", "web")


def test_a_tag_of_other_activations_names_the_right_model() -> None:
    with pytest.raises(InvalidArgumentError, match="'ViT-B-32-quickgelu'"):
        OpenClipTextEncoder("ViT-B-32", "openai")


def test_a_folder_holds_configuration_weights_and_preprocessing(
    file: Path, tmp_path: Path, theirs: Any
) -> None:
    found = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "size": 9}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match=r"open_clip_model.safetensors is missing"):
        OpenClipImageEncoder(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_model.safetensors").write_bytes(file.read_bytes())
    image, text = OpenClipImageEncoder(f"local-dir:{tmp_path}"), OpenClipTextEncoder(f"local-dir:{tmp_path}")
    with torch.no_grad():
        assert torch.allclose(image.encode(pictures()), theirs.encode_image(pictures()), atol=1e-5)
        assert torch.allclose(text.pooled(TEXTS), theirs.encode_text(text.tokenize(TEXTS)), atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="has weights of its own"):
        OpenClipTextEncoder(f"local-dir:{tmp_path}", "web")


def test_a_repository_holds_configuration_and_weights(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: Any
) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    (tmp_path / "open_clip_model.safetensors").write_bytes(file.read_bytes())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name: str(tmp_path / name))
    text = OpenClipTextEncoder("hf-hub:org/tiny")
    with torch.no_grad():
        assert torch.allclose(text.pooled(TEXTS), theirs.encode_text(text.tokenize(TEXTS)), atol=1e-5)


def test_names_that_do_not_exist_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'ViT-B-32'"):
        OpenClipTextEncoder("ViT-B-33", "openai")
    with pytest.raises(UnknownNameError, match="Did you mean 'laion2b_s34b_b79k'"):
        OpenClipTextEncoder("ViT-B-32", "laion2b_s34b_b79")
    with pytest.raises(InvalidArgumentError, match=r"no weights were given for 'ViT-B-32'.*laion2b_s34b_b79k"):
        OpenClipTextEncoder("ViT-B-32")
    with pytest.raises(CheckpointError, match=r"nothing.safetensors is missing"):
        OpenClipTextEncoder("vidgen-tiny", tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match=r"open_clip_config.json is missing"):
        OpenClipTextEncoder(f"local-dir:{tmp_path}")
    with pytest.raises(UnknownNameError, match="layer 'first'"):
        OpenClipTextEncoder("vidgen-tiny", file, layer="first")


# Text towers of transformers, and their tokenizers.
