"""Components to disk: under all their names, as readable as other files, loadable by diffusers alone."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file

from vidgen.components import component_hash, load_module, save_component
from vidgen.weights import WEIGHTS


class Tied(ModelMixin, ConfigMixin):
    """A plug-in's network whose output layer is its embedding."""

    @register_to_config
    def __init__(self, width: int = 4, tie: bool = True) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(3, width)
        self.head = torch.nn.Linear(width, 3, bias=False)
        if tie:
            self.head.weight = self.embedding.weight


def test_tied_weights_are_saved_under_all_their_names(tmp_path):
    network = Tied()
    save_component(network, tmp_path / "tied")
    assert load_file(tmp_path / "tied" / WEIGHTS).keys() == {"embedding.weight", "head.weight"}
    loaded = load_module(Tied, tmp_path / "tied")
    assert torch.equal(loaded.head.weight, network.head.weight)
    assert loaded.head.weight is loaded.embedding.weight
    alone = Tied.from_pretrained(tmp_path / "tied")
    assert torch.equal(alone.embedding.weight, network.embedding.weight)


def test_weights_tied_by_hand_come_back_as_values(tmp_path):
    """Nothing in the configuration says so: they are equal after loading, and no longer one."""
    network = Tied(tie=False)
    network.head.weight = network.embedding.weight
    save_component(network, tmp_path / "tied")
    loaded = load_module(Tied, tmp_path / "tied")
    assert torch.equal(loaded.head.weight, network.embedding.weight)
    assert torch.equal(loaded.embedding.weight, network.embedding.weight)
    assert loaded.head.weight is not loaded.embedding.weight


def test_views_of_one_tensor_are_saved_apart(tmp_path):
    network = Tied(tie=False)
    whole = torch.randn(6, 4)
    network.embedding.weight = torch.nn.Parameter(whole[:3])
    network.head.weight = torch.nn.Parameter(whole[3:])
    save_component(network, tmp_path / "views")
    loaded = load_module(Tied, tmp_path / "views")
    assert torch.equal(loaded.embedding.weight, whole[:3])
    assert torch.equal(loaded.head.weight, whole[3:])


def test_the_hash_is_of_values_and_settings_alone(tmp_path):
    network = Tied(tie=False)
    save_component(network, tmp_path / "one")
    save_component(network.half().float(), tmp_path / "two")
    save_component(network.half(), tmp_path / "three")
    one, two, three = (component_hash(tmp_path / name) for name in ("one", "two", "three"))
    assert two == three != one
    (tmp_path / "three" / "README.md").write_text("A card.")
    text = (tmp_path / "three" / "config.json").read_text()
    (tmp_path / "three" / "config.json").write_text(text.replace("\n", " ").replace('"_diffusers', '"_other'))
    assert component_hash(tmp_path / "three") == three
    (tmp_path / "three" / "config.json").write_text(text.replace('"width": 4', '"width": 5'))
    assert component_hash(tmp_path / "three") != three
