"""Where in its video a frame is: any real index in [0, 1), told apart from its neighbours'.

GLOBER (section 3.1) feeds frame ``i`` of ``F`` as ``i / F`` to the sinusoid that diffusion timesteps go
through. Timesteps count to 1000 and that sinusoid is made for them; indices below 1 hardly move it. Scaled
first, neighbours differ. How much is measured by ``neighbour_cosine``:

=================================  ==========  ===========
cosine between neighbours          16 frames   128 frames
=================================  ==========  ===========
as printed (scale 1)               0.99989     0.9999982
``index_scale(16)`` = 25.1         0.936       0.99889
``index_scale(128)`` = 201         0.662       0.936
=================================  ==========  ===========

More is not better. Frames between those that training saw are asked for too (other frame rates), and waves
that turn by more than half a period from one seen frame to the next say anything there: an embedding with
its MLP, fitted to smooth curves at 16 indices, missed the curves half-way between them (root mean square,
amplitude 1) by 0.03 at scale 1, 0.005 at 25, 0.05 at 50, 0.15 at 100 and 0.32 at 1000.
"""

from __future__ import annotations

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from jaxtyping import Float
from torch import Tensor

from vidgen.errors import InvalidArgumentError

__all__ = ["IndexEmbedding", "index_scale", "neighbour_cosine"]

_PERIOD = 10_000


def index_scale(frames: int) -> float:
    """Factor on normalised indices, in radians, for videos that training sees as ``frames`` frames.

    The fastest wave then turns by a quarter of its period from one of these frames to the next; twice that
    is the most that frames so far apart can tell (Nyquist), which leaves room for frames in between.

    Raises:
        InvalidArgumentError: ``frames`` is below 1.
    """
    if frames < 1:
        raise InvalidArgumentError(f"frames is {frames}; give the frames of a training video, 1 or more.")
    return math.pi / 2 * frames


def neighbour_cosine(frames: int, scale: float, channels: int = 320) -> float:
    """Cosine between the sinusoids of neighbours ``i / frames`` and ``(i + 1) / frames``, in float64.

    It is the same for every ``i``: each wave is a sine and a cosine, so only the distance counts.

    Args:
        frames: ``F`` of the video.
        scale: factor on the index.
        channels: of the sinusoid, half of them frequencies.
    """
    steps = torch.arange(channels // 2, dtype=torch.float64) / (channels // 2)
    return float(torch.cos(scale / frames * _PERIOD**-steps).mean())


class IndexEmbedding(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers: untyped
    """A normalised frame index as a vector: scale, sinusoid, and an MLP with SiLU (320 -> 1280 -> 1280).

    Args:
        channels: of the sinusoid.
        embedding_channels: of the vector.
        scale: factor on the index, ``index_scale(frames)``.

    Raises:
        InvalidArgumentError: the sinusoid has no even number of channels, or the scale is not above 0.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, channels: int = 320, embedding_channels: int = 1280, scale: float = index_scale(16)
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2 or not scale > 0:
            raise InvalidArgumentError(
                f"an index embedding of {channels} channels with scale {scale} is not possible; channels come "
                "in pairs of sine and cosine, and the scale is above 0 (see index_scale)."
            )
        self.mlp = TimestepEmbedding(channels, embedding_channels)

    def forward(self, indices: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Embed ``indices``, real numbers in [0, 1): frame ``i`` of ``F`` is ``i / F``."""
        dtype = self.mlp.linear_1.weight.dtype
        return self.mlp(self.waves(indices).to(dtype))  # type: ignore[no-any-return]  # diffusers: untyped

    def waves(self, indices: Float[Tensor, " n"]) -> Float[Tensor, "n c"]:
        """Return what the MLP reads, in float32: cosines, then sines, as Stable Diffusion has them."""
        scaled = indices.float() * self.config.scale
        return get_timestep_embedding(  # type: ignore[no-any-return]  # diffusers: untyped
            scaled, self.config.channels, flip_sin_to_cos=True, downscale_freq_shift=0, max_period=_PERIOD
        )
