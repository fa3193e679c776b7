"""GLOBER (Sun et al. 2023): a global feature first, then every frame on its own."""

from vidgen.strategies.glober.config import GLOBERConfig, GLOBEROptions
from vidgen.strategies.glober.strategy import GLOBAL, GLOBER

__all__ = ["GLOBAL", "GLOBER", "GLOBERConfig", "GLOBEROptions"]
