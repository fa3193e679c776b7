"""Diagnostics of long videos against closed forms."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch

from vidgen.errors import InvalidArgumentError
from vidgen.metrics import diagnostics
from vidgen.metrics.statistics import Statistics
from vidgen.plans import autoregressive


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def levels(*values, videos=2):
    """Videos whose frame k has the one brightness ``values[k]`` in [0, 1]."""
    line = torch.tensor(values, dtype=torch.float64) * 2 - 1
    return line[None, None, :, None, None].expand(videos, 3, len(values), 4, 5)


def curves(clip):
    return diagnostics.measure_frames(clip.unbind(2))


def compared(clip, truth):
    return diagnostics.compare_frames(clip.unbind(2), truth.unbind(2))


def test_linear_drift_is_a_line():
    truth = noise(3, 3, 9, 4, 4) / 4
    run_off = (
        truth + 2 * 0.01 * torch.arange(9, dtype=torch.float64)[:, None, None]
    )  # 0.01 of the range per frame
    errors = compared(run_off, truth)
    np.testing.assert_allclose(errors.mse, (0.01 * np.arange(9)) ** 2, atol=1e-15)
    assert errors.psnr[0] == math.inf
    np.testing.assert_allclose(errors.psnr[1:], -20 * np.log10(0.01 * np.arange(1, 9)), rtol=1e-12)
    found = diagnostics.drift(errors)
    np.testing.assert_allclose(found.distance, 0.01 * np.arange(9), atol=1e-12)
    assert found.slope == pytest.approx(0.01, rel=1e-9)


def test_psnr_is_the_mean_over_videos_and_mse_too():
    truth = torch.zeros(2, 3, 1, 2, 2)
    clip = truth.clone()
    clip[0] += 2 * 0.1
    clip[1] += 2 * 0.01
    errors = compared(clip, truth)
    assert errors.mse[0] == pytest.approx((0.01 + 0.0001) / 2)
    assert errors.psnr[0] == pytest.approx((20 + 40) / 2)


def test_constant_distance_has_no_slope():
    truth = noise(1, 3, 6, 4, 4)
    assert diagnostics.drift(compared(truth + 0.5, truth)).slope == pytest.approx(0, abs=1e-12)
    assert diagnostics.slope(np.array([3.0])) == 0
    assert diagnostics.slope(np.array([1.0, 3.0, 5.0, 10.0])) == pytest.approx(
        np.polyfit(range(4), [1, 3, 5, 10], 1)[0]
    )


def test_comparison_of_unequal_videos_is_refused():
    truth = noise(1, 3, 4, 4, 4)
    with pytest.raises(InvalidArgumentError, match="video ends after 3 frames"):
        compared(truth[:, :, :3], truth)
    with pytest.raises(InvalidArgumentError, match="reference ends after 2 frames"):
        compared(truth, truth[:, :, :2])
    with pytest.raises(InvalidArgumentError, match="of one size"):
        diagnostics.compare_frames(iter(truth.unbind(2)), iter(noise(1, 3, 4, 4, 6).unbind(2)))
    with pytest.raises(InvalidArgumentError, match="no frame"):
        diagnostics.compare_frames([], [])
    with pytest.raises(InvalidArgumentError, match="videos of 4 and of 3 frames"):
        compared(truth, truth).merge(compared(truth[:, :, :3], truth[:, :, :3]))


def test_feature_drift_of_shifted_gaussians():
    base = noise(40, 5)
    real, generated = [], []
    for block in range(4):
        for kept, shift in ((real, 0.0), (generated, 0.3 * block)):
            statistics = Statistics(5)
            statistics.update(base + shift)
            kept.append(statistics)
    found = diagnostics.feature_drift(generated, real)
    # Equal covariances: the distance is the squared distance of the means.
    expected = 5 * (0.3 * np.arange(4)) ** 2
    np.testing.assert_allclose(found.distance, expected, atol=1e-9)
    assert found.slope == pytest.approx(np.polyfit(range(4), expected, 1)[0])
    with pytest.raises(InvalidArgumentError, match="3 blocks"):
        diagnostics.feature_drift(generated[:3], real)
    with pytest.raises(InvalidArgumentError, match="0 blocks"):
        diagnostics.feature_drift([], [])


def test_steady_motion_does_not_decay():
    steady = diagnostics.motion_decay(curves(levels(*(0.02 * k for k in range(17)))))
    np.testing.assert_allclose(steady.curve, 0.02, rtol=1e-9)
    assert len(steady.curve) == 16
    assert steady.decay == pytest.approx(1)


def test_decaying_motion():
    steps = [0.04] * 4 + [0.03] * 8 + [0.01] * 4
    clip = levels(*np.cumsum([0.0, *steps]))
    assert diagnostics.motion_decay(curves(clip)).decay == pytest.approx(0.25)
    assert diagnostics.motion_decay(curves(clip.flip(2))).decay == pytest.approx(4)
    frozen = levels(0, 0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2)
    assert diagnostics.motion_decay(curves(frozen)).decay == 0
    assert diagnostics.motion_decay(curves(frozen.flip(2))).decay == math.inf
    assert math.isnan(diagnostics.motion_decay(curves(levels(0.5, 0.5, 0.5))).decay)


def test_motion_of_noise_is_the_mean_difference():
    clip = noise(2, 3, 5, 4, 4)
    frames = (clip.numpy() + 1) / 2
    found = curves(clip)
    np.testing.assert_allclose(
        found.motion, np.abs(np.diff(frames, axis=2)).mean(axis=(0, 1, 3, 4)), rtol=1e-12
    )
    second = np.diff(frames, n=2, axis=2) / 2
    np.testing.assert_allclose(found.jerk, (second**2).mean(axis=(0, 1, 3, 4)), rtol=1e-12)
    bright = np.diff(frames.mean(axis=(1, 3, 4)), n=2, axis=1) / 2
    np.testing.assert_allclose(found.wobble, (bright**2).mean(axis=0), rtol=1e-12)


def test_positions_go_the_short_way_round():
    line = (torch.arange(9.0)[None, :, None] * torch.tensor([0.3, 0.4]) + 0.9) % 1
    found = diagnostics.position_decay(torch.cat([line, line.flip(1)]))
    np.testing.assert_allclose(found.curve, 0.5, rtol=1e-6)
    assert found.decay == pytest.approx(1, rel=1e-6)
    slowing = torch.tensor([0.0, 0.1, 0.2, 0.25, 0.3, 0.3, 0.3, 0.32, 0.32])
    path = torch.stack([(0.95 + slowing) % 1, torch.zeros(9)], dim=-1)[None]
    assert diagnostics.position_decay(path).decay == pytest.approx(0.02 / 0.2, rel=1e-5)
    with pytest.raises(InvalidArgumentError, match="1 frames"):
        diagnostics.position_decay(path[:, :1])


def test_planted_seam():
    steps = np.full(11, 0.01)
    steps[[3, 7]] = 0.05  # between frames 3 and 4, and 7 and 8
    found = curves(levels(*np.cumsum([0.1, *steps])))
    assert diagnostics.seam_discontinuity(found, [4, 8]) == pytest.approx(5)
    assert diagnostics.seam_discontinuity(found, [8, 8]) == pytest.approx(5)  # the median ignores the other
    assert diagnostics.seam_discontinuity(found, [4, 5]) == pytest.approx(3)
    assert diagnostics.seam_discontinuity(found, [2, 6]) == pytest.approx(1)


def test_seams_of_still_videos():
    cut = levels(0.2, 0.2, 0.2, 0.6, 0.6, 0.6)
    assert diagnostics.seam_discontinuity(curves(cut), [3]) == math.inf
    assert math.isnan(diagnostics.seam_discontinuity(curves(levels(*[0.2] * 6)), [3]))


@pytest.mark.parametrize(
    ("seams", "said"), [([], "0 seams"), ([0], "seam 0"), ([6], "seam 6"), (range(1, 6), "5 seams")]
)
def test_impossible_seams_are_refused(seams, said):
    with pytest.raises(InvalidArgumentError, match=said):
        diagnostics.seam_discontinuity(curves(levels(*[0.2] * 6)), seams)


def test_seams_of_a_plan_lie_where_another_call_takes_over():
    plan = autoregressive(40, window=16, context=4)
    assert diagnostics.plan_seams(plan) == (16, 28)
    pinned = plan.with_pins([("video", 0), ("video", 20)])
    assert diagnostics.plan_seams(pinned) == (1, 16, 20, 21, 28)
    part = plan.subplan(range(10, 20))
    assert diagnostics.plan_seams(part) == (16,)


def test_alternating_brightness_flickers_by_its_amplitude():
    found = diagnostics.flicker(curves(levels(*[0.4, 0.6] * 5)))
    assert found.pixels == pytest.approx(0.2)
    assert found.brightness == pytest.approx(0.2)


def test_a_fade_and_a_still_do_not_flicker():
    for line in ([0.1 * k for k in range(8)], [0.3] * 8):
        found = diagnostics.flicker(curves(levels(*line)))
        assert (found.pixels, found.brightness) == pytest.approx((0, 0), abs=1e-12)


def test_checkerboard_flickers_in_pixels_alone():
    board = ((torch.arange(4)[:, None] + torch.arange(4)) % 2).double() * 2 - 1
    clip = torch.stack([board * 0.2 * (-1) ** k for k in range(6)]).expand(1, 3, 6, 4, 4)
    found = diagnostics.flicker(curves(clip))
    assert found.pixels == pytest.approx(0.2)
    assert found.brightness == pytest.approx(0, abs=1e-12)


def test_brightness_is_each_videos_own():
    # Two videos that flicker against each other: their mean stays still.
    one = levels(*[0.4, 0.6] * 4, videos=1)
    other = levels(*[0.6, 0.4] * 4, videos=1)
    assert diagnostics.flicker(curves(torch.cat([one, other]))).brightness == pytest.approx(0.2)


def test_merged_curves_equal_all_at_once():
    clip, truth = noise(5, 3, 6, 4, 4), noise(5, 3, 6, 4, 4, seed=1)
    whole, parts = curves(clip), curves(clip[:1]).merge(curves(clip[1:]))
    assert parts.n == whole.n == 5
    for name in ("motion", "jerk", "wobble"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)
    whole, parts = compared(clip, truth), compared(clip[:4], truth[:4]).merge(compared(clip[4:], truth[4:]))
    np.testing.assert_allclose(parts.mse, whole.mse, rtol=1e-12)
    np.testing.assert_allclose(parts.psnr, whole.psnr, rtol=1e-12)
    with pytest.raises(InvalidArgumentError, match="6 and of 4 frames"):
        curves(clip).merge(curves(clip[:, :, :4]))


def test_frames_are_let_go():
    clip = noise(1, 3, 50, 4, 4)
    before, handed, most = clip.clone(), weakref.WeakSet(), 0

    def reader():
        nonlocal most
        for k in range(50):
            frame = clip[:, :, k].clone()
            handed.add(frame)
            most = max(most, len(handed))
            yield frame
            del frame

    assert len(diagnostics.measure_frames(reader()).motion) == 49
    assert most <= 2
    assert torch.equal(clip, before)


def test_too_few_frames_and_wrong_shapes_are_refused():
    with pytest.raises(InvalidArgumentError, match="2 frame"):
        curves(noise(1, 3, 2, 4, 4))
    with pytest.raises(InvalidArgumentError, match="of one size"):
        diagnostics.measure_frames(iter([noise(1, 3, 4, 4), noise(1, 3, 4, 6)]))
    with pytest.raises(InvalidArgumentError, match=r"\(1, 1, 4, 4\)"):
        diagnostics.measure_frames(iter([noise(1, 1, 4, 4)]))
