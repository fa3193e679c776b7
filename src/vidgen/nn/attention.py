"""Attention for every network here: one function, and a choice of kernels behind it.

``attend`` computes ``softmax(q k' * scale + mask) v`` (Vaswani et al. 2017, eq. 1) per head. Which
kernel does it is chosen by the call or by the ``attention_backend`` context; nothing is switched
for the whole process. Attention over space, over time or to a prompt is a matter of what the
caller lays along the sequence (``vidgen.nn.rearrange``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from vidgen.devices import checked_device
from vidgen.errors import InvalidArgumentError, MissingDependencyError
from vidgen.nn.backends import BACKENDS, Backend, Inputs, find_backend

__all__ = ["any_backend_as_math", "attend", "attention_backend", "available_backends", "current_backend"]

_CHOSEN: ContextVar[str] = ContextVar("vidgen_attention_backend", default="sdpa")
_AS_MATH: ContextVar[bool] = ContextVar("vidgen_attention_as_math", default=False)

# CUDA kernels take the sequences as a grid dimension, which ends at 65,535.
_MOST_SEQUENCES = 2**15


def attend(
    query: Float[Tensor, "b n h d"],
    key: Float[Tensor, "bk m hk dk"],
    value: Float[Tensor, "bv mv hv dv"],
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    backend: str | None = None,
) -> Float[Tensor, "b n h d"]:
    """Let each query gather the values whose keys it fits, in every head on its own.

    Tensors lie as ``b n h d`` (batch, token, head, feature), as a projection yields them and as
    diffusers' own dispatcher takes them. Any batch size will do: what a kernel cannot launch at
    once is split. Under autocast the tensors are cast as PyTorch casts its own attention.

    Args:
        query: ``b n h d``.
        key: ``b m h d``.
        value: ``b m h d``.
        mask: four dimensions that broadcast to ``b h n m``: True where a query sees a key, or
            numbers that are added to the scores. Every query should see a key.
        causal: a query sees the keys up to its own place; needs ``n = m``. Adds to ``mask``.
        scale: factor of the scores; by default ``1 / sqrt(d)``.
        backend: a name in ``vidgen.nn.backends.BACKENDS``; by default the one of the surrounding
            ``attention_backend``, else ``"sdpa"``.

    Raises:
        InvalidArgumentError: tensors that do not fit each other, or that the backend cannot serve.
        MissingDependencyError: the backend is not installed; the message says how to do so.
        UnknownNameError: no backend of that name.
    """
    chosen = find_backend(current_backend() if backend is None else backend)
    if _AS_MATH.get():
        chosen = find_backend("math")
    chosen.require()
    inputs = _gather(query, key, value, mask, causal, scale)
    chosen.check(inputs)
    if len(query) <= _MOST_SEQUENCES:
        return chosen.run(inputs)
    return torch.cat([chosen.run(part) for part in inputs.split(_MOST_SEQUENCES)])


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Compute attention by the backend ``name`` inside the ``with`` block.

    The choice holds for this thread (this ``contextvars`` context) and for networks of this
    library alone; contexts nest, and the process is afterwards as it was.

    Raises:
        MissingDependencyError: the backend is not installed; the message says how to do so.
        UnknownNameError: no backend of that name.
    """
    find_backend(name).require()
    token = _CHOSEN.set(name)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


@contextmanager
def any_backend_as_math() -> Iterator[None]:
    """Compute what was to be computed by any backend by ``"math"``, as where work is counted and not done."""
    token = _AS_MATH.set(True)
    try:
        yield
    finally:
        _AS_MATH.reset(token)


def current_backend() -> str:
    """The backend that ``attend`` uses here unless it is told one."""
    return _CHOSEN.get()


def available_backends(device: torch.device | str | None = None) -> tuple[str, ...]:
    """The backends that really run on ``device``, each tried once on a small example.

    Args:
        device: by default CUDA's current device where there is one, else the CPU.

    Raises:
        InvalidArgumentError: no such device here.
    """
    where = str(checked_device(device))
    return tuple(backend.name for backend in BACKENDS.values() if _runs(backend, where))


@cache
def _runs(backend: Backend, device: str) -> bool:
    dtype = torch.float16 if backend.half_only or backend.name == "cudnn" else torch.float32
    tokens = torch.zeros(1, 16, 1, 64, dtype=dtype, device=device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about speed, and why a kernel does not fit
            attend(tokens, tokens, tokens, backend=backend.name)
    except (InvalidArgumentError, MissingDependencyError):
        return False
    return True


def _gather(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Inputs:
    query, key, value = _autocast(query, key, value)
    _check_fit(query, key, value)
    if causal and query.shape[1] != key.shape[1]:
        raise InvalidArgumentError(
            f"causal attention of {query.shape[1]} queries to {key.shape[1]} keys has no agreed meaning; give "
            "as many keys as queries, or say with a mask which keys each query sees."
        )
    if mask is not None:
        mask = _fit_mask(mask, query, key)
        if causal:
            mask, causal = _causal(mask), False
    return Inputs(query, key, value, mask, causal, scale)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _check_fit(query: Tensor, key: Tensor, value: Tensor) -> None:
    fits = query.shape[0] == key.shape[0] and query.shape[2:] == key.shape[2:]
    if not fits or key.shape != value.shape:
        shapes = [tuple(tensor.shape) for tensor in (query, key, value)]
        raise InvalidArgumentError(
            f"queries of shape {shapes[0]}, keys of {shapes[1]} and values of {shapes[2]} do not fit "
            "each other; they are 'b n h d', 'b m h d' and 'b m h d'."
        )
    if any(x.dtype != query.dtype or x.device != query.device for x in (key, value)):
        kinds = sorted({(str(tensor.dtype), str(tensor.device)) for tensor in (query, key, value)})
        raise InvalidArgumentError(
            f"queries, keys and values differ in dtype or device: {kinds}; bring them to one."
        )


def _fit_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    (b, n, h, _), m = query.shape, key.shape[1]
    if mask.ndim != 4 or any(
        size not in (1, full) for size, full in zip(mask.shape, (b, h, n, m), strict=True)
    ):
        raise InvalidArgumentError(
            f"a mask of shape {tuple(mask.shape)} does not fit {b} x {h} heads of {n} queries and {m} keys; "
            f"give four dimensions 'b h n m' = {(b, h, n, m)}, or 1 in place of any (a mask of tokens is "
            "mask[:, None, None, :])."
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise InvalidArgumentError(
            f"a mask of {mask.dtype} is ambiguous; give torch.bool (True where a query sees a key) or floating "
            "point numbers that are added to the scores."
        )
    return mask if mask.dtype == torch.bool else mask.to(query.dtype)


def _causal(mask: Tensor) -> Tensor:
    """``mask`` without the keys after each query, which is square then."""
    size = max(mask.shape[-2:])
    past = torch.ones(size, size, dtype=torch.bool, device=mask.device).tril()
    return mask & past if mask.dtype == torch.bool else mask.masked_fill(~past, float("-inf"))
