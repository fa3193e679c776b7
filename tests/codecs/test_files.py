from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file
from tiny_vaes import kl, tiny

from vidgen.codecs.files import class_name, read_module, write_module
from vidgen.errors import CheckpointError
from vidgen.weights import WEIGHTS, weight_hash


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_weights_come_back_and_no_random_state_moves(tmp_path: Path) -> None:
    vae = kl()
    write_module(vae, tmp_path / "new" / "vae")
    before = torch.get_rng_state()
    loaded = read_module(tmp_path / "new" / "vae", [AutoencoderKL])
    assert torch.equal(torch.get_rng_state(), before)
    assert weight_hash(loaded) == weight_hash(vae)
    assert class_name(tmp_path / "new" / "vae") == "AutoencoderKL"


def test_old_names_of_attention_weights_are_read(tmp_path: Path) -> None:
    vae = kl()
    vae.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in names.items():
        for key in [k for k in weights if f".{new}." in k]:
            weights[key.replace(f".{new}.", f".{old}.")] = weights.pop(key)
    assert "encoder.mid_block.attentions.0.query.weight" in weights
    save_file(weights, tmp_path / WEIGHTS)
    assert weight_hash(read_module(tmp_path, [AutoencoderKL])) == weight_hash(vae)


def test_a_foreign_weight_is_refused(tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path)
    save_file({**load_file(tmp_path / WEIGHTS), "a.query.weight": torch.ones(1)}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"(?s)does not fit AutoencoderKL.*a\.query\.weight"):
        read_module(tmp_path, [AutoencoderKL])


@pytest.mark.parametrize("name", [WEIGHTS, "diffusion_pytorch_model.bin", "diffusion_pytorch_model.pt"])
def test_pickles_are_never_opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kl().save_config(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"not a safetensors file|other formats are never loaded"):
        read_module(tmp_path, [AutoencoderKL])
    assert not (tmp_path / "exploded").exists()


def test_the_meta_device_reads_no_weights(tmp_path: Path) -> None:
    kl().save_config(tmp_path)
    with torch.device("meta"):
        vae = read_module(tmp_path, [AutoencoderKL])
    assert vae.device.type == "meta"
    assert sum(p.numel() for p in vae.parameters()) == sum(p.numel() for p in kl().parameters())


def test_diffusers_warns_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny().save_pretrained(tmp_path)
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        read_module(tmp_path, [AutoencoderTiny])
        assert not caplog.records
        AutoencoderTiny.from_pretrained(tmp_path, use_safetensors=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert "block_out_channels" in caplog.text, "diffusers itself warns of its own file"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("[1]", "holds list"),
        ({"block_out_channels": [4]}, "names no class"),
        ({"_class_name": "AutoencoderKL", "block_out_channels": 4}, "does not describe"),
        ({"_class_name": "AutoencoderKL", "down_block_types": ["Nothing"]}, "does not describe.*Nothing"),
    ],
)
def test_a_damaged_configuration_is_refused(config: object, message: str, tmp_path: Path) -> None:
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
        save_file({}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=message):
        read_module(tmp_path, [AutoencoderKL])
