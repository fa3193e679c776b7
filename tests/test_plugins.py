"""Entry points: everything comes in by the same door, and by name only."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from vidgen import plugins
from vidgen.errors import InvalidArgumentError, UnknownNameError, VidgenError
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
    with pytest.raises(VidgenError, match=r"package-one \(a:A\) and by package-two \(b:B\)"):
        plugins.available(plugins.STRATEGIES)


def test_the_same_package_found_twice_is_no_clash(installed):
    installed += [point("mine", "a:A", "package-one"), point("mine", "a:A", "package-one")]
    assert plugins.available(plugins.STRATEGIES) == {"mine": "package-one"}


def test_one_package_under_two_spellings_is_no_clash(installed):
    installed += [point("mine", "a:A", "My_Package"), point("mine", "a:A", "my-package")]
    assert plugins.available(plugins.STRATEGIES) == {"mine": "My_Package"}


def test_the_same_value_of_two_packages_is_a_clash(installed):
    installed += [point("mine", "a:A", "package-one"), point("mine", "a:A", "package-two")]
    with pytest.raises(VidgenError, match="Uninstall one of them"):
        plugins.check(plugins.STRATEGIES, "mine")


def install(root, name, groups):
    """Put a distribution into ``root`` as pip leaves it: metadata, and a module that raises at import."""
    info = root / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{group}]\n{entry} = {name}_module:{entry}\n" for group, entry in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    (root / f"{name}_module.py").write_text("raise ImportError('no module of their own', name='theirs')\n")


def test_installed_plug_ins_are_listed_without_being_imported(tmp_path, monkeypatch):
    groups = {plugins.STRATEGIES: "fresh", plugins.RECIPES: "fresh_recipe", plugins.MODELS: "fresh_model"}
    install(tmp_path, "fresh", groups)
    monkeypatch.syspath_prepend(tmp_path)
    for group, entry in groups.items():
        assert plugins.available(group)[entry] == "fresh"
    assert plugins.available(plugins.STRATEGIES)["vdm"] == "vidgen"  # beside the built-in ones
    assert "fresh_module" not in sys.modules
    for group, entry in groups.items():
        with pytest.raises(ImportError, match="no module of their own") as error:
            plugins.load(group, entry)
        assert (type(error.value), error.value.name) == (ImportError, "theirs")


def test_a_package_installed_and_editable_at_once_is_no_clash(tmp_path, monkeypatch):
    for place in ("site", "source"):
        install(tmp_path / place, "fresh", {plugins.STRATEGIES: "fresh"})
        monkeypatch.syspath_prepend(tmp_path / place)
    assert plugins.available(plugins.STRATEGIES)["fresh"] == "fresh"


def test_two_installed_packages_clash_and_are_named(tmp_path, monkeypatch):
    for name in ("one", "two"):
        install(tmp_path, name, {plugins.STRATEGIES: "mine"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(VidgenError, match=r"(?=.*one \(one_module:mine\))(?=.*two \(two_module:mine\))"):
        plugins.load(plugins.STRATEGIES, "vdm")


def test_recipes_are_found_by_either_name_and_belong_to_their_strategy(installed):
    vdm = EntryPoint("vdm", "vidgen.strategies.vdm:VDM", plugins.STRATEGIES)
    tiny = EntryPoint("vdm/tiny", "vidgen.strategies.vdm.recipes:tiny", plugins.RECIPES)
    installed += [vdm, tiny, point("mine", "a:A", "theirs")]
    assert plugins.load_recipe("vdm", "tiny") == plugins.load_recipe("vdm", "vdm/tiny")
    with pytest.raises(InvalidArgumentError, match="trains 'vdm', not 'mine'"):
        plugins.load_recipe("mine", "vdm/tiny")
    with pytest.raises(UnknownNameError, match="unknown strategy 'vdn'"):
        plugins.load_recipe("vdn", "tiny")


def test_import_error_of_a_plug_in_comes_through(installed):
    installed.append(point("broken", "no_such_module:Thing", "their-package"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        plugins.load(plugins.STRATEGIES, "broken")
