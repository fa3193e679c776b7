"""I3D, the network of the Frechet video distance, from weights in either of its two usual layouts.

Carreira & Zisserman (CVPR 2017, arXiv 1705.07750) inflate Inception-v1 with batch normalisation to three
dimensions. Every layer pads as TensorFlow's "SAME": as much as ``ceil(size / stride)`` outputs need, the
odd element at the end. FVD (Unterthiner et al. 2018, arXiv 1812.01717) compares its 400 logits on
Kinetics-400, averaged over time.

The published files hold the same values under different names, and no module here unpickles them:
convert one once with ``torch.load(FILE, weights_only=True)`` and ``safetensors.torch.save_file``.

- ``pytorch-i3d`` (piergiaj): ``Conv3d_1a_7x7.conv3d.weight``, ``Mixed_3b.b1a.bn.bias``, ``logits.conv3d.bias``.
- ``kinetics_i3d_pytorch`` (hassony2): ``conv3d_1a_7x7.conv3d.weight``, ``mixed_3b.branch_1.0.batch3d.bias``,
  ``conv3d_0c_1x1.conv3d.bias``. That code pads its pools without looking at the size, so that it
  differs from TensorFlow, pytorch-i3d and this module where half the frames is an odd number, as for 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from vidgen.metrics.extractors.base import NetworkExtractor
from vidgen.metrics.extractors.preprocessing import Preprocessing
from vidgen.paths import expanded
from vidgen.weights import read_tensors, weight_hash

__all__ = ["FEATURES", "I3D", "I3DExtractor", "I3DOutput", "i3d_extractor", "load_i3d"]

FEATURES = ("logits", "pooled")
WIDTH = 1024
MIN_FRAMES = 10
"""What the published metric asks for; the network itself needs 9."""

SIDES = (193, 224)
"""Sides whose last map is 7 x 7, which one window of the average pool covers."""

# Fig. 3 of the paper with the widths of Inception-v1 (Szegedy et al. 2015, table 1): 1x1; 3x3 reduced, 3x3;
# 5x5 reduced, 5x5 (here 3x3); pool projection.
MIXED = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}

Maps = Float[Tensor, "_ _ _ _ _"]
"""``b c t y x``, whose sizes change from layer to layer."""


def _padded(values: Maps, kernel: tuple[int, ...], stride: tuple[int, ...], fill: float) -> Maps:
    """Pad as TensorFlow's "SAME" does."""
    sides: list[int] = []
    for size, width, step in zip(values.shape[2:], kernel, stride, strict=True):
        total = max((-(-size // step) - 1) * step + width - size, 0)
        sides = [total // 2, total - total // 2, *sides]  # torch's order is from the last axis
    return functional.pad(values, sides, value=fill) if any(sides) else values


class _Unit(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(c_in, c_out, kernel, stride, bias=False)
        self.norm = nn.BatchNorm3d(c_out, eps=1e-3)

    def forward(self, values: Maps) -> Maps:
        values = _padded(values, self.conv.kernel_size, self.conv.stride, 0.0)
        return functional.relu(self.norm(self.conv(values)))


class _Pool(nn.Module):
    """Maximum over what the window covers; padding never wins."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, values: Maps) -> Maps:
        values = _padded(values, self.kernel, self.stride, float("-inf"))
        return functional.max_pool3d(values, self.kernel, self.stride)


class _Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, c_in: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, reduced_3, three, reduced_5, five, pooled = widths
        self.branches = nn.ModuleList(
            [
                nn.Sequential(_Unit(c_in, one)),
                nn.Sequential(_Unit(c_in, reduced_3), _Unit(reduced_3, three, 3)),
                nn.Sequential(_Unit(c_in, reduced_5), _Unit(reduced_5, five, 3)),
                nn.Sequential(_Pool((3, 3, 3), (1, 1, 1)), _Unit(c_in, pooled)),
            ]
        )

    def forward(self, values: Maps) -> Maps:
        return torch.cat([branch(values) for branch in self.branches], dim=1)


@dataclass(frozen=True)
class I3DOutput:
    """What I3D says of ``b`` clips.

    Attributes:
        logits: ``b k``, averaged over time.
        pooled: ``b 1024``, the features before the classifier, averaged over time.
    """

    logits: Float[Tensor, "b k"]
    pooled: Float[Tensor, "b d"]


class I3D(nn.Module):
    """Inflated 3D Inception-v1 for RGB.

    Args:
        num_classes: 400 or 600 for Kinetics; any for weights of your own.
    """

    def __init__(self, num_classes: int = 400) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv_1a = _Unit(3, 64, 7, 2)
        self.conv_2b = _Unit(64, 64)
        self.conv_2c = _Unit(64, 192, 3)
        self.mixed = nn.ModuleDict()
        width = 192
        for name, widths in MIXED.items():
            self.mixed[name] = _Mixed(width, widths)
            width = widths[0] + widths[2] + widths[4] + widths[5]
        self.pool_space = _Pool((1, 3, 3), (1, 2, 2))  # 2a and 3a
        self.pool_4a = _Pool((3, 3, 3), (2, 2, 2))
        self.pool_5a = _Pool((2, 2, 2), (2, 2, 2))
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, clips: Float[Tensor, "b 3 f h w"]) -> I3DOutput:
        """Describe clips in [-1, 1], of 9 frames or more, with sides of 193 to 224 pixels (published: 224).

        Raises:
            InvalidArgumentError: clips of another size.
        """
        frames, height, width = clips.shape[2:]
        if frames < 9 or not all(SIDES[0] <= side <= SIDES[1] for side in (height, width)):
            raise InvalidArgumentError(
                f"I3D was given clips of {frames} frames of {height} x {width}; its last pool covers 2 frames "
                f"of 7 x 7, so that it takes 9 frames or more with sides of {SIDES[0]} to {SIDES[1]} pixels. "
                "Resize to 224 x 224, as the published metric does."
            )
        # The classifier is linear: of the mean over time it gives the mean of its logits over time.
        pooled = functional.avg_pool3d(self._maps(clips), (2, 7, 7), 1).flatten(2).mean(2)
        return I3DOutput(self.head(pooled), pooled)

    def _maps(self, clips: Maps) -> Maps:
        values: Maps = self.pool_space(self.conv_1a(clips))
        values = self.pool_space(self.conv_2c(self.conv_2b(values)))
        before = {"4b": self.pool_4a, "5b": self.pool_5a}
        for name, mixed in self.mixed.items():
            values = mixed(before[name](values) if name in before else values)
        return values


_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class _Layout:
    """How a file names the parts of the network; ``branches`` in the order of ``_BRANCHES``."""

    stem: str
    mixed: str
    branches: tuple[str, ...]
    norm: str
    head: str


_LAYOUTS = (
    _Layout("Conv3d_{}", "Mixed_{}", ("b0", "b1a", "b1b", "b2a", "b2b", "b3b"), "bn", "logits"),
    _Layout(
        "conv3d_{}",
        "mixed_{}",
        ("branch_0", "branch_1.0", "branch_1.1", "branch_2.0", "branch_2.1", "branch_3.1"),
        "batch3d",
        "conv3d_0c_1x1",
    ),
)
_BRANCHES = ("0.0", "1.0", "1.1", "2.0", "2.1", "3.1")
_STEM = {"1a_7x7": "conv_1a", "2b_1x1": "conv_2b", "2c_3x3": "conv_2c"}


def _names(layout: _Layout) -> dict[str, str]:
    """Names in a file of ``layout``, to the names of this module's state; the first one tells layouts apart."""
    units = {layout.stem.format(theirs): ours for theirs, ours in _STEM.items()}
    for block in MIXED:
        for theirs, ours in zip(layout.branches, _BRANCHES, strict=True):
            units[f"{layout.mixed.format(block)}.{theirs}"] = f"mixed.{block}.branches.{ours}"
    names = {}
    for theirs, ours in units.items():
        names[f"{theirs}.conv3d.weight"] = f"{ours}.conv.weight"
        names |= {f"{theirs}.{layout.norm}.{part}": f"{ours}.norm.{part}" for part in _NORM}
    return names | {f"{layout.head}.conv3d.{part}": f"head.{part}" for part in ("weight", "bias")}


def load_i3d(file: str | Path, num_classes: int = 400) -> I3D:
    """Build an I3D with the weights in a safetensors file of either layout.

    Args:
        file: as ``pytorch-i3d`` or ``kinetics_i3d_pytorch`` names them; told apart by the names.
        num_classes: classes of the file.

    Raises:
        CheckpointError: the file is missing, is no safetensors, or holds other tensors.
    """
    file = expanded(file)
    # How many batches were seen in training is in some files and decides nothing.
    tensors = {k: v for k, v in read_tensors(file).items() if not k.endswith("num_batches_tracked")}
    if all(name.startswith("module.") for name in tensors):  # saved from within nn.DataParallel
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    layouts = [names for names in map(_names, _LAYOUTS) if next(iter(names)) in tensors]
    if not layouts:
        raise CheckpointError(
            f"{file} holds no I3D in a known layout: expected Conv3d_1a_7x7.conv3d.weight (pytorch-i3d) or "
            f"conv3d_1a_7x7.conv3d.weight (kinetics_i3d_pytorch) among its names; found {_some(tensors)}."
        )
    names = layouts[0]
    missing, unexpected = names.keys() - tensors.keys(), tensors.keys() - names.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{file} is no whole I3D: missing {_some(missing)}; unexpected {_some(unexpected)}. Expected "
            "the state dict of an RGB I3D with its classifier."
        )
    with torch.random.fork_rng(devices=[]):  # initial values are overwritten; no random state moves
        network = I3D(num_classes)
    _fill(network, {names[name]: value for name, value in tensors.items()}, file)
    return network


def _fill(network: I3D, state: dict[str, Tensor], file: Path) -> None:
    state["head.weight"] = state["head.weight"].flatten(1)  # a convolution of 1 x 1 x 1 in the files
    classes = len(state["head.weight"])
    if classes != network.num_classes:
        raise CheckpointError(
            f"{file} has {classes} classes and {network.num_classes} were asked for; give classes={classes} if "
            "that is the network you mean: another set of classes is another metric."
        )
    counts = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    try:
        network.load_state_dict(state | counts)
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not fit I3D: {error}") from error


def _some(names: Any, count: int = 6) -> str:
    """The first few of ``names``, and how many there are."""
    listed = sorted(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return (", ".join(listed[:count]) + more) or "nothing"


class I3DExtractor(NetworkExtractor):
    """An I3D's logits or pooled features as the features of videos.

    Args:
        name: part of every metric's key.
        network: with its weights.
        features: ``"logits"``, as FVD has it, or ``"pooled"``, 1024 numbers.
        preprocessing: None squashes to 224 x 224, bilinear without antialiasing, in [-1, 1].
        chunk: videos at once; 16 frames take about 0.1 GB each.

    Raises:
        UnknownNameError: ``features`` is none of the two.
    """

    def __init__(
        self,
        name: str,
        network: I3D,
        *,
        features: str = "logits",
        preprocessing: Preprocessing | None = None,
        chunk: int = 4,
    ) -> None:
        if features not in FEATURES:
            raise UnknownNameError("features of I3D", features, FEATURES)
        self.features = features
        options: dict[str, Any] = {"weights": weight_hash(network), "min_frames": MIN_FRAMES, "chunk": chunk}
        super().__init__(name, network, preprocessing or Preprocessing(size=224), **options)

    def _describe(self, pixels: Float[Tensor, "n ..."]) -> tuple[Tensor, Tensor | None]:
        out: I3DOutput = self.network(pixels)
        return (out.logits if self.features == "logits" else out.pooled), out.logits

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the features: also which of them, and TensorFlow's padding."""
        return super().fingerprint() | {"network": "i3d", "padding": "SAME", "features": self.features}


def i3d_extractor(
    file: str | Path,
    classes: int = 400,
    *,
    features: str = "logits",
    preprocessing: Preprocessing | None = None,
    chunk: int = 4,
) -> I3DExtractor:
    """The extractor of the Frechet video distance, named ``i3d_k400``, ``i3d_k600``, ...

    Pooled features are another metric and named so: ``i3d_k400_pooled``.

    Args:
        file: I3D weights in safetensors; see ``load_i3d``.
        classes: of the file.
        features, preprocessing, chunk: see ``I3DExtractor``. Google's metric and TATS squash, which is
            the default; MCVD is ``Preprocessing(size=224, resize="crop")``.

    Raises:
        CheckpointError: the weights are missing, unsafe, or not those of an I3D with ``classes`` classes.
        UnknownNameError: ``features`` is neither ``"logits"`` nor ``"pooled"``.
    """
    name = f"i3d_k{classes}" + ("" if features == "logits" else f"_{features}")
    network = load_i3d(file, classes)
    return I3DExtractor(name, network, features=features, preprocessing=preprocessing, chunk=chunk)
