"""The table of damage: its nulls, where controls lie among them, and how it is printed."""

from __future__ import annotations

import importlib
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
NULLS = 4


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return SimpleNamespace(**{name: importlib.import_module(name) for name in ("corruptions", "report")})


def light(clips: torch.Tensor) -> SimpleNamespace:
    """A reader that sees the light of each frame alone, so that controls change nothing."""
    seen = clips.mean((3, 4))
    features = torch.cat([seen.mean(2), seen.std(2)], dim=1)
    return SimpleNamespace(features=features, frame_features=seen.transpose(1, 2))


def test_distances_stand_over_the_mean_of_sets_other_than_the_damaged_one(scripts, monkeypatch):
    found = scripts.corruptions.measure(light, number=12, frames=4, nulls=NULLS)
    null, undamaged = found["null"], found["undamaged"]
    values = null["values"]
    assert len(set(values)) == NULLS
    assert undamaged["distance"] not in values
    assert null["mean"] == pytest.approx(statistics.mean(values))
    assert null["std"] == pytest.approx(statistics.stdev(values))
    assert (null["min"], null["max"]) == (min(values), max(values))
    assert found["identical"] < 1e-9
    for name, kind in found["corruptions"].items():
        for row in kind["levels"]:
            assert row["over_null"] == pytest.approx(row["distance"] / null["mean"], abs=0.01), name
        if kind["control"]:
            (row,) = kind["levels"]
            assert row["distance"] == pytest.approx(undamaged["distance"], abs=1e-6)
            assert kind["z"] == pytest.approx((row["distance"] - null["mean"]) / null["std"], abs=0.01)
    assert found["corruptions"]["flicker"]["severe_over_null"] > 2
    monkeypatch.setattr(scripts.report, "load", lambda name: {"videos": 12, "frames": 4, **found})
    table = "\n".join(scripts.report.damage())
    assert f"mean of {NULLS} clean sets" in table
    assert "| reversal |" in table


@pytest.mark.parametrize(
    ("distance", "z", "inside"), [(1.0, 0.0, True), (1.39, 1.95, True), (1.41, 2.05, False), (0.1, -4.5, True)]
)
def test_a_control_is_inside_up_to_two_deviations_above_the_mean(scripts, distance, z, inside):
    null = scripts.corruptions.spread([0.8, 1.0, 1.2])  # mean 1, standard deviation 0.2
    row = scripts.corruptions.row((distance, 1.0), (1.0, 1.0), 1.0)
    found = scripts.corruptions.control([row], null, control=True)
    assert found["z"] == pytest.approx(z)
    assert found["inside_null"] is inside
    side = "below" if distance <= 1.2 else "above"
    assert (
        scripts.report.verdict(found, 1.2) == f"control, z = {z:.1f}: {distance:.2f}, {side} the largest null"
    )


def test_the_readme_shows_the_committed_records(scripts):
    rows = scripts.report.rows()
    readme = (BENCHMARKS / "README.md").read_text()
    assert len(rows) > 20
    for name, value in rows:
        assert f"| {name} | {value} |" in readme
