"""The classifier's training: truth follows damage, randomness is the step's, and two colours are learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vidgen.errors import InvalidArgumentError
from vidgen.recipe import Recipe, TrainingConfig
from vidgen.shapes.classifier import load_classifier
from vidgen.shapes.classifier import task as task_module
from vidgen.shapes.classifier.network import ShapesClassifier
from vidgen.shapes.classifier.task import ClassifierConfig, ClassifierTask, damage
from vidgen.shapes.scene import BACKGROUNDS, COLOURS
from vidgen.trainable import TrainingStep
from vidgen.training import Trainer
from vidgen.training.batches import micro_batches
from vidgen.video.dataset import ClipBatch, ClipSubset, DataConfig, collate, open_dataset

DATA = DataConfig.of("shapes", clip_length=6, size=32, videos=8, frames=20, seed=3)
SMALL = ClassifierConfig(widths=(8, 8, 8), path_width=8, shortest=4)


def task(data: DataConfig = DATA, config: ClassifierConfig = SMALL) -> ClassifierTask:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ClassifierTask.create(ClassifierTask.prepare(config, open_dataset(data)))


def batch_of(data: DataConfig = DATA, draw: int = 0) -> ClipBatch:
    dataset = open_dataset(data)
    return collate([dataset[(i, draw)] for i in range(len(dataset))])


def step_of(index: int = 0, count: int = 8, seed: int = 0) -> TrainingStep:
    return TrainingStep(seed, "classifier", index, tuple(range(count)))


def value_of(stage, batch, step) -> torch.Tensor:
    (loss,) = stage.losses(batch, step)
    assert loss.optimizer == "classifier"
    return loss.value


def number_of(stage, batch, step) -> float:
    with torch.no_grad():
        return float(value_of(stage, batch, step))


def test_the_loss_is_the_mean_over_clips_so_that_a_batch_may_be_cut():
    (stage,) = task().stages()
    batch = batch_of()
    for index in range(3):
        step = step_of(index)
        assert value_of(stage, batch, step).dtype == torch.float32
        parts = [
            len(micro) / 8 * number_of(stage, micro, replace(step, samples=step.samples[piece]))
            for piece, micro in micro_batches(batch, 3)
        ]
        assert sum(parts) == pytest.approx(number_of(stage, batch, step), rel=1e-5)


def test_randomness_is_the_steps():
    (stage,) = task().stages()
    batch = batch_of()
    torch.manual_seed(1)
    one = number_of(stage, batch, step_of(5))
    torch.manual_seed(2)
    np.random.seed(3)  # noqa: NPY002
    assert number_of(stage, batch, step_of(5)) == one
    others = {number_of(stage, batch, step) for step in (step_of(6), step_of(5, seed=1))}
    assert one not in others
    assert len(others) == 2


def test_damage_is_done_in_full_precision_whatever_the_networks_run_in(monkeypatch):
    (stage,) = task().stages()
    seen, read = [], ShapesClassifier.codes
    monkeypatch.setattr(ShapesClassifier, "codes", lambda self, clips: seen.append(clips) or read(self, clips))
    batch = batch_of()
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            number_of(stage, batch, step_of())
    assert torch.equal(*seen)


def test_every_length_from_the_shortest_on_is_read(monkeypatch):
    (stage,) = task().stages()
    seen, read = [], ShapesClassifier.codes

    def noting(self, clips):
        seen.append(clips.shape[2])
        return read(self, clips)

    monkeypatch.setattr(ShapesClassifier, "codes", noting)
    batch = batch_of()
    for index in range(20):
        number_of(stage, batch, step_of(index))
    assert set(seen) == {4, 5, 6}


PLAIN = [0.9, 0.5, 0.0, *[0.9] * 9]  # no damage to time, none to looks


def planned(monkeypatch, *first: float, looks: dict[int, float] | None = None) -> None:
    """Make every clip be damaged as these draws say."""
    draws = [*first, *PLAIN[len(first) :]]
    for place, value in (looks or {}).items():
        draws[place] = value
    monkeypatch.setattr(TrainingStep, "uniforms", lambda *_: torch.tensor(draws, dtype=torch.float64))


def truth_of(batch: ClipBatch) -> torch.Tensor:
    source = open_dataset(DATA).source
    places = [
        source.scene(int(i)).objects[0].positions(f.tolist())
        for i, f in zip(batch.index, batch.frames, strict=True)
    ]
    return torch.from_numpy(np.stack(places)).float()


def found_at(clips: torch.Tensor, batch: ClipBatch) -> torch.Tensor:
    """Where the object is drawn, from the pixels that are not the background's."""
    source = open_dataset(DATA).source
    names = [source.scene(int(i)).background for i in batch.index]
    back = torch.tensor([BACKGROUNDS[name] for name in names])[:, :, None, None, None] / 127.5 - 1
    drawn = (clips - back).abs().sum(1).double()
    wave = torch.exp(2j * torch.pi * (torch.arange(32) + 0.5) / 32)
    middle = torch.stack([(drawn.sum(2) * wave).sum(-1), (drawn.sum(3) * wave).sum(-1)], dim=-1).angle()
    return (middle / (2 * torch.pi)).float()


