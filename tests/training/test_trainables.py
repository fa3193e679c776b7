"""What is trained and is no strategy: finished once at the end, refused what only strategies can do."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file
from torch import nn
from trainings import RECIPE, Noise, log, raw

from vidgen import checkpoint, plugins
from vidgen.errors import InvalidArgumentError
from vidgen.recipe import TrainingConfig
from vidgen.trainable import Loss, OptimizerGroup, Stage, Trainable
from vidgen.training import Trainer
from vidgen.weights import WEIGHTS


class Level(ModelMixin, ConfigMixin):
    """Three numbers, and whether they were finished."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(3))
        self.register_buffer("finished", torch.zeros(3))


@dataclass(frozen=True)
class LevelConfig:
    stages: int = 1
    words: tuple[str, ...] = ()


class Following(Stage):
    """Follows the mean colour of the clips."""

    def __init__(self, task, name):
        self.task, self.name, self.components = task, name, (name,)

    def optimizers(self):
        return (OptimizerGroup(self.name, self.task.parameters_of(self.name)),)

    def losses(self, batch, step):
        wanted = batch.clip.mean((2, 3, 4)) + step.uniform("shift").float()[:, None]
        (value,) = self.task.parameters_of(self.name)
        yield Loss(self.name, (value - wanted).square().mean(1).mean())


class Levels(Trainable):
    name = "levels"
    Config = LevelConfig
    component_types = {"first": (Level,), "second": (Level,)}  # noqa: RUF012

    @classmethod
    def create(cls, config):
        return cls(config, {"first": Level(), "second": Level()})

    def stages(self):
        return tuple(Following(self, name) for name in ("first", "second")[: self.config.stages])


