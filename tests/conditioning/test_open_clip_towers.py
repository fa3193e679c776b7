"""Text towers and tokenizers of transformers inside open_clip models."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch

from tiny_clip import TINY, build, of_open_clip
from vidgen.components import repositories_allowed
from vidgen.conditioning import OpenClipSource, OpenClipTextEncoder
from vidgen.conditioning.open_clip_trust import check_repository, tokenizer_options
from vidgen.errors import CheckpointError, InvalidArgumentError


def write_bert(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "square", "moves"]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = {
        "model_type": "roberta",
        "vocab_size": 10,
        "pad_token_id": 0,
        "max_position_embeddings": 20,
        **sizes,
    }
    (folder / "config.json").write_text(json.dumps(config))


def test_a_text_tower_of_transformers_is_open_clips_own(tmp_path: Path) -> None:
    write_bert(tmp_path)
    tower = {"hf_model_name": str(tmp_path), "hf_tokenizer_name": str(tmp_path), "context_length": 8}
    config = {**TINY, "text_cfg": {**tower, "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"}}
    file = build(tmp_path, "vidgen-tiny-bert", config)
    encoder = OpenClipTextEncoder("vidgen-tiny-bert", file)
    texts = ["a red square", "", "blue"]
    theirs = of_open_clip("vidgen-tiny-bert", file)
    ids = open_clip.get_tokenizer("vidgen-tiny-bert")(texts)
    with torch.no_grad():
        assert torch.allclose(encoder.pooled(texts), theirs.encode_text(ids), atol=1e-5)
        features = theirs.text.transformer(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    assert torch.allclose(encoder.encode(texts), features, atol=1e-5)
    assert encoder.width == 16
    with pytest.raises(InvalidArgumentError, match="9 tokens"):
        encoder.check(["a red square moves a red square"])
    with pytest.raises(InvalidArgumentError, match="Use layer='last'"):
        OpenClipTextEncoder("vidgen-tiny-bert", file, layer="penultimate")


def test_a_configuration_cannot_make_a_tokenizer_run_code(tmp_path: Path) -> None:
    write_bert(tmp_path)
    text = {"hf_tokenizer_name": str(tmp_path), "context_length": 8, "vocab_size": 10}
    file = build(tmp_path, "vidgen-tiny-trusting", {**TINY, "text_cfg": {**TINY["text_cfg"], **text}})
    config = open_clip.get_model_config("vidgen-tiny-trusting")
    config["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (tmp_path / "own.py").write_text("raise SystemExit('code of a tokenizer ran')\nclass Own: pass")
    settings = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "BertTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    source = OpenClipSource("vidgen-tiny-trusting", str(file), config, {})
    assert OpenClipTextEncoder(source).encode(["a red square"]).isfinite().all()


def test_a_tokenizer_out_of_reach_is_named(tmp_path: Path) -> None:
    text = {**TINY["text_cfg"], "hf_tokenizer_name": str(tmp_path / "nowhere")}
    file = build(tmp_path, "vidgen-tiny-foreign", {**TINY, "text_cfg": text})
    with pytest.raises(CheckpointError, match=r"tokenizer .*nowhere.*cannot be loaded.*local-dir:FOLDER"):
        OpenClipTextEncoder("vidgen-tiny-foreign", file)


# A stranger's configuration: no code, no repositories of its own choice, nothing built that does not fit.


def stored(folder: Path, file: Path, architecture: dict[str, Any], model: str = "strange-model") -> Path:
    """What a checkpoint holds whose author wrote ``architecture``."""
    folder.mkdir(parents=True)
    config = {"_class_name": "OpenClipTextEncoder", "model": model, "pretrained": str(file)}
    config |= {"architecture": architecture, "preprocessing": {}, "layer": "last", "truncate": False}
    (folder / "config.json").write_text(json.dumps(config | {"weight_hash": "0" * 32}))
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return build(tmp_path, "vidgen-tiny", TINY)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that were put to whoever sits at the keyboard, who says yes to everything."""
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": questions.append(question) or "y")
    return questions


def with_text(**text: Any) -> dict[str, Any]:
    return {**TINY, "text_cfg": {**TINY["text_cfg"], **text}}


