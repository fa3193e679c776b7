"""Text towers and tokenizers of transformers inside open_clip models."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch

from tiny_clip import TINY, build, of_open_clip
from vidgen.conditioning import OpenClipSource, OpenClipTextEncoder
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
