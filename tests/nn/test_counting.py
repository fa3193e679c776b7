"""One count for one computation, wherever and by whatever kernel it is done."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidgen.nn import AttentionProcessor, attend, attention_backend, flop_counter
from vidgen.nn.backends import BACKENDS

B, H, N, M, D = 2, 3, 5, 7, 16
BY_HAND = 2 * (B * H * N * M * D) + 2 * (B * H * N * M * D)  # scores, then what they gather

DEVICES = ["cpu", "meta", *(["cuda"] if torch.cuda.is_available() else [])]


def count(compute, *tensors):
    with torch.no_grad(), flop_counter() as counter:
        compute(*tensors)
    return counter.get_total_flops()


def tokens(device, dtype=torch.float32, keys=M):
    sizes = ((B, N, H, D), (B, keys, H, D), (B, keys, H, D))
    return [torch.ones(size, device=device, dtype=dtype) for size in sizes]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_is_counted_as_by_hand_with_any_backend_even_one_that_is_not_here(backend, device):
    inputs = tokens(device)
    assert count(lambda *qkv: attend(*qkv, backend=backend), *inputs) == BY_HAND
    if backend in ("sdpa", "math", "flash"):
        with attention_backend(backend):
            assert count(attend, *inputs) == BY_HAND


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neither_masks_nor_precision_change_the_count(device, dtype):
    inputs = tokens(device, dtype)
    mask = torch.ones(B, 1, 1, M, dtype=torch.bool, device=device)
    assert count(lambda *qkv: attend(*qkv, mask=mask), *inputs) == BY_HAND
    assert count(lambda *qkv: attend(*qkv, mask=mask.to(dtype)), *inputs) == BY_HAND
    square = tokens(device, dtype, keys=N)
    assert count(lambda *qkv: attend(*qkv, causal=True), *square) == BY_HAND // M * N
    with torch.autocast("cpu", torch.bfloat16):
        assert count(attend, *inputs) == BY_HAND


def kernels():
    """Every kernel of PyTorch's attention, and None for its own choice."""
    return [None, *SDPBackend.__members__.values()]


def runs(kernel, query, key):
    try:
        with nullcontext() if kernel is None else sdpa_kernel(kernel):
            functional.scaled_dot_product_attention(query, key, key)
    except RuntimeError:
        return False
    return True


@pytest.mark.filterwarnings("ignore")  # PyTorch says why a kernel does not run
@pytest.mark.parametrize("device", DEVICES)
def test_networks_that_choose_a_kernel_of_pytorchs_themselves(device):
    query, key, _ = (x.transpose(1, 2) for x in tokens(device, torch.float16))
    found = {}

    def one(kernel):
        with nullcontext() if kernel is None else sdpa_kernel(kernel):
            functional.scaled_dot_product_attention(query, key, key)

    for kernel in kernels():
        if runs(kernel, query, key):
            found[kernel] = count(one, kernel)
    assert {None, SDPBackend.MATH} <= set(found)
    assert set(found.values()) == {BY_HAND}


def test_every_fused_attention_that_pytorch_has_is_known():
    """One without a formula would count nothing where a network chooses it."""
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    fused = {
        name
        for name in names
        if name.startswith("_scaled_dot_product_")
        and not name.endswith(("_backward", "_quantized", "_attention_math"))  # the last is plain products
    }
    from vidgen.nn.counting import _FUSED_ATTENTION

    assert "_scaled_dot_product_flash_attention_for_cpu" in fused
    assert fused <= set(_FUSED_ATTENTION)


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0, AttentionProcessor])
def test_networks_of_diffusers(unet, processor):
    unet.set_attn_processor(processor())

    def counted(device):
        x, t, text = torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.zeros(2, 3, 8)
        return count(unet.to(device), x.to(device), t.to(device), text.to(device))

    here = counted("cpu")
    layers = 0

    def add(module, inputs, output):
        nonlocal layers
        if isinstance(module, nn.Linear):
            layers += 2 * module.weight.numel() * output.shape[:-1].numel()
        elif isinstance(module, nn.Conv2d):
            layers += 2 * module.weight.numel() * output.shape[-2:].numel() * len(output)

    handles = [m.register_forward_hook(add) for m in unet.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    unet(torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.zeros(2, 3, 8))
    for handle in handles:
        handle.remove()
    # Four blocks at 4 x 4 of width 16: one on the way down, one in the middle, two on the way up.
    attention = 4 * (4 * 2 * 16 * (16 + 3) * 16)
    assert here == layers + attention
    assert counted("meta") == here


class Encoder(nn.TransformerEncoderLayer):
    """On the CPU, at rest, the whole layer is one fused operation."""

    def __init__(self):
        super().__init__(d_model=8, nhead=2, dim_feedforward=16, batch_first=True)

    by_hand = 2 * 2 * 5 * (4 * 8 * 8 + 2 * 8 * 16) + 4 * 2 * 5 * 5 * 8


class Attention(nn.MultiheadAttention):
    def __init__(self):
        super().__init__(8, 2, batch_first=True)

    def forward(self, x):
        return super().forward(x, x, x)

    by_hand = 2 * 2 * 5 * (4 * 8 * 8) + 4 * 2 * 5 * 5 * 8


class Recurrent(nn.LSTM):
    """On the CPU a layer of oneDNN's, two of them here, each in both directions."""

    def __init__(self):
        super().__init__(8, 6, num_layers=2, bidirectional=True, batch_first=True)

    by_hand = 2 * 2 * 5 * 2 * (4 * 6 * 8 + 4 * 6 * 6 + 4 * 6 * 12 + 4 * 6 * 6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [Encoder, Attention, Recurrent])
def test_layers_that_pytorch_runs_fused(kind, device):
    assert count(kind().eval().to(device), torch.zeros(2, 5, 8, device=device)) == kind.by_hand


def test_the_process_is_afterwards_as_it_was():
    def flags():
        backends = torch.backends
        return (
            backends.mha.get_fastpath_enabled(),
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
        )

    before = flags()

    def fail():
        assert flags() != before
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        count(fail)
    assert flags() == before
