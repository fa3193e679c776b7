"""Training of the bundled classifier: reads damaged videos of the shapes data, from exact ground truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vidgen.errors import InvalidArgumentError
from vidgen.shapes.classifier.corruptions import (
    add_noise,
    blur,
    compress,
    freeze_order,
    jitter_shifts,
    relight,
    reorder,
    shift,
    shuffle_order,
)
from vidgen.shapes.classifier.network import LOOKS, ShapesClassifier
from vidgen.shapes.classifier.targets import (
    MAX_BLUR,
    MAX_FLICKER,
    MAX_NOISE,
    PATH_SCALE,
    Targets,
    decode_positions,
    encode_noise,
    encode_positions,
    path_statistics,
    targets_of,
)
from vidgen.shapes.clips import ShapesClips
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.trainable import Loss, OptimizerGroup, Stage, Trainable, TrainingStep
from vidgen.video.dataset import ClipBatch, ClipDataset, ClipSubset, DataConfig, open_dataset
from vidgen.video.transforms import to_clip

__all__ = ["ClassifierConfig", "ClassifierStage", "ClassifierTask", "Damaged", "damage"]

MAX_JITTER = 4.0  # pixels
SIZE_WEIGHT = 0.1
LEAST_NOISE = 0.005
DRAWS = 12


@dataclass(frozen=True)
class ClassifierConfig:
    """The bundled classifier.

    Args:
        widths: channels of the frame encoder at a half, a quarter and an eighth of the frame's size.
        path_width: channels over time.
        shortest: fewest frames that are read; each step cuts its clips to a length from here to theirs.
        data: the shapes data that the clips are of, which has their ground truth; taken from the dataset.
    """

    widths: tuple[int, int, int] = (24, 40, 56)
    path_width: int = 48
    shortest: int = 8
    data: DataConfig | None = None


@dataclass(frozen=True)
class Damaged:
    """Clips as the network is shown them, and what is true of these.

    Attributes:
        clips: with pixels in [-1, 1].
        positions: where the object is, in sides.
        noise, blur, flicker: strengths, as in ``Reading``.
        ordered: 1 where the frames are all there in their order, so that the motion is still to be seen.
    """

    clips: Float[Tensor, "b 3 f h w"]
    positions: Float[Tensor, "b f 2"]
    noise: Float[Tensor, " b"]
    blur: Float[Tensor, " b"]
    flicker: Float[Tensor, " b"]
    ordered: Float[Tensor, " b"]


@dataclass
class _Plan:
    """The damage to one clip."""

    order: np.ndarray
    shifts: np.ndarray
    gain: np.ndarray
    offset: float = 0.0
    blur: float = 0.0
    step: float = 0.0
    noise: float = 0.0
    flicker: float = 0.0
    ordered: float = 1.0


def _plan(frames: int, draws: list[float], generator: np.random.Generator) -> _Plan:
    """Turn uniform ``draws`` into the damage to a clip: most clips keep their time, a third their looks."""
    plan = _Plan(np.arange(frames), np.zeros((frames, 2), dtype=np.int64), np.ones(frames))
    kind, level = draws[0], draws[1]
    if kind < 0.1:
        plan.order, plan.ordered = shuffle_order(frames, level, generator), 0.0
    elif kind < 0.2:
        plan.order, plan.ordered = freeze_order(frames, level), 0.0
    elif kind < 0.3:
        plan.shifts = jitter_shifts(frames, MAX_JITTER * level, generator)
    elif kind < 0.4:
        plan.flicker = MAX_FLICKER * level
        plan.gain = np.maximum(1 + plan.flicker * generator.standard_normal(frames), 0)
    if draws[2] < 0.3:
        return plan
    if draws[3] < 0.4:
        plan.blur = MAX_BLUR * draws[4]
    if draws[5] < 0.3:
        plan.step = 0.02 + 0.28 * draws[6]
    if draws[7] < 0.5:
        plan.noise = LEAST_NOISE * (MAX_NOISE / LEAST_NOISE) ** draws[8]
    if draws[9] < 0.5:
        plan.gain = plan.gain * (0.85 + 0.3 * draws[10])
        plan.offset = 0.16 * (draws[11] - 0.5)
    return plan


def damage(clips: Float[Tensor, "b 3 f h w"], positions: Float[Tensor, "b f 2"], step: TrainingStep) -> Damaged:
    """Damage clips as the step's keys say, and change the truth with them.

    Frames in another order, standing still, jumping or flickering; blur, a codec's rounding, noise, and
    brightness and contrast. What is drawn for a clip depends on its own key alone.
    """
    frames, side = clips.shape[2], torch.tensor([clips.shape[4], clips.shape[3]])
    plans, generators = [], []
    for i in range(len(clips)):
        generators.append(step.key(i, "damage").generator(0))
        plans.append(_plan(frames, step.uniforms(i, "plan", DRAWS).tolist(), generators[-1]))

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(plan, name) for plan in plans], dtype=torch.float32)

    order, shifts, gain = (
        torch.from_numpy(np.stack([getattr(plan, name) for plan in plans]))
        for name in ("order", "shifts", "gain")
    )
    rows = torch.arange(len(clips))[:, None]
    positions = (positions[rows, order] + shifts / side).remainder(1.0)
    clips = shift(reorder(clips, order), shifts)
    clips = _where(clips, column("blur"), blur)
    clips = _where(clips, column("step"), compress)
    clips = relight(clips, gain.float(), column("offset")[:, None].expand(-1, frames))
    clips = add_noise(clips, column("noise"), generators).clamp(-1, 1)
    strengths = {name: column(name) for name in ("noise", "blur", "flicker", "ordered")}
    return Damaged(clips, positions, **strengths)


def _where(clips: Tensor, strength: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Change the clips with a strength above 0; the others cost nothing."""
    chosen = strength > 0
    if not chosen.any():
        return clips
    changed = clips.clone()
    changed[chosen] = change(clips[chosen], strength[chosen])
    return changed


