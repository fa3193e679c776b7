"""Trackers: TensorBoard, those of accelerate, and one's own."""

from __future__ import annotations

import importlib.util
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from accelerate import tracking
from PIL import Image
from trainings import log as lines
from trainings import trainer

from vidgen.errors import MissingDependencyError, UnknownNameError
from vidgen.training import AccelerateTracker
from vidgen.training.trackers import TensorBoardTracker, open_trackers
from vidgen.video import Video

TINY = {"validation": 0.2, "validate_every": 6, "sample_every": 6, "sample_prompts": ("a",)}


class Memory:
    """A tracker of one's own."""

    def __init__(self):
        self.values, self.videos, self.closed = [], [], 0

    def log(self, values, step):
        self.values.append((step, dict(values)))

    def close(self):
        self.closed += 1


class Cinema(Memory):
    def log_video(self, name, video, step):
        self.videos.append((name, video.num_frames, step))


def test_a_tracker_of_ones_own_gets_the_log(tmp_path):
    plain, cinema = Memory(), Cinema()
    trainer(tmp_path, own=(plain, cinema), **TINY).run()
    wanted = [(line.pop("step"), line) for line in lines(tmp_path)]
    for _, line in wanted:
        assert line.pop("stage") == "denoiser"
    assert plain.values == cinema.values == wanted
    assert {"loss", "lr/denoiser", "grad_norm/denoiser", "validation/loss"} <= plain.values[1][1].keys()
    assert cinema.videos == [("samples", 8, 6), ("samples", 8, 12)]
    assert plain.closed == cinema.closed == 1


def test_trackers_are_closed_when_training_fails(tmp_path, monkeypatch):
    tracker = Memory()
    run = trainer(tmp_path, own=(tracker,))
    monkeypatch.setattr(run, "_descent", None)
    with pytest.raises(TypeError):
        run.run()
    assert tracker.closed == 1


def events(out: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(out), size_guidance={"scalars": 0, "images": 0})
    reader.Reload()
    return reader


def test_tensorboard_shows_the_log_and_hides_what_was_done_again(tmp_path):
    changes = {"trackers": ("tensorboard",), **TINY}
    trainer(tmp_path, steps=12, checkpoint_every=5, keep_checkpoints=3, **changes).run()
    for step in (10, 12):  # as if the run had been killed after step 12 was logged and before it was saved
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:08d}")
    trainer(tmp_path, steps=12, checkpoint_every=5, keep_checkpoints=3, **changes).run()
    shown, log = events(tmp_path / "tensorboard"), lines(tmp_path)
    for name in ("loss", "lr/denoiser", "validation/loss"):
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        wanted = [(line["step"], line[name]) for line in log if name in line]
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted])
    pictures = shown.Images("samples")
    assert [picture.step for picture in pictures] == [6, 12]
    film = Image.open(io.BytesIO(pictures[0].encoded_image_string))
    assert (film.format, film.n_frames, film.size) == ("GIF", 8, (8, 8))


def test_tensorboard_keeps_the_step_it_goes_on_from_and_hides_the_next(tmp_path):
    for value, steps in ((1.0, (1, 2, 3, 4, 5)), (2.0, (4, 5))):
        tracker = TensorBoardTracker(tmp_path, step=steps[0] - 1)
        for step in steps if value == 1 else steps[:0]:
            tracker.log({"loss": value}, step)
        tracker.close()
    # The second one began at step 3 and wrote nothing yet.
    assert [event.step for event in events(tmp_path).Scalars("loss")] == [1, 2, 3]


def test_tensorboard_missing(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find(name, *rest)
    )
    with pytest.raises(MissingDependencyError, match=r'pip install "vidgen\[tensorboard\]"'):
        trainer(tmp_path / "run", trackers=("tensorboard",))
    assert not (tmp_path / "run").exists()


def test_unknown_and_missing_trackers(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown tracker 'tensorbord'. Did you mean 'tensorboard'"):
        trainer(tmp_path, trackers=("tensorbord",))
    missing = [n for n in ("wandb", "swanlab", "aim", "clearml") if importlib.util.find_spec(n) is None]
    with pytest.raises(MissingDependencyError, match=f"pip install {missing[0]}"):
        trainer(tmp_path, trackers=(missing[0],))


def test_a_tracker_of_accelerate(tmp_path):
    """TensorBoard by accelerate's own class, which stands for all of them."""
    tracker = AccelerateTracker(tracking.TensorBoardTracker("name", tmp_path / "other"))
    trainer(tmp_path / "run", own=(tracker,), steps=6).run()
    found = [(event.step, event.value) for event in events(tmp_path / "other" / "name").Scalars("loss")]
    assert found == [(line["step"], pytest.approx(line["loss"])) for line in lines(tmp_path / "run")]


def test_trackers_by_name_are_started_shown_pictures_and_finished(tmp_path, monkeypatch):
    calls = []

    class Fake(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "fake", True, None

        def __init__(self, run_name, logging_dir):
            super().__init__()
            calls.append((run_name, logging_dir))

        def start(self):
            calls.append("start")

        def log(self, values, step=None, **kwargs):
            calls.append((sorted(values), step))

        def log_images(self, values, step=None, **kwargs):
            calls.append(({name: picture.ndim for name, picture in values.items()}, step))

        def finish(self):
            calls.append("finish")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "fake", Fake)
    (tracker,) = open_trackers(["fake"], tmp_path / "run", step=0)
    tracker.log({"loss": 1.0}, 3)
    tracker.log_video("samples", Video(np.zeros((2, 8, 8, 3), np.uint8), 8), 3)
    tracker.close()
    assert calls == [("run", tmp_path / "run"), "start", (["loss"], 3), ({"samples": 4}, 3), "finish"]
