"""A small strategy and its checkpoint."""

from __future__ import annotations

import huggingface_hub.constants as hub_constants
import pytest
import torch
from huggingface_hub import file_download

from hub_server import HubServer, forget_sessions, go_offline
from vidgen import checkpoint
from vidgen.strategies.vdm import VDM, VDMConfig

CONFIG = VDMConfig(
    sample_frames=4,
    sample_size=(16, 16),
    words=("circle", "red"),
    widths=(16, 32),
    head_dim=16,
    text_width=16,
    text_layers=1,
    context=1,
    pixel_mean=0.1,
    pixel_std=0.4,
)


@pytest.fixture(scope="session")
def config():
    return CONFIG


@pytest.fixture(scope="session")
def strategy():
    built = checkpoint.build(VDM, CONFIG, seed=3)
    with torch.no_grad():  # so that no layer is zero, as at initialisation
        for p in built.parameters_of("unet", "temporal", "text_encoder"):
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    return built


@pytest.fixture
def folder(strategy, tmp_path):
    return checkpoint.save_strategy(strategy, tmp_path / "model")


def weights(strategy):
    """Every tensor of a strategy by ``component.name``."""
    return {
        f"{name}.{key}": value
        for name, module in strategy.modules.items()
        for key, value in module.state_dict().items()
    }


@pytest.fixture(scope="session")
def same():
    """Whether two strategies have bitwise equal weights."""

    def compare(one, other):
        a, b = weights(one), weights(other)
        return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)

    return compare


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        go_offline(patch)
        yield tmp_path / "cache"
    forget_sessions()


@pytest.fixture
def hub(offline, monkeypatch):
    """A hub on this machine, which every request goes to."""
    with HubServer() as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(hub_constants, "ENDPOINT", server.endpoint)
        for module in (hub_constants, file_download):  # the latter has its own before 1.0
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        go_offline(monkeypatch, False)
        monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server
