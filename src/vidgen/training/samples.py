"""Sample videos during training: what the averaged weights make of a few prompts."""

from __future__ import annotations

from pathlib import Path

from vidgen.checkpoint import replaced_folder
from vidgen.conditioning import ClassEncoder
from vidgen.recipe import TrainingConfig
from vidgen.sampling import Sampler, SamplerOutput
from vidgen.strategy import Strategy
from vidgen.training.running import Running
from vidgen.video import Video
from vidgen.video.dataset import ClipDataset

__all__ = ["Samples"]

_PROMPTS = 4  # where none are given


class Samples:
    """Generates the same prompts from the same seeds every time.

    out/samples/step-00000500/
      000.mp4, 000.png    the first prompt's video and its contact sheet
      grid.mp4            all of them

    Args:
        folder: of the run.
        strategy: that samples.
        dataset: whose first captions (or classes) are the prompts where the recipe gives none.
        config: of the training.

    Raises:
        InvalidArgumentError: the strategy cannot generate a prompt.
    """

    def __init__(self, folder: Path, strategy: Strategy, dataset: ClipDataset, config: TrainingConfig) -> None:
        by_class = isinstance(strategy.text_encoder, ClassEncoder)
        texts = dataset.classes if by_class else dict.fromkeys(dataset.texts())
        self.prompts = list(config.sample_prompts) or list(texts)[:_PROMPTS] or [""]
        self.folder, self.seed = folder / "samples", config.seed
        self.sampler = Sampler(strategy)
        self.sampler.set_progress_bar_config(disable=True)
        self.sampler.cost(prompt=self.prompts, seed=self.seed)  # refuses what cannot be generated, now

    def __call__(self, running: Running, step: int, *, write: bool) -> Video:
        """Generate, and return all videos side by side; every process must call it, one of them writes."""
        with running.at_rest():
            output = self.sampler(self.prompts, seed=self.seed)
        assert isinstance(output, SamplerOutput)  # return_dict
        videos = output.videos
        grid = Video.grid(videos)
        if write:
            with replaced_folder(self.folder / f"step-{step:08d}") as folder:
                for i, video in enumerate(videos):
                    video.save(folder / f"{i:03d}.mp4")
                    video.contact_sheet().save(folder / f"{i:03d}.png")
                grid.save(folder / "grid.mp4")
        return grid
