"""Sample videos during training: fixed prompts and seeds, averaged weights, training undisturbed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trainings import Noise, raw
from trainings import trainer as plain_trainer

from toy import toy
from vidgen.conditioning import ClassEncoder, VocabularyEncoder
from vidgen.errors import InvalidArgumentError
from vidgen.sampling import Sampler
from vidgen.training import Trainer
from vidgen.training import samples as samples_module
from vidgen.video import Video


def trainer(out: Path, strategy=None, **changes) -> Trainer:
    return plain_trainer(out, strategy, **{"sample_every": 5, **changes})


def test_samples_are_what_the_checkpoint_generates(tmp_path):
    """The averaged weights, in evaluation mode: at the end they are the strategy's own."""
    run = trainer(tmp_path, toy(dropout=0.3), sample_prompts=("a", "bb"))
    run.run()
    folders = sorted((tmp_path / "samples").iterdir())
    assert [folder.name for folder in folders] == ["step-00000005", "step-00000010", "step-00000012"]
    names = ["000.mp4", "000.png", "001.mp4", "001.png", "grid.mp4"]
    assert [path.name for path in sorted(folders[0].iterdir())] == names
    for module in run.strategy.modules.values():
        module.eval()
    wanted = Sampler(run.strategy)(["a", "bb"], seed=0).videos
    for i, video in enumerate(wanted):
        found = Video.load(folders[-1] / f"{i:03d}.mp4")
        assert found.num_frames == video.num_frames == 8
        assert np.abs(found.frames.astype(int) - video.frames).mean() < 12  # H.264
        assert found.metadata["prompt"] == ("a", "bb")[i]
        sheet = np.asarray(Image.open(folders[-1] / f"{i:03d}.png"))
        assert np.array_equal(sheet, np.asarray(video.contact_sheet()))  # PNG keeps every bit
    early = np.asarray(Image.open(folders[0] / "000.png"))
    assert not np.array_equal(early, np.asarray(wanted[0].contact_sheet()))


def test_sampling_leaves_training_as_it_is(tmp_path):
    with_samples = trainer(tmp_path / "a", toy(dropout=0.3), sample_every=1, steps=4).run()
    without = trainer(tmp_path / "b", toy(dropout=0.3), sample_every=None, steps=4).run()
    assert all(torch.equal(raw(with_samples)[key], value) for key, value in raw(without).items())
    assert not (tmp_path / "b" / "samples").exists()


def test_prompts_are_the_first_captions_of_the_data(tmp_path):
    trainer(tmp_path, steps=1).run()
    prompts = [Video.load(p).metadata["prompt"] for p in sorted(tmp_path.glob("samples/*/0*.mp4"))]
    assert prompts == ["clip 0", "clip 1", "clip 2", "clip 3"]


def test_prompts_of_a_strategy_of_classes_are_classes(tmp_path):
    strategy, data = toy(), Noise()
    strategy.text_encoder, data.classes = ClassEncoder(("cat", "dog"), width=8), ("cat", "dog")
    trainer(tmp_path, strategy, data=data, steps=1).run()
    files = sorted(tmp_path.glob("samples/*/0*.mp4"))
    assert [Video.load(file).metadata["prompt"] for file in files] == ["cat", "dog"]


def test_only_the_last_stage_samples(tmp_path):
    trainer(tmp_path, toy(stages=2)).run()
    steps = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert steps == ["step-00000017", "step-00000022", "step-00000024"]


def test_killed_while_writing_leaves_no_half_folder(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(samples_module.Video, "grid", lambda videos: videos[0])
    monkeypatch.setattr(samples_module.Video, "contact_sheet", fail)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path).run()
    assert list((tmp_path / "samples").iterdir()) == []


def test_a_prompt_that_cannot_be_generated_is_refused_before_training(tmp_path):
    strategy = toy()
    strategy.text_encoder = VocabularyEncoder(("circle", "red"), width=8)
    with pytest.raises(InvalidArgumentError, match="purple"):
        trainer(tmp_path / "run", strategy, sample_prompts=("red", "purple circle"))
    assert not (tmp_path / "run").exists()
