"""Conditions of a network call: text, classes, pictures, given frames, guidance."""

from vidgen.conditioning.encoder import TextEncoder
from vidgen.conditioning.guidance import Conditioning, guide
from vidgen.conditioning.labels import ClassEncoder
from vidgen.conditioning.masks import mask_of
from vidgen.conditioning.open_clip import OpenClipImageEncoder, OpenClipTextEncoder
from vidgen.conditioning.open_clip_source import OpenClipSource
from vidgen.conditioning.pictures import clip_of, pixels_of
from vidgen.conditioning.text import VocabularyEncoder, split_words, vocabulary

__all__ = [
    "ClassEncoder",
    "Conditioning",
    "OpenClipImageEncoder",
    "OpenClipSource",
    "OpenClipTextEncoder",
    "TextEncoder",
    "VocabularyEncoder",
    "clip_of",
    "guide",
    "mask_of",
    "pixels_of",
    "split_words",
    "vocabulary",
]