@pytest.mark.parametrize("kind", [0.05, 0.15, 0.25, 0.35])  # shuffle, freeze, jitter, flicker
def test_the_truth_follows_the_damage(monkeypatch, kind):
    planned(monkeypatch, kind, 0.7)
    batch = batch_of()
    before, kept = truth_of(batch), batch.clip.clone()
    shown = damage(batch.clip, before, step_of())
    assert torch.equal(batch.clip, kept)
    changed = ((shown.positions - before + 0.5).remainder(1.0) - 0.5).abs() > 1e-6
    assert changed.any() == (kind != 0.35)
    away = (found_at(shown.clips, batch) - shown.positions + 0.5).remainder(1.0) - 0.5
    assert away.abs().max() < 0.5 / 32
    assert set(shown.ordered.tolist()) == {0.0 if kind < 0.2 else 1.0}
    assert shown.flicker.tolist() == pytest.approx([0.28 if kind == 0.35 else 0.0] * 8)
    assert shown.noise.abs().max() == shown.blur.abs().max() == 0


def test_strengths_are_those_that_the_pixels_were_given(monkeypatch):
    planned(monkeypatch, looks={2: 0.9, 7: 0.1, 8: 0.75})
    batch = batch_of()
    shown = damage(batch.clip, truth_of(batch), step_of())
    sigma = 0.005 * 60**0.75
    assert shown.noise.tolist() == pytest.approx([sigma] * 8)
    noise = (shown.clips - batch.clip)[batch.clip.abs() < 0.5]  # where nothing is cut at -1 or 1
    assert float(noise.std()) == pytest.approx(sigma, rel=0.1)
    planned(monkeypatch, looks={2: 0.9, 3: 0.1, 4: 0.75})
    shown = damage(batch.clip, truth_of(batch), step_of())
    assert shown.blur.tolist() == pytest.approx([1.5] * 8)
    flat, edges = batch.clip.std(dim=(1, 2, 3, 4)), shown.clips.std(dim=(1, 2, 3, 4))
    assert (edges < 0.95 * flat).all()


def test_nobody_is_asked_for_the_motion_of_shuffled_frames(monkeypatch):
    made = task()
    (stage,) = made.stages()
    motion = slice(9, 16)  # rows of the head, after shape and colour
    for kind, learns in ((0.05, False), (0.9, True)):
        planned(monkeypatch, kind, 1.0)
        monkeypatch.setattr(type(stage), "_span", lambda *_: slice(0, 6))
        made.modules["classifier"].zero_grad()
        value_of(stage, batch_of(), step_of()).backward()
        gradient = made.modules["classifier"].video_heads.weight.grad
        assert (gradient[motion].abs().max() > 0) == learns
        assert gradient[:9].abs().max() > 0


def test_only_the_shapes_data_with_one_object_is_taken(tmp_path):
    for changes in ({"objects": (1, 2)}, {"path": "story"}, {"flip": True}):
        with pytest.raises(InvalidArgumentError, match="one object and without flip"):
            ClassifierTask.prepare(SMALL, open_dataset(DATA.changed(**changes)))
    with pytest.raises(InvalidArgumentError, match="data=None"):
        ClassifierTask.create(SMALL).stages()


def test_clips_of_other_videos_are_refused():
    (stage,) = task().stages()
    other = batch_of(DATA.changed(seed=4))
    with pytest.raises(InvalidArgumentError, match=r"8 videos of 32 pixels, seed\s+3"):
        next(stage.losses(other, step_of()))


def test_truth_of_a_subset_is_that_of_the_whole():
    """As where videos are held out for validation."""
    subset = ClipSubset(open_dataset(DATA), [6, 1])
    config = ClassifierTask.prepare(SMALL, subset)
    options = config.data.options
    assert (options.videos, options.frames, config.data.seed) == (8, 20, 3)
    (stage,) = ClassifierTask.create(config).stages()
    batch = collate(list(subset))
    assert batch.index.tolist() == [6, 1]
    assert np.isfinite(number_of(stage, batch, step_of(count=2)))


def test_two_colours_are_learnt_in_seconds(monkeypatch):
    data = DATA.changed(clip_length=2, size=16, videos=150)
    made = task(data, replace(SMALL, widths=(8, 16, 16), shortest=2))
    (stage,), network, dataset = made.stages(), made.modules["classifier"], open_dataset(data)
    colours = [stage.source.scene(i).specs[0].colour for i in range(150)]
    two = [i for i, colour in enumerate(colours) if colour in ("red", "cyan")][:40]
    train, test = collate([dataset[i] for i in two[:24]]), collate([dataset[i] for i in two[24:]])
    truth = task_module.targets_of(stage.source, train.index.tolist(), train.frames.tolist())
    monkeypatch.setattr(task_module, "targets_of", lambda *_: truth)  # the same clips in every step
    (group,) = stage.optimizers()
    optimizer = torch.optim.AdamW(group.parameters, lr=5e-3)
    for index in range(70):
        optimizer.zero_grad()
        value_of(stage, train, step_of(index, 24)).backward()
        optimizer.step()
    with torch.no_grad():
        read = network.eval()(test.clip).colour.argmax(1)
    said = [tuple(COLOURS)[i] for i in read.tolist()]
    right = [a == b for a, b in zip(said, [colours[i] for i in two[24:]], strict=True)]
    assert sum(right) >= 13  # of 16: by chance 1 in 100 would be, and rounding moves what is learnt


def test_the_trainer_trains_it_and_its_checkpoint_loads(tmp_path):
    recipe = Recipe(
        "classifier", SMALL, DATA, TrainingConfig(steps=2, batch_size=4, log_every=1, ema_decay=None)
    )
    out = Trainer(recipe, tmp_path / "run", strategy=task(), progress=False).run()
    loaded = load_classifier(out / "model")
    fresh = task().modules["classifier"]
    assert any(
        not torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), fresh.state_dict().values(), strict=True)
    )
    assert not loaded.training
    assert set(task_module.LOOKS) <= set(loaded.read_images(torch.zeros(1, 3, 32, 32)).__dict__)
