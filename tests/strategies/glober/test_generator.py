from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from vidgen.errors import InvalidArgumentError
from vidgen.nn import flop_counter
from vidgen.strategies.glober.generator import GlobalGenerator, _positions

B, C, N, D, H, W = 2, 5, 3, 7, 4, 6
TIMES = torch.tensor([3, 700])


def fresh(**changes: object) -> GlobalGenerator:
    torch.manual_seed(0)
    return GlobalGenerator(
        **({"channels": C, "text_width": D, "width": 32, "depth": 2, "heads": 4} | changes)
    ).eval()


def trained(**changes: object) -> GlobalGenerator:
    """With weights all over it, as after training."""
    generator = fresh(**changes)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return generator


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, TOKENS = noise(B, C, H, W), noise(B, N, D, seed=1)


@pytest.mark.parametrize("pooled", [False, True])
@torch.no_grad()
def test_fresh_generator_predicts_zero_by_blocks_that_change_nothing(pooled: bool) -> None:
    generator = fresh(pooled_text=pooled)
    assert torch.equal(generator(X, TIMES, TOKENS), torch.zeros_like(X))
    hidden = noise(B, 9, 32)
    for block in generator.blocks:
        assert torch.equal(block(hidden, noise(B, 32, seed=2)), hidden)


@pytest.mark.parametrize("pooled", [False, True])
def test_gradients_reach_everything(pooled: bool) -> None:
    generator = trained(pooled_text=pooled).train()
    (generator(X, TIMES, TOKENS) - X).square().sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        # A bias of the keys moves all scores of a query alike: softmax does not see it.
        assert "to_k.bias" in name or parameter.grad.abs().max() > 1e-6, name


def test_a_fresh_generator_learns() -> None:
    generator = fresh().train()
    optimizer = torch.optim.Adam(generator.parameters(), 5e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (generator(X, TIMES, TOKENS) - X).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@torch.no_grad()
def test_prompt_time_and_every_pixel_count_and_videos_do_not_mix() -> None:
    generator = trained()
    given = generator(X, TIMES, TOKENS)
    for x, t, tokens in (
        (X, TIMES + torch.tensor([1, 0]), TOKENS),
        (X, TIMES, torch.cat([TOKENS[:1] + noise(1, N, D, seed=5), TOKENS[1:]])),
        (torch.cat([X[:1].flip(-1), X[1:]]), TIMES, TOKENS),
    ):
        changed = (generator(x, t, tokens) - given).abs()
        assert changed[0].amax(dim=0).min() > 1e-5  # at every pixel
        assert changed[1].max() < 1e-5


@torch.no_grad()
def test_pixels_know_their_places() -> None:
    """Pixels that trade places are no mere trade of answers, along rows and along columns."""
    generator = trained()
    given = generator(X, TIMES, TOKENS)
    for axis in (2, 3):
        assert not torch.allclose(generator(X.flip(axis), TIMES, TOKENS).flip(axis), given, atol=1e-3)
    # The order of the prompt's tokens is the text encoder's to tell.
    assert torch.allclose(generator(X, TIMES, TOKENS.flip(1)), given, atol=1e-4)


def test_positions_are_those_of_masked_auto_encoders() -> None:
    known = get_2d_sincos_pos_embed(32, 4, base_size=4, output_type="pt").float()
    ours = _positions(4, 6, 32, torch.device("cpu")).unflatten(0, (4, 6))
    assert torch.allclose(ours[:, :4], known.unflatten(0, (4, 4)), atol=1e-5)  # sizes do not matter


@torch.no_grad()
def test_pooled_text_reaches_through_the_timestep() -> None:
    generator = trained(pooled_text=True)
    torch.nn.init.zeros_(generator.text.weight)  # the prompt's tokens themselves say nothing
    given = generator(X, TIMES, TOKENS)
    assert not torch.allclose(generator(X, TIMES, noise(B, N, D, seed=9)), given, atol=1e-3)
    plain = trained()
    torch.nn.init.zeros_(plain.text.weight)
    assert torch.equal(plain(X, TIMES, noise(B, N, D, seed=9)), plain(X, TIMES, TOKENS))


@torch.no_grad()
def test_one_time_for_all_and_any_size() -> None:
    generator = trained()
    assert torch.equal(generator(X, torch.tensor(3), TOKENS), generator(X, torch.tensor([3, 3]), TOKENS))
    assert generator(noise(B, C, 2, 2), TIMES, noise(B, 8, D)).shape == (B, C, 2, 2)


@pytest.mark.parametrize("pooled", [False, True])
@torch.no_grad()
def test_saved_is_loaded(pooled: bool, tmp_path: Path) -> None:
    generator = trained(pooled_text=pooled)
    generator.save_pretrained(tmp_path)
    loaded = GlobalGenerator.from_pretrained(tmp_path, use_safetensors=True).eval()
    assert torch.equal(loaded(X, TIMES, TOKENS), generator(X, TIMES, TOKENS))
    half = generator.to(torch.bfloat16)
    assert half(X.bfloat16(), TIMES, TOKENS).dtype == torch.bfloat16


def test_checkpointing_recomputes_and_changes_no_gradient() -> None:
    def gradients(checkpointed: bool) -> tuple[list[torch.Tensor], int]:
        generator, runs = trained().train(), []
        if checkpointed:
            generator.enable_gradient_checkpointing()
        generator.blocks[0].norm1.register_forward_hook(lambda *_: runs.append(1))
        generator(X, TIMES, TOKENS).square().sum().backward()
        return [p.grad for p in generator.parameters()], len(runs)

    (plain, once), (recomputed, twice) = gradients(False), gradients(True)
    assert (once, twice) == (1, 2)
    for one, other in zip(plain, recomputed, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "depth", "parameters", "gigaflops"), [(1152, 28, 674.5e6, 312), (1024, 20, 382.0e6, 177)]
)
def test_paper_sizes(width: int, depth: int, parameters: float, gigaflops: float) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in GlobalGenerator(width=width, depth=depth).parameters())
    assert count == pytest.approx(parameters, rel=1e-3)
    one, two = (compute(width, blocks) for blocks in (1, 2))  # every block costs the same
    assert one + (depth - 1) * (two - one) == pytest.approx(gigaflops, rel=5e-3)


def compute(width: int, depth: int) -> float:
    with torch.device("meta"):
        generator = GlobalGenerator(width=width, depth=depth)
        with flop_counter() as counter:
            generator(torch.zeros(1, 16, 16, 16), torch.zeros(1), torch.zeros(1, 77, 768))
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize(
    ("x", "tokens"),
    [((B, C + 1, H, W), (B, N, D)), ((B, C, H, W), (B, N, D + 1)), ((B, C, H, W), (B + 1, N, D))],
)
def test_shapes_that_do_not_fit_are_refused(x: tuple[int, ...], tokens: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match="do not fit each other"):
        fresh()(torch.zeros(x), TIMES, torch.zeros(tokens))
    with pytest.raises(InvalidArgumentError, match="timesteps of shape"):
        fresh()(X, torch.zeros(B + 1), TOKENS)


@pytest.mark.parametrize("changes", [{"width": 30}, {"depth": 0}, {"heads": 5}])
def test_impossible_sizes_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        fresh(**changes)
