"""The kernels that can compute attention: what each needs, what it can serve, how it is run.

``vidgen.nn.attention.attend`` is the entry point; this table stands behind it. A backend that is
not installed or cannot serve the given tensors is refused with the reason, never replaced.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models import attention_dispatch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from vidgen.errors import InvalidArgumentError, MissingDependencyError, UnknownNameError

__all__ = ["BACKENDS", "Backend", "Inputs", "find_backend"]

# PyTorch chooses its kernel by flags of the whole process. Each call sets them for itself and puts
# them back, and no other thread attends meanwhile: it would run with flags that are not its own.
_FLAGS = threading.Lock()

# Tokens up to which plain products are faster; the scores they keep are then a few times the keys at most.
_SHORT = 64


@dataclass(frozen=True)
class Inputs:
    """The tensors of one attention call, checked to fit each other.

    Args:
        query: ``b n h d``.
        key: ``b m h d``.
        value: ``b m h d``.
        mask: True where a query sees a key, or numbers added to the scores; four dimensions that
            broadcast to ``b h n m``; None for no mask.
        causal: a query sees keys up to its own place.
        scale: factor of the scores; None is ``1 / sqrt(d)``.
    """

    query: Float[Tensor, "b n h d"]
    key: Float[Tensor, "b m h d"]
    value: Float[Tensor, "b m h d"]
    mask: Shaped[Tensor, "#b #h #n #m"] | None
    causal: bool
    scale: float | None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, the mask last if there is one."""
        return [self.query, self.key, self.value, *([] if self.mask is None else [self.mask])]

    @property
    def learns(self) -> bool:
        """Whether a backward pass may follow."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors)

    def split(self, most: int) -> Iterator[Inputs]:
        """Parts of at most ``most`` sequences."""
        for start in range(0, len(self.query), most):
            part = slice(start, start + most)
            mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[part]
            yield replace(self, query=self.query[part], key=self.key[part], value=self.value[part], mask=mask)

    def additive_mask(self) -> Tensor | None:
        """The mask as numbers added to the scores."""
        if self.mask is None or self.mask.dtype != torch.bool:
            return self.mask
        zeros = torch.zeros_like(self.mask, dtype=self.query.dtype)
        return zeros.masked_fill(~self.mask, -math.inf)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to compute attention. Empty tuples and strings stand for "no restriction".

    Args:
        name: what ``attend(backend=...)`` calls it.
        about: one line about it.
        kernel: PyTorch's kernel, for those that come with PyTorch; None leaves it the choice.
        package: diffusers' name of it, for those run through diffusers.
        install: the command that installs it.
        devices: device types it runs on.
        half_only: it computes in float16 and bfloat16 only.
        takes_masks: it can be given a mask.
        learns_on: device types on which gradients flow through it; None for all of them.
    """

    name: str
    about: str
    kernel: SDPBackend | None = None
    package: str = ""
    install: str = ""
    devices: tuple[str, ...] = ()
    half_only: bool = False
    takes_masks: bool = True
    learns_on: tuple[str, ...] | None = None

    def require(self) -> None:
        """Raise unless the packages it needs are there.

        Raises:
            MissingDependencyError: they are not; the message says how to install them.
        """
        if not self.package:
            return
        name = attention_dispatch.AttentionBackendName(self.package)
        try:
            attention_dispatch._check_attention_backend_requirements(name)
        except RuntimeError as error:
            raise MissingDependencyError(
                f"the attention backend {self.name!r} ({self.about}) is not installed: {error} Install it "
                f"with: {self.install}; or leave the choice to PyTorch with backend='sdpa'."
            ) from error

    def check(self, inputs: Inputs) -> None:
        """Raise if it cannot serve these tensors.

        Raises:
            InvalidArgumentError: naming each reason.
        """
        device, dtype = inputs.query.device.type, inputs.query.dtype
        reasons = []
        if self.devices and device not in self.devices:
            reasons.append(f"the tensors are on {device!r} and it runs on {_either(self.devices)}")
        if self.half_only and dtype not in (torch.float16, torch.bfloat16):
            reasons.append(f"the tensors are {_short(dtype)} and it computes in float16 or bfloat16")
        if not self.takes_masks and inputs.mask is not None:
            reasons.append("it takes no mask")
        if self.learns_on is not None and inputs.learns and device not in self.learns_on:
            reasons.append(f"it gives no gradients on {device!r} (under torch.no_grad() it can be used)")
        if reasons:
            raise self.refusal("; ".join(reasons), inputs)

    def refusal(self, reason: str, inputs: Inputs) -> InvalidArgumentError:
        """The error that says why ``inputs`` cannot be served."""
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors)
        return InvalidArgumentError(
            f"the attention backend {self.name!r} cannot serve {_short(inputs.query.dtype)} tensors of shapes "
            f"{shapes} on {str(inputs.query.device)!r}: {reason}. Choose another with attend(backend=...) or "
            "attention_backend(...); 'sdpa' leaves the choice to PyTorch, and available_backends(device) "
            "lists those that run."
        )

    def run(self, inputs: Inputs) -> Float[Tensor, "b n h d"]:
        """Attention of ``inputs``, which ``check`` has let through.

        Raises:
            InvalidArgumentError: the kernel itself refuses them.
        """
        return _run_diffusers(self, inputs) if self.package else _run_torch(self, inputs)


