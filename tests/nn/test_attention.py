from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch
from kernels import Kernels
from torch import Tensor
from torch.nn import functional

from vidgen.errors import InvalidArgumentError, MissingDependencyError, UnknownNameError
from vidgen.nn import attend, attention, attention_backend, available_backends, current_backend
from vidgen.nn.backends import BACKENDS

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
HERE = [(device, name) for device in DEVICES for name in available_backends(device)]


@pytest.fixture(autouse=True)
def nothing_is_switched() -> Iterator[None]:
    """After every test the process is as before it."""
    before = process_state()
    yield
    assert process_state() == before
    assert current_backend() == "sdpa"


def process_state() -> list[Any]:
    flags = [
        getattr(torch._C, f"_get_{name}_sdp_enabled")() for name in ("math", "flash", "mem_efficient", "cudnn")
    ]
    registry = attention_dispatch._AttentionBackendRegistry
    return [*flags, registry._active_backend, dict(registry._backends), registry._checks_enabled]


def draw(n: int = 5, m: int = 5, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    sizes = [(2, n, 3, 16), (2, m, 3, 16), (2, m, 3, 16)]
    return [torch.randn(*size, generator=rng).to(device, dtype) for size in sizes]


def by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention in double precision, written out."""
    query, key, value = (x.double() for x in (query, key, value))
    scores = torch.einsum("bnhd,bmhd->bhnm", query, key) * (scale or 1 / math.sqrt(query.shape[-1]))
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -math.inf)
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(dim=-1), value)


def seen(b: int, h: int, n: int, m: int) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    mask = torch.rand(b, h, n, m, generator=rng) > 0.4
    mask[..., 0] = True  # every query sees a key
    return mask


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "self": (5, {}),
    "cross": (7, {}),
    "scale": (5, {"scale": 0.7}),
    "causal": (5, {"causal": True}),
    "keys": (7, {"mask": seen(2, 1, 1, 7)}),
    "pairs": (7, {"mask": seen(1, 3, 5, 7)}),
    "added": (7, {"mask": torch.linspace(-2, 2, 2 * 5 * 7).view(2, 1, 5, 7)}),
    "causal and mask": (5, {"mask": seen(2, 1, 5, 5), "causal": True}),
    "causal and added": (5, {"mask": torch.linspace(-2, 2, 5).view(1, 1, 1, 5), "causal": True}),
}


def exactness(name: str) -> tuple[torch.dtype, float]:
    if name == "sage":
        return torch.float16, 5e-2
    half = BACKENDS[name].half_only or name == "cudnn"
    return (torch.float16, 5e-3) if half else (torch.float32, 2e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("device", "name"), HERE)
def test_every_backend_present_computes_attention(device: str, name: str, case: str) -> None:
    m, options = CASES[case]
    if "mask" in options and not BACKENDS[name].takes_masks:
        pytest.skip("takes no mask")
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    dtype, tolerance = exactness(name)
    inputs = draw(m=m, device=device, dtype=dtype)
    expected = by_hand(*inputs, **options)
    output = attend(*inputs, **options, backend=name)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("device", "name"), HERE)
def test_every_backend_present_has_the_gradients_of_sdpa(device: str, name: str, case: str) -> None:
    m, options = CASES[case]
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    dtype, tolerance = exactness(name)
    learns_on = BACKENDS[name].learns_on
    inputs = draw(m=m, device=device, dtype=dtype)
    for tensor in inputs:
        tensor.requires_grad_()
    if learns_on is not None and device not in learns_on:
        with pytest.raises(InvalidArgumentError, match="no gradients on"):
            attend(*inputs, **options, backend=name)
        return
    if "mask" in options and not BACKENDS[name].takes_masks:
        pytest.skip("takes no mask")
    weights = torch.linspace(-1, 1, 2 * 5 * 3 * 16, device=device).view(2, 5, 3, 16)
    gradients = [
        torch.autograd.grad((function(*inputs, **options) * weights).sum(), inputs)
        for function in (by_hand, lambda *a, **k: attend(*a, **k, backend=name))
    ]
    for expected, given in zip(*gradients, strict=True):
        torch.testing.assert_close(given, expected.to(dtype), rtol=tolerance, atol=tolerance)


def test_sdpa_is_the_default_and_gives_the_bits_of_pytorch() -> None:
    query, key, value = draw(m=7)
    expected = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    assert torch.equal(attend(query, key, value), expected.transpose(1, 2))


def test_the_cpu_has_pytorchs_kernels() -> None:
    assert {"sdpa", "math", "flash"} <= set(available_backends("cpu"))
    assert not {"efficient", "cudnn", "flash_attn", "xformers", "sage"} & set(available_backends("cpu"))
    with pytest.raises(InvalidArgumentError, match="unknown"):
        available_backends("abacus")


def kernels_of(call: Callable[[], object]) -> Kernels:
    with Kernels() as kernels:
        call()
    return kernels


def test_the_kernel_asked_for_is_the_one_that_runs() -> None:
    inputs = draw()
    assert kernels_of(lambda: attend(*inputs, backend="flash")).flash == 1
    math_kernel = kernels_of(lambda: attend(*inputs, backend="math"))
    assert math_kernel.flash == 0
    assert math_kernel.seen["bmm"] == 2


@pytest.mark.parametrize(
    ("dtype", "queries", "keys", "learns", "plain"),
    [
        (torch.bfloat16, 64, 64, True, True),
        (torch.float16, 16, 5, True, True),
        (torch.bfloat16, 65, 16, True, False),
        (torch.bfloat16, 16, 65, True, False),
        (torch.bfloat16, 16, 16, False, False),
        (torch.float32, 16, 16, True, False),
    ],
)
def test_on_the_cpu_short_sequences_learn_by_plain_products_in_half_precision(
    dtype: torch.dtype, queries: int, keys: int, learns: bool, plain: bool
) -> None:
    x, y = (torch.zeros(1, n, 1, 8, dtype=dtype, requires_grad=True) for n in (queries, keys))
    with torch.set_grad_enabled(learns):
        own = kernels_of(
            lambda: functional.scaled_dot_product_attention(*(z.transpose(1, 2) for z in (x, y, y)))
        )
        assert kernels_of(lambda: attend(x, y, y)).flash == (0 if plain else own.flash)
        assert kernels_of(lambda: attend(x, y, y, backend="flash")).flash == 1


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"mask": True}])
def test_learning_in_half_precision_has_the_gradients_of_the_formula(options: dict[str, bool]) -> None:
    inputs = [x.detach().requires_grad_() for x in draw()]
    given = dict(options)
    if "mask" in given:
        length = inputs[0].shape[1]
        given["mask"] = torch.ones(length, length, dtype=torch.bool).tril()[None, None]

    def gradients(function: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(function(*inputs, **given).float().square().sum(), inputs)

    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(attend)
    for expected, own in zip(gradients(by_hand), found, strict=True):
        torch.testing.assert_close(own, expected, rtol=0.05, atol=0.05)


def test_contexts_nest_and_end() -> None:
    inputs, names = draw(), []

    def note() -> None:
        names.append((current_backend(), kernels_of(lambda: attend(*inputs)).flash))

    with attention_backend("math"):
        note()
        with attention_backend("flash"):
            note()
        note()
        assert kernels_of(lambda: attend(*inputs, backend="flash")).flash == 1  # a call has the last word
        with pytest.raises(ZeroDivisionError), attention_backend("flash"):
            names.append((current_backend(), 1 // 0))
        note()
    note()
    assert names == [("math", 0), ("flash", 1), ("math", 0), ("math", 0), ("sdpa", 1)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_nothing_global_is_switched_within_the_context() -> None:
    before = process_state()
    for name in available_backends("cpu"):
        with attention_backend(name), torch.no_grad():
            attend(*draw())
            assert process_state() == before


def test_a_context_belongs_to_its_thread() -> None:
    found = []
    with attention_backend("math"):
        thread = threading.Thread(target=lambda: found.append(current_backend()))
        thread.start()
        thread.join()
    assert found == ["sdpa"]


def test_threads_do_not_change_each_others_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's flags are the process's: unguarded, one thread would run another's kernel."""
    inputs, wrong = draw(), []
    start = threading.Barrier(3)

    def work(name: str, flash: int) -> None:
        start.wait()
        with attention_backend(name):
            for _ in range(150):
                count = kernels_of(lambda: attend(*inputs)).flash
                if count != flash:
                    wrong.append((name, count))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=a) for a in (("math", 0), ("flash", 1), ("sdpa", 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_unknown_backends_are_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'flash'"):
        attend(*draw(), backend="flahs")
    with pytest.raises(UnknownNameError, match=r"Known: .*xformers"), attention_backend("nothing"):
        pass


PACKAGES = {
    "flash_attn": ("_CAN_USE_FLASH_ATTN", "pip install 'flash-attn>=2.6.3' --no-build-isolation"),
    "xformers": ("_CAN_USE_XFORMERS_ATTN", "pip install 'xformers>=0.0.29'"),
    "sage": ("_CAN_USE_SAGE_ATTN", "pip install git+https://github.com/thu-ml/SageAttention"),
    "flex": ("_CAN_USE_FLEX_ATTN", "pip install 'torch>=2.9'"),
}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flag, command = PACKAGES[name]
    monkeypatch.setattr(attention_dispatch, flag, False)
    with pytest.raises(MissingDependencyError) as of_call:
        attend(*draw(), backend=name)
    with pytest.raises(MissingDependencyError) as of_context, attention_backend(name):
        pass
    for caught in (of_call, of_context):
        assert command in str(caught.value)
        assert repr(name) in str(caught.value)


def test_every_backend_through_diffusers_has_an_install_command() -> None:
    assert {b.name for b in BACKENDS.values() if b.package} == set(PACKAGES)
    assert all(b.install.startswith("pip install") for b in BACKENDS.values() if b.package)


@pytest.mark.parametrize("name", ["efficient", "cudnn"])
def test_kernels_of_other_devices_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"on 'cpu' and it runs on 'cuda'"):
        attend(*draw(), backend=name)


def test_a_kernel_that_does_not_fit_is_never_replaced() -> None:
    mask = torch.zeros(1, 1, 5, 5, requires_grad=True)  # flash gives masks no gradient
    with pytest.raises(InvalidArgumentError, match=r"'flash' cannot serve float32.*no such kernel"):
        attend(*draw(), mask=mask, backend="flash")
    with pytest.raises(InvalidArgumentError, match="runs on 'cpu' or 'cuda'"):
        attend(*(x.to("meta") for x in draw()), backend="flash")


def test_large_batches_are_split_where_kernels_end(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [x.flatten(0, 1)[:, None].expand(-1, 4, 3, 16) for x in draw(7, 7)]
    masks = [None, seen(14, 1, 4, 4), seen(1, 3, 4, 4)]
    whole = [attend(*inputs, mask=mask, backend="flash") for mask in masks]
    monkeypatch.setattr(attention, "_MOST_SEQUENCES", 5)
    for mask, expected in zip(masks, whole, strict=True):
        with Kernels() as kernels:
            output = attend(*inputs, mask=mask, backend="flash")
        assert kernels.flash == 3  # 14 sequences as 5, 5, 4
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_no_batch_reaches_the_grid_limit_of_cuda() -> None:
    assert attention._MOST_SEQUENCES <= 65535


def test_autocast_reaches_every_backend_alike() -> None:
    inputs = [*draw()[:2], draw()[2].bfloat16()]  # a norm keeps queries and keys in float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [attend(*inputs, backend=name) for name in ("sdpa", "math", "flash")]
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    for output in outputs:
        torch.testing.assert_close(output.double(), by_hand(*inputs), rtol=2e-2, atol=2e-2)


def test_tensors_that_do_not_fit_are_refused() -> None:
    query, key, value = draw()
    for wrong in ([query[:1], key, value], [query, key[:, :4], value], [query[:, :, :1], key, value]):
        with pytest.raises(InvalidArgumentError, match="'b n h d', 'b m h d' and 'b m h d'"):
            attend(*wrong)
    with pytest.raises(InvalidArgumentError, match=r"torch.float32.*torch.float64"):
        attend(query, key.double(), value)
    with pytest.raises(InvalidArgumentError, match="as many keys as queries"):
        attend(query[:, :3], key, value, causal=True)


def test_masks_that_do_not_fit_are_refused() -> None:
    for shape in ((5, 5), (2, 5), (2, 1, 1, 4), (3, 1, 1, 5)):
        with pytest.raises(InvalidArgumentError, match=r"2 x 3 heads of 5 queries and 5 keys"):
            attend(*draw(), mask=torch.ones(shape, dtype=torch.bool))
    with pytest.raises(InvalidArgumentError, match="ambiguous"):
        attend(*draw(), mask=torch.ones(1, 1, 5, 5, dtype=torch.long))


def test_meta_tensors_are_counted() -> None:
    """``vidgen info`` counts a network's work without any."""
    query, key, value = (x.to("meta") for x in draw())
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        assert attend(query, key, value).device.type == "meta"
    assert counter.get_total_flops() == 2 * 2 * (2 * 3 * 5 * 5 * 16)
