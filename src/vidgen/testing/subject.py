"""The strategy under test: built again and again with the same weights, on small data, on the CPU."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from vidgen import checkpoint, plugins
from vidgen.errors import InvalidArgumentError
from vidgen.recipe import Recipe
from vidgen.request import Defaults
from vidgen.sampling import Sampler
from vidgen.strategy import Strategy
from vidgen.testing.report import expect
from vidgen.trainable import Stage
from vidgen.video.dataset import ClipBatch, ClipDataset, ClipSample, DataConfig, collate, open_dataset

__all__ = ["Subject", "findable", "subject_of", "unmoved"]

_CLIPS = 4  # of a batch
_SMALLEST = 16  # pixels that shapes are drawn on
_SCALE = 0.03  # of what is added to fresh weights


@dataclass(frozen=True, eq=False)
class Subject:
    """What every check starts from.

    Args:
        kind: the strategy's class.
        config: completed by the data.
        weights: of every component.
        schedulers: of each level that has a noise process.
        data: where the clips come from.
        dataset: the clips.
        prompts: at least two texts that the strategy understands; ``("", "")`` for one without prompts.
        steps: solver steps of a call.
        tolerance: how far two ways to the same result may be apart, in units of its spread.
        seed: of fresh weights, videos and training.
        folder: an empty one for files.
    """

    kind: type[Strategy]
    config: Any
    weights: dict[str, dict[str, Tensor]]
    schedulers: dict[str, Any]
    data: DataConfig
    dataset: ClipDataset
    prompts: tuple[str, ...]
    steps: int
    tolerance: float
    seed: int
    folder: Path

    def fresh(self) -> Strategy:
        """Return the strategy anew, with the same weights, ready to sample."""
        strategy = checkpoint.build(self.kind, self.config, seed=self.seed)
        strategy.scheduler = self.schedulers
        for name, module in strategy.modules.items():
            module.load_state_dict(self.weights[name])
            module.eval()
        return strategy

    @cached_property
    def strategy(self) -> Strategy:
        """The strategy for what leaves it as it is."""
        return self.fresh()

    def stages(self) -> list[tuple[Strategy, Stage]]:
        """Return every stage with a strategy of its own, in which only what it trains asks for gradients."""
        found = []
        for number in range(len(self.strategy.stages())):
            strategy = self.fresh()
            stage = strategy.stages()[number]
            for name, module in strategy.modules.items():
                module.requires_grad_(name in stage.components)
            found.append((strategy, stage))
        return found

    @cached_property
    def untrained(self) -> list[tuple[Strategy, Stage]]:
        """The stages for what takes no step."""
        return self.stages()

    @cached_property
    def batch(self) -> ClipBatch:
        """A few clips, with captions that the strategy understands."""
        return collate([self.dataset[i] for i in range(_CLIPS)])

    @cached_property
    def num_frames(self) -> int:
        """Frames of a video of three calls of its level, or of as many as the strategy makes."""
        strategy, most, most_calls = self.strategy, 0, 0
        for frames in self.lengths(strategy):
            try:
                plan = strategy.plan(strategy.codec.latent_frames(frames))
            except InvalidArgumentError:
                continue
            calls = sum(call.level == plan.video.name for call in plan.calls)
            if (calls, frames) > (most_calls, most):
                most, most_calls = frames, calls
            if calls >= 3:
                break
        return most or strategy.defaults.num_frames

    def lengths(self, strategy: Strategy) -> list[int]:
        """Return lengths of videos, around and beyond a training clip's, that fill the codec's latents."""
        usual = strategy.codec.latent_frames(strategy.defaults.num_frames)
        wanted = [usual, usual + 1, 2 * usual + 1, 3 * usual, 5 * usual + 2, max(1, usual - 1), 1]
        return [strategy.codec.video_frames(count) for count in wanted]

    def latents(self, strategy: Strategy, prompt: Any = None, **arguments: Any) -> Tensor:
        """Return the latents ``b c f h w`` of a video; ``arguments`` as the sampler's."""
        result: Tensor = self.sample(strategy, prompt, output_type="latent", **arguments).frames
        return result

    def sample(self, strategy: Strategy, prompt: Any = None, **arguments: Any) -> Any:
        """Return the sampler's answer, with few steps and this subject's seed unless told otherwise."""
        sampler = Sampler(strategy)
        sampler.set_progress_bar_config(disable=True)
        height, width = self.dataset[0].clip.shape[-2:]
        usual: dict[str, Any] = {"seed": self.seed, "num_frames": self.num_frames}
        usual |= {"height": height, "width": width, "num_inference_steps": self.steps}
        return sampler(self.prompts[0] if prompt is None else prompt, **{**usual, **arguments})

    @cached_property
    def video(self) -> Tensor:
        """The latents of the video that other ways must agree with."""
        return self.latents(self.strategy)

    @cached_property
    def frames(self) -> Tensor:
        """The same video as pixels in [0, 1], ``b f c h w``."""
        result: Tensor = self.sample(self.strategy, output_type="pt").frames
        return result

    def expect_close(self, found: Tensor, wanted: Tensor, what: str) -> str:
        """Return how far apart the two are in words; raise ``Broken`` where that is too far."""
        shapes = tuple(found.shape), tuple(wanted.shape)
        expect(shapes[0] == shapes[1], f"{what}: shape {shapes[0]}; expected {shapes[1]}.")
        spread = max(1.0, float(wanted.float().std(correction=0)))
        apart = float((found.float() - wanted.float()).abs().max()) / spread if found.numel() else 0.0
        expect(
            apart <= self.tolerance,
            f"{what}: values differ by up to {apart:.2g} of the spread; expected {self.tolerance:g} or less.",
        )
        return f"apart by {apart:.1g} at most"


