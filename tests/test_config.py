"""Typed configurations: JSON round trips, overrides, and errors that name the field."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from vidgen import config
from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.noise import Decomposed, Independent, NoisePrior
from vidgen.plugins import RECIPES, available, load


@dataclass(frozen=True)
class Inner:
    width: int = 8
    name: str = "a"
    shape: tuple[int, ...] = (1, 2)
    mode: Literal["x", "y"] = "x"
    rate: float | None = None
    prior: NoisePrior = field(default_factory=Independent)


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    anything: Any = None
    name: str = "b"


def test_round_trip_through_json():
    value = Outer(Inner(width=3, shape=(4,), rate=0.5, prior=Decomposed(lam=0.25)), anything=Inner(width=5))
    text = json.dumps(config.to_dict(value))
    data = json.loads(text)
    assert data["anything"]["width"] == 5  # a dataclass behind Any is not lost
    assert config.from_dict(Outer, {**data, "anything": None}).inner == value.inner


@pytest.mark.parametrize(
    ("assignment", "found"),
    [
        ("width=64", lambda c: c.inner.width == 64),
        ("inner.width=64", lambda c: c.inner.width == 64),
        ("inner.name=7", lambda c: c.inner.name == "7"),
        ("shape=[4, 5]", lambda c: c.inner.shape == (4, 5)),
        ("rate=1e-3", lambda c: c.inner.rate == 1e-3),
        ("rate=none", lambda c: c.inner.rate is None),
        ("mode=y", lambda c: c.inner.mode == "y"),
        ("prior=decomposed", lambda c: c.inner.prior == Decomposed()),
        ('prior={"kind": "decomposed", "lam": 0.1}', lambda c: c.inner.prior == Decomposed(lam=0.1)),
    ],
)
def test_override(assignment, found):
    assert found(config.override(Outer(), [assignment]))


@pytest.mark.parametrize(
    ("assignment", "error", "message"),
    [
        ("widht=3", UnknownNameError, "Did you mean 'width'"),
        ("inner.widht=3", UnknownNameError, "Did you mean 'inner.width'"),
        ("width", InvalidArgumentError, "expected NAME=VALUE"),
        ("width=many", InvalidArgumentError, "field 'inner.width' was given 'many'; expected int"),
        ("mode=z", InvalidArgumentError, "'x' or 'y'"),
        ("prior=decomposd", UnknownNameError, "decomposed"),
    ],
)
def test_bad_override(assignment, error, message):
    with pytest.raises(error, match=message):
        config.override(Outer(), [assignment])


def test_ambiguous_name_lists_the_full_ones():
    @dataclass(frozen=True)
    class Two:
        a: Inner = field(default_factory=Inner)
        b: Inner = field(default_factory=Inner)

    with pytest.raises(InvalidArgumentError, match=r"write one of a.width, b.width"):
        config.override(Two(), ["width=1"])


def test_unknown_and_wrong_fields_are_named():
    with pytest.raises(UnknownNameError, match=r"field of Inner 'inner.widht'. Did you mean 'width'"):
        config.from_dict(Outer, {"inner": {"widht": 3}})
    with pytest.raises(InvalidArgumentError, match=r"'inner.width' was given \[\]"):
        config.from_dict(Outer, {"inner": {"width": []}})


def test_json_files(tmp_path):
    config.write_json(tmp_path / "a.json", {"ü": 1})
    assert config.read_json(tmp_path / "a.json") == {"ü": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(InvalidArgumentError, match="expected a JSON object"):
        config.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InvalidArgumentError, match="not valid JSON"):
        config.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("name", sorted(available(RECIPES)))
def test_every_shipped_recipe_is_valid_and_survives_json(name):
    recipe = load(RECIPES, name)()
    data = json.loads(json.dumps(config.to_dict(recipe)))
    assert config.from_dict(type(recipe.model), data["model"]) == recipe.model
    assert config.from_dict(type(recipe.training), data["training"]) == recipe.training
    assert config.from_dict(type(recipe.data), data["data"]) == recipe.data
