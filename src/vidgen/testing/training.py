"""Checks of how a strategy learns: what it says, nothing else, and exactly again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vidgen.recipe import Recipe, TrainingConfig
from vidgen.strategy import Strategy
from vidgen.testing.report import Skipped, expect
from vidgen.testing.subject import Subject, unmoved
from vidgen.trainable import Loss, Stage, TrainingStep
from vidgen.training import Trainer
from vidgen.training.batches import micro_batches
from vidgen.video.dataset import ClipBatch

__all__ = ["cached", "gradients", "keyed", "micro", "optimizers", "resumed", "steps"]

_STEPS = 3


class _Cut(BaseException):
    """Ends a training in the middle, as a kill would."""


def optimizers(subject: Subject) -> str:
    """Optimisers hold parameters of the stage's components, each once."""
    names: list[str] = []
    for strategy, stage in _stages(subject):
        unknown = sorted(set(stage.components) - set(strategy.modules))
        expect(not unknown, f"stage {stage.name!r} trains {unknown}, which are no components.")
        own = {id(p) for p in strategy.parameters_of(*stage.components)}
        held = [p for group in stage.optimizers() for p in group.parameters]
        foreign = [
            name for name in strategy.modules if _shares(strategy, name, held) and name not in stage.components
        ]
        expect(
            not foreign and all(id(p) in own for p in held),
            f"an optimiser of stage {stage.name!r} holds parameters of {foreign or 'no component at all'}; the "
            f"stage trains {list(stage.components)}. A stage never changes what another one trained: hold its "
            "own only, or name them in its components.",
        )
        expect(len({id(p) for p in held}) == len(held), f"stage {stage.name!r} holds a parameter twice.")
        for name in stage.components:
            expect(
                _shares(strategy, name, held),
                f"stage {stage.name!r} says that it trains {name!r}; none of its optimisers holds it.",
            )
        names.append(stage.name)
    expect(len(set(names)) == len(names), f"two stages have one name: {names}.")
    return ", ".join(names)


def gradients(subject: Subject) -> str:
    """Losses are finite numbers, and reach every parameter that they are to train."""
    seen = []
    for strategy, stage in _stages(subject):
        groups = {group.name for group in stage.optimizers()}
        reached: set[int] = set()
        for index in range(_STEPS):
            for loss in stage.losses(subject.batch, _step(subject, stage, index)):
                _check_loss(stage, loss, groups)
                own = [p for g in stage.optimizers() if g.name == loss.optimizer for p in g.parameters]
                own = [p for p in own if p.requires_grad]
                found = torch.autograd.grad(loss.value, own, allow_unused=True, retain_graph=True)
                reached |= {id(p) for p, g in zip(own, found, strict=True) if g is not None and g.any()}
                bad = [g for g in found if g is not None and not torch.isfinite(g).all()]
                expect(not bad, f"stage {stage.name!r} has gradients that are not finite.")
                seen.append(float(loss.value.detach()))
        held = {id(p) for group in stage.optimizers() for p in group.parameters}
        idle = [
            f"{component}.{name}"
            for component in stage.components
            for name, p in strategy.modules[component].named_parameters()
            if id(p) in held - reached
        ]
        expect(
            not idle,
            f"no loss of stage {stage.name!r} reaches {', '.join(idle[:3])} ({len(idle)} in all). Use what is "
            "trained, or leave it out of the optimisers.",
        )
    return f"losses {min(seen):.3g} to {max(seen):.3g}"


def steps(subject: Subject) -> str:
    """A step changes what the stage trains, and nothing else."""
    for strategy, stage in _stages(subject, fresh=True):
        before = {name: _state(strategy, name) for name in strategy.modules}
        _take_step(stage, subject.batch, _step(subject, stage, 0))
        for name, state in before.items():
            after = _state(strategy, name)
            changed = [key for key in state if not torch.equal(after[key], state[key])]
            where = f"a step of stage {stage.name!r}"
            if name in stage.components:
                expect(changed, f"{where} leaves {name!r} as it was; expected it to learn.")
            else:
                expect(not changed, f"{where} changes {changed[:3]} of {name!r}, which it does not train.")
    return "only what is declared changes"


def micro(subject: Subject) -> str:
    """The loss of a batch is the mean of its clips' losses, so that a batch may be cut anywhere."""
    worst = 0.0
    for _, stage in _stages(subject):
        for index in range(_STEPS):
            step = _step(subject, stage, index)
            whole = [loss.value.detach() for loss in stage.losses(subject.batch, step)]
            for size in (1, 3):
                parts = _mean_of_pieces(subject.batch, stage, step, size)
                counts = len(whole), len(parts)
                expect(counts[0] == counts[1], f"stage {stage.name!r} yields {counts} losses, by the cut.")
                for a, b in zip(parts, whole, strict=True):
                    apart = float((a - b).abs() / b.abs().clamp_min(1e-6))
                    worst = max(worst, apart)
                    expect(
                        apart <= subject.tolerance,
                        f"stage {stage.name!r} has loss {float(b):.6g} for {len(subject.batch)} clips and "
                        f"{float(a):.6g} as the mean over pieces of {size}. Average within each clip, then "
                        "over clips; take random numbers from TrainingStep, which knows each clip's place.",
                    )
    return f"apart by {worst:.1g} at most"


