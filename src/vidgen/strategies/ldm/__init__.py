"""Latent diffusion (Rombach et al. 2022): the text-to-image model that video strategies start from."""

from vidgen.strategies.ldm.config import LDMConfig
from vidgen.strategies.ldm.strategy import LDM

__all__ = ["LDM", "LDMConfig"]
