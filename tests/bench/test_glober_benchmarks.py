"""GLOBER's benchmarks: what they compare is what they say, and their report shows it."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen import config as configs
from vidgen.classifier import load_classifier
from vidgen.metrics.prompts import expected_spec
from vidgen.video.synthetic import ShapesDataset
from vidgen.video.transforms import to_clip

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield import_module
    for name in ("record", "glober_measures", "glober_ablations", "glober_decoding", "report_glober"):
        sys.modules.pop(name, None)


def test_contradicting_prompts_agree_in_nothing(script: Any) -> None:
    captions = [ShapesDataset(40, 16).caption(i) for i in range(40)]
    for own, other in zip(captions, script("glober_measures").contradicting(captions), strict=True):
        one, two = expected_spec(own), expected_spec(other)
        assert all(getattr(one, name) != getattr(two, name) for name in ("shape", "colour", "motion"))


def test_real_videos_agree_and_lie_at_no_distance_of_themselves(script: Any) -> None:
    measures, data, judge = script("glober_measures"), ShapesDataset(12, 16, split="test"), load_classifier()
    clips = torch.stack([to_clip(data.render(i, range(16))) for i in range(12)])
    captions = [data.caption(i) for i in range(12)]
    assert measures.agreement(judge, clips, captions) == {"shape": 1.0, "colour": 1.0, "motion": 1.0}
    wrong = measures.contradicting(captions)
    assert measures.agreement(judge, clips, wrong) == {"shape": 0.0, "colour": 0.0, "motion": 0.0}
    assert measures.distance(judge, clips, clips.clone()) == 0
    assert measures.distance(judge, clips, clips.flip(2).roll(6, 0) * 0.5) > 1


def test_a_line_is_found(script: Any) -> None:
    rows = [{"frames": n, "frames_seconds": 0.5 + 0.25 * n} for n in (16, 32, 64)]
    assert script("glober_decoding").slope(rows) == {"seconds_per_frame": 0.25, "r_squared": 1.0}
    rows[1]["frames_seconds"] = 0.0
    assert script("glober_decoding").slope(rows)["r_squared"] < 0.9


def test_variants_change_what_they_name_and_nothing_else(script: Any) -> None:
    ablations = script("glober_ablations")
    base = configs.to_dict(ablations.recipe_of({}, 700, 16))
    for changes in ablations.VARIANTS.values():
        made = configs.to_dict(ablations.recipe_of(changes, 700, 16))
        for field, value in made["model"].items():
            expected = changes.get(field, base["model"][field])
            assert value == (list(expected) if isinstance(expected, tuple) else expected), field
        assert made["training"] == base["training"] | {"seed": changes.get("seed", 0)}
        assert made["data"] == base["data"]


def test_the_report_shows_the_records(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = script("report_glober")
    looks = {"shape": 1.0, "colour": 0.5, "motion": 0.25}
    decoding = {
        "recipe": "glober/tiny",
        "device": "cpu",
        "threads": 1,
        "dtype": "float32",
        "steps": 10,
        "linear": {"seconds_per_frame": 0.02, "r_squared": 0.99},
        "branch": {"ratio": 1.25},
        "lengths": [
            {
                "frames": 16,
                "chunk": 8,
                "seconds": 1.5,
                "codec_seconds": 0.5,
                "generator_share": 0.125,
                "peak_megabytes": 12.0,
                "peak_megabytes_before": 10.0,
            }
        ],
        "vdm": [{"frames": 16, "seconds": 3.5}],
    }
    trained = {
        "model": "shapes/glober",
        "videos": 4,
        "steps": 5,
        "dtype": "float32",
        "real_clips": looks,
        "reconstruction": {
            "agreement": looks,
            "psnr_seen": 20.0,
            "psnr_between": 19.0,
            "pixels_off_seen": 0.5,
            "pixels_off_between": 0.75,
        },
        "origin": dict.fromkeys(
            (
                "no_prompt_as_clip",
                "contradicting_prompt_as_clip",
                "contradicting_prompt_as_prompt",
                "zeroed_v_as_clip",
            ),
            looks,
        ),
        "order": {"swapped_scored_lower": 0.5},
        "guidance_of_frames": [{"frame_guidance": 1.5, "distance": 2.0, "agreement": looks}],
        "guidance_of_v": [{"global_guidance": 3.0, "distance": 4.0, "agreement": looks}],
    }
    turned = {"all_move_right": 0.98, "all_clips": 0.5}
    ordered = {"steps": 240, "batch": 16, "unseen": 64, "model": "m", "swapped_scored_lower": turned}
    records = {"glober_decoding_cpu": decoding, "glober_shapes": trained, "glober_order": ordered}
    monkeypatch.setattr(report, "load", records.__getitem__)
    assert "lower in 98% of 64 unseen clips where all clips move right, and in 50% where" in report.order()[0]
    assert "| 16 | 8 | 1.5 | 0.5 | 12.5% | 2 | 3.5 |" in report.decoding()
    lines = report.trained()
    assert "| v set to zero, no prompt | 100 / 50 / 25 |" in lines
    assert "| 1.5 | 2.00 | 100 / 50 / 25 |" in lines
    assert "| 3.0 | 4.00 | 100 / 50 / 25 |" in lines
