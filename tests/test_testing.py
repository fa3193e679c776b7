"""check_strategy: passes what is right, and names what each broken strategy does wrong."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from torch import nn

from temporal_codec import TemporalCodec
from toy import Toy, ToyConfig, ToyLevel, ToyNetwork, ToyStage, toy
from vidgen.codecs import PixelCodec
from vidgen.errors import InvalidArgumentError, UnknownNameError, VidgenError
from vidgen.plans import tree
from vidgen.request import Defaults
from vidgen.strategies.vdm import VDM, VDMConfig
from vidgen.testing import StrategyCheckError, check_strategy
from vidgen.testing.check import CHECKS
from vidgen.trainable import Loss, OptimizerGroup
from vidgen.video.dataset import DataConfig

TINY_VDM = VDMConfig(
    sample_frames=4,
    sample_size=(16, 16),
    patch=4,
    widths=(16,),
    attention_levels=(0,),
    head_dim=8,
    text_width=8,
    text_layers=1,
    context=2,
)


def test_toy_keeps_every_promise_and_the_report_says_what_was_seen():
    state = torch.get_rng_state()
    report = check_strategy(Toy, ToyConfig(stages=2, dropout=0.3))  # dropout is chance, and allowed in training
    assert torch.equal(torch.get_rng_state(), state)
    assert [check.name for check in report.checks] == list(CHECKS)
    assert (report.strategy, report.failed) == ("toy", ())
    assert [check.name for check in report.skipped] == ["kept latents train alike"]  # its stages need pixels
    assert report["plans cover every length"].detail == "1, 7, 8, 9, 17, 24, 42 frames"
    assert report["cut-off sampling goes on"].detail == "1 call kept, 2 made after it"
    assert report["optimisers hold what is declared"].detail == "denoiser, scale"
    assert "kept latents train alike" in str(report)


def test_baseline_keeps_every_promise():
    report = check_strategy(VDM, TINY_VDM)
    assert not report.failed
    assert not report.skipped
    assert report["prompts are understood or refused"].detail == "unknown words are refused"


class Compressed(Toy):
    """Four frames in a latent."""

    component_types = {**Toy.component_types, "codec": (TemporalCodec,)}  # noqa: RUF012

    @classmethod
    def create(cls, config):
        made = Toy.create(config)
        return cls(config, {**made.modules, "codec": TemporalCodec()}, made.scheduler)

    @property
    def defaults(self):
        return Defaults(num_frames=13, height=16, width=16, fps=4.0)


def test_codecs_that_compress_time_are_checked_as_well():
    report = check_strategy(Compressed, ToyConfig(window=4, context=1))
    assert report["plans cover every length"].detail == "1, 9, 13, 17, 33, 45, 85 frames"
    assert report["cut-off sampling goes on"].detail == "1 call kept, 2 made after it"


def broken_network(answer):
    """Return a toy whose network's answer goes through ``answer(prediction, x, t)``."""

    class BrokenNetwork(ToyNetwork):
        def forward(self, x, t, *rest):
            return answer(super().forward(x, t, *rest), x, t)

    class Broken(Toy):
        component_types = {**Toy.component_types, "network": (BrokenNetwork,)}  # noqa: RUF012

        @classmethod
        def create(cls, config):
            made = Toy.create(config)
            return cls(config, {**made.modules, "network": BrokenNetwork()}, made.scheduler)

    return Broken


def broken_stage(**methods):
    """Return a toy whose stage has other methods."""
    stage = type("BrokenStage", (ToyStage,), methods)
    return type("Broken", (Toy,), {"stages": lambda self: (stage(self),)})


def broken(**methods):
    return type("Broken", (Toy,), methods)


def broken_level(**methods):
    return type("Broken", (Toy,), {"level_class": type("BrokenLevel", (ToyLevel,), methods)})


counter = iter(range(10**9))


def losses_by(change):
    """Return ``losses`` that change the toy's: ``change(stage, batch, step, loss) -> value``."""

    def losses(self, batch, step):
        (loss,) = ToyStage.losses(self, batch, step)
        yield Loss("denoiser", change(self, batch, step, loss.value))

    return losses