class ClassifierStage(Stage):
    """Trains the classifier on damaged clips of the shapes data.

    The truth comes from ``data``, by the video and the frames of each clip. Cross-entropies of what is seen
    and done, for videos and for single frames, and squared errors of positions and strengths.

    Args:
        network: what learns.
        data: the shapes data that the clips are of.
        shortest: fewest frames.

    Raises:
        InvalidArgumentError: the clips are not those of ``data``.
    """

    name = "classifier"
    components = ("classifier",)

    def __init__(self, network: ShapesClassifier, data: DataConfig, shortest: int) -> None:
        self.network, self.shortest = network, shortest
        self.source = _source(open_dataset(data))

    def optimizers(self) -> tuple[OptimizerGroup, ...]:
        """One optimiser for all."""
        return (OptimizerGroup(self.name, tuple(self.network.parameters())),)

    def losses(self, batch: ClipBatch, step: TrainingStep) -> Iterator[Loss]:
        """Errors of the reading; accuracies are logged."""
        self._check(batch)
        span = self._span(batch.clip.shape[2], step)
        truth = targets_of(self.source, batch.index.tolist(), batch.frames[:, span].tolist())
        # On the CPU, where the step's numbers are the same for every device, and in full precision.
        with torch.autocast("cpu", enabled=False):
            shown = damage(batch.clip[:, :, span].cpu(), truth.positions, step)
        truth, device = truth.to(batch.clip.device), batch.clip.device
        shown = replace(shown, **{name: value.to(device) for name, value in vars(shown).items()})
        codes = self.network.codes(shown.clips)
        terms, logs = _video_terms(codes.video, truth, shown)
        frame_terms, frame_logs = _frame_terms(codes.frames, truth, shown)
        # Features that tell classes apart stay of one size with those that are numbers.
        terms["features"] = SIZE_WEIGHT * codes.features.float().square().mean(1)
        terms["frame_features"] = SIZE_WEIGHT * codes.frame_features.float().square().mean((1, 2))
        # Clip by clip, so that the batch may be cut anywhere.
        value = torch.stack([*terms.values(), *frame_terms.values()]).sum(0).mean()
        means = {name: float(each.detach().mean()) for name, each in {**logs, **frame_logs}.items()}
        yield Loss(self.name, value, means)

    def _span(self, frames: int, step: TrainingStep) -> slice:
        """Return the frames that this step reads, the same for all its clips on all processes."""
        shortest = min(self.shortest, frames)
        of_step = replace(step, samples=(0,))
        length, first = of_step.uniforms(0, "span", 2).tolist()
        count = shortest + math.floor(length * (frames - shortest + 1))
        start = math.floor(first * (frames - count + 1))
        return slice(start, start + count)

    def _check(self, batch: ClipBatch) -> None:
        """Refuse clips of other videos than those whose truth is at hand."""
        index, frame = int(batch.index[0]), int(batch.frames[0, 0])
        expected = to_clip(self.source.render(index, [frame]))
        got = batch.clip[0, :, :1].cpu()
        if expected.shape != got.shape or not torch.equal(expected, got):
            raise InvalidArgumentError(
                f"frame {frame} of video {index} is not that of the shapes data that the classifier knows the "
                f"truth of ({self.source.num_videos} videos of {self.source.size} pixels, seed "
                f"{self.source.seed}, split {self.source.split!r}). Train it on just these, without flip."
            )


