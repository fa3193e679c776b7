"""How near generated videos are to the real ones that they should equal: PSNR, SSIM, LPIPS, best of N."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Float64
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.functional.image.lpips import _LPIPS, ScalingLayer

from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from vidgen.metrics.exact import full_precision
from vidgen.weights import read_tensors, weight_hash

__all__ = ["Lpips", "PairMetric", "Psnr", "Ssim", "best_of"]

_SLACK = 0.05
"""How far a network's pixels may leave [-1, 1] and be clamped; what is farther has another range."""

_SMALLEST = {"alex": 31, "vgg": 16}
"""Sides in pixels of the smallest pictures that the backbones' pooling leaves anything of."""

_WINDOW = 11
"""Sides of SSIM's Gaussian window (sigma 1.5) in pixels."""

_UNUSED = ("classifier.", "scaling_layer.")
"""What weight files hold besides: the backbone's classifier, and constants."""

_FRAMES = 64
"""Frames that LPIPS' backbone works on at a time."""


class PairMetric(ABC):
    """One number for each pair of a generated and a real video.

    Attributes:
        name: of the metric.
        higher_is_better: its direction, for ``best_of`` and ``Score``.
    """

    name: str
    higher_is_better: bool
    smallest: int = 1

    @full_precision()
    def __call__(
        self, generated: Float[Tensor, "b c f h w"], real: Float[Tensor, "_b _c _f _h _w"]
    ) -> Float64[Tensor, " b"]:
        """Compare RGB videos pair by pair, with pixels in [-1, 1]; the given tensors do not change.

        Pixels outside the range by up to 0.05 are clamped.

        Raises:
            InvalidArgumentError: shapes that differ or fit no RGB video, too small pictures, or pixels that
                are not finite or of another range.
        """
        self._check(generated, real)
        return self._values(generated.clamp(-1, 1), real.clamp(-1, 1)).cpu()

    @abstractmethod
    def _values(self, generated: Tensor, real: Tensor) -> Tensor:
        """The numbers, ``b`` in float64, of pixels within [-1, 1]."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return, in plain JSON values, all that decides the number, for its protocol."""

    def _check(self, generated: Tensor, real: Tensor) -> None:
        if generated.shape != real.shape or real.ndim != 5 or real.shape[1] != 3 or not real.numel():
            raise InvalidArgumentError(
                f"{self.name} was given videos of shapes {tuple(generated.shape)} and {tuple(real.shape)}; "
                "expected the same b 3 f h w for both."
            )
        if min(real.shape[-2:]) < self.smallest:
            raise InvalidArgumentError(
                f"{self.name} was given pictures of {real.shape[-2]} x {real.shape[-1]} pixels; expected "
                f"{self.smallest} or more each way."
            )
        for which, clips in (("generated", generated), ("real", real)):
            low, high = (float(end) for end in torch.aminmax(clips))
            if not (low >= -1 - _SLACK and high <= 1 + _SLACK):  # NaN fails too
                raise InvalidArgumentError(
                    f"{self.name} was given {which} pixels from {low:.4g} to {high:.4g}; expected [-1, 1]. "
                    "Rescale them, or look at the video they come from."
                )


class Psnr(PairMetric):
    """Peak signal-to-noise ratio in dB (data range 2, from -1 to 1); infinite for equal videos.

    Args:
        per: ``"video"`` takes the mean squared error of all of a video's pixels, as MCVD does;
            ``"frame"`` averages the ratios of its frames, which weighs good frames more.

    Raises:
        UnknownNameError: another ``per``.
    """

    name = "psnr"
    higher_is_better = True

    def __init__(self, per: str = "video") -> None:
        if per not in ("video", "frame"):
            raise UnknownNameError("PSNR average", per, ("video", "frame"))
        self.per = per

    def _values(self, generated: Tensor, real: Tensor) -> Tensor:
        dims = (1, 2, 3, 4) if self.per == "video" else (1, 3, 4)
        values = peak_signal_noise_ratio(
            generated.double(), real.double(), data_range=2.0, dim=dims, reduction="none"
        )
        return values if self.per == "video" else values.mean(dim=1)

    def fingerprint(self) -> dict[str, Any]:
        """Return name, data range and what the error is averaged over."""
        return {"name": self.name, "range": [-1, 1], "per": self.per}


