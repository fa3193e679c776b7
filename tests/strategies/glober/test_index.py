from __future__ import annotations

import math

import pytest
import torch

from vidgen.errors import InvalidArgumentError
from vidgen.strategies.glober.index import IndexEmbedding, index_period, index_scale, neighbour_cosine


def embedding(scale: float) -> IndexEmbedding:
    torch.manual_seed(0)
    return IndexEmbedding(channels=320, embedding_channels=64, scale=scale)


def indices(frames: int) -> torch.Tensor:
    return torch.arange(frames) / frames


@pytest.mark.parametrize(
    ("frames", "scale", "expected", "within"),
    [
        (16, index_scale(16), 0.797, 5e-4),
        (128, index_scale(16), 0.99648, 5e-6),
        (16, index_scale(128), 0.359, 5e-4),
        (128, index_scale(128), 0.882, 5e-4),
    ],
)
def test_cosine_between_neighbours(frames: int, scale: float, expected: float, within: float) -> None:
    cosine = neighbour_cosine(frames, scale, period=index_period(scale))
    assert cosine == pytest.approx(expected, abs=within)
    waves = embedding(scale).waves(indices(frames)).double()
    measured = torch.cosine_similarity(waves[:-1], waves[1:])
    assert torch.allclose(measured, measured.new_tensor(cosine), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("frames", "expected", "within"), [(16, 0.99989, 5e-6), (128, 0.9999982, 1e-7)])
def test_cosine_as_the_paper_prints_it(frames: int, expected: float, within: float) -> None:
    assert neighbour_cosine(frames, 1.0) == pytest.approx(expected, abs=within)


@pytest.mark.parametrize("frames", [1, 16, 128])
def test_the_slowest_wave_turns_by_about_a_quarter_in_the_whole_clip(frames: int) -> None:
    scale = index_scale(frames)
    assert index_period(scale) == pytest.approx(frames)
    slowest = scale * index_period(scale) ** -(159 / 160)
    assert slowest == pytest.approx(math.pi / 2, rel=0.04)
    last = embedding(scale).waves(torch.tensor([0.5]))[0, 319]
    assert float(last) == pytest.approx(math.sin(slowest / 2), abs=1e-6)


@torch.no_grad()
def test_frames_differ_as_much_as_features_vary_before_training() -> None:
    module = IndexEmbedding(64, 192, index_scale(16))
    vectors = module(indices(16))
    assert 0.8 < vectors.std() < 1.2
    assert torch.cdist(vectors, vectors).fill_diagonal_(math.inf).min() > 0.3 * 192**0.5


def test_the_scale_turns_the_fastest_wave_by_a_quarter_from_frame_to_frame() -> None:
    waves = embedding(index_scale(16)).waves(indices(16))
    assert torch.allclose(waves[:, 0], torch.cos(torch.arange(16) * math.pi / 2), atol=1e-5)  # cosines first
    assert torch.allclose(waves[:, 160], torch.sin(torch.arange(16) * math.pi / 2), atol=1e-5)
    assert torch.allclose(waves.square().sum(1), torch.tensor(160.0))


def test_frames_further_apart_are_less_alike() -> None:
    waves = embedding(index_scale(16)).waves(torch.arange(256) / 256)
    alike = torch.cosine_similarity(waves[:1], waves)[:33]  # up to two frames of 16
    assert (alike.diff() < 0).all()
    assert torch.allclose(alike, torch.cosine_similarity(waves[100:101], waves[100:133]), atol=1e-5)


@torch.no_grad()
def test_frames_of_16_are_found_among_those_of_32() -> None:
    module = embedding(index_scale(16))
    few, many = module(indices(16)), module(indices(32))
    assert torch.equal(few, many[::2])
    assert torch.cdist(few, many).argmin(1).tolist() == list(range(0, 32, 2))
    distances = torch.cdist(many, many).fill_diagonal_(math.inf)
    assert distances.min() > 0.01 * many.std() * many.shape[1] ** 0.5  # none is another's double


def test_gradients_reach_the_mlp_and_weights_come_back() -> None:
    module, twin = embedding(25.0), IndexEmbedding(320, 64, 25.0)
    module(indices(8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(indices(8)), module(indices(8)))
    assert module.to(torch.bfloat16)(indices(8)).dtype == torch.bfloat16


def test_paper_size() -> None:
    with torch.device("meta"):
        module = IndexEmbedding()
    assert [tuple(p.shape) for p in module.parameters()] == [
        (1280, 320),
        (1280,),
        (1280, 1280),
        (1280,),
        (1280, 320),
    ]


@pytest.mark.parametrize(("channels", "scale"), [(3, 1.0), (0, 1.0), (8, 0.0), (8, math.nan)])
def test_impossible_embeddings_are_refused(channels: int, scale: float) -> None:
    with pytest.raises(InvalidArgumentError, match="pairs of sine and cosine"):
        IndexEmbedding(channels, 8, scale)


def test_scale_needs_frames() -> None:
    with pytest.raises(InvalidArgumentError, match="1 or more"):
        index_scale(0)
