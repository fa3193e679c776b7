"""Meters of what videos show: nearness to the real one, motion, prompts, diversity."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.constancy import Constancy, measure_constancy
from vidgen.metrics.diagnostics import (
    ErrorCurves,
    FrameCurves,
    compare_frames,
    drift,
    flicker,
    measure_frames,
    motion_decay,
    seam_discontinuity,
)
from vidgen.metrics.diversity import PromptDiversity, cell_coverage, position_spread, spread_ratio
from vidgen.metrics.extractors.clip import ClipModel, clipsim
from vidgen.metrics.features import FeatureExtractor
from vidgen.metrics.meters import Context, Judge, Meter, Seen
from vidgen.metrics.pairs import PairMetric, best_of
from vidgen.metrics.prompts import PromptCounter, share_of
from vidgen.metrics.protocol import Protocol
from vidgen.metrics.score import Score

__all__ = [
    "ClipsimMeter",
    "ConstancyMeter",
    "DriftMeter",
    "MotionMeter",
    "PairMeter",
    "PromptDiversityMeter",
    "PromptMeter",
    "SpreadMeter",
]

logger = logging.getLogger("vidgen.metrics")


class PairMeter(Meter):
    """PSNR, SSIM or LPIPS: the mean over pairs of a generated and a real video, or over the best of N."""

    takes = ("pairs",)

    def __init__(self, metric: PairMetric, futures: int = 1) -> None:
        """Average the best of ``futures`` generated videos for each real one."""
        self.metric, self.futures = metric, futures
        self.values: list[Tensor] = []
        self.places: list[int] = []

    def take(self, seen: Seen) -> None:
        """See ``Meter.take``."""
        self.values.append(self.metric(seen.batch.clips, _reference(seen)))
        self.places += seen.places or []

    def scores(self, context: Context) -> Iterator[Score]:
        """See ``Meter.scores``."""
        values, key, several = torch.cat(self.values), self.metric.name, self.futures > 1
        notes: tuple[str, ...] = ()
        if several:
            key = f"{key}_best_of_{self.futures}"
            notes = (f"all futures, good and bad, have {values.mean().item():.4g} on average.",)
            by_video = torch.tensor(self.places).argsort(stable=True).reshape(-1, self.futures)
            values = best_of(values[by_video], self.metric.higher_is_better)
        fields: dict[str, Any] = {"best_of": self.futures} if several else {}
        yield Score(
            key,
            values.mean().item(),
            context.protocol(key, pairing=context.pairing, pixels=self.metric.fingerprint(), **fields),
            notes=notes,
            higher_is_better=self.metric.higher_is_better,
            **context.counts,
        )


class DriftMeter(Meter):
    """``drift``: slope over frames of the distance from the real video, see ``diagnostics.drift``."""

    takes = ("pairs",)

    def __init__(self) -> None:
        self.errors: ErrorCurves | None = None

    def take(self, seen: Seen) -> None:
        """See ``Meter.take``."""
        found = compare_frames(seen.batch.clips.unbind(2), _reference(seen).unbind(2))
        self.errors = found if self.errors is None else self.errors.merge(found)

    def scores(self, context: Context) -> Iterator[Score]:
        """See ``Meter.scores``."""
        assert self.errors is not None  # sets are never empty
        found = drift(self.errors)
        first, last = found.distance[0], found.distance[-1]
        yield Score(
            "drift",
            found.slope,
            context.protocol("drift", pairing=context.pairing),
            notes=(f"root mean square error {first:.4g} in the first frame, {last:.4g} in the last.",),
            **context.counts,
        )


class MotionMeter(Meter):
    """``motion_decay``, the two flickers and ``seam_discontinuity``, see ``diagnostics``.

    None of the first three is good in itself: the goal is what the real videos have.
    """

    def __init__(self, names: tuple[str, ...], with_real: bool, seams: tuple[int, ...] = ()) -> None:
        """Measure ``names``, of the real videos too where ``with_real``."""
        self.names, self.with_real, self.seams = names, with_real, tuple(sorted(set(seams)))
        self.sides: dict[str, FrameCurves | None] = {"real": None, "generated": None}
        self.takes = ("real", "generated") if with_real else ("generated",)

    def take(self, seen: Seen) -> None:
        """See ``Meter.take``."""
        found, before = measure_frames(seen.batch.clips.unbind(2)), self.sides[seen.side]
        self.sides[seen.side] = found if before is None else before.merge(found)

    def scores(self, context: Context) -> Iterator[Score]:
        """See ``Meter.scores``."""
        generated, real = (self._measured(self.sides[side]) for side in ("generated", "real"))
        for name in self.names:
            if math.isnan(generated[name]):
                # A warning and no error: it shows only after hours, and the other scores are worth having.
                logger.warning(
                    "nothing moves in the generated videos where %s looks: it has no value and is left out.",
                    name,
                )
                continue
            notes = (f"the real videos have {real[name]:.4g}.",) if real else ()
            yield Score(
                name,
                generated[name],
                self._protocol(name, context),
                num_generated=context.num_generated,
                notes=notes,
                higher_is_better=None,
                goal=1.0 if name == "seam_discontinuity" else _finite(real.get(name)),
            )

    def _measured(self, curves: FrameCurves | None) -> dict[str, float]:
        if curves is None:
            return {}
        shaking = flicker(curves)
        found = {
            "motion_decay": motion_decay(curves).decay,
            "flicker_pixels": shaking.pixels,
            "flicker_brightness": shaking.brightness,
        }
        if "seam_discontinuity" in self.names:
            found["seam_discontinuity"] = seam_discontinuity(curves, self.seams)
        return found

    def _protocol(self, name: str, context: Context) -> Protocol:
        if name == "seam_discontinuity":
            return context.protocol(name, real=False, seams=self.seams)
        return context.protocol(name, real=self.with_real)  # it sets the goal


class PromptMeter(Meter):
    """``prompt_<attribute>_<judge>``: the share of videos that show what their caption says."""

    takes = ("generated",)

    def __init__(self, judge: Judge, motion: bool = True) -> None:
        """Judge shape and colour, and ``motion`` where clips are long enough to tell it."""
        self.judge, self.counter = judge, PromptCounter(motion)

    def take(self, seen: Seen) -> None:
        """See ``Meter.take``."""
        self.counter.update(seen.reading(self.judge), seen.batch.captions)

    def scores(self, context: Context) -> Iterator[Score]:
        """See ``Meter.scores``."""
        found = self.counter.result()
        for name, share in found.shares.items():
            key = f"prompt_{name}_{self.judge.name}"
            notes = [f"95% interval {share.low:.3f} to {share.high:.3f}."]
            if name in found.confusion:
                notes += _worst(found.confusion[name].to_json())
            elif "motion" not in found.shares:
                notes.append(
                    f"shape and colour alone: {self.judge.name} tells motions apart from "
                    f"{self.judge.motion_frames} frames on, and these clips have {context.view['frames']}."
                )
            yield Score(
                key,
                share.value,
                context.protocol(key, real=False, classifier=self.judge.fingerprint, captions=context.captions),
                num_generated=share.n,
                notes=tuple(notes),
                higher_is_better=True,
            )


class ConstancyMeter(Meter):
    """``constancy_<what>``: the share of videos whose object keeps its hue, its size, is of one colour.

    Single frames have one colour or not, and nothing to keep.
    """

    takes = ("generated",)

    def __init__(self) -> None:
        self.found: list[Constancy] = []

    def take(self, seen: Seen) -> None:
        """See ``Meter.take``."""
        self.found.append(measure_constancy(seen.batch.clips))

    def scores(self, context: Context) -> Iterator[Score]:
        """See ``Meter.scores``."""
        names = [field.name for field in fields(Constancy)]
        found = Constancy(*(torch.cat([getattr(part, name) for part in self.found]) for name in names))
        number = int(found.measured.sum())
        if not number:
            logger.warning("no video shows one whole object long enough: constancy has no value.")
            return
        for name, kept in found.kept.items():
            if name != "one_colour" and context.view["frames"] == 1:
                continue
            share = share_of(int(kept.sum()), number)
            notes = [f"95% interval {share.low:.3f} to {share.high:.3f}."]
            if number < context.num_generated:
                notes.append(f"{number} of {context.num_generated} videos show their object whole long enough.")
            yield Score(
                f"constancy_{name}",
                share.value,
                context.protocol(f"constancy_{name}", real=False),
                num_generated=number,
                notes=tuple(notes),
                higher_is_better=True,
            )


class SpreadMeter(Meter):
    """``position_spread_<judge>``: spread of the objects' start positions over that of the real set."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.sides: dict[str, list[Tensor]] = {"real": [], "generated": []}

    def take(self, seen: Seen) -> None:
        """See ``Meter.take``."""
        positions = seen.reading(self.judge).position.detach().cpu()
        self.sides[seen.side].append(positions[:, 0] if positions.ndim == 3 else positions)

    def scores(self, context: Context) -> Iterator[Score]:
        """See ``Meter.scores``."""
        real, generated = torch.cat(self.sides["real"]), torch.cat(self.sides["generated"])
        key = f"position_spread_{self.judge.name}"
        yield Score(
            key,
            spread_ratio(generated, real),
            context.protocol(key, classifier=self.judge.fingerprint),
            notes=(
                f"spread {position_spread(generated):.3f} of the uniform one, {position_spread(real):.3f} in "
                f"the real set; {cell_coverage(generated):.3f} of the grid reached, "
                f"{cell_coverage(real):.3f} there.",
            ),
            higher_is_better=None,
            goal=1.0,
            **context.counts,
        )


