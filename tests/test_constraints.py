"""The files of constraints name the versions that the tests are run with."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def required():
    """Every requirement of the package and its extras, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [
        Requirement(text) for text in [*project["dependencies"], *(one for extra in extras for one in extra)]
    ]


def pinned(name):
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {}
    for pin in pins:
        (only,) = pin.specifier
        assert only.operator == "==", pin
        assert canonicalize_name(pin.name) not in versions, pin
        versions[canonicalize_name(pin.name)] = Version(only.version)
    return versions


def test_the_oldest_versions_are_the_lower_bounds():
    bounds: dict[str, Version] = {}
    for requirement in required():
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{requirement}: constraints/oldest.txt needs a lower bound"
        name = canonicalize_name(requirement.name)
        assert bounds.setdefault(name, Version(bound.version)) == Version(bound.version), name
    oldest = pinned("oldest")
    assert {name: oldest.get(name) for name in bounds} == bounds


@pytest.mark.parametrize("name", ["oldest", "tested"])
def test_what_is_required_is_pinned_as_it_may_be(name):
    versions = pinned(name)
    for requirement in required():
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement
