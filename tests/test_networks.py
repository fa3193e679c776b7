"""Networks by name: the built-in one offers what is promised, and wrong ones are refused."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch

from vidgen import plugins
from vidgen.errors import UnknownNameError, VidgenError
from vidgen.networks import network_class, network_of_class
from vidgen.strategies.vdm.network import VideoUNet


def made(name="vdm"):
    network = network_class(name).create(3, 8, 12, widths=(8, 16), head_dim=8)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():  # as if trained: no layer is zero
            p.add_(0.05 * torch.randn(p.shape, generator=noise))
    return network.eval()


@torch.no_grad()
def test_every_built_in_network_does_what_is_promised(tmp_path):
    names = [name for name, package in plugins.available(plugins.NETWORKS).items() if package == "vidgen"]
    assert "vdm" in names
    for name in names:
        network = made(name)
        x, tokens = torch.randn(2, 3, 3, 8, 8), torch.randn(2, 4, 12)
        known = torch.tensor([[True, False, False], [False, False, False]])
        one = network(x, 500, tokens, known, x.flip(0))
        assert one.shape == x.shape
        assert torch.allclose(network(x, torch.tensor([500, 500]), tokens, known, x.flip(0)), one, atol=1e-5)
        per_frame = torch.full((2, 3), 500)
        assert torch.allclose(network(x, per_frame, tokens, known, x.flip(0)), one, atol=1e-5)
        assert not torch.allclose(network(x, 500, tokens), one, atol=1e-3)  # what is given counts
        assert not torch.allclose(network(x, 500, None, known, x.flip(0)), one, atol=1e-3)  # and the prompt
        network.save_pretrained(tmp_path / name)
        again = type(network).from_pretrained(tmp_path / name)
        assert torch.equal(again(x, 500, tokens, known, x.flip(0)), one)
        held = {id(p) for part in network.parts.values() for p in part.parameters()}
        assert held == {id(p) for p in network.parameters()}
        assert network_of_class(type(network).__name__) is type(network)


def test_names_are_checked(monkeypatch):
    with pytest.raises(UnknownNameError, match=r"unknown network 'vdn'. Did you mean 'vdm'"):
        network_class("vdn")
    assert network_of_class("Unheard") is None
    wrong = EntryPoint("wrong", "json:JSONDecoder", plugins.NETWORKS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [wrong])
    with pytest.raises(VidgenError, match=r"'wrong' of package .* expected a subclass of .*ClipDenoiser"):
        network_class("wrong")


def test_vdm_by_name_is_the_network_of_vdm():
    assert network_class("vdm") is VideoUNet
    assert set(made().parts) == {"unet", "temporal"}
