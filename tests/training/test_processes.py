"""Two processes with the same global batch train the weights that one process trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from trainings import log, trainer

from toy import toy

TESTS = Path(__file__).parents[1]
SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {here!r}]
from pathlib import Path
import test_processes
test_processes.train(Path(sys.argv[1]))
"""


def train(out: Path) -> None:
    strategy = toy()
    network = strategy.modules["network"]
    network.conv = nn.Sequential(nn.BatchNorm3d(13), network.conv)
    changes = {"validation": 0.2, "validate_every": 2, "validation_batches": 2, "sample_every": 4}
    trainer(out, strategy, steps=4, log_every=1, **changes).run()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """The same training, with batch normalisation, by one process and by two."""
    folder = tmp_path_factory.mktemp("runs")
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=str(TESTS), here=str(TESTS / "training")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = subprocess.Popen(
        [*launch, str(script), str(folder / "two")], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        train(folder / "one")
        _, error = two.communicate(timeout=300)
        assert two.returncode == 0, error
    finally:
        two.kill()
    return folder / "one", folder / "two"


def test_two_processes_train_as_one(runs):
    files = [load_file(run / "checkpoints" / "step-00000004" / "state" / "tensors.safetensors") for run in runs]
    assert files[0].keys() == files[1].keys()
    assert any("running_var" in key for key in files[0])
    for key, value in files[0].items():
        # Sums over the batch are taken in another order.
        torch.testing.assert_close(files[1][key], value, rtol=1e-4, atol=1e-6)


def test_one_process_writes_what_all_saw(runs):
    logs = [log(run) for run in runs]
    assert [line["step"] for line in logs[1]] == [1, 2, 3, 4]
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys()
    for name in ("loss", "mean_t", "validation/loss", "validation/mean_t", "grad_norm/denoiser"):
        values = [[line[name] for line in lines if name in line] for lines in logs]
        assert len(values[0]) >= 2
        assert values[1] == pytest.approx(values[0], rel=1e-4)
    assert [path.name for path in (runs[1] / "samples").iterdir()] == ["step-00000004"]