def mean_over_batch(self, batch, step, _):
    """Weighs clips by how much there is to learn in them, and so by the clips beside them."""
    weight = torch.stack([step.uniforms(i, "weight", 1) for i in range(len(batch))])[:, 0].float()
    error = batch.clip.square().mean((1, 2, 3, 4)) * self.strategy.modules["network"].conv.weight.square().sum()
    return (error * weight).sum() / weight.sum() + self.strategy.modules["network"].conv.bias.square().sum()


class Extra(Toy):
    """Holds a network that is no component."""

    def __init__(self, config, modules, scheduler):
        super().__init__(config, modules, scheduler)
        self.helper = nn.Conv3d(12, 12, 1, bias=False)

    class level_class(ToyLevel):
        def denoise(self, x_t, t, cond):
            return super().denoise(x_t, t, cond) + self.strategy.helper(x_t)


class Drifting(ToyLevel):
    """Answers a call differently after others."""

    answered = 0

    def answer(self, batch):
        self.answered += 1
        return super().answer(batch) + 0.05 * self.answered


class Expecting(ToyLevel):
    """Expects its calls in the order of the plan."""

    asked = 0

    def condition(self, call, canvas, request):
        cond = super().condition(call, canvas, request)
        expected = self.strategy.plan(request.num_frames).calls[self.asked]
        self.asked += 1
        cond.extras["prompt"] += 0.0 if call == expected else 1.0
        return cond


class Ordered(Toy):
    level_class = Expecting

    def plan(self, num_frames):
        return tree(num_frames, 3)


class BlurryCodec(PixelCodec):
    """Encodes a picture each time otherwise."""

    def encode_frames(self, frames):
        return super().encode_frames(frames) + torch.rand(())


class Blurry(Toy):
    component_types = {**Toy.component_types, "codec": (BlurryCodec,)}  # noqa: RUF012

    @classmethod
    def create(cls, config):
        made = Toy.create(config)
        return cls(config, {**made.modules, "codec": BlurryCodec(patch=2)}, made.scheduler)