class PromptDiversityMeter(Meter):
    """``prompt_diversity_<extractor>``: how far samples of one prompt lie apart, over those of others."""

    takes = ("generated",)

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor, self.counter = extractor, PromptDiversity()

    def take(self, seen: Seen) -> None:
        """See ``Meter.take``."""
        self.counter.update(seen.features(self.extractor).values, seen.batch.captions)

    def scores(self, context: Context) -> Iterator[Score]:
        """See ``Meter.scores``."""
        found = self.counter.result()
        if math.isnan(found.ratio):
            raise InvalidArgumentError(
                "all generated videos have the same features, so that prompt_diversity has no value; look at "
                "the videos."
            )
        key = f"prompt_diversity_{self.extractor.name}"
        fields: dict[str, Any] = {"extractor": self.extractor.fingerprint(), "captions": context.captions}
        yield Score(
            key,
            found.ratio,
            context.protocol(key, real=False, **fields),
            num_generated=context.num_generated,
            notes=(
                f"mean squared distance {found.within:.4g} within {found.prompts} prompts, "
                f"{found.across:.4g} across.",
            ),
            higher_is_better=None,  # 0 is one video per prompt, 1 a model deaf to prompts
        )


class ClipsimMeter(Meter):
    """``clipsim_<model>``: mean cosine between a caption and the frames of its video."""

    takes = ("generated",)

    def __init__(self, model: ClipModel) -> None:
        self.model = model
        self.values: list[Tensor] = []

    def take(self, seen: Seen) -> None:
        """See ``Meter.take``."""
        self.values.append(clipsim(seen.batch.clips, seen.batch.captions, self.model))

    def scores(self, context: Context) -> Iterator[Score]:
        """See ``Meter.scores``."""
        key = f"clipsim_{self.model.name}"
        yield Score(
            key,
            torch.cat(self.values).mean().item(),
            context.protocol(key, real=False, model=self.model.fingerprint(), captions=context.captions),
            num_generated=context.num_generated,
            higher_is_better=True,
        )


def _reference(seen: Seen) -> Tensor:
    assert seen.reference is not None  # what takes pairs is shown pairs
    return seen.reference


def _finite(value: float | None) -> float | None:
    """The value as a goal; what is missing, NaN or infinite is none."""
    return value if value is not None and math.isfinite(value) else None


def _worst(table: dict[str, dict[str, int]]) -> list[str]:
    wrong = Counter({(a, b): n for a, row in table.items() for b, n in row.items() if a != b})
    return [f"most often, {a} was read as {b} ({n} times)." for (a, b), n in wrong.most_common(1)]
