"""Priors as plain data: by kind, through JSON, through pydantic, from other packages."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.noise import (
    Decomposed,
    Independent,
    Mixed,
    NoiseKey,
    NoisePrior,
    Progressive,
    WindowedShuffle,
)

PRIORS = [
    Independent(),
    Decomposed(lam=0.25, anchor=7, period=16),
    Decomposed(),
    Mixed(a=2.0),
    Progressive(a=0.5),
    WindowedShuffle(window=8, stride=2),
]


@dataclass(frozen=True)
class Config:
    width: int = 8
    prior: NoisePrior = field(default_factory=Independent)
    base: Decomposed = field(default_factory=Decomposed)


ADAPTER = TypeAdapter(Config)


def test_the_five_priors_are_known_by_kind():
    expected = {"independent", "decomposed", "mixed", "progressive", "windowed-shuffle"}
    kinds = NoisePrior.kinds()
    assert expected <= kinds.keys()
    assert all(cls.kind == kind for kind, cls in kinds.items())
    kinds.clear()  # a copy: the registry stays
    assert expected <= NoisePrior.kinds().keys()


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_plain_data_round_trip(prior: NoisePrior):
    data = prior.to_dict()
    assert NoisePrior.from_dict(json.loads(json.dumps(data))) == prior
    assert data["kind"] == prior.kind
    assert NoisePrior.from_dict({"kind": prior.kind}) == type(prior)()


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_pydantic_round_trip(prior: NoisePrior):
    config = Config(width=3, prior=prior)
    data = ADAPTER.dump_python(config, mode="json")
    assert data["prior"] == prior.to_dict()
    assert ADAPTER.validate_python(data) == config
    assert ADAPTER.validate_json(ADAPTER.dump_json(config)) == config
    assert ADAPTER.validate_python({"prior": prior}).prior is prior
    assert ADAPTER.validate_python({"prior": prior.kind}).prior == type(prior)()


def test_whole_numbers_pass_for_floats():
    prior = NoisePrior.from_dict({"kind": "mixed", "a": 2})
    assert prior == Mixed(a=2.0)
    assert type(prior.to_dict()["a"]) is float


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"a": 1.0}, InvalidArgumentError, "needs its 'kind', one of decomposed, independent"),
        ({"kind": 3}, InvalidArgumentError, "needs its 'kind'"),
        (
            {"kind": "mixd"},
            UnknownNameError,
            r"noise prior 'mixd'.*'mixed'.*If a package adds it, install",
        ),
        ({"kind": "mixed", "b": 1.0}, UnknownNameError, "parameter of noise prior 'mixed' 'b'"),
        ({"kind": "mixed", "a": "x"}, InvalidArgumentError, "a='x'; expected float"),
        ({"kind": "mixed", "a": True}, InvalidArgumentError, "a=True; expected float"),
        ({"kind": "mixed", "a": -1}, InvalidArgumentError, "a=-1"),
        ({"kind": "decomposed", "anchor": 1.5}, InvalidArgumentError, "anchor=1.5; expected"),
    ],
)
def test_bad_data_is_refused(data, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        NoisePrior.from_dict(data)


def test_pydantic_reports_bad_priors():
    with pytest.raises(ValidationError, match="a=-1"):
        ADAPTER.validate_python({"prior": {"kind": "mixed", "a": -1}})
    with pytest.raises(ValidationError, match="3 was given as a noise prior"):
        ADAPTER.validate_python({"prior": 3})
    with pytest.raises(ValidationError, match="expected Decomposed"):
        ADAPTER.validate_python({"base": "mixed"})
    with pytest.raises(UnknownNameError, match="'indepandent'"):
        ADAPTER.validate_python({"prior": "indepandent"})


@pytest.fixture
def registry(monkeypatch):
    """A registry of this test's own."""
    monkeypatch.setattr(NoisePrior, "_kinds", NoisePrior.kinds())


@pytest.mark.usefixtures("registry")
def test_a_prior_of_another_package_gets_everything():
    @dataclass(frozen=True)
    class Constant(NoisePrior):
        kind: ClassVar[str] = "test-constant"
        value: float
        names: tuple[str, ...] = ()
        loud: bool = False

        def sample(self, frames, shape, key):
            return torch.full((shape[0], len(frames), *shape[1:]), self.value)

        def covariance(self, frames, key):
            return np.ones((len(frames), len(frames)))

    prior = Constant(0.5, ("a",), True)
    assert ADAPTER.validate_python(ADAPTER.dump_python(Config(prior=prior))).prior == prior
    batch = prior.sample_batch((0, 1), (1, 1, 2), [NoiseKey(1, "start", "video")] * 2)
    assert batch.tolist() == [[[[[0.5, 0.5]], [[0.5, 0.5]]]]] * 2
    with pytest.raises(InvalidArgumentError, match="needs 'value'"):
        NoisePrior.from_dict({"kind": "test-constant"})


@pytest.mark.usefixtures("registry")
def test_two_priors_cannot_share_a_kind():
    with pytest.raises(InvalidArgumentError, match=r"'mixed' of .*Other already belongs to"):

        class Other(Mixed):
            kind: ClassVar[str] = "mixed"

    assert NoisePrior.kinds()["mixed"] is Mixed


@pytest.mark.usefixtures("registry")
def test_an_unfinished_prior_cannot_be_made():
    class Half(NoisePrior):
        kind: ClassVar[str] = "test-half"

    with pytest.raises(UnknownNameError, match="noise prior 'test-half'"):
        NoisePrior.from_dict({"kind": "test-half"})


def test_a_plug_ins_prior_is_found_by_its_entry_point(tmp_path, monkeypatch):
    """A checkpoint names the kind alone: nothing has imported the package yet when it is opened."""
    info = tmp_path / "vidgen_still-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vidgen-still\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vidgen.priors]\nstill = vidgen_still:Still\n")
    (tmp_path / "vidgen_still.py").write_text(
        "from dataclasses import dataclass\n"
        "from vidgen.noise import Decomposed\n\n"
        "@dataclass(frozen=True)\n"
        "class Still(Decomposed):\n"
        "    kind = 'still'\n"
        "    lam: float = 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        prior = NoisePrior.from_dict({"kind": "still", "lam": 0.75})
        assert (type(prior).__name__, prior.to_dict()["lam"]) == ("Still", 0.75)
        with pytest.raises(UnknownNameError, match="still"):
            NoisePrior.from_dict({"kind": "stil"})
    finally:
        NoisePrior._kinds.pop("still", None)
