"""PSNR, SSIM and LPIPS of pairs against plain computations; best of several trajectories."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from vidgen.metrics.pairs import Lpips, Psnr, Ssim, best_of

ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
"""Convolutions of AlexNet by their place: channels out and in, sides of the kernel."""


def pair(videos: int = 2, frames: int = 3, size: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    real = torch.rand(videos, 3, frames, size, size, generator=generator) * 2 - 1
    noise = torch.randn(real.shape, generator=generator) * torch.linspace(0.05, 0.4, videos).view(
        -1, 1, 1, 1, 1
    )
    return (real + noise).clamp(-1, 1), real


def test_psnr_is_that_of_a_videos_error() -> None:
    generated, real = pair()
    error = (generated.double() - real.double()).square().mean(dim=(1, 2, 3, 4))
    found = Psnr()(generated, real)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, 10 * torch.log10(4 / error), rtol=1e-6, atol=0)
    constant = Psnr()(torch.zeros_like(real), torch.full_like(real, 0.2))
    torch.testing.assert_close(constant, torch.full((2,), 20.0).double(), rtol=1e-6, atol=0)
    assert Psnr()(real, real).tolist() == [math.inf, math.inf]


def test_psnr_by_frames_is_the_mean_of_the_frames() -> None:
    generated, real = pair()
    generated[:, :, 0] = real[:, :, 0] + 0.01
    frames = [Psnr()(generated[:, :, [f]], real[:, :, [f]]) for f in range(3)]
    found = Psnr(per="frame")(generated, real)
    torch.testing.assert_close(found, torch.stack(frames).mean(0), rtol=1e-6, atol=0)
    assert (found > Psnr()(generated, real) + 1).all()
    assert Psnr("frame").fingerprint() != Psnr().fingerprint()


def plain_ssim(x: np.ndarray, y: np.ndarray, data_range: float) -> np.ndarray:
    """The index of Wang et al. at every pixel whose 11 x 11 Gaussian window lies inside the picture."""
    axis = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(axis, axis) / axis.sum() ** 2

    def blur(picture: np.ndarray) -> np.ndarray:
        views = np.lib.stride_tricks.sliding_window_view(picture, (11, 11))
        return (views * window).sum((-1, -2))

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


def test_ssim_of_colours_is_its_definition_with_mirrored_borders() -> None:
    generated, real = pair()
    expected = [
        np.mean(
            [
                plain_ssim(
                    *(np.pad(c[video, channel, frame].double(), 5, mode="reflect") for c in (generated, real)),
                    2,
                )
                for channel in range(3)
                for frame in range(3)
            ]
        )
        for video in range(2)
    ]
    found = Ssim()(generated, real)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found[0] > found[1]
    torch.testing.assert_close(Ssim()(real, real), torch.ones(2).double())


def test_ssim_of_grey_pictures_is_its_definition_on_pillows_grey() -> None:
    generated, real = pair()

    def grey(clip: torch.Tensor) -> list[np.ndarray]:
        pixels = ((clip + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
        return [np.asarray(Image.fromarray(frame).convert("L")).astype(float) for frame in pixels]

    expected = [
        np.mean([plain_ssim(one, other, 255).mean() for one, other in zip(grey(a), grey(b), strict=True)])
        for a, b in zip(generated, real, strict=True)
    ]
    np.testing.assert_allclose(Ssim("grey8")(generated, real), expected, rtol=1e-9)
    assert Ssim("grey8").fingerprint() != Ssim().fingerprint()


def weights(folder: Path, heads: str = "lin", backbone: str = "features", seed: int = 0) -> Path:
    """A file of random weights of LPIPS' AlexNet in one of the layouts it is found in."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for slice_, (place, (out, channels, side)) in enumerate(ALEX.items()):
        prefix = f"features.{place}" if backbone == "features" else f"net.slice{slice_ + 1}.{place}"
        scale = (2 / (channels * side**2)) ** 0.5
        tensors[f"{prefix}.weight"] = torch.randn(out, channels, side, side, generator=generator) * scale
        tensors[f"{prefix}.bias"] = torch.randn(out, generator=generator) / 10
        head = f"lins.{slice_}." if heads == "lins" else f"lin{slice_}."
        tensors[f"{head}model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
    file = folder / f"{backbone}-{heads}-{seed}.safetensors"
    save_file(tensors, file)
    return file


def plain_lpips(file: Path, generated: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Distances of frames ``n 3 h w``, in float64, from the paper's text."""
    w = {name: tensor.double() for name, tensor in load_file(file).items()}
    shift = torch.tensor([-0.030, -0.088, -0.188]).double().view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).double().view(3, 1, 1)
    x, y = ((frames.double() - shift) / scale for frames in (generated, real))
    total = torch.zeros(len(x)).double()
    for layer, place in enumerate(ALEX):
        if layer in (1, 2):
            x, y = (torch.nn.functional.max_pool2d(z, 3, 2) for z in (x, y))
        stride, padding = (4, 2) if layer == 0 else (1, 2 if layer == 1 else 1)
        kernel, bias = w[f"features.{place}.weight"], w[f"features.{place}.bias"]
        x, y = (torch.conv2d(z, kernel, bias, stride, padding).relu() for z in (x, y))
        unit = [z / (z.square().sum(1, keepdim=True) + 1e-8).sqrt() for z in (x, y)]
        weighted = (unit[0] - unit[1]).square() * w[f"lin{layer}.model.1.weight"]
        total += weighted.sum(1).mean((1, 2))
    return total


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lpips")


@pytest.fixture(scope="module")
def lpips(folder: Path) -> Lpips:
    return Lpips(weights(folder))


def test_lpips_is_its_definition(folder: Path, lpips: Lpips) -> None:
    generated, real = pair(videos=2, frames=2, size=40)
    frames = [clip.transpose(1, 2).flatten(0, 1) for clip in (generated, real)]
    expected = plain_lpips(weights(folder), *frames).view(2, 2).mean(1)
    found = lpips(generated, real)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    assert found[0] < found[1]
    assert lpips(real, real).tolist() == [0, 0]


def test_frames_are_taken_in_parts_without_a_difference(lpips: Lpips) -> None:
    generated, real = pair(videos=2, frames=40, size=31)
    alone = [lpips(generated[:, :, [f]], real[:, :, [f]]) for f in (0, 39)]
    found = lpips(generated[:, :, [0, 39]], real[:, :, [0, 39]])
    torch.testing.assert_close(found, torch.stack(alone).mean(0), rtol=1e-5, atol=0)
    halves = [lpips(generated[:, :, part], real[:, :, part]) for part in (slice(20), slice(20, 40))]
    torch.testing.assert_close(lpips(generated, real), torch.stack(halves).mean(0), rtol=1e-5, atol=0)


def test_every_layout_gives_the_same_network(folder: Path, lpips: Lpips) -> None:
    generated, real = pair(size=32)
    one = load_file(weights(folder))
    heads, backbone = folder / "heads.safetensors", folder / "alexnet.safetensors"
    save_file({name: tensor for name, tensor in one.items() if name.startswith("lin")}, heads)
    features = {name: tensor for name, tensor in one.items() if name.startswith("features")}
    save_file(features | {"classifier.1.weight": torch.zeros(2, 2)}, backbone)
    constants = folder / "constants.safetensors"
    save_file(one | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}, constants)
    for given in (weights(folder, "lins", "net"), [heads, str(backbone)], constants):
        other = Lpips(given)
        assert torch.equal(other(generated, real), lpips(generated, real))
        assert other.fingerprint() == lpips.fingerprint()
    changed = Lpips(weights(folder, seed=1))
    assert changed.fingerprint() != lpips.fingerprint()
    assert not torch.equal(changed(generated, real), lpips(generated, real))


