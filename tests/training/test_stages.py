"""Settings of single stages: what a recipe says of one, the trainer does there and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from trainings import RECIPE, Noise, trainer, weights

from toy import ToyConfig, toy
from vidgen import config as configs
from vidgen.errors import InvalidArgumentError, RunFolderError, UnknownNameError
from vidgen.recipe import Recipe, StageConfig
from vidgen.training import Trainer
from vidgen.video.dataset import open_dataset

TWO = replace(RECIPE, model=ToyConfig(stages=2), training=replace(RECIPE.training, log_every=1))
OWN = replace(TWO, stages={"scale": StageConfig(steps=7, batch_size=2, learning_rate=0.5)})


def run(recipe, out, dataset=None):
    strategy = toy(stages=2)
    seen: list[tuple[str, int, int]] = []
    for stage in (stages := strategy.stages()):
        losses = stage.losses

        def noting(batch, step, losses=losses, name=stage.name):
            seen.append((name, len(batch), batch.frames.shape[1]))
            return losses(batch, step)

        stage.losses = noting
    strategy.stages = lambda: stages
    made = Trainer(recipe, out, dataset=dataset, strategy=strategy, progress=False, device="cpu")
    return made.run(), seen


def test_each_stage_has_its_steps_batch_and_rate(tmp_path):
    last, seen = run(OWN, tmp_path, Noise())
    assert last.name == "step-00000019"  # 12 and 7
    assert [entry[:2] for entry in seen] == [("denoiser", 4)] * 12 + [("scale", 2)] * 7
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = {line["stage"]: line[f"lr/{line['stage']}"] for line in lines}
    assert rates == pytest.approx({"denoiser": RECIPE.training.learning_rate, "scale": 0.5})
    index = json.loads((last / "model" / "vidgen.json").read_text())
    assert [(s["name"], s["step"], s["steps"]) for s in index["training"]["stages"]] == [
        ("denoiser", 12, 12),
        ("scale", 7, 7),
    ]
    assert index["training"]["finished"]


def test_a_stage_may_have_clips_of_its_own(tmp_path):
    recipe = replace(TWO, stages={"scale": StageConfig(clip_length=3, stride=2)})
    _, seen = run(recipe, tmp_path, open_dataset(TWO.data))
    assert {entry[::2] for entry in seen} == {("denoiser", 4), ("scale", 3)}
    assert recipe.data_of("scale") == replace(TWO.data, clip_length=3, stride=2)
    assert recipe.data_of("denoiser") == TWO.data


def test_a_run_cut_off_in_a_stage_of_its_own_length_goes_on_to_the_same_weights(tmp_path):
    whole, _ = run(OWN, tmp_path / "whole", Noise())
    strategy = toy(stages=2)
    stages = strategy.stages()
    losses = stages[1].losses

    def cut(batch, step):
        if step.index == 6:
            raise KeyboardInterrupt
        return losses(batch, step)

    stages[1].losses = cut
    strategy.stages = lambda: stages
    options = {"dataset": Noise(), "progress": False, "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        Trainer(OWN, tmp_path / "cut", strategy=strategy, **options).run()
    again, _ = run(OWN, tmp_path / "cut", Noise())
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(again)[key])


def test_steps_of_a_stage_that_others_build_on_stay(tmp_path):
    run(OWN, tmp_path, Noise())
    longer = replace(OWN, stages={"scale": replace(OWN.stages["scale"], steps=9)})
    last, seen = run(longer, tmp_path, Noise())  # the last stage may go on
    assert last.name == "step-00000021"
    assert [entry[0] for entry in seen] == ["scale"] * 2
    with pytest.raises(RunFolderError, match="took 12 steps; the recipe gives them 13 now"):
        run(replace(longer, stages={**longer.stages, "denoiser": StageConfig(steps=13)}), tmp_path, Noise())
    with pytest.raises(RunFolderError, match="another recipe"):
        run(replace(longer, stages={"scale": StageConfig(steps=9, learning_rate=0.1)}), tmp_path, Noise())


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        ({"scales": StageConfig(steps=1)}, UnknownNameError, "scales.*scale"),
        ({"scale": StageConfig(steps=0)}, InvalidArgumentError, r"training\.steps is 0"),
        ({"scale": StageConfig(betas=(0.9, 1.0))}, InvalidArgumentError, r"training\.betas"),
    ],
)
def test_what_cannot_be_is_refused_before_training(tmp_path, stages, error, message):
    with pytest.raises(error, match=message):
        run(replace(TWO, stages=stages), tmp_path / "run", Noise())
    assert not (tmp_path / "run").exists()


def test_stages_are_kept_in_json_and_set_by_name():
    again = configs.from_dict(Recipe, json.loads(json.dumps(configs.to_dict(OWN))))
    assert again.stages == OWN.stages
    changed = configs.override(OWN, ["stages.scale.steps=3", "stages.denoiser.betas=[0.0,0.9]", "steps=5"])
    assert changed.stages["scale"] == replace(OWN.stages["scale"], steps=3)
    assert changed.stages["denoiser"] == StageConfig(betas=(0.0, 0.9))
    assert changed.training.steps == 5  # by its own name it is the recipe's, for all stages
    with pytest.raises(UnknownNameError, match="step"):
        configs.override(OWN, ["stages.scale.stps=3"])
    with pytest.raises(UnknownNameError, match="stepps"):
        configs.from_dict(Recipe, {**configs.to_dict(OWN), "stages": {"scale": {"stepps": 1}}})


def test_one_stage_alone_is_as_before(tmp_path):
    assert trainer(tmp_path).run().name == "step-00000012"
