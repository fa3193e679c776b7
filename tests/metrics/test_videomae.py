"""VideoMAE from a folder: features, logits, what the checkpoint says of pixels, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidgen.errors import CheckpointError, InvalidArgumentError
from vidgen.metrics.extractors.preprocessing import Preprocessing
from vidgen.metrics.extractors.videomae import VideoMAEExtractor

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def save(folder: Path, kind: str, seed: int = 0, **changes: Any) -> Path:
    """A tiny random VideoMAE of 4 frames of 16 x 16, as transformers saves it."""
    fields = {"image_size": 16, "patch_size": 8, "num_frames": 4, "hidden_size": 16, "num_hidden_layers": 2}
    fields |= {"num_attention_heads": 2, "intermediate_size": 32, "num_labels": 5, "layer_norm_eps": 1e-5}
    fields |= {"decoder_num_hidden_layers": 1, "decoder_hidden_size": 8, "decoder_num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = getattr(transformers, kind)(transformers.VideoMAEConfig(**fields | changes))
        for parameter in network.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    processor = {"image_mean": MEAN, "image_std": STD, "image_processor_type": "VideoMAEImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def clips(batch: int = 3, frames: int = 4, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def normalised(given: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).reshape(3, 1, 1, 1) for v in (MEAN, STD))
    return (((given + 1) / 2 - mean) / std).transpose(1, 2)


@torch.no_grad()
def test_a_classifiers_features_are_those_its_logits_are_read_from(tmp_path: Path) -> None:
    folder, given = save(tmp_path / "kinetics", "VideoMAEForVideoClassification"), clips()
    before = given.clone()
    extractor = VideoMAEExtractor(folder, chunk=2)
    found = extractor.extract(given)
    network = transformers.VideoMAEForVideoClassification.from_pretrained(folder).eval()
    out = network(normalised(given))
    assert found.logits is not None
    torch.testing.assert_close(found.logits, out.logits, atol=1e-5, rtol=1e-5)
    mean = network.videomae(normalised(given)).last_hidden_state.mean(1)
    torch.testing.assert_close(found.values, network.fc_norm(mean), atol=1e-5, rtol=1e-5)
    assert torch.equal(given, before)
    assert extractor.name == "videomae_kinetics"
    assert extractor.min_frames == 4
    assert extractor.to("cpu").device == torch.device("cpu")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["VideoMAEModel", "VideoMAEForPreTraining"])
def test_without_a_classifier_features_are_the_mean_of_the_last_hidden_state(tmp_path: Path, kind: str) -> None:
    folder, given = save(tmp_path / "videomae-base", kind, use_mean_pooling=False), clips()
    extractor = VideoMAEExtractor(folder)
    found = extractor.extract(given)
    network = transformers.VideoMAEModel.from_pretrained(folder).eval()
    expected = network(normalised(given)).last_hidden_state.mean(1)
    torch.testing.assert_close(found.values, expected, atol=1e-5, rtol=1e-5)
    assert found.logits is None
    assert extractor.name == "videomae_base"


@torch.no_grad()
def test_a_classifier_of_the_first_token(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", "VideoMAEForVideoClassification", use_mean_pooling=False)
    found = VideoMAEExtractor(folder).extract(clips())
    network = transformers.VideoMAEForVideoClassification.from_pretrained(folder).eval()
    assert found.logits is not None
    torch.testing.assert_close(found.logits, network(normalised(clips())).logits, atol=1e-5, rtol=1e-5)
    tokens = network.videomae(normalised(clips())).last_hidden_state
    torch.testing.assert_close(found.values, tokens.mean(1), atol=1e-5, rtol=1e-5)


def test_larger_and_longer_clips_are_cropped_to_what_the_checkpoint_says(tmp_path: Path) -> None:
    folder, given = save(tmp_path / "m", "VideoMAEModel"), clips(1, 7, 16, 24)
    extractor = VideoMAEExtractor(folder)
    torch.testing.assert_close(
        extractor.extract(given).values, extractor.extract(given[:, :, :4, :, 4:20]).values
    )
    declared = extractor.preprocessing
    assert (declared.size, declared.resize, declared.antialias) == (16, "crop", True)
    with pytest.raises(InvalidArgumentError, match=r"3 frames.*needs 4"):
        extractor.extract(clips(1, 3))


def test_half_precision_weights_compute_in_float32(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", "VideoMAEModel")
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v.half() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    extractor = VideoMAEExtractor(folder)
    assert {p.dtype for p in extractor.network.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in extractor.network.parameters())


def test_fingerprints_differ_by_weights_and_pixels(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a" / "m", "VideoMAEModel"), save(tmp_path / "b" / "m", "VideoMAEModel", seed=1)
    squashed = Preprocessing(size=16, layout="b f c h w", num_frames=4)
    found = [
        VideoMAEExtractor(one).fingerprint(),
        VideoMAEExtractor(two).fingerprint(),
        VideoMAEExtractor(one, preprocessing=squashed).fingerprint(),
    ]
    assert len({json.dumps(f, sort_keys=True) for f in found}) == 3
    assert found[0] == VideoMAEExtractor(one, chunk=1).fingerprint()


def test_loading_moves_no_random_state(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", "VideoMAEModel")
    before = torch.random.get_rng_state()
    VideoMAEExtractor(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_missing_is_never_made_up(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        VideoMAEExtractor(tmp_path / "none")
    folder = save(tmp_path / "m", "VideoMAEForVideoClassification")
    tensors = load_file(folder / "model.safetensors")
    del tensors["fc_norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no fitting weights for fc_norm\.weight.*stay random"):
        VideoMAEExtractor(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights"):
        VideoMAEExtractor(folder)


def test_pixels_are_normalised_as_the_checkpoint_says_or_not_at_all(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", "VideoMAEModel")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json.*`preprocessing`"):
        VideoMAEExtractor(folder)
    VideoMAEExtractor(folder, preprocessing=Preprocessing(size=16, layout="b f c h w", num_frames=4))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.save_pretrained(tmp_path / "vit")
    with pytest.raises(CheckpointError, match=r"'vit'.*'videomae'"):
        VideoMAEExtractor(tmp_path / "vit")
