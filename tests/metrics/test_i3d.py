"""I3D against a reference written as plain tensor operations, from files in both published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from vidgen.metrics.extractors.i3d import I3D, i3d_extractor, load_i3d
from vidgen.metrics.extractors.preprocessing import Preprocessing

CLASSES = 400

# Name, stride, kernel, channels in and out of the stem; then channels in and the widths of each block.
STEM = [("Conv3d_1a_7x7", 7, 3, 64), ("Conv3d_2b_1x1", 1, 64, 64), ("Conv3d_2c_3x3", 3, 64, 192)]
BLOCKS = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
OTHER_NAMES = {
    "b0.": "branch_0.",
    "b1a.": "branch_1.0.",
    "b1b.": "branch_1.1.",
    "b2a.": "branch_2.0.",
    "b2b.": "branch_2.1.",
    "b3b.": "branch_3.1.",
    ".bn.": ".batch3d.",
    "Mixed": "mixed",
    "Conv3d_": "conv3d_",
    "logits.": "conv3d_0c_1x1.",
}


def state() -> dict[str, Tensor]:
    """Random weights as pytorch-i3d names them."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}

    def unit(name: str, kernel: int, c_in: int, c_out: int) -> None:
        weight = torch.randn(c_out, c_in, kernel, kernel, kernel, generator=generator)
        found[f"{name}.conv3d.weight"] = weight * (0.5 / (c_in * kernel**3)) ** 0.5
        found[f"{name}.bn.weight"] = torch.rand(c_out, generator=generator) + 0.5
        found[f"{name}.bn.bias"] = torch.randn(c_out, generator=generator) * 0.2
        found[f"{name}.bn.running_mean"] = torch.randn(c_out, generator=generator) * 0.2
        found[f"{name}.bn.running_var"] = torch.rand(c_out, generator=generator) + 0.05
        found[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)

    for name, kernel, c_in, c_out in STEM:
        unit(name, kernel, c_in, c_out)
    for name, (c_in, one, small, three, tiny, five, pooled) in BLOCKS.items():
        unit(f"{name}.b0", 1, c_in, one)
        unit(f"{name}.b1a", 1, c_in, small)
        unit(f"{name}.b1b", 3, small, three)
        unit(f"{name}.b2a", 1, c_in, tiny)
        unit(f"{name}.b2b", 3, tiny, five)
        unit(f"{name}.b3b", 1, c_in, pooled)
    found["logits.conv3d.weight"] = torch.randn(CLASSES, 1024, 1, 1, 1, generator=generator) / 32
    found["logits.conv3d.bias"] = torch.randn(CLASSES, generator=generator)
    return found


