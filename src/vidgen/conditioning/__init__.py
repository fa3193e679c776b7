"""Conditions of a network call: text, given frames, guidance."""

from vidgen.conditioning.guidance import Conditioning, guide
from vidgen.conditioning.text import VocabularyEncoder, drop, split_words, vocabulary

__all__ = ["Conditioning", "VocabularyEncoder", "drop", "guide", "split_words", "vocabulary"]