class Ssim(PairMetric):
    """Structural similarity (Wang et al. 2004), Gaussian window, averaged over frames: 1 for equal videos.

    Args:
        on: ``"rgb"``: every channel with data range 2, the borders mirrored; ``"grey8"``: frames rounded to
            8 bits and turned grey (ITU-R 601), data range 255, without the 5 pixels at each border, as MCVD
            measures with scikit-image.

    Raises:
        UnknownNameError: another ``on``.
    """

    name = "ssim"
    higher_is_better = True
    smallest = _WINDOW

    def __init__(self, on: str = "rgb") -> None:
        if on not in ("rgb", "grey8"):
            raise UnknownNameError("SSIM picture", on, ("rgb", "grey8"))
        self.on = on

    def _values(self, generated: Tensor, real: Tensor) -> Tensor:
        # Video by video: the window's intermediate results take ten times the memory of the frames.
        return torch.stack([self._of_video(*pair) for pair in zip(generated, real, strict=True)])

    def _of_video(self, generated: Float[Tensor, "3 f h w"], real: Float[Tensor, "3 f h w"]) -> Tensor:
        one, other = (rearrange(clip.double(), "c f h w -> f c h w") for clip in (generated, real))
        grey = self.on == "grey8"
        if grey:
            one, other = _grey8(one), _grey8(other)
        _, full = structural_similarity_index_measure(
            one, other, data_range=255.0 if grey else 2.0, reduction="none", return_full_image=True
        )
        border = _WINDOW // 2
        return full[..., border:-border, border:-border].mean() if grey else full.mean()

    def fingerprint(self) -> dict[str, Any]:
        """Return name, pictures, data range and window."""
        ends = [-1, 1] if self.on == "rgb" else [0, 255]
        border = "mirrored" if self.on == "rgb" else "cut"
        window = {"sigma": 1.5, "pixels": _WINDOW, "border": border}
        return {"name": self.name, "on": self.on, "range": ends, "window": window}


