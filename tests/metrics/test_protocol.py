"""Protocols: one fingerprint for one way of measuring, and errors that name what differs."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.protocol import Protocol, ProtocolMismatchError, check_comparable

FIELDS = {"frames": 16, "fps": 8.0, "extractor": {"name": "toy", "mean": (0.5, 0.25)}, "real": None}


def test_the_fingerprint_depends_on_values_only() -> None:
    one = Protocol("fvd_toy", **FIELDS)
    other = Protocol.from_json(
        {
            "real": None,
            "extractor": {"mean": [0.5, 0.25], "name": "toy"},
            "fps": 8,
            "frames": 16,
            "metric": "fvd_toy",
        }
    )
    assert one == other
    assert hash(one) == hash(other)
    assert one.fingerprint == other.fingerprint
    assert len(one.fingerprint) == 32
    assert Protocol("fvd_toy", frames=np.int64(16)) == Protocol("fvd_toy", frames=16.0)


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from vidgen.metrics.protocol import Protocol;"
        "print(Protocol('fvd_toy', real=None, extractor={'mean': [0.5, 0.25], 'name': 'toy'}, fps=8, frames=16)"
        ".fingerprint)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == Protocol("fvd_toy", **FIELDS).fingerprint


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"frames": 32}, "frames: 16 against 32"),
        ({"frames": "16"}, "frames: 16 against '16'"),
        ({"frames": True}, "frames: 16 against True"),
        (
            {"extractor": {"name": "toy", "mean": [0.5, 0.5]}},
            r"extractor.mean: \[0.5, 0.25\] against \[0.5, 0.5\]",
        ),
        ({"stride": 2}, r"stride: '\(none\)' against 2"),
        ({"real": 0}, "real: None against 0"),
        ({"extractor": {}}, r"extractor: '\(none\)' against \{\}"),
    ],
)
def test_unequal_protocols_are_refused_by_field(change: dict, named: str) -> None:
    one = Protocol("fvd_toy", **FIELDS)
    other = one.replace(**change)
    assert one.fingerprint != other.fingerprint
    with pytest.raises(ProtocolMismatchError, match=named) as caught:
        check_comparable(one, other)
    assert isinstance(caught.value, InvalidArgumentError)
    assert "fps" not in str(caught.value)  # what is equal is not listed
    check_comparable(one, Protocol("fvd_toy", **FIELDS))


def test_all_differing_fields_are_named_and_long_values_cut() -> None:
    one = Protocol("fvd_toy", a=1, b="x" * 500)
    with pytest.raises(ProtocolMismatchError) as caught:
        check_comparable(one, Protocol("fvd_other", a=2, b="y" * 500))
    message = str(caught.value)
    assert all(f"{name}: " in message for name in ("a", "b", "metric"))
    assert len(message) < 500


def test_a_protocol_does_not_change() -> None:
    given = {"name": "toy"}
    protocol = Protocol("fvd_toy", extractor=given)
    before = protocol.fingerprint
    given["name"] = "other"
    protocol.to_json()["extractor"]["name"] = "other"
    protocol["extractor"]["name"] = "other"
    assert protocol.fingerprint == before
    with pytest.raises(AttributeError, match="replace"):
        protocol.frames = 3  # type: ignore[attr-defined]
    assert copy.deepcopy(protocol) == protocol
    assert protocol.metric == "fvd_toy"
    assert "extractor={'name': 'toy'}" in repr(protocol)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, b"x", {"deep": [object()]}, {1, 2}])
def test_what_is_no_json_is_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"field 'outer.*expected plain JSON"):
        Protocol("fvd_toy", outer=value)


def test_a_protocol_names_its_metric() -> None:
    with pytest.raises(InvalidArgumentError, match="metric is ''"):
        Protocol("")
    with pytest.raises(InvalidArgumentError, match="describes no protocol"):
        Protocol.from_json({"frames": 16})
