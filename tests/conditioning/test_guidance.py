from __future__ import annotations

from typing import Any

import pytest
import torch

from vidgen.conditioning import Conditioning, guide
from vidgen.errors import InvalidArgumentError

B, F = 2, 3


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def condition(seed: int = 0, **changes: Any) -> Conditioning:
    known = torch.tensor([[True, False, False], [False, True, False]])
    parts: dict[str, Any] = {
        "tokens": noise(B, 4, 5, seed=seed + 1),
        "negative_tokens": noise(B, 4, 5, seed=seed + 2),
        "guidance_scale": 3.0,
        "known": known,
        "clean": noise(B, 2, F, 4, 4, seed=seed + 3) * known[:, None, :, None, None],
        "extras": {"label": torch.arange(B) + seed},
    }
    return Conditioning(**parts | changes)


class Network:
    """A stand-in that uses every part of a call and counts its calls and videos."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        self.batches.append(len(x_t))
        assert cond.negative_tokens is None
        total = x_t.flatten(1).sum(1) * t.reshape(-1)
        for part in (cond.tokens, cond.known, cond.clean, cond.extras.get("label")):
            if part is not None:
                total = total + part.float().reshape(len(x_t), -1).mean(1)
        return torch.sin(x_t + total[:, None, None, None, None])


@pytest.mark.parametrize("t", [torch.tensor(5.0), torch.tensor([5.0, 9.0])])
@pytest.mark.parametrize("scale", [0.0, 0.5, 7.5])
def test_guidance_is_the_two_call_formula_in_one_call(scale: float, t: torch.Tensor) -> None:
    network, x_t, cond = Network(), noise(B, 2, F, 4, 4), condition(guidance_scale=scale)
    guided = guide(network, x_t, t, cond)
    assert network.batches == [2 * B]
    with_prompt = network(x_t, t, condition(negative_tokens=None))
    without = network(x_t, t, condition(tokens=cond.negative_tokens, negative_tokens=None))
    expected = without + scale * (with_prompt - without)
    assert torch.allclose(guided, expected, atol=1e-5)


def test_the_unconditional_branch_may_have_extras_of_its_own() -> None:
    own = {
        "label": torch.tensor([3.0, 4.0]),
        "negative:label": torch.tensor([7.0, 9.0]),
        "other": torch.ones(B),
    }
    cond = condition(guidance_scale=2.5, extras=own)
    network, x_t, t = Network(), noise(B, 2, F, 4, 4), torch.tensor(5.0)
    with_prompt = network(x_t, t, condition(negative_tokens=None, extras={"label": own["label"]}))
    without = network(
        x_t,
        t,
        condition(tokens=cond.negative_tokens, negative_tokens=None, extras={"label": own["negative:label"]}),
    )
    guided = guide(network, x_t, t, cond)
    assert network.batches == [B, B, 2 * B]
    assert torch.allclose(guided, without + 2.5 * (with_prompt - without), atol=1e-5)
    # The network is told of neither more than its own.
    assert cond.positive().extras.keys() == cond.negative().extras.keys() == {"label", "other"}
    assert cond.negative().extras["label"] is own["negative:label"]
    assert cond.negative().extras["other"] is own["other"]
    unguided = guide(network, x_t, t, condition(guidance_scale=1.0, extras=own))
    assert torch.equal(unguided, with_prompt)


def test_extras_of_the_unconditional_branch_follow_their_videos() -> None:
    def one(value: float) -> Conditioning:
        tokens = torch.zeros(1, 2, 3)
        own = {"negative:x": torch.tensor([value]), "x": torch.tensor([-value])}
        return Conditioning(tokens, tokens, 2.0, extras=own)

    joined = Conditioning.collate([one(1.0), one(2.0)])
    assert joined.negative().extras["x"].tolist() == [1.0, 2.0]
    assert joined.select([1]).repeat(2).negative().extras["x"].tolist() == [2.0, 2.0]
    assert joined.to("meta").negative().extras["x"].is_meta
    with pytest.raises(InvalidArgumentError, match="condition 1 cannot join condition 0"):
        Conditioning.collate([one(1.0), condition(extras={"x": torch.ones(B)})])


def test_per_frame_times_are_doubled_with_their_videos() -> None:
    seen: list[torch.Tensor] = []

    def record(x_t: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        seen.append(t)
        return x_t

    t = noise(B, F)
    guide(record, noise(B, 2, F, 4, 4), t, condition())
    assert torch.equal(seen[0], torch.cat([t, t]))


def test_scale_zero_follows_the_negative_prompt_alone() -> None:
    network, x_t, t = Network(), noise(B, 2, F, 4, 4), torch.tensor(5.0)
    guided = guide(network, x_t, t, condition(guidance_scale=0.0))
    alone = condition(tokens=condition().negative_tokens, negative_tokens=None)
    assert torch.allclose(guided, network(x_t, t, alone), atol=1e-5)


@pytest.mark.parametrize("changes", [{"guidance_scale": 1.0}, {"negative_tokens": None}])
def test_nothing_to_mix_costs_one_call_of_the_plain_batch(changes: dict[str, Any]) -> None:
    network, x_t, t = Network(), noise(B, 2, F, 4, 4), torch.tensor(5.0)
    guided = guide(network, x_t, t, condition(**changes))
    assert network.batches == [B]
    assert torch.equal(guided, network(x_t, t, condition(negative_tokens=None)))


def test_select_undoes_collate() -> None:
    first, second = condition(0), condition(10)
    joined = Conditioning.collate([first, second])
    assert joined.batch == 2 * B
    for original, indices in ((first, [0, 1]), (second, [2, 3])):
        part = joined.select(indices)
        for name in ("tokens", "negative_tokens", "known", "clean"):
            assert torch.equal(getattr(part, name), getattr(original, name))
        assert torch.equal(part.extras["label"], original.extras["label"])
        assert part.guidance_scale == 3.0


def test_repeat_keeps_the_copies_of_a_video_together() -> None:
    repeated = condition().repeat(3)
    assert torch.equal(repeated.extras["label"], torch.tensor([0, 0, 0, 1, 1, 1]))
    assert torch.equal(repeated.select([2, 5]).known, condition().known)


def test_to_casts_floats_and_leaves_masks_and_labels() -> None:
    moved = condition().to("meta", torch.float16)
    assert moved.tokens.dtype == moved.clean.dtype == torch.float16
    assert moved.known.dtype == torch.bool
    assert moved.extras["label"].dtype == torch.int64
    assert {moved.tokens.device.type, moved.extras["label"].device.type} == {"meta"}


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": noise(B, 7, 5), "negative_tokens": noise(B, 7, 5)},
        {"negative_tokens": None},
        {"guidance_scale": 2.0},
        {"replace": True},
        {"known": None, "clean": None},
        {"extras": {}},
    ],
)
def test_conditions_of_other_structure_do_not_collate(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="condition 1 cannot join condition 0"):
        Conditioning.collate([condition(), condition(**changes)])


def test_collate_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="at least one"):
        Conditioning.collate([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clean": None}, "belong together"),
        ({"known": None}, "belong together"),
        ({"known": None, "clean": None, "replace": True}, "replace=True"),
        ({"extras": {"label": torch.zeros(1)}}, "'extras.label': 1"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        condition(**changes)


def test_unconditional_model_has_no_batch_of_its_own() -> None:
    assert Conditioning().batch is None
    assert Conditioning.collate([Conditioning(), Conditioning()]).tokens is None
