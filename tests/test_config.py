"""Typed configurations: JSON round trips, overrides, and errors that name the field."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field
from pathlib import Path
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


@dataclass(frozen=True)
class Together:
    """Fields that are right only together, as a text encoder and its model are."""

    text: str = "words"
    text_model: str | None = None
    past: float = 0.4
    random: float = 0.1

    def __post_init__(self):
        if (self.text == "open_clip") != (self.text_model is not None):
            raise InvalidArgumentError(f"text={self.text!r} with text_model={self.text_model!r}")
        if self.past + self.random > 1:
            raise InvalidArgumentError(f"past={self.past} and random={self.random} are above 1 together")


@dataclass(frozen=True)
class Whole:
    model: Together = field(default_factory=Together)
    table: dict[str, int] = field(default_factory=dict)
    limit: float = 2.0

    def __post_init__(self):
        if self.model.past > self.limit:
            raise InvalidArgumentError(f"past={self.model.past} is above limit={self.limit}")


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["text=open_clip", "model.text_model=X"], Whole(Together(text="open_clip", text_model="X"))),
        (["past=.95", "random=0"], Whole(Together(past=0.95, random=0.0))),
        (["random=.7", "past=.3"], Whole(Together(past=0.3, random=0.7))),
        (["limit=0.1", "past=0.1"], Whole(Together(past=0.1), limit=0.1)),  # checked by the class around
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_fields_checked_together_are_set_in_any_order(assignments, expected, order):
    assert config.override(Whole(), assignments[::order]) == expected


def test_the_last_assignment_to_a_field_wins_and_the_rest_stays():
    given = Whole(Together(past=0.2), {"a": 1})
    changed = config.override(given, ["past=7", "random=0.3", "model.past=0.5", 'table={"b": 2}'])
    assert changed == Whole(Together(past=0.5, random=0.3), {"b": 2})
    assert config.override(given, []) == given


def test_values_that_contradict_each_other_are_named():
    with pytest.raises(InvalidArgumentError, match=r"past=0.95 and random=0.1"):
        config.override(Whole(), ["past=.95"])


def test_shipped_recipe_takes_settings_that_belong_together():
    recipe = load(RECIPES, "vdm/tiny")()
    pairs = ["mask_past=.95", "mask_random=0", "text=open_clip", "text_model=ViT-B-32"]
    for assignments in pairs, pairs[::-1]:
        model = config.override(recipe, assignments).model
        found = (model.mask_past, model.mask_random, model.text, model.text_model)
        assert found == (0.95, 0.0, "open_clip", "ViT-B-32")


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


def test_json_that_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    config.write_json(tmp_path / "a.json", {"a": 1})

    def full(path, text, **_):
        with path.open("w") as file:
            file.write(text[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        config.write_json(tmp_path / "a.json", {"a": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert config.read_json(tmp_path / "a.json") == {"a": 1}


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
