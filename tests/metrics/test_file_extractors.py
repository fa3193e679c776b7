"""TorchScript files and state dicts from disk as extractors, and the files that are refused."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from vidgen.metrics.extractors.files import StateDictExtractor, TorchScriptExtractor
from vidgen.metrics.extractors.preprocessing import Preprocessing


class Net(nn.Module):
    """Pooled colours through a linear layer; with dropout, which must be off."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, rescale: bool = False, maps: bool = False) -> Tensor:
        if rescale:
            x = x / 127.5 - 1
        values = self.dropout(self.linear(x.mean((2, 3, 4))))
        return values[:, :, None, None] if maps else values


class Frames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.amax((2, 3))).softmax(1)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.linear(x.mean((2, 3, 4)))
        return logits.softmax(1), logits


def net(kind: type[nn.Module] = Net, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind()


def script(module: nn.Module, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), str(file))
    return file


def weights(module: nn.Module, file: Path) -> Path:
    save_file(dict(module.state_dict()), file)
    return file


def clips(batch: int = 5, frames: int = 3) -> Tensor:
    return torch.rand(batch, 3, frames, 6, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1


def expected(module: nn.Module, given: Tensor) -> Tensor:
    means = given.double().mean((2, 3, 4))
    return means @ module.linear.weight.double().T + module.linear.bias.double()


def test_torchscript_gives_the_networks_features_in_evaluation_mode(tmp_path: Path) -> None:
    module, given = net(), clips()
    before = given.clone()
    extractor = TorchScriptExtractor(script(module, tmp_path / "n.pt"), "net", Preprocessing(), chunk=2)
    found = extractor.extract(given)
    torch.testing.assert_close(found.values.double(), expected(module, given), atol=1e-6, rtol=1e-5)
    assert found.logits is None
    assert torch.equal(given, before)
    assert not found.values.requires_grad
    assert extractor.device == torch.device("cpu")
    assert extractor.to("cpu") is extractor


def test_arguments_reach_the_network_and_pooled_maps_are_flattened(tmp_path: Path) -> None:
    module, given = net(), clips()
    extractor = TorchScriptExtractor(
        script(module, tmp_path / "n.pt"),
        "net",
        Preprocessing(value_range=(0, 255)),
        arguments={"rescale": True, "maps": True},
        output="logits",
    )
    found = extractor.extract(given)
    torch.testing.assert_close(found.values.double(), expected(module, given), atol=1e-5, rtol=1e-5)
    assert found.logits is not None
    assert torch.equal(found.logits, found.values)


def test_probabilities_of_single_frames_become_logits(tmp_path: Path) -> None:
    module, given = net(Frames), clips(2, 3)
    preprocessing = Preprocessing(layout="(b f) c h w")
    extractor = TorchScriptExtractor(
        script(module, tmp_path / "f.pt"), "frames", preprocessing, output="probabilities", chunk=4
    )
    found = extractor.extract(given)
    assert extractor.per_frame
    frames = given.transpose(1, 2).reshape(6, 3, 6, 6)  # in the order (video, frame)
    raw = frames.amax((2, 3)) @ module.linear.weight.T + module.linear.bias
    assert found.logits is not None
    torch.testing.assert_close(found.logits, raw.log_softmax(1))
    torch.testing.assert_close(found.values, raw.softmax(1))


def test_a_part_of_the_output_is_selected_by_name_or_index(tmp_path: Path) -> None:
    module, given = net(Parts), clips()
    file = script(module, tmp_path / "p.pt")
    extractor = TorchScriptExtractor(file, "parts", Preprocessing(), output="logits", select=1)
    torch.testing.assert_close(extractor.extract(given).values.double(), expected(module, given))
    with pytest.raises(InvalidArgumentError, match="`select`"):
        TorchScriptExtractor(file, "parts", Preprocessing()).extract(given)
    with pytest.raises(InvalidArgumentError, match="select=7"):
        TorchScriptExtractor(file, "parts", Preprocessing(), select=7).extract(given)


def test_a_state_dict_fills_a_module_of_ones_own(tmp_path: Path) -> None:
    file, given = weights(net(), tmp_path / "w.safetensors"), clips()
    other = net(seed=5)
    extractor = StateDictExtractor(other, file, "net", Preprocessing(), arguments={"rescale": False})
    torch.testing.assert_close(extractor.extract(given).values.double(), expected(net(), given))
    assert not any(parameter.requires_grad for parameter in other.parameters())
    assert not other.training


def test_a_safetensors_file_that_starts_like_a_pickle_is_read(tmp_path: Path) -> None:
    for length in range(40):  # the first byte is the low byte of the header's length
        save_file(dict(net().state_dict()), tmp_path / "w.safetensors", metadata={"note": "x" * 8 * length})
        if (tmp_path / "w.safetensors").read_bytes()[0] == 0x80:
            break
    assert (tmp_path / "w.safetensors").read_bytes()[0] == 0x80
    StateDictExtractor(net(seed=5), tmp_path / "w.safetensors", "net", Preprocessing())


def test_fingerprints_tell_apart_all_that_decides_the_features(tmp_path: Path) -> None:
    first, second = script(net(), tmp_path / "a.pt"), script(net(seed=1), tmp_path / "b.pt")
    plain = TorchScriptExtractor(first, "net", Preprocessing())
    others = [
        TorchScriptExtractor(second, "net", Preprocessing()),
        TorchScriptExtractor(first, "net_2", Preprocessing()),
        TorchScriptExtractor(first, "net", Preprocessing(size=4)),
        TorchScriptExtractor(first, "net", Preprocessing(), arguments={"rescale": True}),
        TorchScriptExtractor(first, "net", Preprocessing(), output="logits"),
        TorchScriptExtractor(first, "net", Preprocessing(), select=0),
        StateDictExtractor(net(), weights(net(), tmp_path / "a.safetensors"), "net", Preprocessing()),
        StateDictExtractor(net(), weights(net(seed=1), tmp_path / "b.safetensors"), "net", Preprocessing()),
    ]
    prints = [json.dumps(extractor.fingerprint(), sort_keys=True) for extractor in [plain, *others]]
    assert len(set(prints)) == len(prints)
    again = TorchScriptExtractor(first, "net", Preprocessing(), chunk=1)
    assert again.fingerprint() == plain.fingerprint()  # memory, not meaning


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "zip.pt")
    torch.save(net().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    for name in ("zip.pt", "old.pt", "plain.pkl"):
        with pytest.raises(CheckpointError, match=r"is a pickle.*safetensors\.torch\.save_file"):
            TorchScriptExtractor(tmp_path / name, "net", Preprocessing())
        with pytest.raises(CheckpointError, match=r"is a pickle.*safetensors\.torch\.save_file"):
            StateDictExtractor(net(), tmp_path / name, "net", Preprocessing())


def test_files_that_are_missing_damaged_or_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        TorchScriptExtractor(tmp_path / "none.pt", "net", Preprocessing())
    with pytest.raises(CheckpointError, match="is missing"):
        StateDictExtractor(net(), tmp_path / "none.safetensors", "net", Preprocessing())
    file = weights(net(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="StateDictExtractor"):
        TorchScriptExtractor(file, "net", Preprocessing())
    with pytest.raises(CheckpointError, match="does not fit Frames"):
        StateDictExtractor(Frames(), file, "net", Preprocessing())
    whole = script(net(), tmp_path / "n.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="no TorchScript"):
        TorchScriptExtractor(tmp_path / "cut.pt", "net", Preprocessing())


def test_wrong_uses_are_refused_and_say_what_to_do(tmp_path: Path) -> None:
    file = script(net(), tmp_path / "n.pt")
    with pytest.raises(UnknownNameError, match="logits"):
        TorchScriptExtractor(file, "net", Preprocessing(), output="logit")
    with pytest.raises(InvalidArgumentError, match="JSON"):
        TorchScriptExtractor(file, "net", Preprocessing(), arguments={"x": object()})
    with pytest.raises(InvalidArgumentError, match="letters, digits"):
        TorchScriptExtractor(file, "fvd/net", Preprocessing())
    with pytest.raises(InvalidArgumentError, match="chunk is 0"):
        TorchScriptExtractor(file, "net", Preprocessing(), chunk=0)
    with pytest.raises(InvalidArgumentError, match=r"sharpen.*`arguments`"):
        TorchScriptExtractor(file, "net", Preprocessing(), arguments={"sharpen": True}).extract(clips())
    with pytest.raises(InvalidArgumentError, match=r"3 frames.*needs 4"):
        TorchScriptExtractor(file, "net", Preprocessing(), min_frames=4).extract(clips())
    with pytest.raises(InvalidArgumentError, match=r"3 frames.*needs 8"):
        TorchScriptExtractor(file, "net", Preprocessing(num_frames=8)).extract(clips())


def test_features_that_are_no_rows_of_finite_numbers_are_refused(tmp_path: Path) -> None:
    module = net()
    most = torch.finfo(torch.float32).max  # finite itself: of two sums of opposite sign one is not
    module.linear.weight.data[:2] = torch.tensor([[most], [-most]])
    module.linear.bias.data[:2] = most
    broken = StateDictExtractor(net(), weights(module, tmp_path / "w.safetensors"), "net", Preprocessing())
    with pytest.raises(InvalidArgumentError, match="not all finite"):
        broken.extract(clips())
    module.linear.bias.data[0] = float("inf")
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        StateDictExtractor(net(), weights(module, tmp_path / "w.safetensors"), "net", Preprocessing())
    conv = nn.Conv3d(3, 2, 1)
    save_file(dict(conv.state_dict()), tmp_path / "c.safetensors")
    with pytest.raises(InvalidArgumentError, match=r"shape \(5, 2, 3, 6, 6\)"):
        StateDictExtractor(conv, tmp_path / "c.safetensors", "conv", Preprocessing()).extract(clips())