def find_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in BACKENDS:
        raise UnknownNameError("attention backend", name, BACKENDS)
    return BACKENDS[name]


def _run_torch(backend: Backend, inputs: Inputs) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in (inputs.query, inputs.key, inputs.value))
    kernel = backend.kernel if backend.name != "sdpa" else _preferred(inputs)
    try:
        with _only(kernel):
            output = functional.scaled_dot_product_attention(
                query, key, value, inputs.mask, is_causal=inputs.causal, scale=inputs.scale
            )
    except RuntimeError as error:
        if "No available kernel" not in str(error) and "No viable backend" not in str(error):
            raise
        raise backend.refusal(f"PyTorch has no such kernel for them ({error})", inputs) from error
    return output.transpose(1, 2)


def _preferred(inputs: Inputs) -> SDPBackend | None:
    """The kernel that PyTorch should take where its own choice is a slow one; None leaves it the choice.

    On the CPU it takes flash attention, whose backward pass in half precision is slower than plain products
    where sequences are short (benchmarks/attention.py).
    """
    half = inputs.query.dtype in (torch.float16, torch.bfloat16)
    short = max(inputs.query.shape[1], inputs.key.shape[1]) <= _SHORT
    slow = half and short and inputs.learns and inputs.query.device.type == "cpu"
    return SDPBackend.MATH if slow else None


@contextmanager
def _only(kernel: SDPBackend | None) -> Iterator[None]:
    """Let PyTorch use that kernel alone, or its own choice with None."""
    # A compiled graph fixes the kernel and knows no locks.
    alone = nullcontext() if torch.compiler.is_compiling() else _FLAGS
    with alone, nullcontext() if kernel is None else sdpa_kernel(kernel):
        yield


def _run_diffusers(backend: Backend, inputs: Inputs) -> Tensor:
    mask: Any = inputs.mask
    causal = inputs.causal
    if backend.name == "flex":
        # Without a mask diffusers would leave out `is_causal`, and it reads masks as numbers best.
        mask, causal = _causal_blocks(inputs) if causal else inputs.additive_mask(), False
    elif backend.name == "xformers" and mask is not None:
        mask = _aligned_mask(inputs)
    try:
        output: Tensor = attention_dispatch.dispatch_attention_fn(
            inputs.query,
            inputs.key,
            inputs.value,
            attn_mask=mask,
            is_causal=causal,
            scale=inputs.scale,
            backend=attention_dispatch.AttentionBackendName(backend.package),
        )
    except (ValueError, NotImplementedError) as error:
        raise backend.refusal(str(error), inputs) from error
    return output


def _causal_blocks(inputs: Inputs) -> BlockMask:
    length = inputs.query.shape[1]
    device = str(inputs.query.device)
    return create_block_mask(lambda _b, _h, query, key: query >= key, None, None, length, length, device)


def _aligned_mask(inputs: Inputs) -> Tensor:
    """The additive mask, whole, each row beginning at a multiple of eight numbers.

    xformers demands the alignment; and given True and False it would add them as 1 and 0.
    """
    mask = inputs.additive_mask()
    assert mask is not None
    batch, length, heads, _ = inputs.query.shape
    keys = inputs.key.shape[1]
    rows = mask.new_zeros(batch, heads, length, -(-keys // 8) * 8)
    rows[..., :keys] = mask
    return rows[..., :keys]


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(repr(name) for name in names)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_ALL = (
    Backend(
        name="sdpa",
        about="the fastest of PyTorch's kernels that fits; its own choice, but for training on the CPU",
    ),
    Backend(
        name="math",
        about="PyTorch's plain products and softmax, for any tensor; the reference",
        kernel=SDPBackend.MATH,
    ),
    Backend(
        name="flash",
        about="PyTorch's own flash attention",
        kernel=SDPBackend.FLASH_ATTENTION,
        devices=("cpu", "cuda"),
    ),
    Backend(
        name="efficient",
        about="PyTorch's memory-efficient kernel",
        kernel=SDPBackend.EFFICIENT_ATTENTION,
        devices=("cuda",),
    ),
    Backend(
        name="cudnn",
        about="cuDNN's fused kernel, through PyTorch",
        kernel=SDPBackend.CUDNN_ATTENTION,
        devices=("cuda",),
    ),
    Backend(
        name="flex",
        about="PyTorch's flex attention; fused only inside torch.compile",
        package="flex",
        install="pip install 'torch>=2.9'",
        devices=("cpu", "cuda"),
        learns_on=("cuda",),
    ),
    Backend(
        name="flash_attn",
        about="the flash-attn package, version 2",
        package="flash",
        install="pip install 'flash-attn>=2.6.3' --no-build-isolation",
        devices=("cuda",),
        half_only=True,
        takes_masks=False,
    ),
    Backend(
        name="xformers",
        about="xFormers' memory-efficient attention",
        package="xformers",
        install="pip install 'xformers>=0.0.29'",
        devices=("cuda",),
    ),
    Backend(
        name="sage",
        about="SageAttention 2, with 8-bit scores: outputs differ by about 1%, and it cannot train",
        package="sage",
        # The package index has version 1 only.
        install="pip install git+https://github.com/thu-ml/SageAttention --no-build-isolation",
        devices=("cuda",),
        half_only=True,
        takes_masks=False,
        learns_on=(),
    ),
)

BACKENDS = {backend.name: backend for backend in _ALL}
"""Every backend by its name."""
