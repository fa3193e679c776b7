"""GLOBER (Sun et al. 2023): a global feature first, then every frame on its own."""

from vidgen.strategies.glober.config import GLOBERConfig
from vidgen.strategies.glober.levels import GLOBAL
from vidgen.strategies.glober.strategy import GLOBER

__all__ = ["GLOBAL", "GLOBER", "GLOBERConfig"]