class Finishing(Levels):
    """Adds 10 to what was trained, and notes what it saw."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = []

    @torch.no_grad()
    def finish(self, dataset):
        first = self.modules["first"]
        self.seen.append((first.value.clone(), any(m.training for m in self.modules.values()), dataset))
        first.value += 10
        first.finished += 1


class Broken(Finishing):
    """Killed while it is finished."""

    def finish(self, dataset):
        raise MemoryError("killed")


STEPS = 6


def trainer(out, kind=Finishing, *, data=None, stages=1, **changes):
    training = replace(
        RECIPE.training, **{"steps": STEPS, "checkpoint_every": 4, "log_every": 2, "ema_decay": 0.9, **changes}
    )
    made = checkpoint.build(kind, LevelConfig(stages=stages))
    return Trainer(
        replace(RECIPE, training=training),
        out,
        dataset=data or Noise(),
        strategy=made,
        progress=False,
        device="cpu",
    )


def saved(folder, component="first"):
    return load_file(folder / "model" / component / WEIGHTS)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_trained_is_saved_and_loads_part_by_part(tmp_path):
    run = trainer(tmp_path, Levels)
    folder = run.run()
    assert log(tmp_path)[-1]["loss"] < log(tmp_path)[0]["loss"]
    assert log(tmp_path)[-1]["stage"] == "first"
    assert sorted(path.name for path in (folder / "model").iterdir()) == ["first", "second", "vidgen.json"]
    loaded = Level.from_pretrained(folder / "model", subfolder="first")
    assert torch.equal(loaded.value, run.strategy.modules["first"].value)
    assert not torch.equal(loaded.value, torch.ones(3))


@pytest.mark.parametrize("stages", [1, 2])
def test_it_is_finished_once_after_the_last_stage(tmp_path, stages):
    run = trainer(tmp_path, stages=stages)
    folder = run.run()
    assert folder.name == f"step-{stages * STEPS:08d}"
    assert len(run.strategy.seen) == 1
    value, training, dataset = run.strategy.seen[0]
    assert not training
    assert dataset is run.dataset
    assert torch.equal(saved(folder)["value"], value + 10)
    assert torch.equal(run.strategy.modules["first"].value, value + 10)
    earlier = tmp_path / "checkpoints" / ("step-00000004" if stages == 1 else "step-00000010")
    assert saved(earlier)["finished"].sum() == 0  # a checkpoint on the way is as it was trained
    assert saved(folder)["finished"].sum() == 3


@pytest.mark.parametrize("decay", [0.9, None])
def test_finish_sees_the_averaged_weights_and_the_state_keeps_its_own(tmp_path, decay):
    plain = trainer(tmp_path / "plain", Levels, ema_decay=decay).run()
    run = trainer(tmp_path / "finished", ema_decay=decay)
    folder = run.run()
    value = run.strategy.seen[0][0]
    assert torch.equal(value, saved(plain)["value"])
    kept = raw(folder)
    assert kept.keys() == raw(plain).keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in raw(plain).items())
    own = kept["/weights/first/value"]
    assert torch.equal(own, value) == (decay is None)  # the raw weights run ahead of their average


def test_finished_as_well_when_it_was_killed_right_before(tmp_path):
    whole = trainer(tmp_path / "whole").run()
    with pytest.raises(MemoryError):
        trainer(tmp_path / "cut", Broken).run()
    last = tmp_path / "cut" / "checkpoints" / f"step-{STEPS:08d}"
    assert saved(last)["finished"].sum() == 0
    again = trainer(tmp_path / "cut")
    assert again.run() == last
    assert len(again.strategy.seen) == 1
    assert files(last) == files(whole)


def test_running_a_finished_run_again_changes_nothing(tmp_path):
    first = trainer(tmp_path).run()
    before = files(tmp_path)
    run = trainer(tmp_path)
    assert run.run() == first
    assert files(tmp_path) == before
    assert run.strategy.modules["first"].finished.tolist() == [1, 1, 1]  # not finished upon what was finished


def test_a_finished_run_goes_on_from_what_was_trained(tmp_path):
    """What finishing did is in the result alone, never in the training that goes on from there."""
    trainer(tmp_path / "longer", checkpoint_every=STEPS).run()
    longer, whole = (
        trainer(tmp_path / name, steps=2 * STEPS, checkpoint_every=STEPS).run() for name in ("longer", "whole")
    )
    assert longer.name == whole.name
    assert files(longer) == files(whole)


def test_an_interrupt_leaves_it_unfinished(tmp_path):
    class Impatient(Following):
        def losses(self, batch, step):
            if step.index == 2:
                run._stop = True
            yield from super().losses(batch, step)

    class Interrupted(Finishing):
        def stages(self):
            return (Impatient(self, "first"),)

    run = trainer(tmp_path, Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.strategy.seen == []
    assert saved(tmp_path / "checkpoints" / "step-00000003")["finished"].sum() == 0


def test_what_has_nothing_to_finish_is_saved_once_per_checkpoint(tmp_path, monkeypatch):
    saves, save = [], checkpoint.save_strategy
    monkeypatch.setattr(
        checkpoint, "save_strategy", lambda strategy, folder: saves.append(folder) or save(strategy, folder)
    )
    trainer(tmp_path / "plain", Levels).run()
    assert len(saves) == 2  # steps 4 and 6
    trainer(tmp_path / "finished").run()
    assert len(saves) == 2 + 3


def test_finish_and_prepare_see_what_is_trained_on_and_nothing_held_out(tmp_path, monkeypatch):
    class Prepared(Finishing):
        @classmethod
        def prepare(cls, config, dataset):
            return replace(config, words=tuple(dataset.texts()))

    monkeypatch.setattr(plugins, "load_trainable", {"levels": Prepared}.__getitem__)
    training = replace(RECIPE.training, steps=2, validation=0.4, validate_every=1, validation_batches=1)
    recipe = replace(RECIPE, strategy="levels", model=LevelConfig(), training=training)
    run = Trainer(recipe, tmp_path, dataset=Noise(), progress=False, device="cpu")
    run.run()
    assert 0 < len(run.dataset) < len(Noise())
    assert run.strategy.seen[0][2] is run.dataset
    assert run.strategy.config.words == tuple(run.dataset.texts())
    assert "validation/loss" in log(tmp_path)[-1]


@pytest.mark.parametrize(
    ("field", "value", "off"), [("cache_latents", True, "False"), ("sample_every", 2, "None")]
)
def test_what_only_strategies_can_do_is_refused_before_the_folder_exists(tmp_path, field, value, off):
    message = rf"training\.{field} is {value}; 'levels' is no strategy .*Set training\.{field}={off}\."
    with pytest.raises(InvalidArgumentError, match=message):
        trainer(tmp_path / "run", **{field: value})
    assert not (tmp_path / "run").exists()
    assert getattr(TrainingConfig(), field) in (False, None)


def test_components_are_checked():
    with pytest.raises(
        InvalidArgumentError, match=r"'levels' was given NoneType as its component 'second'; expected Level"
    ):
        Levels(LevelConfig(), {"first": Level()})
    made = Levels.create(LevelConfig())
    assert made.num_parameters() == {"first": 3, "second": 3}
    assert made.to(dtype=torch.float64) is made
    assert {p.dtype for p in made.parameters_of("first", "second")} == {torch.float64}
    assert made.device.type == "cpu"
