"""Scoring a set of videos, alone or against another: each video is read once per set, in bounded memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vidgen.errors import InvalidArgumentError
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
from vidgen.metrics.pairing import Pairing
from vidgen.metrics.pairs import Lpips, Psnr, Ssim
from vidgen.metrics.protocol import Protocol, ProtocolMismatchError, differing
from vidgen.metrics.requirements import (
    JUDGED,
    METRICS,
    OF_MOTION,
    OF_PAIRS,
    OF_VIDEOS,
    STATISTICS_SUFFIX,
    Given,
    Settings,
    check_given,
    check_saving,
    check_sets,
)
from vidgen.metrics.score import Score
from vidgen.metrics.sources import (
    Source,
    VideoSet,
    View,
    check_there,
    choose,
    is_procedural,
    open_videos,
)
from vidgen.metrics.statistics import HalvedStatistics
from vidgen.metrics.video_meters import (
    ClipsimMeter,
    ConstancyMeter,
    DriftMeter,
    MotionMeter,
    PairMeter,
    PromptDiversityMeter,
    PromptMeter,
    SpreadMeter,
)
from vidgen.paths import expanded
from vidgen.video.checks import check_name
from vidgen.video.draws import digest

__all__ = ["METRICS", "STATISTICS_SUFFIX", "Settings", "evaluate"]

logger = logging.getLogger("vidgen.metrics")


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
            with a real one: by file name where every generated video has a namesake, else by order; with
            ``settings.best_of`` several with each.
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
            sizes, too few videos, or captions that cannot be used.
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
    given = Given(real, stored is not None, tuple(extractors), judge, lpips)
    check_given(metrics, given, settings)
    if save_statistics is not None:
        check_saving(save_statistics, metrics, given)
    for source in (generated, real):
        if source is not None:
            check_there(source)
    judged = _open(generated, settings.view, settings)
    against = None if real is None or stored else _open_real(real, judged, settings)
    check_sets(metrics, judged, against, given, settings)
    paired = against and set(OF_PAIRS) & set(metrics)
    pairing = Pairing.of(judged, against, settings.best_of) if against and paired else None
    context = _context(judged, against, pairing, settings)
    if stored:
        context = _fitted(context, stored[1], judged, given)
    parts = _Parts(given, settings, stored[0] if stored else None)
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
class _Parts:
    """What meters are made of."""

    given: Given
    settings: Settings
    stored: HalvedStatistics | None

    def meters(self, name: str, metrics: Sequence[str]) -> list[Meter]:
        """Return the meters of metric ``name``, one for each extractor that it fits."""
        extractors = self.given.extractors
        if name in OF_VIDEOS:
            return [self._of_videos(name, extractor) for extractor in extractors if not extractor.per_frame]
        if name == "avg_fid":
            return [FidMeter(extractor, self.settings.seed) for extractor in extractors if extractor.per_frame]
        if name == "clipsim":
            return [ClipsimMeter(extractor.model) for extractor in self.given.clips]
        if name in OF_MOTION:
            asked = tuple(other for other in metrics if other in OF_MOTION)
            with_real = self.given.real is not None and self.stored is None
            # One pass over the frames gives all of them, in the place of the first.
            return [MotionMeter(asked, with_real, self.settings.seams)] if name == asked[0] else []
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
            judge = self.given.judge
            assert judge is not None  # checked with what was given
            motion = self.settings.view.num_frames >= judge.motion_frames
            return PromptMeter(judge, motion) if name == "prompt_accuracy" else SpreadMeter(judge)
        if name == "drift":
            return DriftMeter()
        if name == "constancy":
            return ConstancyMeter()
        if name == "lpips":
            assert self.given.lpips is not None  # checked with what was given
            return PairMeter(self.given.lpips, self.settings.best_of)
        return PairMeter(Psnr() if name == "psnr" else Ssim(), self.settings.best_of)


def _stored(real: Source | None) -> tuple[HalvedStatistics, Protocol] | None:
    if isinstance(real, str | os.PathLike) and os.fspath(real).endswith(STATISTICS_SUFFIX):
        return HalvedStatistics.load(expanded(real))
    return None


def _open(source: Source, view: View, settings: Settings) -> VideoSet:
    return open_videos(
        source,
        view,
        videos=settings.videos,
        captions=settings.captions,
        skip_short=settings.skip_short,
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
            "which both are to be scored, such as --size 64 (View(size=64))."
        )
    _warn_of_rates(generated, real.name, real.seen_rates)
    return real


def _warn_of_rates(generated: VideoSet, name: str, rates: list[int | float] | None) -> None:
    """Warn where the real videos ``name`` have other rates (None: unknown ones) that decide what is seen."""
    own = generated.seen_rates
    if own is not None and rates != own:
        logger.warning(
            "%s has %s frames per second and %s has %s, so that equal motion looks unequal; give fps (--fps) "
            "to score both at one rate.",
            *(generated.name, own, name, "unknown ones" if rates is None else rates),
        )


def _context(
    generated: VideoSet, real: VideoSet | None, pairing: Pairing | None, settings: Settings
) -> Context:
    rates = {} if generated.seen_rates is None else {"rates": generated.seen_rates}
    return Context(
        view={**settings.view.to_json(), "size": list(generated.size), **rates},
        real=real.digest if real else None,
        num_real=len(real) if real else None,
        num_generated=len(generated),
        seed=settings.seed,
        captions=digest("vidgen.metrics.captions", *sorted(generated.captions)).hex(),
        pairing=pairing.to_json(real) if pairing and real else None,
        real_rates=real.seen_rates if real else None,
    )


def _statistics_protocol(context: Context, extractor: FeatureExtractor) -> Protocol:
    # Without the seed: it draws the null's halves, which the file holds, and decides no distance.
    fields = context.protocol("statistics", extractor=extractor.fingerprint()).to_json()
    fields.pop("rates", None)  # of the judged videos
    if context.real_rates is not None:
        fields["rates"] = context.real_rates
    return Protocol.from_json(fields)


def _fitted(context: Context, stored: Protocol, judged: VideoSet, given: Given) -> Context:
    """Return the context with the stored real set, which must have been seen in the same way."""
    fields: dict[str, Any] = stored.to_json()
    fitted = replace(
        context, real=fields.get("real"), num_real=fields.get("num_real"), real_rates=fields.get("rates")
    )
    asked = _statistics_protocol(fitted, given.extractors[0])
    if asked != stored:
        raise ProtocolMismatchError(
            f"the statistics in {given.real} were made in another way than is asked for: "
            f"{differing(asked, stored)} in the file. Score in the file's way, or give the folder of the real "
            "videos instead of the file, and save its statistics anew."
        )
    _warn_of_rates(judged, str(given.real), fitted.real_rates)
    return fitted


def _save(meters: Sequence[Meter], context: Context, path: Path) -> None:
    (meter,) = (meter for meter in meters if isinstance(meter, FrechetMeter))
    statistics = meter.sides["real"]
    assert statistics is not None  # the real set has gone by
    statistics.save(expanded(path), _statistics_protocol(context, meter.extractor))


def _stream(
    side: str,
    videos: VideoSet,
    meters: Sequence[Meter],
    settings: Settings,
    real: VideoSet | None = None,
    pairing: Pairing | None = None,
) -> None:
    """Show every video of a set once to the meters that take this side."""
    takers = [meter for meter in meters if side in meter.takes]
    if not takers:
        return
    kept = torch.zeros(len(videos), dtype=torch.bool, device="cpu")
    kept[choose(len(videos), settings.kept, settings.seed)] = True
    for batch in videos.batches(settings.batch_size, progress=settings.progress):
        seen = Seen(side, batch, kept[batch.indices])
        if real and pairing:
            seen.places = [pairing.places[index] for index in batch.indices]
            clips = {place: real.clip(place) for place in dict.fromkeys(seen.places)}
            seen.reference = torch.stack([clips[place] for place in seen.places])
        for meter in takers:
            meter.take(seen)