class Forgetful(ModelMixin, ConfigMixin):
    """A component that does not register its configuration."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class WithForgetful(Toy):
    component_types = {**Toy.component_types, "scale": (Forgetful,)}  # noqa: RUF012

    @classmethod
    def create(cls, config):
        made = Toy.create(config)
        return cls(config, {**made.modules, "scale": Forgetful(5)}, made.scheduler)


@dataclass(frozen=True)
class LooseConfig(ToyConfig):
    numbers: Any = (1, 2)  # JSON makes a list of it


class Peeking(Toy):
    """Reads values while it is built."""

    @classmethod
    def create(cls, config):
        made = super().create(config)
        float(made.modules["network"].conv.weight.detach().sum())
        return made


def foreign_optimizers(self):
    return (OptimizerGroup("denoiser", self.strategy.parameters_of("network", "scale")),)


def partial_optimizers(self):
    return (OptimizerGroup("denoiser", self.strategy.parameters_of("network")[:0]),)


def moving_scale(stage, batch, step, value):
    with torch.no_grad():
        stage.strategy.modules["scale"].weight.add_(1)
    return value


def remembering(stage, batch, step, value):
    stage.seen = getattr(stage, "seen", 0) + 1
    return value * stage.seen


def ambient(kind):
    """Return a number near 1 from an ambient random state."""
    draws = {"torch": lambda: float(torch.rand(())), "numpy": np.random.rand, "python": random.random}
    drawn = draws[kind]()
    return 1 + 0.1 * drawn


def no_prompt(self, call, canvas, request):
    cond = ToyLevel.condition(self, call, canvas, request)
    cond.extras["prompt"] = torch.zeros(1)
    return cond


def one_word(self, call, canvas, request):
    """Understands one letter, and takes every other prompt for none."""
    cond = ToyLevel.condition(self, call, canvas, request)
    cond.extras["prompt"] = torch.full((1,), float(len(request.prompt) if "circle" in request.prompt else 0))
    return cond


CAUSES = {
    "noise of its own": (
        broken_network(lambda y, x, t: y + 0.1 * torch.randn_like(y)),
        {"sampling draws by keys": "draws from torch's global random state", "same seed, same video": "second"},
    ),
    "NumPy's noise": (
        broken_network(lambda y, x, t: y * ambient("numpy")),
        {"sampling draws by keys": "NumPy's global random state"},
    ),
    "Python's noise": (
        broken_network(lambda y, x, t: y * ambient("python")),
        {"sampling draws by keys": "depends on the ambient random state"},
    ),
    "batch mean": (
        broken_network(lambda y, x, t: y - 0.1 * y.mean(0, keepdim=True)),
        {"batches change nothing": "mixes the batch", "losses are means over clips": "Average within"},
    ),
    "wrong shape": (
        broken_network(lambda y, x, t: y[:, :1]),
        {"denoisers keep the shape": r"answers \(1, 12, 8, 8, 8\) with \(1, 1, 8, 8, 8\)"},
    ),
    "not finite": (
        broken_network(lambda y, x, t: y / 0),
        {"denoisers keep the shape": "not finite", "same seed, same video": "not finite"},
    ),
    "start noise unused": (
        broken_level(answer=lambda self, batch: torch.zeros_like(batch.noise())),
        {"same seed, same video": "start noise is not used"},
    ),
    "steps ignored": (
        broken_level(answer=lambda self, batch: self.denoise(batch.noise(), torch.full((1,), 500), batch.cond)),
        {"settings reach every level": "level 'video' makes the same of 2 and 3 solver steps"},
    ),
    "answers change with time": (
        type("Broken", (Toy,), {"level_class": Drifting}),
        {"cut-off sampling goes on": "calls made before it", "spans agree with the whole": "alone differ"},
    ),
    "order of calls": (
        Ordered,
        {"files agree with memory": "another order"},
    ),
    "codec of chance": (Blurry, {"given pictures are kept": "picture given for frame 0 changed"}),
    "network outside the components": (
        Extra,
        {"components are declared": "belongs to no component", "saved and loaded alike": "another video"},
    ),
    "component without configuration": (
        WithForgetful,
        {"components load alone": "from_pretrained of component 'scale'", "saved and loaded alike": "."},
    ),
    "undeclared component": (
        broken(component_types={k: v for k, v in Toy.component_types.items() if k != "scale"}),
        {"components are declared": r"\['codec', 'network'\], the strategy holds"},
    ),
    "unknown component for training": (
        broken(training_only=("scales",)),
        {"shared without what only training needs": r"names \['scales'\], which component_types does not"},
    ),
    "nothing to train again from": (
        broken(training_only=("scale",)),
        {"shared without what only training needs": "makes no 'scale'; override fresh"},
    ),
    "another network to train again from": (
        broken(training_only=("scale",), fresh=lambda self, component: ToyNetwork()),
        {"shared without what only training needs": r"fresh\('scale'\) gives ToyNetwork; expected one of"},
    ),
    "loose configuration": (
        type("Broken", (Toy,), {"Config": LooseConfig}),
        {"configuration survives JSON": "tuples, not lists"},
    ),
    "values while building": (Peeking, {"described without weights": "meta"}),
    "plan too short": (
        broken(plan=lambda self, n: Toy.plan(self, max(1, n - 1))),
        {"plans cover every length": r"plan\(7\) covers 6 frames"},
    ),
    "own plan refused": (
        broken(check_plan=lambda self, plan: _refuse()),
        {"plans cover every length": "check_plan.. refuses the strategy's own"},
    ),
    "prompt ignored": (
        broken_level(condition=no_prompt),
        {"prompts are understood or refused": "make the same video"},
    ),
    "unknown prompt ignored": (
        broken_level(condition=one_word),
        {"prompts are understood or refused": "no prompt at all"},
    ),
    "trains another's component": (
        broken_stage(optimizers=foreign_optimizers),
        {"optimisers hold what is declared": r"holds parameters of \['scale'\]"},
    ),
    "changes another's component": (
        broken_stage(losses=losses_by(moving_scale)),
        {"steps change what is declared": r"changes \['weight'\] of 'scale'"},
    ),
    "trains nothing": (
        broken_stage(optimizers=partial_optimizers),
        {"optimisers hold what is declared": "none of its optimisers holds it"},
    ),
    "unreached component": (
        broken_stage(
            components=("network", "scale"),
            optimizers=foreign_optimizers,
        ),
        {
            "losses reach what is trained": "reaches scale.weight",
            "steps change what is declared": "leaves 'scale'",
        },
    ),
    "loss by the batch": (
        broken_stage(losses=losses_by(mean_over_batch)),
        {"losses are means over clips": "Average within each clip"},
    ),
    "loss summed": (
        broken_stage(losses=losses_by(lambda stage, batch, step, value: value * len(batch))),
        {"losses are means over clips": "as the mean over pieces of 1"},
    ),
    "training alone, undeclared": (
        broken(training_only=("judge",), fresh=lambda self, name: nn.Linear(1, 1)),
        {"shared without what only training needs": r"names \['judge'\], which component_types does not"},
    ),
    "loss of chance": (
        broken_stage(losses=losses_by(lambda stage, batch, step, value: value * ambient("torch"))),
        {"training draws by keys": "draws from torch's global random state"},
    ),
    "loss not finite": (
        broken_stage(losses=losses_by(lambda stage, batch, step, value: value * float("nan"))),
        {"losses reach what is trained": "yields the loss nan"},
    ),
    "loss per clip": (
        broken_stage(losses=losses_by(lambda stage, batch, step, value: value.expand(len(batch)))),
        {"losses reach what is trained": "expected a single number"},
    ),
    "unknown optimiser": (
        broken_stage(optimizers=lambda s: (OptimizerGroup("other", s.strategy.parameters_of("network")),)),
        {"losses reach what is trained": r"'denoiser'; it has \['other'\]"},
    ),
    "pixels after all": (
        broken_stage(
            needs_pixels=False, losses=losses_by(lambda s, batch, step, v: v * batch.clip.numel())
        ),
        {"kept latents train alike": "."},
    ),
    "memory between steps": (
        broken_stage(losses=losses_by(remembering)),
        {"cut-off training goes on": "cut off and resumed"},
    ),
}  # fmt: skip


def _refuse():
    raise InvalidArgumentError("no plan is good enough.")


@pytest.mark.parametrize("cause", CAUSES)
def test_what_is_broken_is_named(cause):
    kind, expected = CAUSES[cause]
    with pytest.raises(StrategyCheckError) as caught:
        check_strategy(kind, kind.Config(window=8), only=expected)
    found = {check.name: check.detail for check in caught.value.report.failed}
    assert found.keys() == expected.keys()
    for promise, message in expected.items():
        assert re.search(message, found[promise]), found[promise]
        assert promise in str(caught.value)


def test_every_check_can_fail():
    assert {promise for _, expected in CAUSES.values() for promise in expected} == set(CHECKS)


def test_all_that_fails_is_named_together():
    kind, _ = CAUSES["network outside the components"]
    only = ["components are declared", "saved and loaded alike", "given pictures are kept"]
    with pytest.raises(StrategyCheckError, match=r"fails 2 of 3 checks:\n- .*\n- .*") as caught:
        check_strategy(kind, only=only)
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, VidgenError)


def test_an_object_is_checked_with_its_own_weights(monkeypatch):
    strategy = toy()
    seen = []
    forward = ToyNetwork.forward

    def spy(self, *arguments):
        seen.append(self.conv.weight.detach().clone())
        return forward(self, *arguments)

    monkeypatch.setattr(ToyNetwork, "forward", spy)
    check_strategy(strategy, only=["same seed, same video"])
    assert all(torch.equal(weight, strategy.modules["network"].conv.weight) for weight in seen)
    seen.clear()
    check_strategy(Toy, only=["same seed, same video"], seed=1)
    assert not torch.equal(seen[0], strategy.modules["network"].conv.weight)


def test_prompts_and_data_may_be_given():
    data = DataConfig.of("shapes", clip_length=4, size=16, videos=3, frames=8)
    report = check_strategy(Toy, data=data, prompts=(), only=["prompts are understood or refused"])
    assert report.skipped
    words = VDMConfig(**{**vars(TINY_VDM), "words": ("cat", "dog")})
    only = ["same seed, same video", "losses reach what is trained"]
    with pytest.raises(InvalidArgumentError, match="Give check_strategy prompts="):
        check_strategy(VDM, words, only=only)
    assert not check_strategy(VDM, words, prompts=("cat", "dog"), only=only).failed


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((toy(), ToyConfig()), InvalidArgumentError, "its own"),
        ((ToyStage,), InvalidArgumentError, "expected a subclass of vidgen.Strategy"),
        (("vmd",), UnknownNameError, "Did you mean 'vdm'"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        check_strategy(*arguments)


def test_unknown_check_is_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'training draws by keys'"):
        check_strategy(Toy, only=["training draws by key"])
