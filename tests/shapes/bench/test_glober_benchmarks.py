"""GLOBER's benchmarks: what they compare is what they say, and their report shows it."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidgen import checkpoint, plugins
from vidgen import config as configs
from vidgen.metrics.prompts import expected_spec, prompt_set
from vidgen.shapes.classifier import load_classifier
from vidgen.shapes.raster import paint
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.strategies.glober import GLOBER
from vidgen.video.transforms import to_clip

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SCRIPTS = ("ablations", "decoding", "order", "shapes")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield import_module
    for name in ("record", "glober_measures", "report_glober", *(f"glober_{name}" for name in SCRIPTS)):
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


def test_what_changes_from_frame_to_frame_is_seen(script: Any) -> None:
    measures, data = script("glober_measures"), ShapesDataset(12, 16, split="test")
    clips = torch.stack([to_clip(data.render(i, range(16))) for i in range(12)])
    found = measures.constancy(clips)
    assert found["size_90"] < 1.2
    assert found["background"] == 0
    grown, lit = clips.clone(), clips.clone()
    grown[:, :, 3:5] = torch.nn.functional.interpolate(clips[:, :, 3:5], scale_factor=(1, 2, 2))[
        ..., 16:80, 16:80
    ]
    assert measures.constancy(grown)["size_90"] > 1.4
    lit[:6, 1, 7] += 0.3
    assert measures.constancy(lit)["background"] == 0.5


def test_pairs_of_equal_frames_are_ties(script: Any) -> None:
    lower = script("glober_measures").lower
    assert lower(torch.tensor([0.0, 1.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 1.0, 2.0])) == 0.5
    assert lower(torch.zeros(4), torch.ones(4)) == 1


def test_a_discriminator_learns_which_way_clips_move(
    script: Any, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """The second of two frames is brighter: of swapped pairs, all are scored lower after a short training."""
    order, strategy = script("glober_order"), checkpoint.load_strategy(model, device="cpu")

    def brighter(_: Any, clips: Any, seed: int, rows: Any) -> tuple[Any, Any, Any]:
        first = torch.randn(len(rows), 48, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        pair = torch.cat([first, first + 1], dim=2)
        return pair, pair, torch.ones(len(rows), 2)

    monkeypatch.setattr(order, "pairs", brighter)
    assert order.scored_lower(strategy, None, 30, 16, 1e-3) > 0.9


def test_the_committed_record_shows_that_order_is_learnt() -> None:
    found = json.loads((BENCHMARKS / "results" / "glober_order.json").read_text())
    assert found["swapped_scored_lower"]["all_move_right"] > 0.85


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
        "codec_alone": looks,
        "null_distance": 0.75,
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
        "origin_guided": {"frame_guidance": 4.0, "as_clip": looks, "as_prompt": looks},
        "constancy": {"clips": {"size_median": 1.03, "size_90": 1.5, "background": 0.25}},
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
    assert "| contradicting, guided by 4.0: as the clip | 100 / 50 / 25 |" in lines
    assert "| clips | 1.03 | 1.50 | 25% |" in lines
    assert "| 1.5 | 2.00 | 100 / 50 / 25 |" in lines
    assert "| 3.0 | 4.00 | 100 / 50 / 25 |" in lines
    del decoding["linear"]
    decoding["lengths"].append({"frames": 32, "failed": "OutOfMemoryError: 3 GiB"})
    assert "32 frames: OutOfMemoryError: 3 GiB." in report.decoding()


# Whole runs, so small that they measure nothing.


@pytest.fixture(scope="module")
def config() -> Any:
    """The tiny recipe's model, smaller, with the words of the shapes data."""
    words = tuple(sorted({word for prompt in prompt_set(126, 0.0, "all") for word in prompt.split()}))
    return replace(
        plugins.load_recipe("glober", "tiny").model,
        sample_size=(32, 32),
        words=words,
        max_words=8,
        pixel_mean=0.0,
        pixel_std=1.0,
        widths=(8, 16),
        head_dim=8,
        encoder_widths=(8, 16),
        encoder_head_dim=8,
        discriminator_width=8,
    )


@pytest.fixture(scope="module")
def model(config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glober") / "model"
    checkpoint.save_strategy(checkpoint.build(GLOBER, config), folder)
    return folder


def ran(monkeypatch: pytest.MonkeyPatch, module: Any, out: Path, *arguments: object) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [module.__name__, "--out", str(out), *map(str, arguments)])
    module.main()
    return json.loads(out.read_text())  # type: ignore[no-any-return]


def numbers(found: Any) -> list[float]:
    if isinstance(found, dict | list):
        return [x for part in (found.values() if isinstance(found, dict) else found) for x in numbers(part)]
    return [found] if isinstance(found, float) else []


