"""Generation: one sampler that runs any strategy's plan."""

from vidgen.sampling.output import SamplerOutput
from vidgen.sampling.sampler import Sampler, load

__all__ = ["Sampler", "SamplerOutput", "load"]
