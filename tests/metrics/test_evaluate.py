"""Scoring sets of videos: every number against its own computation, every protocol against what was done."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fake_metrics import FrameExtractor, PixelExtractor, brightest, reader
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError, VideoError
from vidgen.metrics.distances import kernel_distance
from vidgen.metrics.diversity import spread_ratio
from vidgen.metrics.evaluate import METRICS, Settings, evaluate
from vidgen.metrics.pairs import Psnr
from vidgen.metrics.protocol import ProtocolMismatchError
from vidgen.metrics.score import Score
from vidgen.metrics.sources import View, choose, open_videos
from vidgen.shapes.export import write_folder
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.video import VideoWriter
from vidgen.video.dataset import DataConfig

VIEW = View(num_frames=4)
SETTINGS = Settings(view=VIEW, batch_size=5)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """24 generated and 30 real videos of 4 frames, 16 x 16."""
    root = tmp_path_factory.mktemp("sets")
    write_folder(ShapesDataset(24, num_frames=4, size=16, seed=1), root / "generated")
    write_folder(ShapesDataset(30, num_frames=4, size=16), root / "real")
    return root


def clips(folder, view=VIEW):
    found = open_videos(folder, view)
    return torch.stack([found.clip(i) for i in range(len(found))])


def one(scores):
    (score,) = scores
    return score


def scored(folders, metrics, settings=SETTINGS, **given):
    """The scores of the generated videos against the real ones."""
    given = {"extractors": [PixelExtractor()]} | given
    return evaluate(folders / "generated", folders / "real", metrics=metrics, settings=settings, **given)


def gaussian_distance(x, y):
    """The Frechet distance by the eigenvalues of the symmetric product, in float64."""
    x, y = x.double().numpy(), y.double().numpy()
    a, b = np.cov(x.T), np.cov(y.T)
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * overlap


def test_frechet_distance_of_folders(folders):
    score = one(scored(folders, ["fvd"]))
    features = [PixelExtractor().extract(clips(folders / name)).values for name in ("generated", "real")]
    assert score.key == "fvd_pixels"
    assert score.value == pytest.approx(gaussian_distance(*features), rel=1e-6)
    assert (score.num_real, score.num_generated) == (30, 24)
    assert score.null is not None
    assert score.null > 0
    assert len(score.notes) == 2  # too few videos on both sides: 7 features


def test_protocol_says_how_the_number_was_made(folders):
    given = {"metrics": ["fvd"], "extractors": [PixelExtractor()]}
    first = one(evaluate(folders / "generated", folders / "real", settings=SETTINGS, **given)).protocol
    fields = first.to_json()
    assert fields["extractor"] == {"name": "pixels", "scale": 1}
    assert fields["real"] == open_videos(folders / "real", VIEW).digest
    expected = {"frames": 4, "size": [16, 16], "crop": "center", "stride": 1, "fps": None}
    assert expected.items() <= fields.items()
    assert (fields["num_real"], fields["num_generated"]) == (30, 24)
    for changed, name in (
        (View(num_frames=3), "frames"),
        (View(num_frames=4, size=8), "size"),
        (View(num_frames=2, stride=2), "stride"),
        (View(num_frames=4, fps=8), "fps"),
    ):
        other = one(evaluate(folders / "generated", folders / "real", settings=Settings(view=changed), **given))
        assert name in first.differences(other.protocol)
    same = one(
        evaluate(folders / "generated", folders / "real", settings=Settings(view=VIEW, batch_size=7), **given)
    )
    assert same.protocol == first


def test_a_set_against_itself(folders):
    scores = evaluate(
        folders / "real",
        folders / "real",
        metrics=["fvd", "kvd", "psnr", "ssim", "drift"],
        extractors=[PixelExtractor()],
        settings=SETTINGS,
    )
    values = {score.key: score.value for score in scores}
    assert abs(values["fvd_pixels"]) < 1e-9
    assert values["psnr"] == math.inf
    assert values["ssim"] == pytest.approx(1)
    assert values["drift"] == 0
    assert [score.protocol["pairing"]["by"] for score in scores[2:]] == ["name"] * 3


def test_batches_change_nothing(folders):
    found = []
    for size in (1, 7, 100):
        settings = Settings(view=VIEW, batch_size=size, kept=9, videos=20)
        found.append(
            scored(
                folders,
                ["fvd", "kvd", "is", "avg_fid", "motion_decay", "flicker_pixels", "position_spread"],
                extractors=[PixelExtractor(), FrameExtractor("frames")],
                judge=reader(),
                settings=settings,
            )
        )
    for scores in found[1:]:
        assert [score.key for score in scores] == [score.key for score in found[0]]
        for score, first in zip(scores, found[0], strict=True):
            assert score.difference(first) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_keeps_a_few_features(folders):
    settings = Settings(view=VIEW, kept=10, seed=3)
    score = one(scored(folders, ["kvd"], settings=settings))
    real = PixelExtractor().extract(clips(folders / "real")).values[choose(30, 10, 3)]
    generated = PixelExtractor().extract(clips(folders / "generated")).values[choose(24, 10, 3)]
    assert score.value == pytest.approx(kernel_distance(real, generated), rel=1e-6)
    assert (score.key, score.num_real, score.num_generated) == ("kvd_pixels", 10, 10)
    assert (score.protocol["kept"], score.protocol["seed"]) == (10, 3)


def test_inception_score_of_the_generated_videos(folders):
    settings = Settings(view=VIEW, splits=1)
    score = one(
        evaluate(folders / "generated", metrics=["is"], extractors=[PixelExtractor()], settings=settings)
    )
    p = torch.softmax(PixelExtractor().extract(clips(folders / "generated")).logits.double(), dim=1)
    expected = (p * (p / p.mean(0)).log()).sum(1).mean().exp().item()
    assert score.value == pytest.approx(expected, rel=1e-6)
    assert score.higher_is_better
    assert score.protocol["splits"] == 1
    with pytest.raises(KeyError):
        score.protocol["real"]
    with pytest.raises(InvalidArgumentError, match="has no classes"):
        evaluate(
            folders / "generated",
            metrics=["is"],
            extractors=[PixelExtractor(with_logits=False)],
            settings=settings,
        )


def test_blocks_are_scored_apart(folders):
    settings = Settings(view=VIEW, block=2)
    score = one(scored(folders, ["b_fvd"], settings=settings))
    sets = [clips(folders / name) for name in ("generated", "real")]
    distances = [
        gaussian_distance(*(PixelExtractor().extract(s[:, :, start : start + 2]).values for s in sets))
        for start in (0, 2)
    ]
    assert score.key == "b_fvd_2_pixels"
    assert score.value == pytest.approx(np.mean(distances), rel=1e-6)
    assert score.notes[0] == f"by block: {distances[0]:.4g}, {distances[1]:.4g}."
    assert score.protocol["block"] == 2


def test_pooled_frames(folders):
    settings = Settings(view=VIEW, videos=24)
    score = one(
        scored(folders, ["avg_fid"], extractors=[PixelExtractor(), FrameExtractor("frames")], settings=settings)
    )
    real = clips(folders / "real")[choose(30, 24, 0)]
    sets = [FrameExtractor().extract(s).values for s in (clips(folders / "generated"), real)]
    assert score.key == "avg_fid_frames"
    assert score.value == pytest.approx(gaussian_distance(*sets), rel=1e-5)


def test_every_extractor_gives_its_own_score(folders):
    scores = scored(folders, ["fvd", "kvd"], extractors=[PixelExtractor(), PixelExtractor("wide", scale=2.0)])
    assert [score.key for score in scores] == ["fvd_pixels", "fvd_wide", "kvd_pixels", "kvd_wide"]
    assert scores[1].value == pytest.approx(4 * scores[0].value, rel=1e-6)


def test_features_are_extracted_once(folders):
    extractor = PixelExtractor()
    scored(folders, ["fvd", "kvd", "is"], extractors=[extractor])
    assert sum(len(batch) for batch in extractor.seen) == 54


def write(path, levels):
    with VideoWriter(path, 8.0) as writer:
        writer.extend(np.stack([np.full((16, 16, 3), level, np.uint8) for level in levels]))


@pytest.fixture
def pairs(tmp_path):
    """Two real videos, and generated ones that are darker by 20 and by 20, 40, 60, 80 levels."""
    for side in ("real", "generated"):
        (tmp_path / side).mkdir()
    write(tmp_path / "real" / "a.mp4", [100] * 4)
    write(tmp_path / "real" / "b.mp4", [200] * 4)
    write(tmp_path / "generated" / "a.mp4", [80] * 4)
    write(tmp_path / "generated" / "b.mp4", [180, 160, 140, 120])
    return tmp_path


def test_videos_are_paired_by_name(pairs):
    write(pairs / "real" / "aa.mp4", [0] * 4)  # stands for none, and comes between the two
    scores = evaluate(pairs / "generated", pairs / "real", metrics=["psnr", "drift"], settings=SETTINGS)
    generated, real = clips(pairs / "generated"), clips(pairs / "real")[[0, 2]]
    assert scores[0].value == pytest.approx(Psnr()(generated, real).mean().item())
    assert scores[0].value == pytest.approx(
        10 * np.mean([math.log10(255**2 / m) for m in (400, 3000)]), abs=0.3
    )
    assert scores[0].protocol["pairing"]["by"] == "name"
    # Squared distances of frame k: (20^2 + (20 k)^2) / 2.
    expected = np.polyfit(range(4), [math.sqrt((20**2 + (20 * k) ** 2) / 2) / 255 for k in range(1, 5)], 1)[0]
    assert scores[1].value == pytest.approx(expected, abs=0.003)


def test_videos_without_namesakes_are_paired_by_order(pairs):
    (pairs / "generated" / "b.mp4").rename(pairs / "generated" / "c.mp4")
    score = one(evaluate(pairs / "generated", pairs / "real", metrics=["psnr"], settings=SETTINGS))
    assert score.protocol["pairing"]["by"] == "order"
    named = Psnr()(clips(pairs / "generated"), clips(pairs / "real")).mean().item()
    assert score.value == pytest.approx(named)
    write(pairs / "real" / "d.mp4", [0] * 4)
    with pytest.raises(InvalidArgumentError, match=r"2 videos and real 3.*cannot be paired"):
        evaluate(pairs / "generated", pairs / "real", metrics=["psnr"], settings=SETTINGS)


def test_other_pairs_on_the_same_real_set_are_not_compared(pairs):
    given = {"metrics": ["psnr"], "settings": SETTINGS}
    both = one(evaluate(pairs / "generated", pairs / "real", **given))
    (pairs / "generated" / "b.mp4").unlink()
    easy = one(evaluate(pairs / "generated", pairs / "real", **given))
    assert list(both.protocol.differences(easy.protocol)) == ["pairing.real"]
    # By order, the names of the real files decide which is compared with which.
    write(pairs / "generated" / "c.mp4", [80] * 4)
    first = one(evaluate(pairs / "generated", pairs / "real", **given))
    (pairs / "real" / "a.mp4").rename(pairs / "real" / "z.mp4")
    second = one(evaluate(pairs / "generated", pairs / "real", **given))
    assert first.protocol["real"] == second.protocol["real"]
    assert list(first.protocol.differences(second.protocol)) == ["pairing.real"]
    with pytest.raises(ProtocolMismatchError, match=r"pairing\.real"):
        first.difference(second)


def test_a_name_that_stands_for_two_videos_pairs_nothing(pairs):
    shutil.copy(pairs / "real" / "a.mp4", pairs / "real" / "a.mkv")
    with pytest.raises(InvalidArgumentError, match="real has 2 videos of the name 'a'"):
        evaluate(pairs / "generated", pairs / "real", metrics=["psnr"], settings=SETTINGS)


def test_spread_of_start_positions(folders):
    score = one(scored(folders, ["position_spread"], judge=reader()))
    starts = [brightest(clips(folders / name))[:, 0] for name in ("generated", "real")]
    assert score.value == pytest.approx(spread_ratio(*starts))
    assert (score.higher_is_better, score.goal) == (None, 1)
    assert "in the real set" in score.notes[0]


def test_motion_and_flicker_stand_beside_those_of_the_real_set(pairs):
    asked = ["flicker_brightness", "motion_decay"]
    scores = evaluate(pairs / "generated", pairs / "real", metrics=asked, settings=SETTINGS)
    # One video stays, the other darkens by 20 levels a frame.
    assert [score.key for score in scores] == asked
    assert scores[1].value == pytest.approx(1, abs=0.1)
    assert scores[0].value == pytest.approx(0, abs=0.01)
    assert [(score.higher_is_better, score.goal) for score in scores] == [(None, 0), (None, None)]
    assert scores[0].notes == ("the real videos have 0.",)
    assert one(evaluate(pairs / "generated", metrics=["flicker_pixels"], settings=SETTINGS)).notes == ()


def test_videos_without_motion_leave_the_other_scores(pairs, caplog):
    asked = ["motion_decay", "flicker_pixels"]
    scores = evaluate(pairs / "real", metrics=asked, settings=SETTINGS)
    assert [score.key for score in scores] == ["flicker_pixels"]
    assert "nothing moves" in caplog.text


def test_stored_statistics_stand_for_the_real_set(folders, tmp_path):
    file = tmp_path / "deep" / "real.safetensors"
    given = {"metrics": ["fvd"], "settings": SETTINGS}
    direct = one(
        evaluate(
            folders / "generated",
            folders / "real",
            extractors=[PixelExtractor()],
            save_statistics=file,
            **given,
        )
    )
    stored = one(evaluate(folders / "generated", file, extractors=[PixelExtractor()], **given))
    assert stored.null == pytest.approx(direct.null, rel=1e-9)
    assert stored.value == pytest.approx(direct.value, rel=1e-9)
    assert replace(stored, null=0.0, value=0.0) == replace(
        direct, null=0.0, value=0.0
    )  # protocol and notes too
    reseeded = replace(SETTINGS, seed=9)  # draws other halves, of which the file has its own
    again = one(
        evaluate(
            folders / "generated",
            file,
            metrics=["fvd"],
            extractors=[PixelExtractor()],
            settings=reseeded,
        )
    )
    assert again.difference(stored) == pytest.approx(0, abs=1e-12)
    assert again.null == stored.null
    for extractor, view, said in (
        (PixelExtractor(scale=2.0), VIEW, "extractor.scale: 2 against 1"),
        (PixelExtractor(), View(num_frames=3), "frames: 3 against 4"),
        (PixelExtractor(), View(num_frames=4, size=8), "size"),
    ):
        with pytest.raises(ProtocolMismatchError, match=said):
            evaluate(
                folders / "generated",
                file,
                metrics=["fvd"],
                extractors=[extractor],
                settings=Settings(view=view),
            )
    with pytest.raises(InvalidArgumentError, match="'kvd' needs the real videos themselves"):
        evaluate(folders / "generated", file, extractors=[PixelExtractor()], settings=SETTINGS)
    with pytest.raises(InvalidArgumentError, match="2 were asked for"):
        evaluate(folders / "generated", file, extractors=[PixelExtractor(), PixelExtractor("other")], **given)
    with pytest.raises(CheckpointError):
        evaluate(folders / "generated", tmp_path / "no.safetensors", extractors=[PixelExtractor()], **given)


@pytest.mark.parametrize(
    ("metrics", "extractors", "file"),
    [
        (["kvd"], [PixelExtractor()], "a.safetensors"),
        (["fvd"], [PixelExtractor(), PixelExtractor("other")], "a.safetensors"),
        (["fvd"], [PixelExtractor()], "a.pt"),
    ],
)
def test_statistics_are_saved_for_one_extractor(folders, tmp_path, metrics, extractors, file):
    with pytest.raises(InvalidArgumentError, match="statistics were to be saved"):
        scored(folders, metrics, extractors=extractors, save_statistics=tmp_path / file)


@pytest.mark.parametrize(
    ("metric", "given", "said"),
    [
        ("fvd", {"real": None}, "a real set"),
        ("psnr", {"real": None}, "a real set"),
        ("fvd", {"extractors": []}, "describes videos"),
        ("fvd", {"extractors": [FrameExtractor()]}, "describes videos"),
        ("avg_fid", {}, "describes frames"),
        ("clipsim", {}, "CLIP"),
        ("prompt_accuracy", {}, "classifier"),
        ("position_spread", {}, "classifier"),
        ("lpips", {}, "weights"),
    ],
)
def test_what_a_metric_needs_is_checked_before_anything_is_read(metric, given, said):
    arguments = {"real": "nowhere", "extractors": [PixelExtractor()]} | given
    with pytest.raises(InvalidArgumentError, match=f"'{metric}' needs .*{said}"):
        evaluate("nowhere", metrics=[metric], **arguments)


def test_unusable_requests_are_refused(folders):
    extractors = [PixelExtractor()]
    with pytest.raises(UnknownNameError, match="Did you mean 'fvd'"):
        evaluate("nowhere", metrics=["fvdd"], extractors=extractors)
    with pytest.raises(InvalidArgumentError, match="no metric"):
        evaluate("nowhere", metrics=[])
    with pytest.raises(InvalidArgumentError, match="share a name"):
        evaluate("nowhere", "nowhere", extractors=extractors * 2)
    with pytest.raises(VideoError, match="does not exist"):
        evaluate(folders / "generated", folders / "none", extractors=extractors, settings=SETTINGS)
    with pytest.raises(VideoError, match="shorter than 16 frames"):
        evaluate(folders / "generated", folders / "real", extractors=extractors)
    for name in ("videos", "splits", "block", "batch_size"):
        with pytest.raises(InvalidArgumentError, match=f"{name}=0"):
            Settings(**{name: 0})
    with pytest.raises(InvalidArgumentError, match="kept=1"):
        Settings(kept=1)


def test_numbers_and_captions_are_checked_before_anything_is_extracted(folders, tmp_path):
    extractor, frames = PixelExtractor(), FrameExtractor("frames")
    given = {"extractors": [extractor, frames], "judge": reader(), "settings": SETTINGS}
    with pytest.raises(InvalidArgumentError, match=r"24 videos and real 30; .*at most 24 of each"):
        evaluate(folders / "generated", folders / "real", metrics=["fvd", "avg_fid"], **given)
    given["settings"] = Settings(view=VIEW, splits=25)
    with pytest.raises(InvalidArgumentError, match="24 videos, fewer than the 25 splits"):
        evaluate(folders / "generated", folders / "real", metrics=["fvd", "is"], **given)
    shutil.copytree(folders / "generated", tmp_path / "v")
    (tmp_path / "v" / "00023.txt").write_text("a dog runs")
    with pytest.raises(InvalidArgumentError, match="'a dog runs'"):
        evaluate(tmp_path / "v", folders / "real", metrics=["fvd", "prompt_accuracy"], **given)
    assert not extractor.seen


def test_sets_of_two_sizes_need_one(folders, tmp_path):
    write_folder(ShapesDataset(5, num_frames=4, size=32), tmp_path / "large")
    given = {"metrics": ["flicker_pixels", "fvd"], "extractors": [PixelExtractor()]}
    with pytest.raises(InvalidArgumentError, match="16 x 16 pixels and large of 32 x 32"):
        evaluate(folders / "generated", tmp_path / "large", settings=SETTINGS, **given)
    settings = Settings(view=View(num_frames=4, size=16))
    assert len(evaluate(folders / "generated", tmp_path / "large", settings=settings, **given)) == 2


def test_procedural_data_take_the_size_of_the_generated_videos(folders):
    score = one(
        evaluate(
            folders / "generated",
            DataConfig.of("shapes", videos=30, seed=0),
            metrics=["fvd"],
            extractors=[PixelExtractor()],
            settings=SETTINGS,
        )
    )
    assert score.protocol["size"] == [16, 16]
    features = PixelExtractor().extract(clips(folders / "generated")).values
    data = ShapesDataset(30, num_frames=4, size=16)
    frames = torch.stack([torch.from_numpy(data.render(i, range(4))) for i in range(30)])
    drawn = frames.permute(0, 4, 1, 2, 3) / 127.5 - 1
    assert score.value == pytest.approx(
        gaussian_distance(features, PixelExtractor().extract(drawn).values), rel=1e-4
    )


def test_unequal_rates_are_said(pairs, caplog):
    with VideoWriter(pairs / "generated" / "b.mp4", 24.0) as writer:
        writer.extend(np.zeros((8, 16, 16, 3), np.uint8))
    given = {"metrics": ["fvd"], "extractors": [PixelExtractor()]}
    evaluate(pairs / "generated", pairs / "real", settings=SETTINGS, **given)
    assert "equal motion looks unequal" in caplog.text
    caplog.clear()
    evaluate(pairs / "generated", pairs / "real", settings=Settings(view=View(num_frames=2, fps=8)), **given)
    assert "equal motion looks unequal" not in caplog.text


def test_scores_survive_json(folders):
    scores = evaluate(
        folders / "real",
        folders / "real",
        metrics=["psnr", "fvd"],
        extractors=[PixelExtractor()],
        settings=SETTINGS,
    )
    for score in scores:
        assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score


def test_every_metric_is_described():
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [name for name in METRICS if f"`{name}`" not in text] == []
