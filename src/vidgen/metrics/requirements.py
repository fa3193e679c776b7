"""What ``evaluate`` may be asked for: metrics by name, settings, and what each metric needs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.diagnostics import check_seams
from vidgen.metrics.extractors.clip import ClipExtractor
from vidgen.metrics.features import FeatureExtractor
from vidgen.metrics.meters import Judge
from vidgen.metrics.pairs import Lpips
from vidgen.metrics.prompts import expected_spec
from vidgen.metrics.sources import Source, VideoSet, View
from vidgen.paths import expanded

__all__ = ["METRICS", "STATISTICS_SUFFIX", "Given", "Settings", "check_given", "check_saving", "check_sets"]

STATISTICS_SUFFIX = ".safetensors"
"""A real set whose path ends so is a file of statistics."""

OF_VIDEOS = ("fvd", "kvd", "is", "b_fvd", "prompt_diversity")
OF_MOTION = ("motion_decay", "flicker_pixels", "flicker_brightness", "seam_discontinuity")
OF_PAIRS = ("psnr", "ssim", "lpips", "drift")
JUDGED = ("prompt_accuracy", "position_spread")
METRICS = (*OF_VIDEOS, "avg_fid", "clipsim", *OF_PAIRS, *JUDGED, "constancy", *OF_MOTION)
"""What can be asked for; see ``docs/metrics.md`` for what each is."""

OF_CAPTIONS = ("prompt_accuracy", "prompt_diversity", "clipsim")

NEED_REAL = frozenset({"fvd", "kvd", "b_fvd", "avg_fid", "position_spread", *OF_PAIRS})

LEAST = {"fvd": (2, 2), "kvd": (2, 2), "b_fvd": (2, 4), "position_spread": (2, 2)}
"""Generated and real videos without which a metric has no value; more are wanted for a good one."""


@dataclass(frozen=True)
class Settings:
    """How videos are read and scored.

    Args:
        view: which frames, at which size; part of every protocol.
        videos: at most this many of each set, drawn by ``seed``; default all.
        captions: where captions of folders are, see ``sources.open_videos``.
        skip_short: leave out, and count, videos of folders that are shorter than ``view`` looks at.
        seed: of what is drawn: videos, halves for the null, splits.
        kept: videos of each set whose features are kept for the kernel distance.
        splits: of the inception score.
        block: frames of a block of B-FVD.
        best_of: sampled futures of each real video, of which ``psnr``, ``ssim`` and ``lpips`` take the best.
            They lie in a folder named as the real video (``a/0.mp4``, ``a/1.mp4``, ... for ``a.mp4``), or,
            where some name fits none, follow each other in order: so many for each real video.
        seams: the first frame of each new part, for ``seam_discontinuity``; counted in the frames that
            ``view`` shows. ``diagnostics.plan_seams`` finds them of a plan.
        batch_size: videos in memory at once; no matter to the values, up to rounding.
        cache_dir: where what is learnt of files is kept, as in ``DataConfig``.
        progress: show bars.

    Raises:
        InvalidArgumentError: a number below 1 (``kept``: below 2), or ``videos`` beside ``best_of``.
    """

    view: View = field(default_factory=View)
    videos: int | None = None
    captions: str = "auto"
    skip_short: bool = False
    seed: int = 0
    kept: int = 2048
    splits: int = 10
    block: int = 16
    best_of: int = 1
    seams: tuple[int, ...] = ()
    batch_size: int = 16
    cache_dir: str | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        least = {"videos": 1, "kept": 2, "splits": 1, "block": 1, "best_of": 1, "batch_size": 1}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise InvalidArgumentError(f"{name}={value}; it must be {minimum} or more.")
        if self.best_of > 1 and self.videos is not None:
            raise InvalidArgumentError(
                f"videos={self.videos} with best_of={self.best_of}: drawn videos would not hold all futures of "
                "any real one. Leave videos out, and give folders of the videos that are to be scored."
            )


@dataclass(frozen=True)
class Given:
    """What ``evaluate`` was given besides videos that are judged and settings.

    Attributes:
        real: the real set, or a file of its statistics.
        stored: whether it is such a file.
        extractors, judge, lpips: see ``evaluate``.
    """

    real: Source | None
    stored: bool
    extractors: tuple[FeatureExtractor, ...]
    judge: Judge | None
    lpips: Lpips | None

    @property
    def clips(self) -> list[ClipExtractor]:
        """Extractors that are CLIP."""
        return [extractor for extractor in self.extractors if isinstance(extractor, ClipExtractor)]


def check_given(metrics: Sequence[str], given: Given, settings: Settings) -> None:
    """Refuse metrics that lack what they need, before anything is read.

    Raises:
        InvalidArgumentError: what is missing, and how it is given in Python and on the command line.
    """
    for name in metrics:
        for what, way in _lacks(name, given, settings):
            raise InvalidArgumentError(f"the metric {name!r} needs {what}: give {way}, or leave {name!r} out.")
    if not metrics:
        raise InvalidArgumentError(f"no metric was asked for; choose some of {', '.join(METRICS)}.")
    if "seam_discontinuity" in metrics:
        check_seams(settings.seams, settings.view.num_frames)
    names = [extractor.name for extractor in given.extractors]
    if len(set(names)) < len(names):
        raise InvalidArgumentError(
            f"extractors {names} share a name, and scores are told apart by it; rename one."
        )
    if given.stored and ("fvd" not in metrics or len(names) != 1):
        raise InvalidArgumentError(
            f"stored statistics give the metric 'fvd' with one extractor; {', '.join(metrics)} with "
            f"{len(names)} were asked for. Give that metric and that extractor, or the real videos."
        )


def _lacks(name: str, given: Given, settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield what metric ``name`` needs and was not given, and how it is given."""
    videos = any(not extractor.per_frame for extractor in given.extractors)
    frames = any(extractor.per_frame for extractor in given.extractors)
    if given.real is None and name in NEED_REAL:
        yield "a real set to compare with", "`real` (--against FOLDER)"
    if name in OF_VIDEOS and not videos:
        yield (
            "an extractor that describes videos",
            "one in `extractors` (--extractor shapes or --extractor i3d:FILE)",
        )
    if name == "avg_fid" and not frames:
        yield (
            "an extractor that describes frames",
            "one in `extractors` (--extractor shapes_frames or --extractor clip:FOLDER)",
        )
    if name == "clipsim" and not given.clips:
        yield (
            "CLIP as an extractor",
            "it in `extractors` (--extractor clip:FOLDER or --extractor open_clip:MODEL,pretrained=TAG)",
        )
    if name in JUDGED and given.judge is None:
        yield "the shapes classifier as judge", "`judge`, such as `shapes_judge()`"
    if name == "lpips" and given.lpips is None:
        yield "LPIPS' weights", "`lpips` (--lpips FILE)"
    if name == "seam_discontinuity" and not settings.seams:
        yield "the places of the seams", "`seams` (--seams 16,32: the first frame of each new part)"
    if given.stored and name in NEED_REAL - {"fvd"}:
        yield "the real videos themselves and not their stored statistics", "these (--against FOLDER)"


