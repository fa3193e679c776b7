"""What metrics need: said before any network works, with the way to give it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from fake_metrics import FrameExtractor, PixelExtractor, reader
from vidgen.errors import InvalidArgumentError
from vidgen.metrics.evaluate import Settings, evaluate
from vidgen.metrics.extractors.clip import ClipExtractor, ClipModel
from vidgen.metrics.protocol import ProtocolMismatchError
from vidgen.metrics.sources import View
from vidgen.shapes.export import write_folder
from vidgen.shapes.synthetic import ShapesDataset

SETTINGS = Settings(view=View(num_frames=4), splits=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six generated and six real videos of 4 frames, and one alone."""
    root = tmp_path_factory.mktemp("sets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDGEN_CACHE", str(root / "cache"))
        write_folder(ShapesDataset(6, num_frames=4, size=16, seed=1), root / "generated")
        write_folder(ShapesDataset(6, num_frames=4, size=16), root / "real")
        write_folder(ShapesDataset(1, num_frames=4, size=16), root / "single")
        yield root


@pytest.mark.parametrize(
    ("metric", "given", "way"),
    [
        ("fvd", {"real": None}, r"give `real` \(--against FOLDER\)"),
        ("fvd", {"extractors": []}, "--extractor shapes or --extractor i3d:FILE"),
        ("avg_fid", {}, "--extractor shapes_frames or --extractor clip:FOLDER"),
        ("clipsim", {}, "--extractor clip:FOLDER or --extractor open_clip:MODEL,pretrained=TAG"),
        ("lpips", {}, r"give `lpips` \(--lpips FILE\)"),
        ("position_spread", {}, r"give `judge`, such as `shapes_judge\(\)`"),
        ("seam_discontinuity", {}, r"give `seams` \(--seams 16,32: the first frame of each new part\)"),
    ],
)
def test_what_is_missing_is_said_with_the_way_to_give_it(metric, given, way):
    arguments = {"real": "nowhere", "extractors": [PixelExtractor()]} | given
    with pytest.raises(InvalidArgumentError, match=f"'{metric}' needs .*{way}.*, or leave '{metric}' out"):
        evaluate("nowhere", metrics=[metric], **arguments)


def test_statistics_that_do_not_fit_are_named(folders, tmp_path):
    file = tmp_path / "real.safetensors"
    given = {"metrics": ["fvd"], "extractors": [PixelExtractor()]}
    evaluate(folders / "generated", folders / "real", settings=SETTINGS, save_statistics=file, **given)
    with pytest.raises(
        ProtocolMismatchError, match=r"real\.safetensors were made .*frames: 3 against 4 in the fi"
    ):
        evaluate(folders / "generated", file, settings=Settings(view=View(num_frames=3)), **given)


@pytest.mark.parametrize("metric", ["fvd", "kvd", "b_fvd", "position_spread", "avg_fid"])
def test_sets_without_a_value_are_refused_before_anything_is_extracted(folders, metric):
    extractor, frames = PixelExtractor(), FrameExtractor("frames")
    view = View(num_frames=1 if metric == "avg_fid" else 4)
    given = {"extractors": [extractor, frames], "judge": reader(), "metrics": [metric]}
    for sets in (("single", "real"), ("real", "single")):
        with pytest.raises(InvalidArgumentError, match=rf"single has 1 video\(s\), and {metric} has no value"):
            evaluate(*(folders / name for name in sets), settings=Settings(view=view, block=4), **given)
    assert not extractor.seen


def test_a_null_of_blocks_needs_four_real_videos(folders, tmp_path):
    shutil.copytree(folders / "real", tmp_path / "three")
    for number in (3, 4, 5):
        (tmp_path / "three" / f"0000{number}.mp4").unlink()
        (tmp_path / "three" / f"0000{number}.txt").unlink()
    settings = Settings(view=View(num_frames=4), block=4)
    with pytest.raises(InvalidArgumentError, match=r"three has 3 video\(s\), .*fewer than 4"):
        evaluate(
            folders / "generated",
            tmp_path / "three",
            metrics=["b_fvd"],
            extractors=[PixelExtractor()],
            settings=settings,
        )


def test_frames_of_one_video_have_a_distance(folders):
    extractors = [FrameExtractor("frames")]
    (score,) = evaluate(
        folders / "single", folders / "single", metrics=["avg_fid"], extractors=extractors, settings=SETTINGS
    )
    assert score.value == pytest.approx(0, abs=1e-9)


class Short(ClipModel):
    """Reads 20 letters."""

    name = "clip_short"
    device = torch.device("cpu")

    def __init__(self):
        self.images = 0

    def embed_images(self, images):
        self.images += len(images)
        return images.mean(dim=(2, 3)) + 2

    def embed_texts(self, texts):
        for text in texts:
            if len(text) > 20:
                raise InvalidArgumentError(f"the prompt {text!r} is too long; truncate=True cuts it.")
        return torch.ones(len(texts), 3)

    def to(self, device):
        return self

    def fingerprint(self):
        return {"name": self.name}


def test_long_captions_are_found_before_any_frame_is_looked_at(folders):
    model = Short()
    given = {"metrics": ["clipsim"], "extractors": [ClipExtractor(model)], "settings": SETTINGS}
    with pytest.raises(InvalidArgumentError, match=r"a caption of generated: .*clip:FOLDER,truncate=true"):
        evaluate(folders / "generated", **given)
    assert not model.images


def test_every_distance_of_few_videos_has_a_note(folders):
    extractors = [PixelExtractor(), FrameExtractor("frames")]
    metrics = ["fvd", "kvd", "b_fvd", "avg_fid", "is"]
    settings = Settings(view=View(num_frames=4), block=4, splits=2)
    found = evaluate(
        folders / "generated", folders / "real", metrics=metrics, extractors=extractors, settings=settings
    )
    fvd, kvd, blocks, fid, inception = (" ".join(score.notes) for score in found)
    assert "6 real videos for 7 features" in fvd
    assert "6 real and 6 generated videos: without bias" in kvd
    assert "6 generated videos for 7 features" in blocks
    assert "6 real videos (24 frames) for 3 features: the bias" in fid  # 24 frames are no 15 videos
    assert "6 videos in 2 split(s) for 3 classes: small parts score lower" in inception


def test_motion_is_not_judged_in_clips_too_short_for_it(folders):
    judge = replace(reader(), motion_frames=5)
    given = {"metrics": ["prompt_accuracy"], "judge": judge}
    shape, colour, whole = evaluate(folders / "generated", settings=SETTINGS, **given)
    assert [score.key for score in (shape, colour, whole)] == [
        f"prompt_{name}_fake" for name in ("shape", "colour", "all")
    ]
    assert "fake tells motions apart from 5 frames on, and these clips have 4" in whole.notes[1]
    longer = replace(judge, motion_frames=4)
    scores = evaluate(folders / "generated", settings=SETTINGS, **given | {"judge": longer})
    assert [score.key for score in scores][2] == "prompt_motion_fake"
    assert len(scores[3].notes) == 1
