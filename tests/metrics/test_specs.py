"""Extractors by a line of text, and the judge around the classifier."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import nn

from fake_metrics import PixelExtractor
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from vidgen.metrics import specs
from vidgen.metrics.extractors import shapes
from vidgen.metrics.prompts import PromptCounter
from vidgen.shapes.classifier import ShapesClassifier


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return ShapesClassifier(widths=(8, 8, 16), path_width=8).eval()


def clips(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Means(nn.Module):
    def forward(self, pixels):
        return pixels.mean(dim=(2, 3, 4))


@pytest.fixture
def script(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Means()).save(str(tmp_path / "net.pt"))
    return tmp_path / "net.pt"


def test_a_torchscript_file_with_its_declaration(script):
    pixels = {"size": 8, "value_range": [0, 255], "layout": "b c f h w"}
    declared = {"name": "means", "preprocessing": pixels, "output": "logits", "min_frames": 2}
    script.with_name("net.pt.json").write_text(json.dumps(declared))
    extractor = specs.open_extractor(f"torchscript:{script}")
    assert (extractor.name, extractor.min_frames) == ("means", 2)
    batch = clips(2, 3, 4, 8, 8)
    found = extractor.extract(batch)
    torch.testing.assert_close(found.values, (batch.mean(dim=(2, 3, 4)) + 1) * 127.5, rtol=1e-5, atol=1e-4)
    assert found.logits is not None


def test_a_torchscript_file_must_be_declared(script):
    with pytest.raises(CheckpointError, match=r"net.pt.json cannot be read .*preprocessing"):
        specs.open_extractor(f"torchscript:{script}")
    beside = script.with_name("net.pt.json")
    for fields in ({"name": "a"}, {"name": "a", "preprocessing": {}, "odd": 1}, {"preprocessing": {}}):
        beside.write_text(json.dumps(fields))
        with pytest.raises(InvalidArgumentError, match="declares no TorchScript extractor"):
            specs.open_extractor(f"torchscript:{script}")
    beside.write_text("[]")
    with pytest.raises(CheckpointError, match="cannot be read"):
        specs.open_extractor(f"torchscript:{script}")


def test_the_bundled_classifier(classifier, monkeypatch):
    monkeypatch.setattr(shapes, "load_classifier", lambda: classifier)
    videos, frames = specs.open_extractor("shapes"), specs.open_extractor("shapes_frames")
    assert (videos.name, videos.per_frame) == ("shapes_v1", False)
    assert (frames.name, frames.per_frame) == ("shapes_frames_v1", True)


@pytest.mark.parametrize(
    ("spec", "builder", "place", "options"),
    [
        ("i3d:a/b.safetensors", "i3d_extractor", "a/b.safetensors", {}),
        ("i3d:b,classes=600,features=pooled", "i3d_extractor", "b", {"classes": 600, "features": "pooled"}),
        ("videomae:MCG/base,name=mae", "VideoMAEExtractor", "MCG/base", {"name": "mae"}),
        ("clip:folder", "HubClip", "folder", {}),
        ("clip:folder,name=2024", "HubClip", "folder", {"name": "2024"}),
        ("clip:folder,truncate=true", "HubClip", "folder", {"truncate": True}),
        ("open_clip:x,truncate=false", "OpenClip", "x", {"truncate": False}),
        ("open_clip:hf-hub:org/x,name=y", "OpenClip", "hf-hub:org/x", {"name": "y"}),
        (
            "open_clip:ViT-B-32,pretrained=w.safetensors",
            "OpenClip",
            "ViT-B-32",
            {"pretrained": "w.safetensors"},
        ),
    ],
)
def test_places_and_options_reach_the_builder(monkeypatch, spec, builder, place, options):
    calls = []

    class Built(PixelExtractor):
        def to(self, device):
            calls.append(str(device))
            return self

    def build(where, **given):
        calls.append((where, given))
        return Built("built")

    monkeypatch.setattr(specs, builder, build)
    monkeypatch.setattr(specs, "ClipExtractor", lambda model: model)
    kind = spec.partition(":")[0]
    if kind in ("i3d", "videomae"):  # the table holds these themselves
        allowed, needs_place, _ = specs.KINDS[kind]
        monkeypatch.setitem(specs.KINDS, kind, (allowed, needs_place, build))
    extractor = specs.open_extractor(spec)
    assert extractor.name == "built"
    assert calls == [(place, options), "cpu"]


def test_unusable_specs_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'i3d'"):
        specs.open_extractor("i3dd:file")
    with pytest.raises(InvalidArgumentError, match="expected i3d:PLACE"):
        specs.open_extractor("i3d")
    with pytest.raises(InvalidArgumentError, match="expected shapes"):
        specs.open_extractor("shapes:folder")
    with pytest.raises(InvalidArgumentError, match=r"'size=3' .*expected classes=..., features=..."):
        specs.open_extractor("i3d:file,size=3")
    with pytest.raises(InvalidArgumentError, match=r"'a' .*no options"):
        specs.open_extractor("shapes,a")


def test_the_judge_reads_videos_at_the_side_it_learnt(classifier):
    judge = specs.shapes_judge(classifier)
    small = clips(2, 3, 8, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(judge.read(small).motion, classifier(small).motion)
        assert judge.read(clips(2, 3, 8, 30, 50)).position.shape == (2, 8, 2)
    assert judge.name == "shapes_v1"
    assert set(judge.fingerprint) == {"name", "weights", "preprocessing"}
    other = ShapesClassifier(widths=(8, 16, 16), path_width=8)
    assert specs.shapes_judge(other).fingerprint["weights"] != judge.fingerprint["weights"]


def test_the_judge_says_from_where_on_it_tells_motions_apart(classifier):
    assert specs.shapes_judge(classifier).motion_frames == 8
    assert shapes.ShapesExtractor(classifier).min_frames == 8


def test_the_judge_reads_single_frames_as_pictures(classifier):
    frames = clips(3, 3, 1, 64, 64)
    with torch.no_grad():
        reading = specs.shapes_judge(classifier).read(frames)
        torch.testing.assert_close(reading.colour, classifier.read_images(frames[:, :, 0]).colour)
    counter = PromptCounter(motion=False)
    counter.update(reading, ["a red circle moves left"] * 3)
    assert counter.result().shares["all"].n == 3


def test_the_judge_is_a_copy(classifier):
    judge = specs.shapes_judge(classifier)
    batch = clips(1, 3, 8, 64, 64)
    with torch.no_grad():
        before = judge.read(batch).motion
        parameter = next(classifier.parameters())
        kept = parameter.clone()
        parameter.add_(1)
        torch.testing.assert_close(judge.read(batch).motion, before)
        parameter.copy_(kept)


def test_whether_captions_are_cut_is_true_or_false():
    with pytest.raises(InvalidArgumentError, match=r"'truncate=yes' .*expected true or false"):
        specs.open_extractor("clip:folder,truncate=yes")


def test_a_number_of_classes_is_a_number():
    with pytest.raises(InvalidArgumentError, match=r"'classes=k400' in the extractor .* as in classes=600"):
        specs.open_extractor("i3d:weights.safetensors,classes=k400")
