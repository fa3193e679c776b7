"""Several processes share the calls of a plan and make the video that one process makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from toy import toy
from vidgen.plans import tree
from vidgen.sampling import Sampler

SCRIPT = """
import sys
import torch, torch.distributed as dist
from safetensors.torch import save_file
from toy import toy
from vidgen.plans import tree
from vidgen.sampling import Sampler
dist.init_process_group("gloo")
sampler = Sampler(toy())
sampler.set_progress_bar_config(disable=True)
network = sampler.strategy.modules["network"]
arguments = {"num_frames": 20, "seed": 5, "plan": tree(20, 5), "eta": 0.5, "batch_size": 1}
latents = sampler(["a", "b"], output_type="latent", **arguments).frames
rank = dist.get_rank()
open(f"{sys.argv[1]}/{rank}.seeds", "w").write(str(sampler("a", num_frames=2).seeds))
save_file({"latents": latents.contiguous()}, f"{sys.argv[1]}/{rank}.safetensors")
open(f"{sys.argv[1]}/{rank}.txt", "w").write(str(len(network.calls)))
dist.destroy_process_group()
"""


def test_two_processes_make_the_same_video(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    plan = tree(20, 5)
    sampler = Sampler(toy())
    sampler.set_progress_bar_config(disable=True)
    alone = sampler(["a", "b"], num_frames=20, seed=5, plan=plan, eta=0.5, output_type="latent").frames
    for rank in (0, 1):
        shared = load_file(tmp_path / f"{rank}.safetensors")["latents"]
        torch.testing.assert_close(shared, alone, rtol=0, atol=1e-5)
    seeds = {(tmp_path / f"{rank}.seeds").read_text() for rank in (0, 1)}
    assert len(seeds) == 1  # drawn by one process, without a seed given
    counts = [int((tmp_path / f"{rank}.txt").read_text()) for rank in (0, 1)]
    unseeded = 4  # evaluations of its one call
    assert sum(counts) - unseeded == 4 * 2 * plan.num_calls  # every call ran on one process only
    assert min(counts) >= 4 * plan.num_calls * 0.8
