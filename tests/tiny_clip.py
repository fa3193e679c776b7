"""A tiny open_clip model with weights of its own, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

TINY = {
    "embed_dim": 12,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3},
}
TEXTS = ["a red circle moves left", "", "Two Blue squares!"]


def build(folder: Path, name: str, config: dict[str, Any], seed: int = 0) -> Path:
    """Register ``config`` with open_clip as ``name``, and write weights of it."""
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(name, pretrained_text=False)
        for parameter in model.parameters():  # biases and norms away from their trivial start
            parameter.data += 0.1 * torch.randn_like(parameter)
    save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def of_open_clip(name: str, file: Path) -> Any:
    return open_clip.create_model(name, pretrained=str(file)).eval()
