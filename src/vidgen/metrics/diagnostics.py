"""What goes wrong along a long video, frame by frame: drift, dying motion, visible seams, flicker.

Frames come one index at a time (``clip.unbind(2)`` of a clip, or a reader), so a video of any length takes
the memory of three frames, and what is kept of any number of videos is a few numbers per frame index. Values
of pixels are taken in [0, 1] (given in [-1, 1]), x_k is frame k, and bars are means over videos, channels and
pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.distances import frechet_distance
from vidgen.metrics.statistics import Statistics
from vidgen.plans import Plan

__all__ = [
    "Drift",
    "ErrorCurves",
    "Flicker",
    "FrameCurves",
    "Motion",
    "check_seams",
    "compare_frames",
    "drift",
    "feature_drift",
    "flicker",
    "measure_frames",
    "motion_decay",
    "plan_seams",
    "position_decay",
    "seam_discontinuity",
    "slope",
]

Frames = Iterable[Float[Tensor, "b 3 h w"]]
"""Frame 0, 1, ... of ``b`` videos, with pixels in [-1, 1]."""


@dataclass(frozen=True)
class FrameCurves:
    """What ``measure_frames`` keeps of ``n`` videos of ``f`` frames: means over them, by frame index.

    Attributes:
        n: how many videos.
        motion: ``|x_k - x_(k-1)|`` for k = 1 ... f - 1.
        jerk: ``((x_(k+1) - 2 x_k + x_(k-1)) / 2)^2`` for k = 1 ... f - 2.
        wobble: the same of each video's mean brightness instead of its pixels.
    """

    n: int
    motion: Float64[np.ndarray, " m"]
    jerk: Float64[np.ndarray, " j"]
    wobble: Float64[np.ndarray, " j"]

    def merge(self, other: FrameCurves) -> FrameCurves:
        """Return the curves of both sets of videos together.

        Raises:
            InvalidArgumentError: their videos differ in length.
        """
        _check_lengths(len(self.motion) + 1, len(other.motion) + 1)
        share = other.n / (self.n + other.n)
        return FrameCurves(
            n=self.n + other.n,
            motion=_mixed(self.motion, other.motion, share),
            jerk=_mixed(self.jerk, other.jerk, share),
            wobble=_mixed(self.wobble, other.wobble, share),
        )


@dataclass(frozen=True)
class ErrorCurves:
    """What ``compare_frames`` keeps of ``n`` pairs of videos: means over them, by frame index.

    Attributes:
        n: how many pairs.
        mse: ``(x_k - y_k)^2`` for k = 0 ... f - 1.
        psnr: ``-10 log10`` of each video's own error at k, then the mean, in dB; infinite where equal.
    """

    n: int
    mse: Float64[np.ndarray, " f"]
    psnr: Float64[np.ndarray, " f"]

    def merge(self, other: ErrorCurves) -> ErrorCurves:
        """Return the curves of both sets of pairs together.

        Raises:
            InvalidArgumentError: their videos differ in length.
        """
        _check_lengths(len(self.mse), len(other.mse))
        share = other.n / (self.n + other.n)
        return ErrorCurves(
            self.n + other.n, _mixed(self.mse, other.mse, share), _mixed(self.psnr, other.psnr, share)
        )


@dataclass(frozen=True)
class Drift:
    """How far videos are from what they should be, by frame (or block) index.

    Attributes:
        distance: at each index.
        slope: of the least-squares line through ``distance``, per index: 0 where nothing drifts.
    """

    distance: Float64[np.ndarray, " k"]
    slope: float


@dataclass(frozen=True)
class Motion:
    """How much moves, by frame index.

    Attributes:
        curve: for k = 1 ... f - 1.
        decay: mean of the last quarter of ``curve`` over the mean of its first: 1 keeps moving, 0 has come
            to rest. NaN where nothing moves at both ends, infinite where motion only sets in.
    """

    curve: Float64[np.ndarray, " m"]
    decay: float


@dataclass(frozen=True)
class Flicker:
    """What changes back and forth from frame to frame; steady motion in brightness (a fade) is 0 in both.

    Attributes:
        pixels: root of the mean of ``FrameCurves.jerk``: a picture that alternates by ``a`` gives ``a``.
        brightness: root of the mean of ``FrameCurves.wobble``, the same for the whole frame's brightness.
    """

    pixels: float
    brightness: float


def measure_frames(frames: Frames) -> FrameCurves:
    """Go once through the frames of some videos and keep what motion, seams and flicker need.

    Raises:
        InvalidArgumentError: fewer than three frames, or frames of unequal shapes.
    """
    motion: list[float] = []
    jerk: list[float] = []
    wobble: list[float] = []
    past: list[Tensor] = []
    number = 0
    for frame in frames:
        number = len(frame)
        _check_shape(frame, past)
        past = [*past[-2:], _unit(frame)]
        if len(past) > 1:
            motion.append((past[-1] - past[-2]).abs().mean().item())
        if len(past) > 2:
            bend = (past[0] - 2 * past[1] + past[2]) / 2
            jerk.append(bend.square().mean().item())
            wobble.append(bend.mean(dim=(1, 2, 3)).square().mean().item())
    if not jerk:
        raise InvalidArgumentError(
            f"got {len(past)} frame(s); motion and flicker need 3 or more. Give longer videos."
        )
    return FrameCurves(number, np.array(motion), np.array(jerk), np.array(wobble))


def compare_frames(frames: Frames, reference: Frames) -> ErrorCurves:
    """Go once through the frames of some videos and of what each should be (same batch, same order).

    Raises:
        InvalidArgumentError: unequal numbers of frames, unequal shapes, or no frame.
    """
    mse: list[float] = []
    psnr: list[float] = []
    number = 0
    for frame, truth in zip_longest(frames, reference):
        if frame is None or truth is None:
            raise InvalidArgumentError(
                f"the {'reference' if truth is None else 'video'} ends after {len(mse)} frames and the other "
                "goes on; give both the same length."
            )
        _check_shape(frame, [truth])
        number = len(frame)
        errors = (_unit(frame) - _unit(truth)).square().mean(dim=(1, 2, 3))
        mse.append(errors.mean().item())
        psnr.append((-10 * torch.log10(errors)).mean().item())
    if not mse:
        raise InvalidArgumentError("got no frame to compare; give one or more.")
    return ErrorCurves(number, np.array(mse), np.array(psnr))


def drift(errors: ErrorCurves) -> Drift:
    """Return the distance from the ground truth by frame: ``d_k = sqrt(mse_k)``, and its slope per frame.

    A brightness that runs off by ``c`` per frame has ``d_k = c k`` and slope ``c``.
    """
    distance = np.sqrt(errors.mse)
    return Drift(distance, slope(distance))


def feature_drift(generated: Sequence[Statistics], real: Sequence[Statistics]) -> Drift:
    """Return the Frechet distance of features between block i of generated and block i of real videos.

    For videos without a ground truth of their own: each entry holds the statistics of one block's features
    over all videos. The slope is per block.

    Raises:
        InvalidArgumentError: unequal numbers of blocks, or none.
    """
    if len(generated) != len(real) or not real:
        raise InvalidArgumentError(
            f"got {len(generated)} blocks of generated and {len(real)} of real videos; give statistics of the "
            "same blocks for both, one block or more."
        )
    distance = np.array([frechet_distance(one, other) for one, other in zip(generated, real, strict=True)])
    return Drift(distance, slope(distance))


def motion_decay(curves: FrameCurves) -> Motion:
    """Return the mean absolute difference ``m_k`` of successive frames and how it decays.

    With ``q = max(1, (f - 1) // 4)`` differences in a quarter, the decay is
    ``mean(m_(f-q) ... m_(f-1)) / mean(m_1 ... m_q)``. Noise and flicker count as motion here; the path of the
    object itself is what ``position_decay`` measures.
    """
    return Motion(curves.motion, _decay(curves.motion))


def position_decay(positions: Float[Tensor, "b f 2"]) -> Motion:
    """Return how far an object goes per frame, and how that decays; positions on the torus [0, 1)^2.

    ``m_k`` is the mean over videos of ``|p_k - p_(k-1)|``, the shortest way round in sides, and the decay as in
    ``motion_decay``.

    Raises:
        InvalidArgumentError: fewer than two frames, or no video.
    """
    if positions.shape[0] < 1 or positions.shape[1] < 2:
        raise InvalidArgumentError(
            f"got positions of {positions.shape[0]} videos and {positions.shape[1]} frames; give one video or "
            "more, of two frames or more."
        )
    steps = positions.double().diff(dim=1)
    steps = steps - steps.round()
    curve = steps.square().sum(dim=-1).sqrt().mean(dim=0).cpu().numpy()
    return Motion(curve, _decay(curve))


def seam_discontinuity(curves: FrameCurves, seams: Iterable[int]) -> float:
    """Return ``mean(m_k over seams) / median(m_k elsewhere)``; 1 where seams do not show.

    ``m_k`` is the mean absolute difference of frames k - 1 and k; a seam k is the first frame of a new part
    (``plan_seams``). Infinite where only seams change, NaN where nothing does.

    Raises:
        InvalidArgumentError: no seam, a seam outside frames 1 to f - 1, or nothing but seams.
    """
    count = len(curves.motion)
    chosen = check_seams(seams, count + 1)
    at_seam = np.zeros(count, dtype=bool)
    at_seam[np.array(chosen) - 1] = True
    return _ratio(float(curves.motion[at_seam].mean()), float(np.median(curves.motion[~at_seam])))


def check_seams(seams: Iterable[int], num_frames: int) -> tuple[int, ...]:
    """Return the seams of videos of ``num_frames`` frames, each once, rising.

    Raises:
        InvalidArgumentError: no seam, a seam outside frames 1 to ``num_frames - 1``, or nothing but seams.
    """
    chosen = tuple(sorted(set(seams)))
    count = num_frames - 1
    outside = [seam for seam in chosen if not 1 <= seam <= count]
    if outside or not 0 < len(chosen) < count:
        what = f"seam {outside[0]}" if outside else f"{len(chosen)} seams"
        raise InvalidArgumentError(
            f"got {what} for videos of {num_frames} frames; give one seam or more within frames 1 to {count}, "
            "and leave at least one other frame to compare with."
        )
    return chosen


def plan_seams(plan: Plan) -> tuple[int, ...]:
    """Return the frames of ``plan``'s last level that another call made than the frame before.

    Frames given by the user count as one more call. They are video frames for codecs that encode frame by
    frame.
    """
    name = plan.video.name
    makers = {frame: plan.producer((name, frame)) for frame in plan.frames}
    return tuple(k for k in plan.frames if k - 1 in makers and makers[k] is not makers[k - 1])


def flicker(curves: FrameCurves) -> Flicker:
    """Return the root mean square of half the second difference, of pixels and of mean brightness."""
    return Flicker(float(np.sqrt(curves.jerk.mean())), float(np.sqrt(curves.wobble.mean())))


def slope(values: Float64[np.ndarray, " k"]) -> float:
    """Return the slope of the least-squares line through ``values`` at 0, 1, ...; 0 for one value."""
    places = np.arange(len(values), dtype=np.float64)
    places -= places.mean()
    spread = float(places @ places)
    return float(places @ values) / spread if spread else 0.0


def _decay(curve: Float64[np.ndarray, " m"]) -> float:
    quarter = max(1, len(curve) // 4)
    return _ratio(float(curve[-quarter:].mean()), float(curve[:quarter].mean()))


def _ratio(above: float, below: float) -> float:
    if below:
        return above / below
    return math.inf if above else math.nan


def _mixed(
    one: Float64[np.ndarray, " k"], other: Float64[np.ndarray, " k"], share: float
) -> Float64[np.ndarray, " k"]:
    return (1 - share) * one + share * other


def _unit(frame: Float[Tensor, "b 3 h w"]) -> Float64[Tensor, "b 3 h w"]:
    return (frame.detach().double() + 1) / 2


def _check_shape(frame: Tensor, others: Sequence[Tensor]) -> None:
    if frame.ndim != 4 or frame.shape[1] != 3 or not len(frame):
        raise InvalidArgumentError(f"a frame has the shape {tuple(frame.shape)}; expected (videos, 3, h, w).")
    if others and frame.shape != others[-1].shape:
        raise InvalidArgumentError(
            f"frames have the shapes {tuple(others[-1].shape)} and {tuple(frame.shape)}; give videos of one "
            "size."
        )


def _check_lengths(one: int, other: int) -> None:
    if one != other:
        raise InvalidArgumentError(
            f"got curves of videos of {one} and of {other} frames; measure videos of one length together."
        )
