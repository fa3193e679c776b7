"""The weights of one strategy under another that wraps it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import vidgen
from toy import Toy, ToyConfig, toy
from vidgen import checkpoint, plugins
from vidgen.errors import UnknownNameError
from vidgen.plans import chunks


@dataclass(frozen=True)
class ChunkedConfig(ToyConfig):
    chunk: int = 3


class Chunked(Toy):
    name = "chunked"
    Config = ChunkedConfig

    def plan(self, num_frames):
        return chunks(num_frames, self.config.chunk)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    known, load = {"toy": Toy, "chunked": Chunked}, plugins.load
    monkeypatch.setattr(
        plugins, "load", lambda group, name: known[name] if name in known else load(group, name)
    )
    return checkpoint.save_strategy(toy(window=5), tmp_path / "toy")


def test_another_strategy_runs_the_weights_of_a_checkpoint(saved):
    own, other = vidgen.load(saved, device="cpu"), vidgen.load(saved, strategy="chunked", device="cpu")
    assert (own.strategy.name, other.strategy.name) == ("toy", "chunked")
    assert other.strategy.config == ChunkedConfig(window=5)  # its own setting at its default
    for name, module in own.strategy.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, other.strategy.modules[name].state_dict()[key])
    assert other.cost(num_frames=12).calls == 4
    wanted = own(num_frames=12, seed=0, plan=chunks(12, 3), output_type="latent").frames
    assert torch.equal(other(num_frames=12, seed=0, output_type="latent").frames, wanted)


def test_a_strategy_that_is_not_installed_is_named(saved):
    with pytest.raises(UnknownNameError, match="chunkd"):
        vidgen.load(saved, strategy="chunkd", device="cpu")
