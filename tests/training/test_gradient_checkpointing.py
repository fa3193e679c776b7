"""Gradient checkpointing: the same training with fewer activations kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from trainings import RECIPE, Noise, raw, trainer

from toy import toy
from vidgen import plugins
from vidgen.errors import InvalidArgumentError
from vidgen.recipe import TrainingConfig
from vidgen.training import Trainer


def test_the_same_weights_with_fewer_activations_kept(tmp_path):
    recipe = plugins.load(plugins.RECIPES, "vdm/tiny")()
    model = replace(recipe.model, widths=(16, 16), context=1)
    kept, states = {}, {}
    for wanted in (True, False):
        training = TrainingConfig(steps=2, batch_size=2, warmup_steps=0, gradient_checkpointing=wanted)
        run = Trainer(
            replace(recipe, model=model, data=RECIPE.data, training=training),
            tmp_path / f"{wanted}",
            dataset=Noise(),
            progress=False,
            device="cpu",
        )
        kept[wanted] = 0

        def keep(tensor, wanted=wanted):
            kept[wanted] += tensor.nbytes
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            states[wanted] = raw(run.run())
        assert run.strategy.modules["unet"].is_gradient_checkpointing == wanted
    assert kept[True] < 0.5 * kept[False]
    assert all(torch.equal(states[True][key], value) for key, value in states[False].items())


def test_a_stage_that_cannot_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"stage 'denoiser' trains \(network\) supports it"):
        trainer(tmp_path / "run", toy(), gradient_checkpointing=True)
    assert not (tmp_path / "run").exists()


def test_a_component_with_a_way_of_its_own_is_asked(tmp_path):
    strategy, asked = toy(), []
    strategy.modules["network"]._supports_gradient_checkpointing = True
    strategy.modules["network"].enable_gradient_checkpointing = asked.append
    trainer(tmp_path, strategy, gradient_checkpointing=True, steps=1).run()
    assert len(asked) == 1
