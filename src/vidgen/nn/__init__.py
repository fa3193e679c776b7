"""Parts of networks that strategies share: temporal layers and the inflation of 2D networks."""

from vidgen.nn.inflation import Inflation, TemporalLayers, widen_input, widen_unet
from vidgen.nn.temporal import TemporalAttention, TemporalConv

__all__ = [
    "Inflation",
    "TemporalAttention",
    "TemporalConv",
    "TemporalLayers",
    "widen_input",
    "widen_unet",
]
