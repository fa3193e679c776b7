"""How good the bundled models are, and how they are made again: training, quality, card."""

from vidgen.shapes.bench.build import build_model, renew_card
from vidgen.shapes.bench.quality import Quality, assess

__all__ = ["Quality", "assess", "build_model", "renew_card"]
