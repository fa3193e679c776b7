"""Entry points: everything comes in by the same door, and by name only."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from vidgen import plugins
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError, VidgenError
from vidgen.frame_codec.task import FrameCodecTask
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
    with pytest.raises(UnknownNameError, match=r"unknown strategy 'vdn'.*If a package adds it, install"):
        plugins.load_recipe("vdn", "tiny")
    with pytest.raises(InvalidArgumentError, match="Give 'vdm' with it as the recipe"):
        plugins.load_recipe("vdm/tiny", "tiny")


def test_import_error_of_a_plug_in_comes_through(installed):
    installed.append(point("broken", "no_such_module:Thing", "their-package"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        plugins.load(plugins.STRATEGIES, "broken")


def registered(group: str, name: str, value: str, distribution: str = "theirs") -> EntryPoint:
    return EntryPoint(name, value, group)._for(Distribution(distribution))


def test_trainables_come_by_name_whether_they_are_strategies_or_not():
    assert plugins.load_trainable("vdm") is VDM
    assert plugins.load_trainable("frame_codec") is FrameCodecTask
    assert "frame_codec" not in plugins.available(plugins.STRATEGIES)
    with pytest.raises(UnknownNameError, match=r"unknown strategy or trainable 'vmd'. Did you mean 'vdm'"):
        plugins.load_trainable("vmd")
    with pytest.raises(UnknownNameError, match=r"unknown trainable 'frame_code'. Did you mean 'frame_codec'"):
        plugins.load(plugins.TRAINABLES, "frame_code")


def test_import_error_of_a_trainable_comes_through(installed):
    installed.append(registered(plugins.TRAINABLES, "broken", "no_such_module:Thing"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        plugins.load_trainable("broken")


def test_recipes_of_what_is_no_strategy_are_found():
    recipe = plugins.load_recipe("frame_codec", "shapes/codec")
    assert (recipe.strategy, type(recipe.model)) == ("frame_codec", FrameCodecTask.Config)
    with pytest.raises(InvalidArgumentError, match="trains 'frame_codec', not 'vdm'"):
        plugins.load_recipe("vdm", "shapes/codec")
    with pytest.raises(UnknownNameError, match="unknown recipe 'frame_codec/codec'"):
        plugins.load_recipe("frame_codec", "codec")


@pytest.mark.parametrize("name", sorted(plugins.available(plugins.RECIPES)))
def test_every_recipe_trains_what_is_installed(name):
    recipe = plugins.load(plugins.RECIPES, name)()
    assert isinstance(recipe.model, plugins.load_trainable(recipe.strategy).Config)
    assert plugins.load_recipe(recipe.strategy, name) == recipe


@pytest.fixture
def models(installed, tmp_path, monkeypatch):
    """A package whose entry points give a folder in every way, and in some that are wrong."""
    module = ModuleType("their_models")
    (tmp_path / "demo").mkdir()
    (tmp_path / "file").write_text("")
    gone = tmp_path / "gone"
    module.__dict__.update(path=tmp_path / "demo", text=str(tmp_path / "demo"))
    module.function = lambda: tmp_path / "demo"
    module.text_function = lambda: str(tmp_path / "demo")
    module.__dict__.update(missing=gone, number=3, file=tmp_path / "file", nothing=lambda: None)
    module.missing_function = lambda: gone
    monkeypatch.setitem(sys.modules, "their_models", module)
    names = [name for name in vars(module) if not name.startswith("__")]
    installed += [registered(plugins.MODELS, f"demo/{name}", f"their_models:{name}") for name in names]
    return tmp_path / "demo"


@pytest.mark.parametrize("name", ["path", "text", "function", "text_function"])
def test_a_model_is_a_folder_by_path_or_function(models, name):
    assert plugins.model_folder(f"demo/{name}") == models


@pytest.mark.parametrize(
    ("name", "shown"),
    [("missing", "gone"), ("missing_function", "gone"), ("file", "file"), ("number", "3"), ("nothing", "None")],
)
def test_a_model_that_is_no_folder_names_its_package(models, name, shown):
    with pytest.raises(
        CheckpointError, match=rf"model 'demo/{name}' of package 'theirs' is .*{shown}.*; expected"
    ):
        plugins.model_folder(f"demo/{name}")


def test_an_unknown_model_suggests_the_nearest(models):
    with pytest.raises(UnknownNameError, match=r"unknown model 'demo/pat'. Did you mean 'demo/path'"):
        plugins.model_folder("demo/pat")