def in_the_other_layout(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        for ours, theirs in OTHER_NAMES.items():
            name = name.replace(ours, theirs)
        if not name.endswith("num_batches_tracked"):  # older than that buffer
            renamed[name] = value
    return renamed


def same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Zeros around, axis by axis: all that remains of the kernel once the stride has been served."""
    for axis, (width, step) in enumerate(zip(kernel, stride, strict=True), start=2):
        rest = x.shape[axis] % step
        total = max(width - (rest or step), 0)
        for count, last in ((total // 2, False), (total - total // 2, True)):
            shape = list(x.shape)
            shape[axis] = count
            zeros = x.new_zeros(shape)
            x = torch.cat([x, zeros] if last else [zeros, x], dim=axis)
    return x


def reference(clips: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and pooled features; pools see zeros beyond the edge, which never win after a ReLU."""

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.conv3d.weight"]
        x = functional.conv3d(same(x, tuple(weight.shape[2:]), (stride,) * 3), weight, stride=stride)
        scale, shift, mean, var = (
            weights[f"{name}.bn.{part}"].reshape(-1, 1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return ((x - mean) / (var + 0.001).sqrt() * scale + shift).clamp_min(0)

    def pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
        x = same(x, kernel, stride)
        for axis, (width, step) in enumerate(zip(kernel, stride, strict=True), start=2):
            x = x.unfold(axis, width, step).amax(-1)
        return x

    x = pool(unit(clips, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    for name in BLOCKS:
        if name == "Mixed_4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        parts = [
            unit(x, f"{name}.b0"),
            unit(unit(x, f"{name}.b1a"), f"{name}.b1b"),
            unit(unit(x, f"{name}.b2a"), f"{name}.b2b"),
            unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b"),
        ]
        x = torch.cat(parts, dim=1)
    over_space = x.mean((3, 4))
    windows = torch.stack([over_space[:, :, t : t + 2].mean(2) for t in range(over_space.shape[2] - 1)], dim=2)
    weight, bias = weights["logits.conv3d.weight"][..., 0, 0, 0], weights["logits.conv3d.bias"]
    logits = torch.einsum("kc,bct->bkt", weight, windows) + bias[:, None]
    return logits.mean(2), windows.mean(2)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return state()


@pytest.fixture(scope="module")
def files(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("i3d")
    save_file(weights, folder / "piergiaj.safetensors")
    save_file(in_the_other_layout(weights), folder / "hassony2.safetensors")
    return [folder / "piergiaj.safetensors", folder / "hassony2.safetensors"]


def clips(batch: int, frames: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


@torch.no_grad()
def test_the_network_equals_the_reference_where_every_size_is_odd(
    weights: dict[str, Tensor], files: list[Path]
) -> None:
    given = clips(1, 17, 193, 193)  # 9, 5, 3 frames: two windows in time
    logits, pooled = reference(given, weights)
    assert logits.std() > 0.3
    out = load_i3d(files[0]).eval()(given)
    torch.testing.assert_close(out.logits, logits, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(out.pooled, pooled, atol=2e-5, rtol=2e-5)


def test_the_extractor_resizes_and_gives_the_logits_of_every_video_in_the_other_layout(
    weights: dict[str, Tensor], files: list[Path]
) -> None:
    given = clips(2, 10, 20, 28)
    before = given.clone()
    extractor = i3d_extractor(files[1], preprocessing=Preprocessing(size=193), chunk=1)
    found = extractor.extract(given)
    assert torch.equal(given, before)
    assert found.values.shape == (2, CLASSES)
    assert found.logits is not None
    assert torch.equal(found.logits, found.values)
    assert not found.values.requires_grad
    large = functional.interpolate(given[1].transpose(0, 1), (193, 193), mode="bilinear").transpose(0, 1)
    with torch.no_grad():
        logits, _ = reference(large[None], weights)
    torch.testing.assert_close(found.values[1:], logits, atol=2e-5, rtol=2e-5)


def test_both_layouts_of_the_same_weights_are_one_fingerprint(files: list[Path]) -> None:
    plain = i3d_extractor(files[0])
    assert i3d_extractor(files[1], chunk=1).fingerprint() == plain.fingerprint()
    assert (plain.name, plain.min_frames) == ("i3d_k400", 10)
    assert plain.preprocessing == Preprocessing(size=224, resize="squash", antialias=False)
    pooled = i3d_extractor(files[0], features="pooled")
    assert pooled.name == "i3d_k400_pooled"
    crop = i3d_extractor(files[0], preprocessing=Preprocessing(size=224, resize="crop"))
    prints = [json.dumps(e.fingerprint(), sort_keys=True) for e in (plain, pooled, crop)]
    assert len(set(prints)) == 3
    with pytest.raises(UnknownNameError, match="pooled"):
        i3d_extractor(files[0], features="mixed_5c")


def test_pooled_features_come_with_the_logits(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = i3d_extractor(files[0], features="pooled")
    pooled = torch.rand(1, 1024)
    monkeypatch.setattr(
        I3D, "_maps", lambda self, clips: pooled[..., None, None, None].expand(1, 1024, 2, 7, 7)
    )
    found = extractor.extract(clips(1, 10, 8, 8))
    torch.testing.assert_close(found.values, pooled)
    assert found.logits is not None
    torch.testing.assert_close(found.logits, extractor.network.head(pooled))


def test_loading_moves_no_random_state(files: list[Path]) -> None:
    before = torch.random.get_rng_state()
    load_i3d(files[0])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_names_saved_from_data_parallel_are_understood(
    weights: dict[str, Tensor], files: list[Path], tmp_path: Path
) -> None:
    save_file({f"module.{name}": value for name, value in weights.items()}, tmp_path / "w.safetensors")
    found = load_i3d(tmp_path / "w.safetensors").state_dict()
    expected = load_i3d(files[0]).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_files_that_are_no_whole_i3d_are_refused_by_name(weights: dict[str, Tensor], tmp_path: Path) -> None:
    small = {name: torch.zeros(1) for name in weights}
    file = tmp_path / "w.safetensors"

    def refused(content: dict[str, Tensor], message: str, classes: int = CLASSES) -> None:
        save_file(content, file)
        with pytest.raises(CheckpointError, match=message):
            load_i3d(file, classes)

    refused({"conv1.weight": torch.zeros(1)}, r"no I3D.*pytorch-i3d.*found conv1\.weight")
    missing = {name: value for name, value in small.items() if name != "Mixed_4d.b2b.bn.running_var"}
    refused(missing, r"missing Mixed_4d\.b2b\.bn\.running_var; unexpected nothing")
    refused(small | {"flow.weight": torch.zeros(1)}, r"missing nothing; unexpected flow\.weight")
    refused(weights, "400 classes and 600 were asked for; give classes=400", classes=600)
    bad = weights | {"Mixed_3c.b0.conv3d.weight": torch.zeros(4, 4, 1, 1, 1)}
    refused(bad, r"(?s)does not fit I3D.*mixed\.3c")
    with pytest.raises(CheckpointError, match="is missing"):
        i3d_extractor(tmp_path / "none.safetensors")


def test_sizes_that_the_last_pool_cannot_cover_are_refused(files: list[Path]) -> None:
    network = load_i3d(files[0])
    for shape in [(1, 3, 8, 224, 224), (1, 3, 10, 192, 224), (1, 3, 10, 224, 225)]:
        with pytest.raises(InvalidArgumentError, match=r"193 to 224.*224 x 224"):
            network(torch.zeros(shape))
    with pytest.raises(InvalidArgumentError, match="needs 10"):
        i3d_extractor(files[0]).extract(clips(1, 9, 8, 8))