def test_loading_moves_no_random_state(folder: Path) -> None:
    before = torch.random.get_rng_state()
    built = Lpips(weights(folder))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(weight.requires_grad for weight in built.network.parameters())


def test_vgg_is_another_network(tmp_path: Path, lpips: Lpips) -> None:
    with torch.device("meta"):
        from torchvision.models import vgg16

        shapes = {name: weight.shape for name, weight in vgg16(weights=None).features.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"features.{name}": torch.randn(shape, generator=generator) / max(1, math.prod(shape[1:]) / 2) ** 0.5
        for name, shape in shapes.items()
    }
    channels = (64, 128, 256, 512, 512)
    tensors |= {f"lin{i}.model.1.weight": torch.ones(1, c, 1, 1) for i, c in enumerate(channels)}
    save_file(tensors, tmp_path / "vgg.safetensors")
    vgg = Lpips(tmp_path / "vgg.safetensors", "vgg")
    generated, real = pair(frames=1)
    found = vgg(generated, real)
    assert vgg.name == "lpips_vgg"
    assert 0 < found[0] < found[1] < 10  # with heads of 1 each layer adds a squared chord, at most 2
    assert vgg(real, real).tolist() == [0, 0]
    with pytest.raises(CheckpointError, match=r"lacks features\.3\."):
        Lpips(tmp_path / "vgg.safetensors", "alex")


