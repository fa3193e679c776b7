"""The bundled classifier of the shapes data: judge of prompts, and features of videos and of frames."""

from vidgen.shapes.classifier.corruptions import CORRUPTIONS, Corruption, corrupt, kept_colours
from vidgen.shapes.classifier.loading import load_classifier
from vidgen.shapes.classifier.network import Attributes, ImageReading, Reading, ShapesClassifier
from vidgen.shapes.classifier.targets import Targets, path_statistics, targets_of

__all__ = [
    "CORRUPTIONS",
    "Attributes",
    "Corruption",
    "ImageReading",
    "Reading",
    "ShapesClassifier",
    "Targets",
    "corrupt",
    "kept_colours",
    "load_classifier",
    "path_statistics",
    "targets_of",
]