def test_true_frames_are_right_at_seen_indices_and_between(
    script: Any, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    measures, judge = script("glober_measures"), load_classifier()
    strategy: Any = checkpoint.load_strategy(model, device="cpu")
    every = measures.test_clips(strategy, 8)
    moving = [i for i, caption in enumerate(every.captions) if "still" not in caption]
    given = measures.Clips(
        every.clips[moving],
        every.v[moving],
        [every.captions[i] for i in moving],
        [every.scenes[i] for i in moving],
    )

    def painted(shift: float) -> Any:
        times = np.arange(32) / 2
        times[1::2] += shift
        clips = torch.stack([to_clip(paint(scene, times, 32)) for scene in given.scenes])
        return lambda *_, **__: clips

    monkeypatch.setattr(measures, "decode", painted(0.0))
    found = measures.reconstruction(strategy, judge, given)
    assert found["psnr_seen"] == found["psnr_between"] == float("inf")
    monkeypatch.setattr(measures, "decode", painted(4.0))
    late = measures.reconstruction(strategy, judge, given)
    assert late["psnr_seen"] == float("inf")
    assert late["psnr_between"] < 40
    assert late["pixels_off_seen"] == found["pixels_off_seen"]
    assert late["pixels_off_between"] > found["pixels_off_between"]


def test_a_trained_model_is_measured(
    script: Any, monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    few = ("--model", model, "--videos", 4, "--steps", 1)
    scales = ("--frame-scales", 1, 2, "--global-scales", 1)
    found = ran(monkeypatch, script("glober_shapes"), tmp_path / "shapes.json", *few, *scales)
    assert found["codec_alone"] == found["real_clips"]  # pixels
    assert [row["frame_guidance"] for row in found["guidance_of_frames"]] == [1, 2]
    assert found["guidance_of_frames"][0]["distance"] != found["guidance_of_frames"][1]["distance"]
    assert np.isfinite(numbers(found)).all()
    few = ("--model", model, "--steps", 2, "--clips", 8)
    shares = ran(monkeypatch, script("glober_order"), tmp_path / "order.json", *few)["swapped_scored_lower"]
    assert set(shares) == {"all_move_right", "all_clips"}
    assert all(0 <= share <= 1 for share in shares.values())


def test_ablations_go_on_and_keep_what_is_measured(
    script: Any, monkeypatch: pytest.MonkeyPatch, config: Any, tmp_path: Path
) -> None:
    ablations, out = script("glober_ablations"), tmp_path / "ablations.json"
    whole = ablations.recipe_of

    def small(variant: Any, steps: int, batch: int) -> Any:
        recipe = whole(variant, steps, batch)
        model = replace(config, cra_weight=variant.get("cra_weight", config.cra_weight))
        return replace(recipe, model=model, data=recipe.data.changed(videos=8, size=32))

    monkeypatch.setattr(ablations, "recipe_of", small)
    few = ("--steps", 1, "--batch", 2, "--videos", 2, "--solver-steps", 1)
    one = ran(monkeypatch, ablations, out, *few, "--variants", "base")["variants"]
    both = ran(monkeypatch, ablations, out, *few, "--variants", "base", "no CRA")["variants"]
    assert both["base"] == one["base"]  # not measured again
    assert "order" in both["base"]
    assert "order" not in both["no CRA"]  # whose discriminator nobody taught
    assert np.isfinite(numbers(both)).all()
    with pytest.raises(SystemExit, match=r"was measured with \{.videos.: 2\}"):
        ran(monkeypatch, ablations, out, *few, "--videos", 3, "--variants", "base")


def test_every_length_is_in_the_record_also_if_it_failed(
    script: Any, monkeypatch: pytest.MonkeyPatch, config: Any, tmp_path: Path
) -> None:
    decoding, out, asked = script("glober_decoding"), tmp_path / "decoding.json", []

    def alone(task: Any, *arguments: Any) -> dict[str, Any]:  # in this process
        asked.append((task.__name__, *arguments[1:]))
        return {"failed": "no memory"} if arguments[1:] == (16,) else task(*arguments)  # type: ignore[no-any-return]

    # What it adds to that logger in a process of its own goes with the test here.
    monkeypatch.setattr(logging.getLogger("vidgen.sampling.engine"), "handlers", [])
    monkeypatch.setattr(decoding, "alone", alone)
    monkeypatch.setattr(decoding, "config_of", lambda name: config)
    few = ("--frames", 2, 4, 6, 16, "--chunk", 2, "--steps", 1, "--repeats", 1, "--beside")
    found = ran(monkeypatch, decoding, out, *few)
    lengths = [(task, n) for task in ("length", "beside") for n in (2, 4, 6, 16)]
    assert asked == [("branch",), *lengths]
    assert found["lengths"][3] == found["vdm"][3] == {"frames": 16, "failed": "no memory"}
    assert set(found["linear"]) == {"seconds_per_frame", "r_squared"}
    assert {row["global_numbers"] for row in found["lengths"][:3]} == {config.global_channels * 4 * 4}


def test_a_process_of_its_own_answers_or_is_told_to_have_died(script: Any) -> None:
    alone = script("glober_decoding").alone
    assert alone(dict, [("seconds", 2)]) == {"seconds": 2}
    assert alone(os._exit, 3) == {"failed": "the process ended with 3"}


def test_what_goes_wrong_in_a_process_is_told(script: Any) -> None:
    decoding, sent = script("glober_decoding"), []
    connection = type("Connection", (), {"send": staticmethod(sent.append)})

    def broken(number: int) -> dict[str, Any]:
        raise MemoryError(f"{number} GiB")

    decoding.answer(broken, (3,), connection)
    decoding.answer(lambda number: {"seconds": number}, (3,), connection)
    assert sent == [{"failed": "MemoryError: 3 GiB"}, {"seconds": 3}]
