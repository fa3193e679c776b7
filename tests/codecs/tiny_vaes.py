"""Tiny random VAEs of diffusers, and how much memory a call holds at most."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage, AutoencoderKLWan, AutoencoderTiny
from torch.utils._python_dispatch import TorchDispatchMode


def kl(**changes: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 2,
        "latent_channels": 3,
        "scaling_factor": 0.4,
        "shift_factor": 0.2,
    }
    return AutoencoderKL(**config | changes).eval()


def tiny(**changes: Any) -> AutoencoderTiny:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "encoder_block_out_channels": (4,) * 4,
        "decoder_block_out_channels": (4,) * 4,
        "num_encoder_blocks": (1,) * 4,
        "num_decoder_blocks": (1,) * 4,
        "scaling_factor": 0.7,
        "shift_factor": 0.1,
    }
    return AutoencoderTiny(**config | changes).eval()


VIDEO: dict[str, Any] = {
    "base_dim": 4,
    "z_dim": 3,
    "dim_mult": [1, 2, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "latents_mean": [0.1, -0.2, 0.3],
    "latents_std": [1.5, 0.5, 2.0],
}


def wan(**changes: Any) -> AutoencoderKLWan:
    """Space factor 4, time factor 4."""
    torch.manual_seed(0)
    return AutoencoderKLWan(**VIDEO | {"scale_factor_spatial": 4} | changes).eval()


def wan22(**changes: Any) -> AutoencoderKLWan:
    """The layout of Wan 2.2: averaging shortcuts, and patches of pixels; space factor 8."""
    patched = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
    return wan(**patched | {"scale_factor_spatial": 8} | changes)


def qwen(**changes: Any) -> AutoencoderKLQwenImage:
    torch.manual_seed(0)
    return AutoencoderKLQwenImage(**VIDEO | changes).eval()


def clip(b: int = 2, f: int = 3, height: int = 16, width: int = 24, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(b, 3, f, height, width, generator=rng) * 2 - 1


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def column(values: Any, ndim: int) -> torch.Tensor:
    """One value for each channel, broadcast against a tensor of ``ndim`` axes."""
    return torch.tensor(values).reshape(-1, *[1] * (ndim - 2))


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made within it that are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._holders: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor)
        return result

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        self._holders[place] += 1
        if self._holders[place] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)
        weakref.finalize(tensor, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._holders[place] -= 1
        if not self._holders[place]:
            self.now -= size


def peak_beside_result(work: Any) -> int:
    """Most bytes that ``work`` held at once besides the tensor it returned."""
    with torch.no_grad(), _LiveBytes() as live:
        result = work()
    return live.peak - result.untyped_storage().nbytes()