def _video_terms(
    codes: Mapping[str, Tensor], truth: Targets, shown: Damaged
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the losses and what to log, each ``b``."""
    terms = {name: _entropy(codes[name], getattr(truth, name)) for name in LOOKS}
    # Of frames in another order nobody can say what they did.
    terms["motion"] = 2 * shown.ordered * _entropy(codes["motion"], truth.motion)
    speed, roughness = path_statistics(shown.positions)
    aims = {
        "noise": encode_noise(shown.noise),
        "blur": shown.blur / MAX_BLUR,
        "speed": speed / PATH_SCALE,
        "roughness": roughness / PATH_SCALE,
        "flicker": shown.flicker / MAX_FLICKER,
    }
    for name, aim in aims.items():
        terms[name] = functional.smooth_l1_loss(codes[name][:, 0], aim, reduction="none", beta=0.1)
    centre = encode_positions(shown.positions).mean(1)
    terms["centre"] = 2 * ((codes["centre"] - centre) ** 2).mean(1)
    hits = {name: (codes[name].argmax(1) == getattr(truth, name)).float() for name in (*LOOKS, "motion")}
    # Counted as right where there is nothing to be right about.
    hits["motion"] = torch.where(shown.ordered > 0, hits["motion"], torch.ones_like(hits["motion"]))
    logs = {f"accuracy/{name}": value for name, value in hits.items()}
    return terms, logs | {f"error/{name}": terms[name] for name in aims}


def _frame_terms(
    codes: Mapping[str, Tensor], truth: Targets, shown: Damaged
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the losses of single frames and what to log, each ``b``."""
    frames = shown.positions.shape[1]
    terms, logs = {}, {}
    for name in LOOKS:
        target = getattr(truth, name)[:, None].expand(-1, frames)
        entropy = _entropy(codes[name].flatten(0, 1), target.flatten())
        terms[f"frame_{name}"] = entropy.unflatten(0, (-1, frames)).mean(1)
        logs[f"accuracy/frame_{name}"] = (codes[name].argmax(2) == target).float().mean(1)
    place = encode_positions(shown.positions)
    terms["place"] = 8 * ((codes["place"] - place) ** 2).mean((1, 2))
    for name, aim in (("noise", encode_noise(shown.noise)), ("blur", shown.blur / MAX_BLUR)):
        error = functional.smooth_l1_loss(
            codes[name][..., 0], aim[:, None].expand(-1, frames), reduction="none", beta=0.1
        )
        terms[f"frame_{name}"] = error.mean(1)
    away = (decode_positions(codes["place"].detach()) - shown.positions + 0.5).remainder(1.0) - 0.5
    logs["error/position"] = away.norm(dim=2).mean(1)
    return terms, logs


def _entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits, target, reduction="none")


class ClassifierTask(Trainable):
    """The bundled classifier as something to train, with ``Trainer`` and a recipe."""

    name = "classifier"
    Config = ClassifierConfig
    component_types: ClassVar[Mapping[str, tuple[type, ...]]] = {"classifier": (ShapesClassifier,)}

    @classmethod
    def create(cls, config: ClassifierConfig) -> ClassifierTask:
        """Build a fresh network."""
        return cls(config, {"classifier": ShapesClassifier(config.widths, config.path_width)})

    @classmethod
    def prepare(cls, config: ClassifierConfig, dataset: ClipDataset) -> ClassifierConfig:
        """Remember which shapes data the clips are of.

        Raises:
            InvalidArgumentError: other data, several objects, or mirrored clips.
        """
        source = _source(dataset)
        data = DataConfig.of(
            "shapes",
            videos=source.num_videos,
            frames=source.num_frames,
            clip_length=min(2, source.num_frames),
            size=source.size,
            objects=source.objects,
            seed=source.seed,
            fps=source.fps,
            split=source.split,
            hold_out=source.hold_out,
            caption_style=source.caption_style,
        )
        return replace(config, data=data)

    def stages(self) -> tuple[Stage, ...]:
        """One stage.

        Raises:
            InvalidArgumentError: the configuration does not say which data.
        """
        config: Any = self.config
        if config.data is None:
            raise InvalidArgumentError(
                "the classifier learns from the shapes data's ground truth, and its configuration names none "
                "(data=None). Train it by a recipe, or set data=DataConfig(...)."
            )
        network: Any = self.modules["classifier"]
        return (ClassifierStage(network, config.data, config.shortest),)


def _source(dataset: ClipDataset) -> ShapesDataset:
    """Return the shapes data behind ``dataset``."""
    while isinstance(dataset, ClipSubset):
        dataset = dataset.whole
    source = dataset.source if isinstance(dataset, ShapesClips) else None
    if not isinstance(source, ShapesDataset) or source.objects != (1, 1) or dataset.flip:  # type: ignore[attr-defined]
        raise InvalidArgumentError(
            f"the classifier was given {type(dataset).__name__}; it learns from the ground truth of the shapes "
            "data with one object and without flip: data.path=shapes, data.objects=[1,1], data.flip=false."
        )
    return source
