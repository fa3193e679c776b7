"""Two real processes normalise as one process does with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vidgen.nn import batch_norm
from vidgen.nn.batch_norm import SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d, convert

HERE = Path(__file__).parent

# name: the layer, the shape of the whole batch, samples of the first process
CASES: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "1d": (lambda: nn.BatchNorm1d(3), (6, 3), 3),
    "1d sequences": (lambda: nn.BatchNorm1d(3), (4, 3, 5), 2),
    "2d": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 2), 2),
    "3d": (lambda: nn.BatchNorm3d(3), (4, 3, 2, 5, 2), 2),
    "unequal": (lambda: nn.BatchNorm2d(3), (5, 3, 4, 2), 4),
    "nothing here": (lambda: nn.BatchNorm2d(3), (2, 3, 4, 2), 2),
    "one value each": (lambda: nn.BatchNorm1d(3), (2, 3), 1),
    "all batches count": (lambda: nn.BatchNorm2d(3, momentum=None), (4, 3, 5, 2), 1),
    "momentum": (lambda: nn.BatchNorm2d(3, momentum=0.3, eps=0.1), (4, 3, 5, 2), 3),
    "plain": (lambda: nn.BatchNorm2d(3, affine=False), (4, 3, 5, 2), 2),
    "no running": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 5, 2), 2),
    "double": (lambda: nn.BatchNorm2d(3, dtype=torch.float64), (4, 3, 5, 2), 3),
    "far from zero": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 2), 1),
    "network": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Tanh()
        ),
        (4, 3, 6, 4),
        1,
    ),
}


def layer_of(case: str) -> nn.Module:
    torch.manual_seed(0)
    layer: nn.Module = CASES[case][0]()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def batch_of(case: str, step: int) -> Tensor:
    rng = torch.Generator().manual_seed(step)
    batch = torch.randn(CASES[case][1], generator=rng, dtype=torch.float64) * (1 + step)
    if case == "far from zero":
        batch = batch + 3000
    return batch.to(torch.float64 if case == "double" else torch.float32)


def train(layer: nn.Module, case: str, part: slice, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Two steps and an evaluation on a part of the batch: outputs, gradients, buffers."""
    results = {}
    for step in (0, 1):
        layer.zero_grad()
        batch = batch_of(case, step)[part].to(dtype).requires_grad_()
        output = layer(batch)
        weights = torch.randn(CASES[case][1][0], *output.shape[1:], generator=torch.Generator().manual_seed(9))
        (output.square() * weights.to(output.dtype)[part]).sum().backward()
        results |= {f"output {step}": output.detach(), f"input {step}": batch.grad}
        results |= {f"weights {step} {name}": p.grad.clone() for name, p in layer.named_parameters()}
        results |= {f"buffer {step} {name}": value.clone() for name, value in layer.named_buffers()}
    layer.eval()
    if case != "no running":
        results["output eval"] = layer(batch_of(case, 2)[part].to(dtype)).detach()
    return {name: value.contiguous() for name, value in results.items()}


# Loads this file and the module alone: neither needs diffusers, which takes seconds to import.
SCRIPT = """
import importlib.util, sys, types
from pathlib import Path
import torch, torch.distributed as dist
from safetensors.torch import save_file
here, module, out, rank = sys.argv[1:4] + [int(sys.argv[4])]
def load(name, file):
    spec = importlib.util.spec_from_file_location(name, file)
    sys.modules[name] = loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
sys.modules["vidgen.nn"] = nn = types.ModuleType("vidgen.nn")
nn.batch_norm = load("vidgen.nn.batch_norm", module)
tests = load("tests", here)
dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
for case, (_, _, first) in tests.CASES.items():
    part = slice(0, first) if rank == 0 else slice(first, None)
    results = tests.train(tests.convert(tests.layer_of(case)), case, part)
    save_file(results, f"{out}/{case}.{rank}.safetensors")
layer = tests.convert(torch.nn.BatchNorm1d(3))
try:
    layer(torch.zeros(1 - rank, 3))
except ValueError as error:
    Path(f"{out}/refusal.{rank}").write_text(str(error))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of two processes computed."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), __file__, str(batch_norm.__file__), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in (0, 1):
        with (folder / f"log.{rank}").open("w") as log:
            processes.append(subprocess.Popen([*command, str(rank)], env=environment, stderr=log))
    try:
        codes = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], (folder / "log.0").read_text() + (folder / "log.1").read_text()
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_as_one(folder: Path, case: str) -> None:
    # Far from zero PyTorch's own layer rounds: in double precision it is the truth.
    exact = torch.float64 if case == "far from zero" else None
    whole = train(layer_of(case).to(exact), case, slice(None), exact)
    parts = [load_file(folder / f"{case}.{rank}.safetensors") for rank in (0, 1)]
    assert parts[0].keys() == parts[1].keys() == whole.keys()
    tolerance = {"double": 1e-10, "far from zero": 2e-3}.get(case, 2e-5)
    for name, expected in whole.items():
        kind = name.split()[0]
        one, other = parts[0][name], parts[1][name]
        if kind == "weights":
            given = one + other  # the trainer adds or averages
        elif kind == "buffer":
            assert torch.equal(one, other)
            given = one
        else:
            given = torch.cat([one, other])
        limits = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(
            given.to(expected.dtype), expected, **limits, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_statistics_of_one_value_are_refused_on_all_processes(folder: Path) -> None:
    for rank in (0, 1):
        assert "have 1 (this one has a batch of" in (folder / f"refusal.{rank}").read_text()


def test_alone_it_is_plain_batch_norm() -> None:
    for case in CASES:
        plain, own = train(layer_of(case), case, slice(None)), train(convert(layer_of(case)), case, slice(None))
        assert all(torch.equal(own[name], value) for name, value in plain.items())


def test_conversion_changes_the_kind_and_nothing_else() -> None:
    class Special(nn.BatchNorm2d):
        pass

    layers = [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), Special(2), nn.GroupNorm(1, 2)]
    network = nn.ModuleDict({"stack": nn.Sequential(*layers), "shared": layers[1]})
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    calls: list[int] = []
    layers[1].register_forward_hook(lambda *_: calls.append(1))
    assert convert(convert(network)) is network
    kinds = [SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d, Special, nn.GroupNorm]
    assert [type(child) for child in network["stack"]] == kinds
    assert network["shared"] is network["stack"][1]
    assert all(dict(network.named_parameters())[name] is p for name, p in parameters.items())
    assert all(dict(network.named_buffers())[name] is b for name, b in buffers.items())
    network["shared"](torch.randn(2, 2, 3, 3))
    assert calls == [1]
    assert type(convert(nn.BatchNorm2d(2))) is SyncBatchNorm2d
    nn.BatchNorm1d(2).load_state_dict(network["stack"][0].state_dict())  # saved as plain


def test_wrong_shapes_are_pytorchs_errors() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        convert(nn.BatchNorm2d(3))(torch.zeros(2, 3))
