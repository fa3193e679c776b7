"""What the documentation quotes is the code, and what it shows runs."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from vidgen import config as configs
from vidgen.noise import NoiseKey, NoisePrior
from vidgen.recipe import Recipe
from vidgen.strategies.vdm import VDMConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def blocks(title: str, language: str = "python") -> list[str]:
    """The code in the section of that title."""
    section = TEXT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def run(title: str) -> dict:
    scope: dict = {"__name__": "documentation"}
    exec(compile("\n".join(blocks(title)), title, "exec", dont_inherit=True), scope)
    return scope


def plain(code: str) -> str:
    return "\n".join(line.strip() for line in textwrap.dedent(code).splitlines() if line.strip())


def test_walk_through_quotes_the_example():
    module = plain((ROOT / "examples/plugin/vidgen_relay.py").read_text(encoding="utf-8"))
    *quoted, check = blocks("Adding a strategy")
    assert len(quoted) == 6
    for code in quoted:
        assert plain(code) in module, code
    assert "check_strategy" in check
    settings = plain((ROOT / "examples/plugin/pyproject.toml").read_text(encoding="utf-8"))
    (points,) = blocks("Adding a strategy", "toml")
    assert plain(points) in settings


def test_codec_of_the_documentation_is_one():
    codec = run("Adding a codec")["YuvCodec"]()
    clip = torch.rand(2, 3, 5, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = codec.encode(clip)
    torch.testing.assert_close(codec.decode(latents), clip, atol=1e-5, rtol=0)
    grey = torch.full((1, 3, 1, 4, 4), 0.5)
    torch.testing.assert_close(codec.encode(grey)[0, :, 0, 0, 0], torch.tensor([1.0, 0, 0]), atol=1e-6, rtol=0)


def test_prior_of_the_documentation_is_one():
    prior = run("Adding a prior")["Blocks"](length=4, rho=0.6)
    try:
        key = NoiseKey(3, "start", "video")
        noise = prior.sample(range(10), (4, 96, 96), key)
        measured = np.cov(noise.permute(1, 0, 2, 3).reshape(10, -1).numpy())
        np.testing.assert_allclose(measured, prior.covariance(range(10), key), atol=0.03)
        assert torch.equal(prior.sample([7, 2], (4, 96, 96), key), noise[:, [7, 2]])
        recipe = configs.override(Recipe("vdm", VDMConfig()), ["prior=blocks"])
        assert recipe.model.prior.to_dict() == {"kind": "blocks", "length": 8, "rho": 0.5}
    finally:
        del NoisePrior._kinds["blocks"]


@pytest.mark.parametrize("frames", [3, 16, 17, 40, 64])
def test_plan_of_the_documentation_covers_every_video(frames):
    plan = run("Adding a plan")["from_the_middle"](frames, window=16, context=4)
    made = sorted(frame for call in plan.calls for frame in plan.output(call))
    assert made == list(range(frames))
    assert max(len(call.frames) for call in plan.calls) <= 16
    assert plan.calls[0].frames[0] == max(0, (frames - 16) // 2)


def test_named_modules_exist():
    table = TEXT.split("## Layers", 1)[1].split("\n## ", 1)[0]
    for row in re.findall(r"^\| \d+ \| (.*?) \|", table, re.MULTILINE):
        for name in re.findall(r"`([a-z_/]+)`", row):
            path = ROOT / "src/vidgen" / name
            assert path.is_dir() or path.with_suffix(".py").is_file(), name
