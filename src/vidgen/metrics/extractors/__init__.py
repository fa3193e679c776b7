"""Feature extractors: the bundled classifier, files of your own, I3D, VideoMAE and CLIP.

Each declares its preprocessing and hashes its weights, so that numbers of two extractors never meet. None
downloads anything unless it is given a hub id, and missing weights are an error.
"""

from vidgen.metrics.extractors.clip import ClipExtractor, ClipModel, HubClip, OpenClip, clipsim
from vidgen.metrics.extractors.files import StateDictExtractor, TorchScriptExtractor
from vidgen.metrics.extractors.i3d import I3D, I3DExtractor, i3d_extractor, load_i3d
from vidgen.metrics.extractors.preprocessing import Preprocessing
from vidgen.metrics.extractors.shapes import ShapesExtractor, ShapesFrameExtractor
from vidgen.metrics.extractors.videomae import VideoMAEExtractor

__all__ = [
    "I3D",
    "ClipExtractor",
    "ClipModel",
    "HubClip",
    "I3DExtractor",
    "OpenClip",
    "Preprocessing",
    "ShapesExtractor",
    "ShapesFrameExtractor",
    "StateDictExtractor",
    "TorchScriptExtractor",
    "VideoMAEExtractor",
    "clipsim",
    "i3d_extractor",
    "load_i3d",
]
