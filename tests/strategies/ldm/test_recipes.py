"""The small recipe of the image model learns."""

from __future__ import annotations

import json
from dataclasses import replace

from vidgen.strategies.ldm.recipes import tiny
from vidgen.training import Trainer


def test_tiny_learns(tmp_path):
    recipe = tiny()
    few = replace(recipe.training, steps=24, batch_size=4, log_every=6, warmup_steps=3)
    recipe = replace(recipe, data=recipe.data.changed(videos=16, frames=4), training=few)
    Trainer(recipe, tmp_path, progress=False, device="cpu").run()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.7 * losses[0]