def test_missing_and_foreign_weights_say_what_to_do(tmp_path: Path) -> None:
    for none in (None, []):
        with pytest.raises(CheckpointError, match=r"no weights were given.*Expected safetensors.*save_file"):
            Lpips(none)
    with pytest.raises(CheckpointError, match=r"none.safetensors is missing"):
        Lpips(tmp_path / "none.safetensors")
    pickled = tmp_path / "alex.pth"
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, pickled)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        Lpips(pickled)
    whole = load_file(weights(tmp_path))
    file = tmp_path / "wrong.safetensors"
    for wrong, message in (
        (
            {name: tensor for name, tensor in whole.items() if name != "lin3.model.1.weight"},
            "lacks lin3.model.1",
        ),
        (
            {name: tensor for name, tensor in whole.items() if name != "features.8.bias"},
            "lacks features.8.bias",
        ),
        (whole | {"features.12.weight": torch.zeros(3)}, "having features.12.weight"),
        (whole | {"lin0.model.1.weight": torch.zeros(1, 63, 1, 1)}, "does not fit.*lin0"),
    ):
        save_file(wrong, file)
        with pytest.raises(CheckpointError, match=f"(?s){message}.*Expected safetensors"):
            Lpips(file)
    with pytest.raises(UnknownNameError, match="squeeze"):
        Lpips(file, "squeeze")


def test_given_videos_are_checked_and_do_not_change(lpips: Lpips) -> None:
    generated, real = pair(size=32)
    generated[0, 0, 0, 0, 0] = 1.03  # a network's overshoot counts as white
    before = generated.clone(), real.clone()
    for metric in (Psnr(), Psnr("frame"), Ssim(), Ssim("grey8"), lpips):
        value = metric(generated, real)
        assert torch.equal(value, metric(generated.clamp(-1, 1), real))
        assert value.shape == (2,)
        assert metric.name in metric.fingerprint().values()
        assert torch.equal(generated, before[0])
        assert torch.equal(real, before[1])
        with pytest.raises(InvalidArgumentError, match=r"expected the same b 3 f h w"):
            metric(generated, real[:1])
        with pytest.raises(InvalidArgumentError, match=r"expected the same b 3 f h w"):
            metric(generated[:, :1], real[:, :1])
        with pytest.raises(InvalidArgumentError, match=r"real pixels from .* to 255; expected \[-1, 1\]"):
            metric(generated, real * 0 + 255)
        with pytest.raises(InvalidArgumentError, match="generated pixels from nan"):
            metric(generated * torch.nan, real)


def test_pictures_below_the_smallest_are_refused(lpips: Lpips) -> None:
    for metric, size in ((Ssim(), 11), (Ssim("grey8"), 11), (lpips, 31)):
        generated, real = pair(size=size)
        assert torch.isfinite(metric(generated, real)).all()
        with pytest.raises(InvalidArgumentError, match=f"expected {size} or more each way"):
            metric(generated[..., 1:], real[..., 1:])


def test_unknown_conventions_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'video'"):
        Psnr("videos")
    with pytest.raises(UnknownNameError, match="Did you mean 'grey8'"):
        Ssim("grey")


def test_the_best_trajectory_counts_in_the_metrics_direction() -> None:
    values = torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, math.inf]])
    assert best_of(values, higher_is_better=True).tolist() == [3, math.inf]
    assert best_of(values, higher_is_better=False).tolist() == [1, 4]
    assert Psnr.higher_is_better
    assert Ssim.higher_is_better
    assert not Lpips.higher_is_better
    with pytest.raises(InvalidArgumentError, match="NaN"):
        best_of(torch.tensor([[1.0, math.nan]]), True)
    with pytest.raises(InvalidArgumentError, match=r"shape \(2, 0\)"):
        best_of(values[:, :0], True)