def check_saving(path: str | os.PathLike[str], metrics: Sequence[str], given: Given) -> None:
    """Refuse to save statistics that there will not be, and make the folder they go to.

    Raises:
        InvalidArgumentError: another suffix, no real videos, no ``fvd``, or not one extractor of videos.
        OSError: the folder cannot be made.
    """
    count = sum(not extractor.per_frame for extractor in given.extractors)
    suffix = os.fspath(path).endswith(STATISTICS_SUFFIX)
    if not suffix or given.real is None or given.stored or "fvd" not in metrics or count != 1:
        raise InvalidArgumentError(
            f"statistics were to be saved to {path}; expected a name that ends in {STATISTICS_SUFFIX}, a real "
            "set of videos, the metric 'fvd', and one extractor of videos."
        )
    expanded(path).parent.mkdir(parents=True, exist_ok=True)  # rather than fail after hours


def check_sets(
    metrics: Sequence[str], generated: VideoSet, real: VideoSet | None, given: Given, settings: Settings
) -> None:
    """Refuse what would fail after hours: numbers of videos, and captions.

    Raises:
        InvalidArgumentError: too few videos, unequal numbers, or captions that a metric cannot use.
    """
    for name in metrics:
        _check_numbers(name, generated, real, settings)
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
    if "clipsim" in metrics:
        for clip in given.clips:
            _check_texts(clip, generated)


def _check_numbers(metric: str, generated: VideoSet, real: VideoSet | None, settings: Settings) -> None:
    single = metric == "avg_fid" and settings.view.num_frames == 1
    least = LEAST.get(metric, (2, 2) if single else (1, 1))
    for videos, wanted in zip((generated, real), least, strict=True):
        if videos is not None and len(videos) < wanted:
            raise InvalidArgumentError(
                f"{videos.name} has {len(videos)} video(s), and {metric} has no value with fewer than {wanted} "
                f"there; give more videos, or leave {metric!r} out."
            )


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


def _check_texts(clip: ClipExtractor, generated: VideoSet) -> None:
    try:
        clip.model.check_texts(generated.captions)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"clipsim cannot read a caption of {generated.name}: {error} On the command line that is "
            "--extractor clip:FOLDER,truncate=true (or open_clip:MODEL,...,truncate=true)."
        ) from error
