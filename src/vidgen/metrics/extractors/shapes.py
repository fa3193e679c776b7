"""The bundled classifier of the shapes data as an extractor: metrics that need no download.

Every answer of the network (shape, colour, motion, background, size, noise, blur, speed, roughness,
flicker) is one linear layer away from its features, so that a distance between features reacts to each.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from vidgen.metrics.extractors.base import NetworkExtractor
from vidgen.metrics.extractors.preprocessing import Preprocessing
from vidgen.shapes.classifier import ShapesClassifier, load_classifier
from vidgen.weights import weight_hash

__all__ = ["ShapesExtractor", "ShapesFrameExtractor"]

SIDE = 64
"""Of the frames that the classifier learnt on."""

MOTION_FRAMES = 8
"""Of a clip, from which on the classifier tells motions apart."""


class _ShapesNetwork(NetworkExtractor):
    """What both have in common: a copy of the classifier, and joint classes as logits."""

    heads: ClassVar[tuple[str, ...]]

    def __init__(
        self, classifier: ShapesClassifier | None, name: str, layout: str, min_frames: int, chunk: int
    ) -> None:
        # A copy: the caller's may be in the middle of its training.
        network: nn.Module = load_classifier() if classifier is None else deepcopy(classifier)
        super().__init__(
            name,
            network,
            Preprocessing(size=SIDE, antialias=True, layout=layout),
            weights=weight_hash(network),
            min_frames=min_frames,
            chunk=chunk,
        )

    def _joint(self, reading: Any) -> Float[Tensor, "n k"]:
        """Log-probabilities of every combination of the heads' classes, the last head fastest."""
        joint: Tensor = getattr(reading, self.heads[0]).log_softmax(1)
        for head in self.heads[1:]:
            more = getattr(reading, head).log_softmax(1)
            joint = (joint[:, :, None] + more[:, None, :]).flatten(1)
        return joint

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the features: also which classes the logits are of."""
        return super().fingerprint() | {"logits": " x ".join(self.heads)}


class ShapesExtractor(_ShapesNetwork):
    """128 features of a video, and 126 classes for the inception score: shape x colour x motion.

    The three heads answer independently given a video, so that the joint log-probability is the sum of
    theirs. Over a set of videos nothing is independent: a model that draws every circle red scores lower
    than one with the same shapes and the same colours in all combinations. The best score is 126, that of
    confident answers spread evenly.

    Clips of another size are squashed to 64 x 64, bilinear and antialiased. At least 8 frames, from which
    on motions are told apart.

    Args:
        classifier: None loads the bundled one; a given one is copied.
        name: part of every metric's key.
        chunk: videos at once.

    Raises:
        UnknownNameError, CheckpointError: there is no bundled classifier, or it is damaged.
    """

    heads = ("shape", "colour", "motion")

    def __init__(
        self, classifier: ShapesClassifier | None = None, *, name: str = "shapes_v1", chunk: int = 32
    ) -> None:
        super().__init__(classifier, name, "b c f h w", MOTION_FRAMES, chunk)

    def _describe(self, pixels: Float[Tensor, "n ..."]) -> tuple[Tensor, Tensor | None]:
        reading = self.network(pixels)
        return reading.features, self._joint(reading)


class ShapesFrameExtractor(_ShapesNetwork):
    """128 features of each frame (``ShapesClassifier.embed_images``), and 18 classes: shape x colour.

    Args:
        classifier, name: see ``ShapesExtractor``.
        chunk: frames at once.

    Raises:
        UnknownNameError, CheckpointError: there is no bundled classifier, or it is damaged.
    """

    heads = ("shape", "colour")

    def __init__(
        self, classifier: ShapesClassifier | None = None, *, name: str = "shapes_frames_v1", chunk: int = 512
    ) -> None:
        super().__init__(classifier, name, "(b f) c h w", 1, chunk)

    def _describe(self, pixels: Float[Tensor, "n ..."]) -> tuple[Tensor, Tensor | None]:
        network: Any = self.network
        reading = network.read_images(pixels)
        return reading.features, self._joint(reading)
