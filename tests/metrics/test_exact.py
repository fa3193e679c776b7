"""Features do not hang on what the process was set to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vidgen.metrics.exact import full_precision
from vidgen.metrics.extractors import Preprocessing
from vidgen.metrics.extractors.base import NetworkExtractor

BACKENDS = torch.backends


def settings() -> list[str]:
    parts = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.mkldnn.matmul)
    return [part.fp32_precision for part in parts]


class Projection(NetworkExtractor):
    """A linear layer on all pixels, which notes how precisely it was asked to work."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = nn.Linear(3 * 2 * 8 * 8, 5)
        pixels = Preprocessing(mean=(0.1, 0.1, 0.1), std=(0.3, 0.3, 0.3))
        super().__init__("projection", layer, pixels, weights="none")
        self.seen: list[list[str]] = []

    def _describe(self, pixels: Tensor) -> tuple[Tensor, None]:
        self.seen.append(settings())
        return self.network(pixels.flatten(1)), None


def clips() -> Tensor:
    return torch.rand(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def medium():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def test_autocast_around_an_extractor_changes_nothing() -> None:
    extractor = Projection()
    expected = extractor.extract(clips()).values
    with torch.autocast("cpu", torch.bfloat16):
        found = extractor.extract(clips()).values
        assert torch.is_autocast_enabled("cpu")
        assert extractor.network(clips().flatten(1)).dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_faster_products_are_not_used_and_come_back(medium) -> None:
    before = settings()
    extractor = Projection()
    extractor.extract(clips())
    assert extractor.seen == [["ieee"] * 4]
    assert settings() == before != ["ieee"] * 4
    with pytest.raises(ZeroDivisionError), full_precision():
        raise ZeroDivisionError
    assert settings() == before


def test_another_default_dtype_changes_nothing() -> None:
    extractor = Projection()
    expected = extractor.extract(clips()).values
    given = clips()
    torch.set_default_dtype(torch.float64)
    try:
        found = extractor.extract(given).values
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_no_gradient_is_kept() -> None:
    given = clips().requires_grad_()
    assert not Projection().extract(given).values.requires_grad
