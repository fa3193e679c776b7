"""VideoMAE features: they react to motion where I3D's hardly do.

Tong et al. 2022 (arXiv 2203.12602) for the network; Ge et al. 2024 (arXiv 2404.12391) for its use in a
Frechet video distance that is less biased towards the content of single frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vidgen.metrics.extractors.base import NetworkExtractor
from vidgen.metrics.extractors.preprocessing import Preprocessing
from vidgen.metrics.extractors.pretrained import key_of, local, pixel_moments, read_config, read_network
from vidgen.weights import weight_hash

__all__ = ["VideoMAEExtractor"]


class VideoMAEExtractor(NetworkExtractor):
    """The mean of VideoMAE's last hidden state over all its tokens.

    A checkpoint with a classifier (``VideoMAEForVideoClassification``) gives the mean as its classifier
    sees it, after its norm, and logits; any other gives the encoder's output (``VideoMAEModel``).

    Args:
        source: a folder or hub id, such as ``"MCG-NJU/videomae-base-finetuned-kinetics"``; weights in
            safetensors.
        name: part of every metric's key; None makes ``videomae_...`` of the source's last part.
        preprocessing: None takes what the checkpoint says: as many frames as it was trained with (16,
            the first of a longer clip), the short side scaled with antialiasing, the centre cut out,
            normalised by its mean and std.
        chunk: videos at once.

    Raises:
        CheckpointError: weights or configuration are missing, unsafe, not whole or of another network.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        name: str | None = None,
        preprocessing: Preprocessing | None = None,
        chunk: int = 4,
    ) -> None:
        import transformers

        source = local(source)
        config = read_config(transformers.VideoMAEConfig, source)
        classifier = "VideoMAEForVideoClassification"
        self._classifies = classifier in (config.architectures or ())
        self._kind = classifier if self._classifies else "VideoMAEModel"
        network = read_network(getattr(transformers, self._kind), source)
        if preprocessing is None:
            mean, std = pixel_moments(source)
            preprocessing = Preprocessing(
                size=config.image_size,
                resize="crop",
                antialias=True,
                value_range=(0.0, 1.0),
                mean=mean,
                std=std,
                layout="b f c h w",
                num_frames=config.num_frames,
            )
        name = name or key_of(source, "videomae")
        super().__init__(name, network, preprocessing, weights=weight_hash(network), chunk=chunk)

    def _describe(self, pixels: Float[Tensor, "n ..."]) -> tuple[Tensor, Tensor | None]:
        network: Any = self.network
        if not self._classifies:
            return network(pixels).last_hidden_state.mean(1), None
        tokens = network.videomae(pixels).last_hidden_state
        if network.fc_norm is None:  # a classifier of the first token
            return tokens.mean(1), network.classifier(tokens[:, 0])
        values = network.fc_norm(tokens.mean(1))
        return values, network.classifier(values)

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the features: also the network's class."""
        return super().fingerprint() | {"network": self._kind, "features": "mean of the last hidden state"}
