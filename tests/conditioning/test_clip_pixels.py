from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from vidgen.conditioning.clip_pixels import ClipPixels

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def picture(height: int, width: int) -> np.ndarray:
    """Stripes, edges and noise: what resizing filters differ on."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    waves = 128 + 100 * np.sin(x / 3.0)[..., None] * np.cos(y[..., None] / np.array([2.0, 5.0, 9.0]))
    waves[height // 3 :, width // 2 :] = (255, 0, 255)
    return np.clip(waves + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def both(height: int, width: int, **fields: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours and open_clip's, in pixels of [0, 1]."""
    array = picture(height, width)
    config = PreprocessCfg(mean=MEAN, std=STD, **fields)
    theirs = image_transform_v2(config, is_train=False)(Image.fromarray(array))
    size = config.size if isinstance(config.size, tuple) else (config.size, config.size)
    ours = ClipPixels(size, MEAN, STD, config.interpolation, config.resize_mode, config.fill_color)
    clip = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    return ours(clip)[0] * std + mean, theirs * std + mean


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_pictures_that_fit_are_equal(mode: str) -> None:
    ours, theirs = both(32, 32, size=32, resize_mode=mode)
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [32, (24, 40), (33, 32)])
def test_resized_pictures_agree_with_pillow(size: int | tuple[int, int], mode: str, interpolation: str) -> None:
    for height, width in [(100, 61), (61, 100), (33, 47), (20, 25), (75, 75), (31, 90)]:
        ours, theirs = both(
            height, width, size=size, resize_mode=mode, interpolation=interpolation, fill_color=200
        )
        assert ours.shape == theirs.shape
        difference = (ours - theirs).abs()
        # One level of 255 at most where proportions are kept, seldom; see ClipPixels on "squash".
        assert difference.max() <= (6.01 if mode == "squash" else 1.01) / 255, (height, width)
        assert difference.mean() <= (0.4 if mode == "squash" else 0.05) / 255, (height, width)


def test_gradients_pass_the_rounding() -> None:
    clip = (torch.rand(1, 3, 40, 50) - 0.5).requires_grad_()
    ClipPixels((32, 32), (0.0,) * 3, (1.0,) * 3, "bilinear")(clip).sum().backward()
    assert clip.grad is not None
    # Each kernel sums to 1: a result's gradient is shared out whole, halved by (x + 1) / 2.
    assert clip.grad.sum().item() == pytest.approx(3 * 32 * 32 / 2, rel=1e-4)


def test_pictures_of_a_batch_do_not_meet() -> None:
    clip = torch.rand(3, 3, 40, 50) * 2 - 1
    pixels = ClipPixels((32, 32), MEAN, STD)
    assert torch.allclose(pixels(clip)[1], pixels(clip[1:2])[0])
