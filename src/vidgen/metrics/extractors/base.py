"""What all extractors around a network share: checks, chunks, device and fingerprint."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from itertools import chain
from typing import Any, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.exact import full_precision
from vidgen.metrics.extractors.preprocessing import Preprocessing, check_clips
from vidgen.metrics.features import FeatureExtractor, Features

__all__ = ["NetworkExtractor", "check_chunk", "check_name", "device_of"]

E = TypeVar("E", bound="NetworkExtractor")


class NetworkExtractor(FeatureExtractor):
    """A frozen network behind a declared preprocessing, run on a few items at once.

    A subclass writes ``_describe`` and adds to ``fingerprint``.

    Args:
        name: letters, digits and underscores; becomes part of every metric's key.
        network: put into evaluation mode and frozen.
        preprocessing: what happens to pixels; its layout says whether frames are items of their own.
        weights: the digest of the weights.
        min_frames: the fewest frames of a video.
        chunk: videos (or frames, where they are items) that the network sees at once. It changes memory
            and time, and features by no more than float rounding.

    Raises:
        InvalidArgumentError: a name that cannot be part of a key, or a chunk below 1.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        weights: str,
        min_frames: int = 1,
        chunk: int = 8,
    ) -> None:
        self.name = check_name(name)
        self.chunk = check_chunk(chunk)
        self.network = network.eval()
        for parameter in network.parameters():  # one by one: TorchScript has no requires_grad_ of its own
            parameter.requires_grad_(False)
        self.preprocessing = preprocessing
        self.per_frame = preprocessing.per_frame
        self.min_frames = max(min_frames, preprocessing.num_frames or 1)
        self.weights = weights

    @abstractmethod
    def _describe(self, pixels: Float[Tensor, "n ..."]) -> tuple[Tensor, Tensor | None]:
        """Features ``n d`` of prepared pixels, and logits ``n k`` where there are any."""

    @full_precision()
    def extract(self, clips: Float[Tensor, "b c f h w"]) -> Features:
        """Describe videos with pixels in [-1, 1]; see ``FeatureExtractor.extract``.

        Raises:
            InvalidArgumentError: clips that ``check_clips`` refuses, or features that are not finite.
        """
        check_clips(clips, self.name, self.min_frames)
        values, logits = [], []
        for pixels in self._prepared(clips.detach()):
            value, logit = self._describe(pixels)
            values.append(self._checked(value, len(pixels)))
            logits += [] if logit is None else [self._checked(logit, len(pixels))]
        return Features(torch.cat(values), torch.cat(logits) if logits else None)

    def _prepared(self, clips: Float[Tensor, "b 3 f h w"]) -> Iterator[Float[Tensor, "n ..."]]:
        """The network's input, a chunk at a time, on its device."""
        clips = self.preprocessing.select(clips)
        if self.per_frame:
            clips = rearrange(clips, "b c f h w -> (b f) c 1 h w")
        for part in clips.split(self.chunk):
            yield self.preprocessing.prepare(part.to(self.device))

    def _checked(self, values: Tensor, count: int) -> Float[Tensor, "n d"]:
        if values.ndim != 2 or len(values) != count or not torch.isfinite(values).all():
            state = "that are not all finite" if values.ndim == 2 and len(values) == count else ""
            raise InvalidArgumentError(
                f"the network of {self.name} gave values of shape {tuple(values.shape)} {state} for {count} "
                "items; expected one row of finite numbers for each. Is this the right network, with the right "
                "preprocessing and `output`?"
            )
        return values.detach().float().cpu()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return device_of(self.network)

    def to(self: E, device: torch.device | str) -> E:
        """Move the network and return the extractor itself."""
        self.network.to(device)
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Return name, class, weight hash and preprocessing in plain JSON values."""
        return {
            "name": self.name,
            "extractor": type(self).__name__,
            "weights": self.weights,
            "per_frame": self.per_frame,
            "preprocessing": self.preprocessing.to_json(),
        }


def device_of(network: nn.Module) -> torch.device:
    """Return where the first tensor of ``network`` is; the CPU where it has none."""
    for tensor in chain(network.parameters(), network.buffers()):
        return tensor.device
    return torch.device("cpu")


def check_name(name: str) -> str:
    """Return ``name`` where it can be part of a metric's key.

    Raises:
        InvalidArgumentError: it is empty or has other characters than letters, digits and underscores.
    """
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise InvalidArgumentError(
            f"the extractor's name {name!r} becomes part of metric keys such as 'fvd_i3d_k400'; use letters, "
            "digits and underscores."
        )
    return name


def check_chunk(chunk: int) -> int:
    """Return ``chunk`` where it is 1 or more.

    Raises:
        InvalidArgumentError: it is below 1.
    """
    if chunk < 1:
        raise InvalidArgumentError(f"chunk is {chunk}; give 1 or more items that the network sees at once.")
    return chunk
