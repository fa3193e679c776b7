"""The other example packages: under a hundred lines, installed by pip, held to every promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

# What makes a small one, and what is looked at besides the checks.
SCRIPTS = {
    "freenoise": """
import torch, vidgen
from vidgen.testing import check_strategy
from vidgen_freenoise import FreeNoiseConfig

config = FreeNoiseConfig(
    patch=4, widths=(16,), attention_levels=(0,), head_dim=8, text_width=8, context=2, fuse_stride=2,
    sample_frames=4, sample_size=(16, 16),
)
report = check_strategy("freenoise", config)
fused = vidgen.load("shapes/vdm", strategy="freenoise", device="cpu")
plain = vidgen.load("shapes/vdm", device="cpu")
x, t = torch.randn(1, 4, 20, 8, 8), torch.tensor([500])
tokens = plain.strategy.text_encoder.encode(["a red circle moves left"])
cond = vidgen.Conditioning(tokens)
with torch.no_grad():
    whole = fused.strategy.levels["video"].denoise(x, t, cond)
    alone = plain.strategy.levels["video"].denoise
    first, last = (alone(x[:, :, part], t, cond) for part in (slice(16), slice(4, 20)))
weight = torch.tensor([1.0 + min(i, 15 - i) for i in range(16)])[:, None, None]
total, weights = torch.zeros_like(x), torch.zeros(20, 1, 1)
for part, own in ((slice(16), first), (slice(4, 20), last)):
    total[:, :, part] += weight * own
    weights[part] += weight
torch.testing.assert_close(whole, total / weights, rtol=0, atol=1e-5)
assert fused.cost(num_frames=64).calls == 1
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_package_keeps_every_promise(name: str, tmp_path: Path) -> None:
    (module,) = (EXAMPLES / name).glob("*.py")
    assert len(module.read_text(encoding="utf-8").splitlines()) < 100
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    install = [sys.executable, "-m", "pip", "install", *options, "--target", tmp_path, EXAMPLES / name]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    report = "\nimport json\nprint(json.dumps({check.name: check.outcome for check in report.checks}))"
    script = [sys.executable, "-c", SCRIPTS[name] + report]
    for command in (install, script):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    trains = {promise for promise, outcome in outcomes.items() if outcome == "skipped"}
    assert set(outcomes.values()) <= {"passed", "skipped"}
    assert not [promise for promise in trains if "video" in promise or "spans" in promise]
