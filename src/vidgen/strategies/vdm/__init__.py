"""Video Diffusion Models (Ho et al. 2022): the baseline that the other strategies are compared with."""

from vidgen.strategies.vdm.config import VDMConfig, VDMOptions
from vidgen.strategies.vdm.network import VideoUNet
from vidgen.strategies.vdm.strategy import VDM

__all__ = ["VDM", "VDMConfig", "VDMOptions", "VideoUNet"]