@pytest.mark.parametrize(
    "settings", [{"auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}, {"nested": True}]
)
def test_the_code_of_a_text_tower_is_never_run_and_nobody_is_asked(
    settings: dict[str, Any], tmp_path: Path, file: Path, asked: list[str]
) -> None:
    tower = tmp_path / "tower"
    tower.mkdir()
    write_bert(tower)
    if "nested" in settings:
        settings = {"text_config": {"auto_map": {"AutoModel": "own.M"}}}
    known = json.loads((tower / "config.json").read_text())
    (tower / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nC = M = None")
    for kind in ({"model_type": "roberta"}, {"model_type": "own"}):
        (tower / "config.json").write_text(json.dumps(known | settings | kind))
        folder = stored(tmp_path / kind["model_type"], file, with_text(hf_model_name=str(tower)))
        with pytest.raises(CheckpointError, match="which neither you nor the installed open_clip names"):
            OpenClipTextEncoder.from_pretrained(folder)
        with (
            repositories_allowed([str(tower)]),
            pytest.raises(CheckpointError, match=r"code of its own \(auto_map.*never run"),
        ):
            OpenClipTextEncoder.from_pretrained(folder)
    assert not asked
    assert not (tmp_path / "ran").exists()


def test_attention_kernels_of_a_repository_are_code(tmp_path: Path, file: Path) -> None:
    tower = tmp_path / "tower"
    tower.mkdir()
    write_bert(tower)
    config = json.loads((tower / "config.json").read_text()) | {"_attn_implementation": "evil/kernel"}
    (tower / "config.json").write_text(json.dumps(config))
    folder = stored(tmp_path / "text", file, with_text(hf_model_name=str(tower)))
    with (
        repositories_allowed([str(tower)]),
        pytest.raises(CheckpointError, match=r"code of its own \(_attn_implementation"),
    ):
        OpenClipTextEncoder.from_pretrained(folder)


@pytest.mark.parametrize(
    "architecture",
    [
        with_text(hf_tokenizer_name="evil/tokenizer"),
        with_text(hf_model_name="evil/tower"),
        {**TINY, "vision_cfg": {"timm_model_name": "hf-hub:evil/vision", "image_size": 32}},
        {**TINY, "vision_cfg": {"timm_model_name": "hf_hub:evil/vision", "image_size": 32}},
    ],
)
def test_no_repository_of_a_strangers_choice_is_asked_for(
    architecture: dict[str, Any], tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("socket.socket.connect", "huggingface_hub.hf_hub_download"):
        monkeypatch.setattr(module, lambda *_, **__: pytest.fail("the network was asked"))
    folder = stored(tmp_path / "text", file, architecture)
    with pytest.raises(CheckpointError, match=r"names '(evil/.*)', which neither you"):
        OpenClipTextEncoder.from_pretrained(folder)


def test_a_model_of_the_hub_in_a_checkpoint_must_be_allowed(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(repository: str, name: str) -> str:
        assert (repository, name) == ("org/tiny", "open_clip_model.safetensors")
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    (tmp_path / "text").mkdir()
    given = OpenClipTextEncoder(OpenClipSource("hf-hub:org/tiny", "", TINY, {}))  # by who calls
    given.save_pretrained(tmp_path / "text")
    with pytest.raises(CheckpointError, match=r"names 'org/tiny', which neither you"):
        OpenClipTextEncoder.from_pretrained(tmp_path / "text")
    with repositories_allowed(["org/tiny"]):
        again = OpenClipTextEncoder.from_pretrained(tmp_path / "text")
    assert torch.equal(again.pooled(["a red square"]), given.pooled(["a red square"]))


@pytest.mark.parametrize("name", ["cache_dir", "proxies", "bpe_path", "subfolder", "token"])
def test_a_configuration_cannot_send_a_tokenizer_elsewhere(name: str, tmp_path: Path, file: Path) -> None:
    folder = stored(tmp_path / "text", file, with_text(tokenizer_kwargs={name: str(tmp_path)}))
    with pytest.raises(CheckpointError, match=rf"gives its tokenizer \['{name}'\]"):
        OpenClipTextEncoder.from_pretrained(folder)


def test_the_options_of_open_clips_own_tokenizers_are_taken() -> None:
    for model in open_clip.list_models():
        tokenizer_options(open_clip.get_model_config(model), model)
        for name in ("hf_model_name", "hf_tokenizer_name"):
            if found := open_clip.get_model_config(model)["text_cfg"].get(name):
                check_repository(found, "strange-model")


@pytest.mark.parametrize(
    "architecture",
    [
        with_text(width=20_000, heads=4),
        with_text(layers=10**8),
        with_text(vocab_size=10**10),
        with_text(context_length=10**12),
        {**TINY, "embed_dim": 10**9},
        {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 10**8}},
        with_text(layers=[[[]]]),
        {**TINY, "embed_dim": {}},
    ],
)
def test_what_the_weights_do_not_fit_is_not_built(
    architecture: dict[str, Any], tmp_path: Path, file: Path
) -> None:
    folder = stored(tmp_path / "text", file, architecture)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"describes|cannot be built|cannot be loaded"):
        OpenClipTextEncoder.from_pretrained(folder)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": None},
        {"architecture": {"text_cfg": 3}},
        {"model": 3},
        {"weight_hash": None},
        {"layer": 3},
        {"truncate": "yes"},
        {"preprocessing": []},
    ],
)
def test_values_of_another_type_are_refused(change: dict[str, Any], tmp_path: Path, file: Path) -> None:
    folder = stored(tmp_path / "text", file, TINY)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match="is not the configuration of an OpenClipTextEncoder"):
        OpenClipTextEncoder.from_pretrained(folder)
