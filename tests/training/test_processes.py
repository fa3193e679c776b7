"""Two processes with the same global batch train the weights that one process trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

TESTS = Path(__file__).parents[1]
SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {here!r}]
from pathlib import Path
from test_trainer import trainer
trainer(Path(sys.argv[1]), steps=4).run()
"""


def test_two_processes_train_as_one(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(TESTS), here=str(TESTS / "training")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, command in {"one": [sys.executable], "two": launch}.items():
        done = subprocess.run(
            [*command, str(script), str(tmp_path / name)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    files = [
        load_file(tmp_path / name / "checkpoints" / "step-00000004" / "state" / "tensors.safetensors")
        for name in ("one", "two")
    ]
    for key, value in files[0].items():
        if "random" not in key:
            # Sums over the batch are taken in another order.
            torch.testing.assert_close(files[1][key], value, rtol=1e-4, atol=1e-6)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1])  # only one process writes
