"""Where in its video a frame is: any real index in [0, 1), told apart from its neighbours'.

GLOBER (section 3.1) feeds frame ``i`` of ``F`` as ``i / F`` to the sinusoid that diffusion timesteps go
through. Timesteps count to 1000 and that sinusoid is made for them; indices below 1 hardly move it. Scaled
first, neighbours differ. How much is measured by ``neighbour_cosine``:

=================================  ==========  ===========
cosine between neighbours          16 frames   128 frames
=================================  ==========  ===========
as printed (scale 1)               0.99989     0.9999982
``index_scale(16)`` = 25.1         0.797       0.99648
``index_scale(128)`` = 201         0.359       0.882
=================================  ==========  ===========

The slowest wave turns by a quarter in a training clip. With the period of diffusion timesteps, 10,000, seven of
ten waves would turn by less at that scale.

More is not better. Frames between those that training saw are asked for too (other frame rates), and waves
that turn by more than half a period from one seen frame to the next say anything there: an embedding of 64
channels, fitted to smooth curves at 16 indices, missed the curves half-way between them (root mean square,
their deviation 1) by 0.015 at scale 25, 0.13 at 50, 0.35 at 100 and 0.48 at 201.
"""

from __future__ import annotations

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from jaxtyping import Float
from torch import Tensor, nn

from vidgen.errors import InvalidArgumentError

__all__ = ["TIMESTEP_PERIOD", "IndexEmbedding", "index_period", "index_scale", "neighbour_cosine"]

TIMESTEP_PERIOD = 10_000.0
"""Of the sinusoid that diffusion timesteps go through."""


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


def index_period(scale: float) -> float:
    """How much slower than the fastest the slowest wave is: it turns by a quarter in the whole video."""
    return max(1.0, scale / index_scale(1))


def neighbour_cosine(frames: int, scale: float, channels: int = 320, period: float = TIMESTEP_PERIOD) -> float:
    """Cosine between the sinusoids of neighbours ``i / frames`` and ``(i + 1) / frames``, in float64.

    It is the same for every ``i``: each wave is a sine and a cosine, so only the distance counts.

    Args:
        frames: ``F`` of the video.
        scale: factor on the index.
        channels: of the sinusoid, half of them frequencies.
        period: how much slower the slowest wave is than the fastest, about; ``index_period(scale)``, or 10,000
            as diffusion timesteps have it.
    """
    steps = torch.arange(channels // 2, dtype=torch.float64) / (channels // 2)
    return float(torch.cos(scale / frames * period**-steps).mean())


class IndexEmbedding(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers: untyped
    """A normalised frame index as a vector: scale, sinusoid, and an MLP with SiLU (320 -> 1280 -> 1280).

    The sinusoid also goes past the MLP, through a random projection that training may change: what reads the
    vector can tell all frames apart before the MLP has learnt to.

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
        self.past = nn.Linear(channels, embedding_channels, bias=False)
        # A sine and a cosine have squares that add up to 1: the features' variance is 1.
        nn.init.normal_(self.past.weight, std=(2 / channels) ** 0.5)

    def forward(self, indices: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Embed ``indices``, real numbers in [0, 1): frame ``i`` of ``F`` is ``i / F``."""
        dtype = self.mlp.linear_1.weight.dtype
        waves = self.waves(indices).to(dtype)
        return self.mlp(waves) + self.past(waves)  # type: ignore[no-any-return]  # diffusers: untyped

    def waves(self, indices: Float[Tensor, " n"]) -> Float[Tensor, "n c"]:
        """Return what the MLP reads, in float32: cosines, then sines, as Stable Diffusion has them."""
        scaled = indices.float() * self.config.scale
        return get_timestep_embedding(  # type: ignore[no-any-return]  # diffusers: untyped
            scaled,
            self.config.channels,
            flip_sin_to_cos=True,
            downscale_freq_shift=0,
            max_period=index_period(self.config.scale),
        )