def keyed(subject: Subject) -> str:
    """Losses neither read nor move the ambient random state."""
    for _, stage in _stages(subject):
        found = []
        for ambient in (1, 2):
            with unmoved(f"a loss of stage {stage.name!r}", ambient):
                losses = list(stage.losses(subject.batch, _step(subject, stage, 0)))
            found.append(torch.stack([loss.value.detach() for loss in losses]))
        expect(
            torch.equal(found[0], found[1]),
            f"a loss of stage {stage.name!r} depends on the ambient random state. Draw from TrainingStep.",
        )
    return "nothing is drawn but by keys"


def cached(subject: Subject) -> str:
    """A stage that needs no pixels learns the same from latents that were kept."""
    looked = []
    for strategy, stage in _stages(subject):
        if stage.needs_pixels:
            continue
        looked.append(stage.name)
        latents = strategy.latents(subject.batch)
        kept = replace(subject.batch, clip=subject.batch.clip[:, :, :0], latents=latents)
        step = _step(subject, stage, 0)
        one, two = ([loss.value for loss in stage.losses(batch, step)] for batch in (subject.batch, kept))
        expect(
            all(torch.equal(a, b) for a, b in zip(one, two, strict=True)),
            f"stage {stage.name!r} says needs_pixels = False and has another loss where only latents are at "
            "hand. Use strategy.latents(batch) alone, or set needs_pixels = True.",
        )
    if not looked:
        raise Skipped("every stage needs pixels.")
    return ", ".join(looked)


def resumed(subject: Subject) -> str:
    """A training that was cut off goes on to the same weights, to the last bit."""
    _stages(subject)  # skipped where there is nothing to train
    whole = _train(subject, "whole", cut=False)
    _train(subject, "cut", cut=True)
    again = _train(subject, "cut", cut=False)
    for name in whole:
        for key, tensor in whole[name].items():
            expect(
                torch.equal(tensor, again[name][key]),
                f"training that was cut off and resumed ends with other values in {name}.{key}: something that "
                "shapes it is neither weights nor keyed by TrainingStep.",
            )
    return f"{_STEPS} steps of every stage, cut in the last"


def _train(subject: Subject, folder: str, *, cut: bool) -> dict[str, dict[str, Tensor]]:
    """Train for a few steps and return all weights; ``cut`` ends it in the last stage's last step."""
    training = TrainingConfig(
        steps=_STEPS, batch_size=2, learning_rate=1e-3, warmup_steps=0, checkpoint_every=1, seed=subject.seed
    )
    strategy = subject.fresh()
    if cut:
        stages = strategy.stages()
        _cut_at(stages[-1], _STEPS - 1)
        strategy.stages = lambda: stages  # type: ignore[method-assign]
    recipe = Recipe(subject.kind.name, subject.config, subject.data, training)
    trainer = Trainer(
        recipe,
        subject.folder / folder,
        dataset=subject.dataset,
        strategy=strategy,
        progress=False,
        device="cpu",
    )
    with suppress(_Cut):
        trainer.run()
    return {name: _state(strategy, name) for name in strategy.modules}


def _cut_at(stage: Stage, index: int) -> None:
    losses = stage.losses

    def cutting(batch: ClipBatch, step: TrainingStep) -> Iterator[Loss]:
        if step.index == index:
            raise _Cut
        return losses(batch, step)

    object.__setattr__(stage, "losses", cutting)


def _stages(subject: Subject, *, fresh: bool = False) -> list[tuple[Strategy, Stage]]:
    found = subject.stages() if fresh else subject.untrained
    if not found:
        raise Skipped("it has no stages.")
    return found


def _step(subject: Subject, stage: Stage, index: int) -> TrainingStep:
    return TrainingStep(subject.seed, stage.name, index, tuple(range(len(subject.batch))))


def _check_loss(stage: Stage, loss: Loss, groups: set[str]) -> None:
    expect(
        loss.optimizer in groups,
        f"stage {stage.name!r} yields a loss for optimiser {loss.optimizer!r}; it has {sorted(groups)}.",
    )
    shape = tuple(loss.value.shape)
    expect(shape == (), f"stage {stage.name!r} yields a loss of shape {shape}; expected a single number.")
    expect(torch.isfinite(loss.value), f"stage {stage.name!r} yields the loss {float(loss.value.detach())}.")
    expect(loss.value.requires_grad, f"a loss of stage {stage.name!r} depends on nothing that is trained.")


def _take_step(stage: Stage, batch: ClipBatch, step: TrainingStep) -> None:
    """Descend every loss once, as the trainer does."""
    held: dict[str, list[Any]] = {}
    for group in stage.optimizers():
        held.setdefault(group.name, []).extend(group.parameters)
    made = {name: torch.optim.AdamW(parameters, lr=1e-3) for name, parameters in held.items()}
    for loss in stage.losses(batch, step):
        loss.value.backward()
        made[loss.optimizer].step()
        for optimizer in made.values():
            optimizer.zero_grad()


def _mean_of_pieces(batch: ClipBatch, stage: Stage, step: TrainingStep, size: int) -> list[Tensor]:
    sums: list[Tensor] = []
    for piece, part in micro_batches(batch, size):
        where = replace(step, samples=step.samples[piece])
        values = [loss.value.detach() * (len(part) / len(batch)) for loss in stage.losses(part, where)]
        sums = [a + b for a, b in zip(sums, values, strict=True)] if sums else values
    return sums


def _shares(strategy: Strategy, name: str, parameters: list[Any]) -> bool:
    own = {id(p) for p in strategy.parameters_of(name)}
    return any(id(p) in own for p in parameters)


def _state(strategy: Strategy, name: str) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in strategy.modules[name].state_dict().items()}
