"""Entry points: everything comes in by the same door, and by name only."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from vidgen import plugins
from vidgen.errors import UnknownNameError, VidgenError
from vidgen.strategies.vdm import VDM


class Distribution:
    def __init__(self, name: str) -> None:
        self.name = name


def point(name: str, value: str, distribution: str) -> EntryPoint:
    return EntryPoint(name, value, plugins.STRATEGIES)._for(Distribution(distribution))


@pytest.fixture
def installed(monkeypatch):
    """Install entry points for the test."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: [p for p in points if p.group == group])
    return points


def test_built_in_strategies_come_by_entry_points():
    assert plugins.available(plugins.STRATEGIES)["vdm"] == "vidgen"
    assert plugins.load(plugins.STRATEGIES, "vdm") is VDM
    assert plugins.load(plugins.RECIPES, "vdm/tiny")().strategy == "vdm"


def test_listing_imports_nothing(installed):
    installed.append(point("broken", "no_such_module:Thing", "their-package"))
    assert plugins.available(plugins.STRATEGIES) == {"broken": "their-package"}


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown strategy 'vmd'. Did you mean 'vdm'"):
        plugins.load(plugins.STRATEGIES, "vmd")
    with pytest.raises(UnknownNameError, match=r"unknown recipe 'vdm/tinny'. Did you mean 'vdm/tiny'"):
        plugins.check(plugins.RECIPES, "vdm/tinny")


def test_same_name_twice_names_both_packages(installed):
    installed += [point("mine", "a:A", "package-one"), point("mine", "b:B", "package-two")]
    with pytest.raises(VidgenError, match=r"package-one \(a:A\) and package-two \(b:B\)"):
        plugins.available(plugins.STRATEGIES)


def test_the_same_package_found_twice_is_no_clash(installed):
    installed += [point("mine", "a:A", "package-one"), point("mine", "a:A", "package-one")]
    assert plugins.available(plugins.STRATEGIES) == {"mine": "package-one"}


def test_import_error_of_a_plug_in_comes_through(installed):
    installed.append(point("broken", "no_such_module:Thing", "their-package"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        plugins.load(plugins.STRATEGIES, "broken")
