"""What reaches packages that are not installed here: a stand-in for them records and computes it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from vidgen.errors import InvalidArgumentError
from vidgen.nn import attend
from vidgen.nn.backends import BACKENDS

genuine = attention_dispatch.dispatch_attention_fn


class StandIn:
    """In place of diffusers' dispatcher: notes the backend and computes with PyTorch."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, backend: object, **named: Any) -> Tensor:
        self.calls.append({"backend": backend, **named})
        return genuine(query, key, value, backend=attention_dispatch.AttentionBackendName.NATIVE, **named)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Every package counts as installed and as working on the CPU, through the stand-in."""
    for flag in ("FLASH", "XFORMERS", "SAGE"):
        monkeypatch.setattr(attention_dispatch, f"_CAN_USE_{flag}_ATTN", True)
    anywhere = {name: dataclasses.replace(b, devices=()) for name, b in BACKENDS.items()}
    monkeypatch.setattr("vidgen.nn.attention.find_backend", anywhere.__getitem__)
    stand_in = StandIn()
    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", stand_in)
    return stand_in


def draw(dtype: torch.dtype = torch.float16, m: int = 5) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(2, size, 3, 16, generator=rng).to(dtype) for size in (5, m, m)]


@pytest.mark.parametrize(
    ("name", "theirs"), [("flash_attn", "flash"), ("xformers", "xformers"), ("sage", "sage")]
)
def test_packages_are_called_by_diffusers_name(stand_in: StandIn, name: str, theirs: str) -> None:
    inputs = draw()
    for options in ({}, {"causal": True}, {"scale": 0.3}):
        output = attend(*inputs, **options, backend=name)
        torch.testing.assert_close(output, attend(*inputs, **options, backend="math"), rtol=5e-3, atol=5e-3)
        assert stand_in.calls[-1]["backend"].value == theirs
    assert len(stand_in.calls) == 3
    assert [call["is_causal"] for call in stand_in.calls] == [False, True, False]


@pytest.mark.parametrize("name", ["flash_attn", "sage"])
def test_half_precision_packages_refuse_what_they_would_get_wrong(stand_in: StandIn, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="float32 and it computes in float16 or bfloat16"):
        attend(*draw(torch.float32), backend=name)
    with pytest.raises(InvalidArgumentError, match="takes no mask"):
        attend(*draw(), mask=torch.ones(2, 1, 1, 5, dtype=torch.bool), backend=name)
    assert stand_in.calls == []


def test_sage_refuses_to_train(stand_in: StandIn) -> None:
    """Its kernel cuts the graph: training would go on without the gradient."""
    query, key, value = draw()
    query.requires_grad_()
    with pytest.raises(InvalidArgumentError, match="no gradients"):
        attend(query, key, value, backend="sage")
    with torch.no_grad():
        attend(query, key, value, backend="sage")
    assert len(stand_in.calls) == 1


def test_xformers_gets_masks_as_aligned_numbers(stand_in: StandIn) -> None:
    """It would add True and False as 1 and 0, and reads rows from multiples of eight only."""
    mask = torch.rand(2, 1, 1, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    inputs = draw(torch.float32, m=7)
    output = attend(*inputs, mask=mask, backend="xformers")
    given = stand_in.calls[0]["attn_mask"]
    assert given.dtype == torch.float32
    assert given.shape == (2, 3, 5, 7)
    assert all(stride % 8 == 0 for stride in given.stride()[:3])
    torch.testing.assert_close(output, attend(*inputs, mask=mask, backend="math"), rtol=1e-5, atol=1e-5)


def test_flex_gets_causality_as_blocks(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given ``is_causal`` and no mask, diffusers 0.42 would leave causality out."""
    monkeypatch.setattr(
        attention_dispatch, "dispatch_attention_fn", lambda *a, **named: given.update(named) or a[0]
    )
    given: dict[str, Any] = {}
    attend(*draw(), causal=True, backend="flex")
    assert given["is_causal"] is False
    assert isinstance(given["attn_mask"], BlockMask)


@pytest.mark.parametrize("error", [ValueError("odd shapes"), NotImplementedError("no operator")])
def test_refusals_of_the_package_come_through(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*args: object, **named: object) -> Tensor:
        raise error

    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", refuse)
    with pytest.raises(InvalidArgumentError, match=str(error)) as caught:
        attend(*draw(), backend="xformers")
    assert caught.value.__cause__ is error
