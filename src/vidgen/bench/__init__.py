"""How good the bundled models are, and how they are made again: training, quality, card."""

from vidgen.bench.build import build_model, renew_card
from vidgen.bench.quality import Quality, assess

__all__ = ["Quality", "assess", "build_model", "renew_card"]
