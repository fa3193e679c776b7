"""diffusers' schedulers behind one adapter: noising, training targets and the solver loop.

vidgen writes no solver. What it adds is that all noise is handed in, so that a frame prior is respected from
the first noise to the last stochastic step, and that the network is asked at the time whose noise its input has
(``steps``).

A *process* is how data turn into noise: ``"variance_preserving"`` (DDPM and its kin) or ``"flow"``
(flow matching, ``x_t = (1 - sigma) x_0 + sigma eps``). Schedulers are exchangeable within one process.
"""

from vidgen.diffusion.process import CLEAN, Denoiser, Diffusion, Source, StepCallback
from vidgen.diffusion.schedulers import scheduler_from_name

__all__ = ["CLEAN", "Denoiser", "Diffusion", "Source", "StepCallback", "scheduler_from_name"]
