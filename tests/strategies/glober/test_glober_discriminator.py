from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from vidgen.errors import InvalidArgumentError
from vidgen.nn import attention_backend
from vidgen.strategies.glober.cra import discriminator_loss, discriminator_pairs, draw_frames, judge
from vidgen.strategies.glober.discriminator import PairDiscriminator
from vidgen.trainable import TrainingStep
from vidgen.video.dataset import DataConfig, collate, open_dataset

B, C, SIZE = 3, 4, 8


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PAIRS = noise(B, C, 2, SIZE, SIZE)


def small(**sizes: Any) -> PairDiscriminator:
    torch.manual_seed(0)
    kinds = {"full_levels": (1,), "time_levels": (0, 1)}
    network = PairDiscriminator(C, SIZE, 8, (1, 2), **{**kinds, **sizes}, head_dim=4).eval()
    with torch.no_grad():  # out of the zero initialisation, as after some steps
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def blind_in_time(network: PairDiscriminator) -> PairDiscriminator:
    """``network`` with 3D kernels that read the frame before and the frame after alike."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.copy_((module.weight + module.weight.flip(2)) / 2)
    return network


@pytest.mark.parametrize(("network", "count"), [("latent", 40.2e6), ("pixel", 8.3e6)])
def test_counts_of_the_released_layouts(network: str, count: float) -> None:
    with torch.device("meta"):
        made = getattr(PairDiscriminator, network)()
    assert made.num_parameters() == pytest.approx(count, rel=0.02)
    assert made(torch.empty(2, *made.slots.shape, device="meta")).shape == (2,)


@torch.no_grad()
def test_embeddings_of_the_slots_alone_make_the_order_visible() -> None:
    network = blind_in_time(small())
    network.slots[:, 1] += 3 * noise(C, SIZE, SIZE, seed=5)
    assert (network(PAIRS) - network(PAIRS.flip(2))).abs().min() > 1e-3
    network.slots[:, 1] = network.slots[:, 0]  # no longer told apart
    assert torch.allclose(network(PAIRS), network(PAIRS.flip(2)), atol=1e-5)


@torch.no_grad()
def test_each_embedding_is_added_to_its_own_frame() -> None:
    network = small()
    whole, slots = network(PAIRS), network.slots.clone()
    network.slots.zero_()
    assert torch.allclose(network(PAIRS + slots), whole, atol=1e-5)


@pytest.mark.parametrize(
    "levels", [{"full_levels": (1,), "time_levels": ()}, {"full_levels": (), "time_levels": (1,)}]
)
@torch.no_grad()
def test_attention_joins_the_two_frames(levels: dict[str, tuple[int, ...]]) -> None:
    """Without a mean and a tail, and with 2D kernels, only attention lets one frame see the other."""
    level = small(**levels).levels[1]
    features = noise(1, 8, 2, 4, 4)
    other = features.clone()
    other[:, :, 1] += noise(1, 8, 4, 4, seed=1)
    attention = [part for part in level.parts if hasattr(part, "attention")]
    assert len(attention) == 1
    hidden, changed = (level.parts[0](x) for x in (features, other))
    assert torch.equal(hidden[:, :, 0], changed[:, :, 0])  # the residual block looks at single frames
    difference = (attention[0](hidden) - attention[0](changed))[:, :, 0]
    assert difference.abs().max() > 1e-4


@torch.no_grad()
def test_pairs_are_judged_one_by_one() -> None:
    network = small()
    assert torch.allclose(network(PAIRS), torch.cat([network(pair[None]) for pair in PAIRS]), atol=1e-5)
    assert network(PAIRS).std() > 1e-3


@torch.enable_grad()
def test_gradients_reach_both_frames_and_all_layers_and_are_the_same_when_recomputed() -> None:
    grads = []
    for recomputed in (False, True):
        network, pairs = small().train(), PAIRS.clone().requires_grad_()
        if recomputed:
            network.enable_gradient_checkpointing()
        with attention_backend("math"):
            logits = network(pairs)
        logits.sum().backward()
        assert pairs.grad is not None
        assert (pairs.grad.abs().sum((1, 3, 4)) > 0).all()
        grads.append({name: p.grad for name, p in network.named_parameters()} | {"pairs": pairs.grad})
    for name, grad in grads[0].items():
        assert grad is not None, name
        assert grad.abs().sum() > 0, name
        assert torch.allclose(grad, grads[1][name], atol=1e-5), name


@torch.enable_grad()
def test_it_learns_to_tell_the_order() -> None:
    torch.manual_seed(0)
    network = PairDiscriminator(1, 4, 8, (1,), full_levels=(0,), head_dim=4)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(30):  # the later frame is the brighter one
        first = noise(8, 1, 1, 4, 4, seed=step)
        right = torch.cat([first, first + 1], dim=2)
        loss = (
            nn.functional.softplus(-network(right)).mean()
            + nn.functional.softplus(network(right.flip(2))).mean()
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fresh = noise(32, 1, 1, 4, 4, seed=999)
    right = torch.cat([fresh, fresh + 1], dim=2)
    assert (network(right) > network(right.flip(2))).float().mean() > 0.95


def test_saved_is_loaded(tmp_path: Path) -> None:
    network = small()
    network.save_pretrained(tmp_path)
    again = PairDiscriminator.from_pretrained(tmp_path).eval()
    assert torch.equal(again(PAIRS), network(PAIRS))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="sample_size"):
        small()(PAIRS[..., :4])
    with pytest.raises(InvalidArgumentError, match="levels"):
        small(full_levels=(2,))
    oblong = PairDiscriminator(C, (4, 8), 8, (1, 1), full_levels=(1,))
    assert oblong(PAIRS[..., :4, :]).shape == (B,)


def drawn(clips: torch.Tensor, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of frames of some clips, and the same blurred in the place of estimates."""
    step = TrainingStep(seed, "order", 0, tuple(range(size)))
    uniforms = torch.stack([step.uniforms(i, "frames", 2) for i in range(size)])
    frames = draw_frames(uniforms.float(), clips.shape[2])
    chosen = (step.uniform("clip") * len(clips)).long()
    real = clips.transpose(1, 2)[chosen[:, None], frames].transpose(1, 2)
    blurred = functional.interpolate(functional.avg_pool2d(real.flatten(1, 2), 4), scale_factor=4)
    return real, blurred.reshape(real.shape)


def test_trained_on_shapes_that_move_one_way_it_scores_swapped_frames_lower() -> None:
    data = open_dataset(DataConfig.of("shapes", clip_length=8, frames=8, size=16, videos=1000, seed=7))
    right = [i for i in range(len(data)) if "moves right" in data.source.caption(i)][:96]
    clips = collate([data[i] for i in right]).clip
    torch.manual_seed(0)
    model = PairDiscriminator(3, 16, 16, (1, 2), full_levels=(1,))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    with torch.enable_grad():
        for step in range(60):
            real, fake = discriminator_pairs(*drawn(clips[:64], 12, step))
            logits = judge(model, torch.cat([real, fake]))
            discriminator_loss(logits[:1], logits[1:], fake_weights=torch.full((5, 12), 0.2)).backward()
            optimizer.step()
            optimizer.zero_grad()
    real, blurred = drawn(clips[64:], 64, 1000)  # clips that it has not seen
    real, fake = discriminator_pairs(real, blurred)
    logits = judge(model, torch.cat([real, fake]))
    assert (logits[0] > logits[4]).float().mean() > 0.9  # swapped
    assert (logits[0] > logits[3]).float().mean() > 0.9  # in order, and synthetic
