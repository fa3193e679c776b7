"""Two processes with the same global batch train the weights that one process trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from trainings import log, raw, trainer

from toy import Toy, ToyStage, toy
from vidgen.errors import TrainingError
from vidgen.trainable import Loss
from vidgen.training.processes import Processes

TESTS = Path(__file__).parents[1]
SCRIPT = """
import atexit, os, sys
import torch.distributed as dist
out = sys.argv[1]
atexit.register(lambda: open(f"{{out}}-{{os.environ['RANK']}}.left", "w").write(str(not dist.is_initialized())))
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
    changes = {"steps": 3, "weight_decay": 0.5, "micro_batch_size": 2, "max_grad_norm": None}
    trainer(out / "some", some(SomeStage), **changes).run()
    with pytest.raises(TrainingError, match="gave none of its parameters a gradient"):
        trainer(out / "none", some(NoneStage), **changes).run()
    interrupted = trainer(out / "cut", some(InterruptedStage), steps=9)
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()


def some(stage: type[ToyStage]) -> Toy:
    """A toy with parameters beside its network's, trained by ``stage``."""

    class Some(Toy):
        def stages(self):
            return (stage(self),)

    torch.manual_seed(0)
    strategy = Some.create(Some.Config())
    network = strategy.modules["network"]
    network.always, network.sometimes, network.never = (nn.Parameter(torch.ones(2)) for _ in range(3))
    return strategy


class SomeStage(ToyStage):
    """Reaches one parameter never, one only with the second half of the batch, and that at step 1."""

    def losses(self, batch, step):
        network = self.strategy.modules["network"]
        (loss,) = super().losses(batch, step)
        value = loss.value + network.always.square().sum()
        if step.index == 1 and 2 in step.samples:
            value = value + 3 * network.sometimes.square().sum()
        yield Loss("denoiser", value)


class NoneStage(ToyStage):
    def losses(self, batch, step):
        yield Loss("denoiser", torch.ones((), requires_grad=True) * 1.0)


class InterruptedStage(ToyStage):
    """Ctrl-C, in the third step, in the last process only."""

    def losses(self, batch, step):
        if step.index == 2 and 3 in step.samples:
            signal.raise_signal(signal.SIGINT)
        yield from super().losses(batch, step)


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
        _, error = two.communicate(timeout=600)
        assert two.returncode == 0, error
    finally:
        two.kill()
    return folder / "one", folder / "two"


def test_every_process_leaves_its_group_before_it_ends(runs):
    folder = runs[1].parent
    assert [(folder / f"two-{rank}.left").read_text() for rank in (0, 1)] == ["True", "True"]


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


def test_parameters_without_a_gradient_stay_as_they_are(runs):
    """None anywhere: neither weight decay nor momentum moves them. On one process only: 0 on the other."""
    one, two = (raw(run / "some" / "checkpoints" / "step-00000003") for run in runs)
    assert one.keys() == two.keys()
    weights = {name: two[f"/weights/network/{name}"] for name in ("always", "sometimes", "never")}
    assert torch.equal(weights["never"], torch.ones(2))
    assert all(0 < (1 - weights[name]).min() < 0.1 for name in ("always", "sometimes"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-6)


def test_an_interrupt_of_one_process_stops_all_at_the_same_step(runs):
    for run in runs:
        assert [path.name for path in (run / "cut" / "checkpoints").iterdir()] == ["step-00000003"]
        assert not list((run / "none").glob("checkpoints/*"))


@pytest.fixture
def half(monkeypatch) -> tuple[Processes, list[float]]:
    """The first of two processes, and what the second one adds to each sum that they make."""
    processes, others = Processes("cpu"), []
    monkeypatch.setattr(processes, "world", 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.add_(torch.tensor(others.pop(0))))
    return processes, others


def test_any_hears_the_other_process(half):
    processes, others = half
    for mine, other in ((False, False), (False, True), (True, False), (True, True)):
        others.append([float(other)])
        assert processes.any(mine) == (mine or other)


def test_gradients_are_averaged_where_any_process_has_one(half):
    processes, others = half
    a, b, c, d = (nn.Parameter(torch.ones(2)) for _ in range(4))
    a.grad, b.grad = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    others += [[1.0, 0.0, 1.0, 0.0], [5.0, 6.0, 0.0, 0.0, 7.0, 8.0]]
    processes.average_gradients([a, b, c, d])
    grads = [None if p.grad is None else p.grad.tolist() for p in (a, b, c, d)]
    assert grads == [[3, 4], [1.5, 2], [3.5, 4], None]
    assert not others
    a.grad = None
    others.append([0.0])
    processes.average_gradients([a])  # no second sum: there is nothing to add
    assert a.grad is None
