"""Mixed precision: networks run in half precision, weights, losses and optimisers stay in float32.

bf16 has float32's range and needs nothing else. fp16 does not: each loss is multiplied by a scale before
its gradients are taken, and a step whose gradients overflow is skipped and the scale lowered
(Micikevicius et al. 2018, section 3.2).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from vidgen.errors import InvalidArgumentError, TrainingError

__all__ = ["Kind", "Precision", "check_precision", "computes_bf16", "settle_precision"]

logger = logging.getLogger("vidgen")

Kind = Literal["no", "bf16", "fp16"]
"""What training runs in, once ``"auto"`` is settled."""

_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_SCALE = 2.0**-14  # below it the gradients overflow whatever the scale


def computes_bf16(device: torch.device) -> bool:
    """Whether ``device`` computes in bfloat16 itself, rather than by way of float32.

    False also where PyTorch does not tell: of GPUs that are not CUDA's and, in older releases, of ARM.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # oneDNN has the kernels: without it even a CPU that knows bfloat16 is not asked.
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and _cpu_knows_bf16()


def _cpu_knows_bf16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:
        told = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return told is not None and bool(told())
    found = capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is ARM's


def settle_precision(
    asked: Kind | Literal["auto"], begun: Kind | None, device: torch.device, *, native: bool
) -> Kind:
    """Return the precision to train in, ``"no"``, ``"bf16"`` or ``"fp16"``, and say so where it was chosen.

    Args:
        asked: the recipe's, which may be ``"auto"``.
        begun: what the run has been trained in so far, with which ``"auto"`` goes on; None for a new run.
        device: where to train.
        native: whether it computes in bfloat16 itself (on every process).

    Raises:
        InvalidArgumentError: ``device`` cannot train in it.
    """
    if asked == "auto":
        kind: Kind = begun or ("bf16" if native else "no")
        why = "as the run was begun" if begun else f"bfloat16 is {'native' if native else 'not native'} there"
        logger.info("training in mixed_precision=%r on device %r: %s", kind, str(device), why)
    else:
        kind = asked
    check_precision(kind, device)
    if kind == "bf16" and not native:
        advice = (
            "go on where it is native, or begin another run"
            if begun
            else "choose mixed_precision='auto', or 'no', which is float32 here"
        )
        logger.warning(
            "mixed_precision is 'bf16', which device %r does not compute itself: training may be many times "
            "slower than in float32; %s",
            str(device),
            advice,
        )
    return kind


def check_precision(kind: Kind, device: torch.device) -> None:
    """Check that ``device`` can train in ``kind``.

    Raises:
        InvalidArgumentError: fp16 was asked for without a CUDA device.
    """
    if kind == "fp16" and device.type != "cuda":
        raise InvalidArgumentError(
            f"training.mixed_precision is 'fp16' on device {str(device)!r}; fp16 needs a CUDA device. Train "
            "with mixed_precision='auto', 'bf16' or 'no' here, in a folder of its own if the run was begun in "
            "fp16."
        )


class Precision:
    """The precision of one stage.

    Every optimiser has a scale of its own, so that an overflow of one (the critic, say) neither skips
    steps of another nor lowers its scale.

    Args:
        kind: ``"no"``, ``"bf16"`` or ``"fp16"``.
        device: where the stage trains.
        optimizers: their names.
    """

    def __init__(self, kind: str, device: torch.device, optimizers: Iterable[str]) -> None:
        self._dtype, self._device = _DTYPES[kind], device
        names = optimizers if kind == "fp16" else ()
        self._scalers = {name: torch.amp.GradScaler(device.type) for name in names}

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self._dtype is None:
            return nullcontext()
        # The cache may hold a weight cast without gradients, for a later use that needs them.
        return torch.autocast(self._device.type, self._dtype, cache_enabled=False)

    def check_loss(self, optimizer: str, value: Tensor) -> None:
        """Raise InvalidArgumentError for a loss in half precision: summing it has lost most digits."""
        if value.dtype in (torch.float16, torch.bfloat16):
            raise InvalidArgumentError(
                f"the loss of optimiser {optimizer!r} is {value.dtype}; expected torch.float32. With mixed "
                "precision a network returns half precision: call .float() on it before taking the loss."
            )

    def backward(self, optimizer: str, loss: Tensor) -> None:
        """Add the gradients of ``loss``, scaled where the precision needs it."""
        scaler = self._scalers.get(optimizer)
        (loss if scaler is None else scaler.scale(loss)).backward()

    def unscale(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Undo the scale of the optimiser's gradients, once per step."""
        if name in self._scalers:
            self._scalers[name].unscale_(optimizer)

    def step(self, name: str, optimizer: torch.optim.Optimizer) -> bool:
        """Step ``optimizer``; False if its gradients overflowed and it was skipped.

        Raises:
            TrainingError: they overflow at every scale.
        """
        if name not in self._scalers:
            optimizer.step()
            return True
        scaler = self._scalers[name]
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        stepped = scaler.get_scale() >= before  # an overflow, and nothing else, lowers it
        if not stepped and scaler.get_scale() < _LEAST_SCALE:
            raise TrainingError(
                f"the fp16 gradients of optimiser {name!r} are not finite, however small the loss scale "
                f"({before:g}). Train with mixed_precision='bf16' or 'no'."
            )
        return stepped

    def scales(self) -> dict[str, float]:
        """Return the loss scale of every optimiser; empty unless fp16."""
        return {name: scaler.get_scale() for name, scaler in self._scalers.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the scales as plain values."""
        return {name: scaler.state_dict() for name, scaler in self._scalers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` returned."""
        for name, scaler in self._scalers.items():
            scaler.load_state_dict(state[name])
