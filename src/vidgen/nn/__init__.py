"""Parts of networks that strategies share: attention, temporal layers, inflation of 2D networks."""

from vidgen.nn.attention import attend, attention_backend, available_backends, current_backend
from vidgen.nn.checkpointing import checkpoint
from vidgen.nn.counting import flop_counter
from vidgen.nn.inflation import Inflation, TemporalLayers, widen_input, widen_unet
from vidgen.nn.processor import AttentionProcessor, use_attend
from vidgen.nn.rearrange import over_space, over_time
from vidgen.nn.temporal import SpaceTimeAttention, TemporalAttention, TemporalConv
from vidgen.nn.transformer import CrossAttention, SelfAttention, TransformerBlock
from vidgen.nn.unet import build_unet

__all__ = [
    "AttentionProcessor",
    "CrossAttention",
    "Inflation",
    "SelfAttention",
    "SpaceTimeAttention",
    "TemporalAttention",
    "TemporalConv",
    "TemporalLayers",
    "TransformerBlock",
    "attend",
    "attention_backend",
    "available_backends",
    "build_unet",
    "checkpoint",
    "current_backend",
    "flop_counter",
    "over_space",
    "over_time",
    "use_attend",
    "widen_input",
    "widen_unet",
]
