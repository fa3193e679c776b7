"""Scoring a set of videos, alone or against another: each video is read once per set, in bounded memory."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.extractors.clip import ClipExtractor
from vidgen.metrics.features import FeatureExtractor
from vidgen.metrics.meters import (
    BlockMeter,
    Context,
    FidMeter,
    FrechetMeter,
    InceptionMeter,
    Judge,
    KernelMeter,
    Meter,
    Seen,
)
from vidgen.metrics.pairs import Lpips, Psnr, Ssim
from vidgen.metrics.prompts import expected_spec
from vidgen.metrics.protocol import Protocol, check_comparable
from vidgen.metrics.score import Score
from vidgen.metrics.sources import Source, VideoSet, View, choose, is_procedural, open_videos
from vidgen.metrics.statistics import HalvedStatistics
from vidgen.metrics.video_meters import (
    ClipsimMeter,
    DriftMeter,
    MotionMeter,
    PairMeter,
    PromptDiversityMeter,
    PromptMeter,
    SpreadMeter,
)
from vidgen.video.checks import check_name
from vidgen.video.draws import digest

__all__ = ["METRICS", "STATISTICS_SUFFIX", "Settings", "evaluate"]

logger = logging.getLogger("vidgen.metrics")

STATISTICS_SUFFIX = ".safetensors"
"""A real set whose path ends so is a file of statistics."""

OF_VIDEOS = ("fvd", "kvd", "is", "b_fvd", "prompt_diversity")
OF_MOTION = ("motion_decay", "flicker_pixels", "flicker_brightness")
OF_PAIRS = ("psnr", "ssim", "lpips", "drift")
JUDGED = ("prompt_accuracy", "position_spread")
METRICS = (*OF_VIDEOS, "avg_fid", "clipsim", *OF_PAIRS, *JUDGED, *OF_MOTION)
"""What can be asked for; see ``docs/metrics.md`` for what each is."""

OF_CAPTIONS = ("prompt_accuracy", "prompt_diversity", "clipsim")

NEED_REAL = frozenset({"fvd", "kvd", "b_fvd", "avg_fid", "position_spread", *OF_PAIRS})


@dataclass(frozen=True)
class Settings:
    """How videos are read and scored.

    Args:
        view: which frames, at which size; part of every protocol.
        videos: at most this many of each set, drawn by ``seed``; default all.
        captions: where captions of folders are, see ``video.captions``.
        seed: of what is drawn: videos, halves for the null, splits.
        kept: videos of each set whose features are kept for the kernel distance.
        splits: of the inception score.
        block: frames of a block of B-FVD.
        batch_size: videos in memory at once; no matter to the values, up to rounding.
        cache_dir: where what is learnt of files is kept, as in ``DataConfig``.
        progress: show bars.

    Raises:
        InvalidArgumentError: a number below 1 (``kept``: below 2).
    """

    view: View = field(default_factory=View)
    videos: int | None = None
    captions: str = "auto"
    seed: int = 0
    kept: int = 2048
    splits: int = 10
    block: int = 16
    batch_size: int = 16
    cache_dir: str | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        least = {"videos": 1, "kept": 2, "splits": 1, "block": 1, "batch_size": 1}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise InvalidArgumentError(f"{name}={value}; it must be {minimum} or more.")


def evaluate(
    generated: Source,
    real: Source | None = None,
    *,
    metrics: Sequence[str] = ("fvd", "kvd"),
    extractors: Sequence[FeatureExtractor] = (),
    judge: Judge | None = None,
    lpips: Lpips | None = None,
    settings: Settings | None = None,
    save_statistics: str | os.PathLike[str] | None = None,
) -> list[Score]:
    """Score ``generated`` videos, where a metric asks for it against ``real`` ones.

    Args:
        generated: a folder of videos, procedural data, or a dataset; see ``sources.Source``.
        real: the same, or a file that ``save_statistics`` wrote earlier, which gives ``fvd`` alone.
        metrics: names of ``METRICS``. ``psnr``, ``ssim``, ``lpips`` and ``drift`` pair each generated video
            with a real one: by file name where every generated video has a namesake, else by order.
        extractors: each metric of features is had with every extractor that it fits: ``avg_fid`` with those
            of frames, ``clipsim`` with CLIP, the others with those of videos.
        judge: reads shape, colour, motion and position, for ``prompt_accuracy`` and ``position_spread``.
        lpips: the network of that metric with its weights.
        settings: default ``Settings()``.
        save_statistics: write the real set's statistics to this file, for later calls.

    Returns:
        Scores in the order of ``metrics``, each with its protocol.

    Raises:
        UnknownNameError: a metric that is none.
        InvalidArgumentError: something that a metric needs was not given or does not fit, sets of different
            sizes, or too few videos.
        ProtocolMismatchError: stored statistics were made in another way.
        VideoError: a set cannot be read.
        CheckpointError: stored statistics cannot be read.
        OSError: ``save_statistics`` cannot be written.
    """
    settings = settings or Settings()
    for name in metrics:
        check_name("metric", name, METRICS)
    metrics = tuple(dict.fromkeys(metrics))
    stored = _stored(real)
    _check_given(metrics, real, extractors, judge, lpips, stored)
    if save_statistics is not None:
        _check_saving(save_statistics, metrics, extractors, real, stored)
    judged = _open(generated, settings.view, settings)
    against = None if real is None or stored else _open_real(real, judged, settings)
    _check_sets(metrics, judged, against, settings)
    pairing = _Pairing.of(judged, against) if against and set(OF_PAIRS) & set(metrics) else None
    context = _context(judged, against, pairing, settings)
    if stored:
        context = _fitted(context, stored[1], extractors[0])
    parts = _Parts(tuple(extractors), judge, lpips, settings, stored[0] if stored else None, real is not None)
    meters = [meter for name in metrics for meter in parts.meters(name, metrics)]
    if against:
        _stream("real", against, meters, settings)
        if save_statistics is not None:
            _save(meters, context, Path(save_statistics))
    _stream("generated", judged, meters, settings)
    if pairing and against:
        _stream("pairs", judged, meters, settings, against, pairing)
    return [score for meter in meters for score in meter.scores(context)]


@dataclass(frozen=True)
class _Pairing:
    """Which real video each generated one is compared with, and by what."""

    by: str
    places: tuple[int, ...]

    @classmethod
    def of(cls, generated: VideoSet, real: VideoSet) -> _Pairing:
        if generated.names and real.names:
            found = {name: place for place, name in enumerate(real.names)}
            if all(name in found for name in generated.names):
                _check_unique(generated)
                _check_unique(real)
                return cls("name", tuple(found[name] for name in generated.names))
        if len(generated) != len(real):
            raise InvalidArgumentError(
                f"{generated.name} has {len(generated)} videos and {real.name} {len(real)}, and not every "
                "generated one has a namesake, so they cannot be paired. Give equally many, or name each file "
                "as the real one it stands for."
            )
        return cls("order", tuple(range(len(real))))

    def to_json(self, real: VideoSet) -> dict[str, str]:
        """Return what belongs to a protocol: other pairs give other numbers on the same real set."""
        contents = (real.contents[place] for place in self.places)
        return {"by": self.by, "real": digest("vidgen.metrics.pairs", *contents).hex()}


def _check_unique(videos: VideoSet) -> None:
    """Raise InvalidArgumentError where a name stands for several videos."""
    (name, count), *_ = Counter(videos.names or ()).most_common(1)
    if count > 1:
        raise InvalidArgumentError(
            f"{videos.name} has {count} videos of the name {name!r} with different suffixes, so that videos "
            "cannot be paired by name; rename all but one."
        )


@dataclass(frozen=True)
class _Parts:
    """What meters are made of."""

    extractors: tuple[FeatureExtractor, ...]
    judge: Judge | None
    lpips: Lpips | None
    settings: Settings
    stored: HalvedStatistics | None
    with_real: bool

    def meters(self, name: str, metrics: Sequence[str]) -> list[Meter]:
        """Return the meters of metric ``name``, one for each extractor that it fits."""
        if name in OF_VIDEOS:
            return [
                self._of_videos(name, extractor) for extractor in self.extractors if not extractor.per_frame
            ]
        if name == "avg_fid":
            return [FidMeter(e, self.settings.seed) for e in self.extractors if e.per_frame]
        if name == "clipsim":
            return [ClipsimMeter(e.model) for e in self.extractors if isinstance(e, ClipExtractor)]
        if name in OF_MOTION:
            asked = tuple(other for other in metrics if other in OF_MOTION)
            # One pass over the frames gives all three, in the place of the first.
            return [MotionMeter(asked, self.with_real and self.stored is None)] if name == asked[0] else []
        return [self._of_pixels(name)]

    def _of_videos(self, name: str, extractor: FeatureExtractor) -> Meter:
        seed = self.settings.seed
        if name == "fvd":
            return FrechetMeter(extractor, seed, self.stored)
        if name == "kvd":
            return KernelMeter(extractor, self.settings.kept, seed)
        if name == "is":
            return InceptionMeter(extractor, self.settings.splits, seed)
        if name == "b_fvd":
            return BlockMeter(extractor, self.settings.block, seed)
        return PromptDiversityMeter(extractor)

    def _of_pixels(self, name: str) -> Meter:
        if name in JUDGED:
            assert self.judge is not None  # checked with what was given
            motion = self.settings.view.num_frames > 1
            return PromptMeter(self.judge, motion) if name == "prompt_accuracy" else SpreadMeter(self.judge)
        if name == "drift":
            return DriftMeter()
        if name == "lpips":
            assert self.lpips is not None  # checked with what was given
            return PairMeter(self.lpips)
        return PairMeter(Psnr() if name == "psnr" else Ssim())


def _stored(real: Source | None) -> tuple[HalvedStatistics, Protocol] | None:
    if isinstance(real, str | os.PathLike) and os.fspath(real).endswith(STATISTICS_SUFFIX):
        return HalvedStatistics.load(Path(real).expanduser())
    return None


def _check_given(
    metrics: Sequence[str],
    real: Source | None,
    extractors: Sequence[FeatureExtractor],
    judge: Judge | None,
    lpips: Lpips | None,
    stored: tuple[HalvedStatistics, Protocol] | None,
) -> None:
    """Raise InvalidArgumentError if a metric lacks what it needs, before anything is read."""
    videos = any(not extractor.per_frame for extractor in extractors)
    frames = any(extractor.per_frame for extractor in extractors)
    clip = any(isinstance(extractor, ClipExtractor) for extractor in extractors)
    for name in metrics:
        lacks = {
            "a real set to compare with": real is None and name in NEED_REAL,
            "an extractor that describes videos, such as shapes or I3D": name in OF_VIDEOS and not videos,
            "an extractor that describes frames, such as Inception or CLIP": name == "avg_fid" and not frames,
            "CLIP as an extractor": name == "clipsim" and not clip,
            "the shapes classifier as judge": name in JUDGED and judge is None,
            "LPIPS' weights": name == "lpips" and lpips is None,
            "the real videos themselves and not their stored statistics": bool(stored)
            and name in NEED_REAL - {"fvd"},
        }
        for what, missing in lacks.items():
            if missing:
                raise InvalidArgumentError(f"the metric {name!r} needs {what}; give it, or leave {name!r} out.")
    if not metrics:
        raise InvalidArgumentError(f"no metric was asked for; choose some of {', '.join(METRICS)}.")
    names = [extractor.name for extractor in extractors]
    if len(set(names)) < len(names):
        raise InvalidArgumentError(
            f"extractors {names} share a name, and scores are told apart by it; rename one."
        )
    if stored and ("fvd" not in metrics or len(extractors) != 1):
        raise InvalidArgumentError(
            f"stored statistics give the metric 'fvd' with one extractor; {', '.join(metrics)} with "
            f"{len(extractors)} were asked for. Give that metric and that extractor, or the real videos."
        )


def _check_saving(
    path: str | os.PathLike[str],
    metrics: Sequence[str],
    extractors: Sequence[FeatureExtractor],
    real: Source | None,
    stored: object,
) -> None:
    count = sum(not extractor.per_frame for extractor in extractors)
    if (
        not os.fspath(path).endswith(STATISTICS_SUFFIX)
        or real is None
        or stored
        or "fvd" not in metrics
        or count != 1
    ):
        raise InvalidArgumentError(
            f"statistics were to be saved to {path}; expected a name that ends in {STATISTICS_SUFFIX}, a real "
            "set of videos, the metric 'fvd', and one extractor of videos."
        )
    Path(path).expanduser().parent.mkdir(parents=True, exist_ok=True)  # rather than fail after hours


def _open(source: Source, view: View, settings: Settings) -> VideoSet:
    return open_videos(
        source,
        view,
        videos=settings.videos,
        captions=settings.captions,
        seed=settings.seed,
        cache_dir=settings.cache_dir,
        progress=settings.progress,
    )


def _open_real(source: Source, generated: VideoSet, settings: Settings) -> VideoSet:
    view = settings.view
    if view.size is None and is_procedural(source):
        view = replace(view, size=generated.size)
    real = _open(source, view, settings)
    if real.size != generated.size:
        sizes = [f"{width} x {height}" for height, width in (generated.size, real.size)]
        raise InvalidArgumentError(
            f"{generated.name} has videos of {sizes[0]} pixels and {real.name} of {sizes[1]}; give the size at "
            "which both are to be scored."
        )
    rates = [{round(rate, 2) for rate in videos.rates} for videos in (generated, real)]
    if view.fps is None and rates[0] != rates[1]:
        logger.warning(
            "%s has %s frames per second and %s has %s, so that equal motion looks unequal; give fps to score "
            "both at one rate.",
            *(generated.name, sorted(rates[0]), real.name, sorted(rates[1])),
        )
    return real


def _check_sets(metrics: Sequence[str], generated: VideoSet, real: VideoSet | None, settings: Settings) -> None:
    """Raise InvalidArgumentError for what would fail after hours: numbers of videos, and captions."""
    if "avg_fid" in metrics and real and len(real) != len(generated):
        raise InvalidArgumentError(
            f"{generated.name} has {len(generated)} videos and {real.name} {len(real)}; avg_fid is defined for "
            f"equally many. Score at most {min(len(generated), len(real))} of each (`videos`), or leave it out."
        )
    if "is" in metrics and len(generated) < settings.splits:
        raise InvalidArgumentError(
            f"{generated.name} has {len(generated)} videos, fewer than the {settings.splits} splits of 'is'; "
            "give fewer splits or more videos."
        )
    for name in (name for name in metrics if name in OF_CAPTIONS):
        _check_captions(name, generated)


def _check_captions(metric: str, generated: VideoSet) -> None:
    for place, caption in enumerate(generated.captions):
        if not caption:
            raise InvalidArgumentError(
                f"video {place} of {generated.name} has no caption, and {metric} looks at captions; put a "
                f"text file beside each video, or leave {metric!r} out."
            )
        if metric == "prompt_accuracy":
            expected_spec(caption)
    prompts = len(set(generated.captions))
    if metric == "prompt_diversity" and not 1 < prompts < len(generated):
        raise InvalidArgumentError(
            f"{generated.name} has {len(generated)} samples of {prompts} prompts, and prompt_diversity "
            "compares samples within and across prompts; give two prompts or more, and two samples or more of "
            "some."
        )


def _context(
    generated: VideoSet, real: VideoSet | None, pairing: _Pairing | None, settings: Settings
) -> Context:
    return Context(
        view={**settings.view.to_json(), "size": list(generated.size)},
        real=real.digest if real else None,
        num_real=len(real) if real else None,
        num_generated=len(generated),
        seed=settings.seed,
        captions=digest("vidgen.metrics.captions", *sorted(generated.captions)).hex(),
        pairing=pairing.to_json(real) if pairing and real else None,
    )


def _statistics_protocol(context: Context, extractor: FeatureExtractor) -> Protocol:
    # Without the seed: it draws the null's halves, which the file holds, and decides no distance.
    return context.protocol("statistics", extractor=extractor.fingerprint())


def _fitted(context: Context, stored: Protocol, extractor: FeatureExtractor) -> Context:
    """Return the context with the stored real set, which must have been seen in the same way."""
    fields: dict[str, Any] = stored.to_json()
    fitted = replace(context, real=fields.get("real"), num_real=fields.get("num_real"))
    check_comparable(_statistics_protocol(fitted, extractor), stored)
    return fitted


def _save(meters: Sequence[Meter], context: Context, path: Path) -> None:
    (meter,) = (meter for meter in meters if isinstance(meter, FrechetMeter))
    statistics = meter.sides["real"]
    assert statistics is not None  # the real set has gone by
    statistics.save(path.expanduser(), _statistics_protocol(context, meter.extractor))


def _stream(
    side: str,
    videos: VideoSet,
    meters: Sequence[Meter],
    settings: Settings,
    real: VideoSet | None = None,
    pairing: _Pairing | None = None,
) -> None:
    """Show every video of a set once to the meters that take this side."""
    takers = [meter for meter in meters if side in meter.takes]
    if not takers:
        return
    kept = torch.zeros(len(videos), dtype=torch.bool, device="cpu")
    kept[choose(len(videos), settings.kept, settings.seed)] = True
    for batch in videos.batches(settings.batch_size, progress=settings.progress):
        reference = None
        if real and pairing:
            reference = torch.stack([real.clip(pairing.places[index]) for index in batch.indices])
        seen = Seen(side, batch, kept[batch.indices], reference)
        for meter in takers:
            meter.take(seen)