class _Captioned(ClipDataset):
    """Clips under other captions."""

    def __init__(self, whole: ClipDataset, captions: Sequence[str]) -> None:
        super().__init__()
        self.whole, self.captions = whole, tuple(captions)

    def __len__(self) -> int:
        return len(self.whole)

    def read(self, index: int, draw: int) -> ClipSample:
        """Return the clip with the caption of its index."""
        return replace(self.whole.read(index, draw), caption=self.captions[index % len(self.captions)])

    def content_key(self, index: int) -> str:
        """Name the source behind ``index``."""
        return self.whole.content_key(index)

    def texts(self) -> list[str]:
        """Return the captions."""
        return list(self.captions)


def subject_of(
    kind: type[Strategy],
    config: Any,
    source: Strategy | None,
    folder: Path,
    *,
    data: DataConfig | None,
    prompts: Sequence[str] | None,
    steps: int,
    tolerance: float,
    seed: int,
) -> Subject:
    """Complete the configuration by small data and give fresh weights some content.

    Fresh networks have layers that are zero, behind which nothing could be seen: to the weights of a strategy
    that is given as a class, small noise is added, as if it was trained. ``source`` keeps its own.
    """
    built = source or checkpoint.build(kind, config, seed=seed)
    if source is not None:  # of a checkpoint that was shared, perhaps
        checkpoint.complete(source, seed=seed)
    data = data or _shapes(built.defaults, seed)
    dataset = open_dataset(data, progress=False)
    if prompts is not None:
        dataset = _Captioned(dataset, tuple(prompts) or ("",))
    if source is None:
        config = kind.prepare(config, dataset)
        built = checkpoint.build(kind, config, seed=seed)
        _shake(built, seed)
    texts = _prompts(built, dataset)
    return Subject(
        kind=kind,
        config=config,
        weights={name: _copied(module.state_dict()) for name, module in built.modules.items()},
        schedulers=built.schedulers,
        data=data,
        dataset=dataset,
        prompts=texts if len(texts) > 1 else texts * 2,
        steps=steps,
        tolerance=tolerance,
        seed=seed,
        folder=folder,
    )


def _shapes(defaults: Defaults, seed: int) -> DataConfig:
    """Return shapes data like what the strategy makes by default."""
    size, frames = max(_SMALLEST, defaults.height, defaults.width), defaults.num_frames
    return DataConfig.of(
        "shapes",
        clip_length=frames,
        size=size,
        fps=defaults.fps,
        videos=8,
        frames=max(16, 2 * frames),
        seed=seed,
    )


def _prompts(strategy: Strategy, dataset: ClipDataset) -> tuple[str, ...]:
    texts = tuple(sorted(set(dataset.texts())))[:_CLIPS] or ("", "")
    if strategy.text_encoder is not None:
        try:
            strategy.text_encoder.check(texts)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(
                f"strategy {strategy.name!r} does not understand the captions of the data it is checked on "
                f"({error}). Give check_strategy prompts= that it understands."
            ) from error
    return texts


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().clone() for key, tensor in state.items()}


def _shake(strategy: Strategy, seed: int) -> None:
    learns = {name for stage in strategy.stages() for name in stage.components}
    learns = learns or set(strategy.modules) - {"codec"}  # of a strategy that runs the weights of another
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in strategy.parameters_of(*sorted(learns)):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((_SCALE * noise).to(parameter))


@contextmanager
def findable(kind: type[Strategy], recipe: Recipe) -> Iterator[None]:
    """Let ``plugins`` find the class and its recipe ``NAME/check`` even where they are not installed."""
    own = {(plugins.STRATEGIES, kind.name): kind, (plugins.RECIPES, f"{kind.name}/check"): lambda: recipe}
    check, load = plugins.check, plugins.load

    def find(group: str, name: str) -> Any:
        return own[group, name] if (group, name) in own else load(group, name)

    def look(group: str, name: str) -> None:
        if (group, name) not in own:
            check(group, name)

    with patch.multiple(plugins, check=look, load=find):
        yield


@contextmanager
def unmoved(what: str, ambient: int) -> Iterator[None]:
    """Set the ambient random state to ``ambient`` for a while, and expect that nothing moves it."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(ambient)
    np.random.seed(ambient)  # noqa: NPY002
    torch.default_generator.manual_seed(ambient)
    start = _ambient()
    try:
        yield
        for name, state in _ambient().items():
            expect(
                state == start[name],
                f"{what} draws from {name}, so that it depends on what was drawn before. Draw from keys: "
                "TrainingStep.uniform and .noise in training, the strategy's prior in sampling.",
            )
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def _ambient() -> dict[str, Any]:
    """Return the states that nothing may move; Python's own is left out, since type checkers draw from it."""
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "NumPy's global random state": (numpy["state"]["key"].tobytes(), numpy["state"]["pos"]),
        "torch's global random state": torch.get_rng_state().numpy().tobytes(),
    }