class Lpips(PairMetric):
    """Learned perceptual distance (Zhang et al. 2018, version 0.1), averaged over frames: 0 for equal videos.

    The network is torchmetrics'; its weights are never downloaded nor unpickled, but come from safetensors:
    the backbone under torchvision's names (``features.0.weight``, ...) or LPIPS' own
    (``net.slice1.0.weight``, ...), and LPIPS' linear heads (``lin0.model.1.weight``, ...).

    Args:
        weights: one file, or several that hold the network together (backbone and heads).
        network: ``"alex"`` (as most papers report it) or ``"vgg"``.
        device: where the network works.

    Raises:
        UnknownNameError: another network.
        CheckpointError: no weights were given, or the files are missing, are not safetensors, or do not
            hold this network.
    """

    higher_is_better = False

    def __init__(
        self,
        weights: str | Path | Sequence[str | Path] | None,
        network: str = "alex",
        device: torch.device | str = "cpu",
    ) -> None:
        if network not in _SMALLEST:
            raise UnknownNameError("LPIPS network", network, _SMALLEST)
        self.name = f"lpips_{network}"
        self.smallest = _SMALLEST[network]
        files = [Path(file) for file in ([weights] if isinstance(weights, str | Path) else weights or ())]
        if not files:
            raise CheckpointError(_how_to(network, "no weights were given"))
        self.network = _built(network, files).to(device)
        self._hash = weight_hash(self.network)

    def to(self, device: torch.device | str) -> Lpips:
        """Move the network and return the metric itself."""
        self.network.to(device)
        return self

    def _values(self, generated: Tensor, real: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        frames = [rearrange(clips, "b c f h w -> (b f) c h w").float() for clips in (generated, real)]
        values = [
            self.network(one.to(device), other.to(device)).flatten().double()
            for one, other in zip(*(clip.split(_FRAMES) for clip in frames), strict=True)
        ]
        return reduce(torch.cat(values), "(b f) -> b", "mean", b=len(real))

    def fingerprint(self) -> dict[str, Any]:
        """Return name, a hash of all weights, and the pixels' range."""
        return {"name": self.name, "weights": self._hash, "range": [-1, 1]}


def best_of(values: Float[Tensor, "n t"], higher_is_better: bool) -> Float[Tensor, " n"]:
    """Return the best of ``t`` sampled trajectories for each of ``n`` videos.

    As stochastic prediction is scored: of several futures only one came true. More trajectories score better:
    ``evaluate`` with ``Settings(best_of=t)`` scores videos so, with ``t`` in the key and the protocol. This
    function is for values that are at hand.

    Raises:
        InvalidArgumentError: not ``n t`` with one trajectory or more, or NaN among the values.
    """
    if values.ndim != 2 or values.shape[1] < 1:
        raise InvalidArgumentError(
            f"values of shape {tuple(values.shape)} were given; expected videos x trajectories, 1 or more each."
        )
    if torch.isnan(values).any():
        raise InvalidArgumentError("the values hold NaN, which neither is nor loses to a best one; drop it.")
    return values.amax(dim=1) if higher_is_better else values.amin(dim=1)


def _grey8(frames: Float64[Tensor, "f 3 h w"]) -> Float64[Tensor, "f 1 h w"]:
    """Frames in [-1, 1] as 8-bit grey, 0 to 255, with the fixed-point luma of ITU-R 601 that Pillow has."""
    red, green, blue = ((frames + 1) * 127.5).round().long().unbind(dim=1)
    luma = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
    return luma[:, None].double()


def _built(network: str, files: Sequence[Path]) -> Any:
    """torchmetrics' network with the weights in ``files``; no random state moves."""
    with torch.device("meta"):
        built = _LPIPS(pretrained=False, net=network, pnet_rand=True)  # type: ignore[arg-type]
    # Given storage as a whole, except for the constants of the scaling, which would be lost.
    built = built.to_empty(device="cpu")
    built.scaling_layer = ScalingLayer()
    found: dict[str, Tensor] = {}
    for file in files:
        tensors = read_tensors(file)
        found |= {_canonical(name): tensors[name] for name in tensors if not name.startswith(_UNUSED)}
    expected = {name: _canonical(name) for name in built.state_dict()}
    named = ", ".join(map(str, files))
    for wrong, what in (
        (set(expected.values()) - found.keys(), "lacks"),
        (found.keys() - set(expected.values()), "belongs to another network, having"),
    ):
        if wrong:
            raise CheckpointError(_how_to(network, f"{named} {what} {', '.join(sorted(wrong)[:3])}"))
    try:
        built.load_state_dict({name: found[canonical] for name, canonical in expected.items()})
    except RuntimeError as error:
        raise CheckpointError(_how_to(network, f"{named} does not fit: {error}")) from error
    return built.requires_grad_(False).eval()


def _canonical(name: str) -> str:
    """One name for a weight in every layout: torchvision's for the backbone, ``lin0`` and on for the heads."""
    name = re.sub(r"^net\.slice\d+\.", "features.", name)
    return re.sub(r"^lins\.(\d+)\.", r"lin\1.", name)  # the heads stand twice in LPIPS' own files


def _how_to(network: str, problem: str) -> str:
    full = {"alex": "alexnet", "vgg": "vgg16"}[network]
    return (
        f"the weights of LPIPS {network!r} cannot be used: {problem}. Expected safetensors with torchvision's "
        f"{full} ('features.0.weight', ...) and LPIPS' heads of version 0.1 ('lin0.model.1.weight', ...), in "
        "one file or two. Nothing is downloaded or unpickled here: convert the published files once where you "
        "trust them, with safetensors.torch.save_file(state_dict, path)."
    )
