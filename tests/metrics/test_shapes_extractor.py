"""The classifier of the shapes data as an extractor, with random weights."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.extractors import ShapesExtractor, ShapesFrameExtractor, shapes
from vidgen.shapes.classifier import ShapesClassifier


def classifier(seed: int = 0) -> ShapesClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ShapesClassifier(widths=(8, 8, 8), path_width=8)
        for parameter in network.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return network


def clips(batch: int = 3, frames: int = 8, size: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, frames, size, size, generator=generator) * 2 - 1


@torch.no_grad()
def test_features_and_the_joint_of_shape_colour_and_motion() -> None:
    network, given = classifier(), clips()
    before = given.clone()
    extractor = ShapesExtractor(network, chunk=2)
    found = extractor.extract(given)
    reading = network.eval()(given)
    torch.testing.assert_close(found.values, reading.features, atol=1e-5, rtol=1e-5)
    assert found.logits is not None
    joint = found.logits.double().exp().reshape(3, 3, 6, 7)
    heads = [getattr(reading, head).double().softmax(1) for head in ("shape", "colour", "motion")]
    expected = torch.einsum("bs,bc,bm->bscm", *heads)
    torch.testing.assert_close(joint, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(given, before)
    assert (extractor.name, extractor.per_frame, extractor.min_frames) == ("shapes_v1", False, 8)


@torch.no_grad()
def test_frames_are_described_one_by_one() -> None:
    network, given = classifier(), clips(2, 3)
    extractor = ShapesFrameExtractor(network, chunk=4)
    found = extractor.extract(given)
    frames = given.transpose(1, 2).reshape(6, 3, 64, 64)
    torch.testing.assert_close(found.values, network.embed_images(frames), atol=1e-5, rtol=1e-5)
    reading = network.read_images(frames)
    assert found.logits is not None
    expected = torch.einsum("ns,nc->nsc", reading.shape.softmax(1), reading.colour.softmax(1)).flatten(1)
    torch.testing.assert_close(found.logits.exp(), expected, atol=1e-5, rtol=1e-5)
    assert (extractor.name, extractor.per_frame) == ("shapes_frames_v1", True)


def test_other_sizes_are_brought_to_those_of_the_training_and_short_clips_refused() -> None:
    extractor, large = ShapesExtractor(classifier()), clips(1, 8, 100)
    small = torch.nn.functional.interpolate(large[0].transpose(0, 1), (64, 64), mode="bilinear", antialias=True)
    found = extractor.extract(large).values
    torch.testing.assert_close(found, extractor.extract(small.transpose(0, 1)[None]).values)
    with pytest.raises(InvalidArgumentError, match=r"7 frames.*needs 8"):
        extractor.extract(clips(1, 7))


def test_the_callers_classifier_goes_on_training_unseen() -> None:
    network, given = classifier().train(), clips(1)
    extractor = ShapesExtractor(network)
    before, print_before = extractor.extract(given).values, extractor.fingerprint()
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    assert torch.equal(extractor.extract(given).values, before)
    assert extractor.fingerprint() == print_before != ShapesExtractor(network).fingerprint()
    assert json.loads(json.dumps(print_before)) == print_before


def test_without_a_classifier_the_bundled_one_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "load_classifier", lambda: classifier(seed=4))
    assert ShapesExtractor().fingerprint() == ShapesExtractor(classifier(seed=4)).fingerprint()
    assert ShapesExtractor().fingerprint() != ShapesExtractor(classifier()).fingerprint()
