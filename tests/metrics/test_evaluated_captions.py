"""Scores that look at captions: prompt accuracy, CLIPSIM, diversity of the samples of a prompt."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from fake_metrics import PixelExtractor, reader
from vidgen.errors import InvalidArgumentError
from vidgen.metrics.evaluate import Settings, evaluate
from vidgen.metrics.extractors.clip import ClipExtractor, ClipModel, clipsim
from vidgen.metrics.sources import View, open_videos
from vidgen.shapes.export import write_folder
from vidgen.shapes.synthetic import ShapesDataset

VIEW = View(num_frames=4)
SETTINGS = Settings(view=VIEW, batch_size=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """24 generated videos of 4 frames, 16 x 16."""
    root = tmp_path_factory.mktemp("sets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDGEN_CACHE", str(root / "cache"))
        write_folder(ShapesDataset(24, num_frames=4, size=16, seed=1), root / "generated")
        yield root


def clips(folder):
    found = open_videos(folder, VIEW)
    return torch.stack([found.clip(i) for i in range(len(found))])


def one(scores):
    (score,) = scores
    return score


def test_prompts_are_judged_by_captions(folders):
    truth = ShapesDataset(24, num_frames=4, size=16, seed=1)
    specs = [truth.scene(i).specs[0] for i in range(24)]
    scores = evaluate(
        folders / "generated",
        metrics=["prompt_accuracy"],
        judge=reader(shape=1, colour=2, motion=3),
        settings=SETTINGS,
    )
    values = {score.key: score.value for score in scores}
    assert values == {
        "prompt_shape_fake": np.mean([spec.shape == "square" for spec in specs]),
        "prompt_colour_fake": np.mean([spec.colour == "blue" for spec in specs]),
        "prompt_motion_fake": np.mean([spec.motion == "down" for spec in specs]),
        "prompt_all_fake": np.mean(
            [(spec.shape, spec.colour, spec.motion) == ("square", "blue", "down") for spec in specs]
        ),
    }
    assert scores[0].notes[0].startswith("95% interval")
    assert "was read as square" in scores[0].notes[1]
    other = evaluate(
        "shapes", metrics=["prompt_accuracy"], judge=reader(), settings=Settings(view=VIEW, videos=4)
    )
    assert {"captions", "classifier.reads"} <= scores[0].protocol.differences(other[0].protocol).keys()


def test_single_frames_are_judged_without_motion(folders):
    settings = Settings(view=View(num_frames=1))
    scores = evaluate(folders / "generated", metrics=["prompt_accuracy"], judge=reader(), settings=settings)
    assert [score.key for score in scores] == ["prompt_shape_fake", "prompt_colour_fake", "prompt_all_fake"]


class Clip(ClipModel):
    """Embeds whatever it is given; a text that is missing it would embed too."""

    name = "clip_fake"
    device = torch.device("cpu")

    def embed_images(self, images):
        return images.mean(dim=(2, 3)) + 2

    def embed_texts(self, texts):
        return torch.tensor([[1.0, len(text), 0.0] for text in texts])

    def to(self, device):
        return self

    def fingerprint(self):
        return {"name": self.name}


@pytest.mark.parametrize("metric", ["prompt_accuracy", "prompt_diversity", "clipsim"])
def test_metrics_of_captions_need_captions(folders, metric):
    extractor = PixelExtractor()
    given = {"metrics": [metric], "extractors": [extractor, ClipExtractor(Clip())], "judge": reader()}
    with pytest.raises(InvalidArgumentError, match=f"video 0 of generated has no caption, and {metric}"):
        evaluate(folders / "generated", settings=Settings(view=VIEW, captions="none"), **given)
    assert not extractor.seen


def test_clipsim_of_a_folder_with_captions(folders):
    model = Clip()
    score = one(
        evaluate(
            folders / "generated", metrics=["clipsim"], extractors=[ClipExtractor(model)], settings=SETTINGS
        )
    )
    found = open_videos(folders / "generated", VIEW)
    expected = clipsim(clips(folders / "generated"), found.captions, model).mean().item()
    assert (score.key, score.value) == ("clipsim_clip_fake", pytest.approx(expected, rel=1e-9))


def test_diversity_of_the_samples_of_a_prompt(folders, tmp_path):
    shutil.copytree(folders / "generated", tmp_path / "v")
    for index, path in enumerate(sorted((tmp_path / "v").glob("*.txt"))):
        path.write_text(f"prompt {index % 3}")
    given = {"metrics": ["prompt_diversity"], "extractors": [PixelExtractor()], "settings": SETTINGS}
    score = one(evaluate(tmp_path / "v", **given))
    features = PixelExtractor().extract(clips(tmp_path / "v")).values.double()
    squares = torch.cdist(features, features) ** 2
    same = (torch.arange(24)[:, None] - torch.arange(24)) % 3 == 0
    within, across = squares[same & ~torch.eye(24, dtype=bool)].mean(), squares[~same].mean()
    assert score.value == pytest.approx((within / across).item(), rel=1e-5)
    assert "3 prompts" in score.notes[0]
    for path in (tmp_path / "v").glob("*.txt"):
        path.write_text(f"prompt {path.stem}")
    extractor = PixelExtractor()
    with pytest.raises(InvalidArgumentError, match="24 samples of 24 prompts"):
        evaluate(tmp_path / "v", **given | {"extractors": [extractor]})
    assert not extractor.seen
