"""The network: what depends on what, its symmetries, and its way to disk and back."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from vidgen import plugins
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from vidgen.shapes.classifier.corruptions import relight, shift
from vidgen.shapes.classifier.loading import BUNDLED, load_classifier
from vidgen.shapes.classifier.network import (
    FEATURES,
    LIGHT_FLOOR,
    Grain,
    HarmonicPool,
    Reading,
    ShapesClassifier,
    unsteadiness,
)
from vidgen.shapes.classifier.targets import NAMES, decode_noise, decode_positions, encode_positions
from vidgen.shapes.scene import MOTIONS
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.video.transforms import to_clip
from vidgen.weights import WEIGHTS


@pytest.fixture(scope="module")
def network() -> ShapesClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ShapesClassifier().eval()


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def reading(network, clips) -> Reading:
    with torch.no_grad():
        return network(clips)


def close(one, other):
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_it_is_small(network):
    number = sum(parameter.numel() for parameter in network.parameters())
    assert number < 250_000  # half a megabyte in half precision


@torch.no_grad()
def test_a_frame_is_described_alone(network, clips, reading):
    assert reading.frame_features.shape == (2, 5, FEATURES)
    for i, k in ((0, 0), (1, 3)):
        close(network.embed_images(clips[i, :, k][None])[0], reading.frame_features[i, k])
    changed = clips.clone()
    changed[0, :, 3] = -changed[0, :, 3]
    other = network(changed)
    same = torch.ones(2, 5, dtype=torch.bool)
    same[0, 3] = False
    close(other.frame_features[same], reading.frame_features[same])
    assert (other.frame_features[0, 3] - reading.frame_features[0, 3]).abs().max() > 1e-2
    assert (other.features[0] - reading.features[0]).abs().max() > 1e-3
    close(other.features[1], reading.features[1])  # videos do not see each other


@torch.no_grad()
def test_images_and_videos_are_placed_by_the_same_head(network, clips, reading):
    images = network.read_images(clips[0].transpose(0, 1))
    close(images.position, reading.position[0])
    close(images.features, reading.frame_features[0])
    assert images.shape.shape == (5, 3)
    assert (images.noise >= 0).all()
    assert (images.blur >= 0).all()


@torch.no_grad()
def test_the_order_of_frames_matters_to_the_features_and_not_to_the_frames(network, clips, reading):
    other = network(clips.flip(2))
    close(other.frame_features.flip(1), reading.frame_features)
    close(other.position.flip(1), reading.position)
    assert (other.features - reading.features).abs().max() > 1e-3


@torch.no_grad()
def test_what_is_said_of_a_video_is_linear_in_its_features(network, reading):
    said = network.video_heads(reading.features).split([len(known) for known in NAMES.values()], dim=1)
    for name, logits in zip(NAMES, said, strict=True):
        close(logits, getattr(reading, name))


@torch.no_grad()
def test_numbers_stand_among_the_features_so_that_distances_react_to_them(network, reading, clips):
    features = reading.features
    close(decode_noise(features[:, 4] / 4), reading.noise)
    close((features[:, 5] / 4 * 2.0).clamp_min(0), reading.blur)
    close((features[:, 6] / 4 * 0.1).clamp_min(0), reading.speed)
    close((features[:, 7] / 4 * 0.1).clamp_min(0), reading.roughness)
    close((features[:, 8] / 4 * 0.4).clamp_min(0), reading.flicker)
    close(decode_positions(reading.frame_features[..., :4]), reading.position)
    images = network.read_images(clips[0].transpose(0, 1))
    close(decode_noise(images.features[:, 4] / 4), images.noise)
    close((images.features[:, 5] / 4 * 2.0).clamp_min(0), images.blur)


@torch.no_grad()
def test_the_frame_is_a_torus(network, clips):
    """A picture that moves by a whole cell gives the same map, moved; the mean over it is the same."""
    frames, encoder = clips[:, :, 0], network.frames

    def seen(pictures):
        return encoder.late(encoder.middle(encoder.stem(pictures)))

    moved = frames.roll((8, 16), (2, 3))
    close(seen(moved), seen(frames).roll((1, 2), (2, 3)))
    close(encoder.grain(moved), encoder.grain(frames))


@torch.no_grad()
def test_grain_tells_the_strength_of_noise_on_even_ground_of_any_colour():
    grain = Grain(4)
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    tiny, even = 0.01, torch.tensor([0.9, -0.3, 0.1])[None, :, None, None]
    for ground in (0.0, even):
        close(grain(ground + torch.zeros(1, 3, 32, 32)), torch.full((1, 8), math.log(tiny) / 2))
    # Four times the noise: the logarithms grow by log 4, halved, where noise is well above the floor.
    grown = grain(even + 40 * noise) - grain(10 * noise)
    torch.testing.assert_close(grown, torch.full((1, 8), math.log(4) / 2), atol=0.02, rtol=0)


def test_constant_light_is_steady_also_in_the_dark():
    still = torch.rand(2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    still = torch.cat([still, -torch.ones(1, 3, 1, 16, 16)]).expand(-1, -1, 9, -1, -1)
    torch.testing.assert_close(unsteadiness(still), torch.full((3, 3), 4e-3), atol=1e-3, rtol=0)


def test_unsteadiness_of_known_gains_is_four_times_the_deviation_of_their_logarithms():
    generator = torch.Generator().manual_seed(4)
    gain = torch.rand(2, 12, generator=generator, dtype=torch.float64) * 0.5 + 0.25
    still = torch.rand(2, 3, 1, 16, 16, generator=generator, dtype=torch.float64) * 2 - 1
    clips = still.expand(-1, -1, 12, -1, -1)
    found = unsteadiness(relight(clips, gain))
    light = (clips[:, :, 0] + 1).mean((2, 3)) / 2
    exact = 4 * (gain[:, None] * light[:, :, None] + LIGHT_FLOOR).log().std(2, correction=0)
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=0)
    # The floor takes its share of the light: with it left out, the gains alone decide.
    alone = 4 * gain.log().std(1, correction=0)[:, None].expand(2, 3)
    torch.testing.assert_close(found.double(), alone, atol=0, rtol=0.12)
    assert (found.double() < alone).all()


def test_each_colour_has_a_light_of_its_own():
    clips = torch.zeros(1, 3, 8, 16, 16)
    clips[:, 1, ::2] = -0.9
    steady, changing, other = unsteadiness(clips)[0].tolist()
    assert steady == other < 0.01
    half = math.log((0.5 + LIGHT_FLOOR) / (0.05 + LIGHT_FLOOR)) / 2  # two values, equally often
    assert changing == pytest.approx(4 * half, rel=1e-4)


@torch.no_grad()
def test_neither_place_nor_motion_nor_noise_is_taken_for_a_change_of_light():
    """Far less than a flicker of a twentieth, for every motion, in drawn videos."""
    data = ShapesDataset(40, 16, seed=3)
    known = {data.scene(i).specs[0].motion: i for i in range(40)}
    assert set(known) == set(MOTIONS)
    clips = torch.stack([to_clip(data.render(i, range(16))) for i in known.values()])
    generator = torch.Generator().manual_seed(5)
    jumps = torch.randint(-64, 64, (len(clips), 16, 2), generator=generator)
    noise = 0.1 * torch.randn(clips.shape, generator=generator)
    gain = 1 + 0.05 * torch.randn(len(clips), 16, generator=generator)
    seen = unsteadiness(clips)
    torch.testing.assert_close(unsteadiness(shift(clips, jumps)), seen, atol=1e-3, rtol=0)
    flicker = unsteadiness(relight(clips, gain)).amin()
    assert seen.amax() < flicker / 4
    assert unsteadiness((clips + noise).clamp(-1, 1)).amax() < flicker / 2


@torch.no_grad()
def test_videos_are_described_by_their_light_too(network, tmp_path):
    """With nothing else let through, the features are a linear map of it."""
    blind = load_classifier_copy(network, tmp_path)
    blind.summary.weight[:, :-3] = 0
    clips = torch.rand(2, 3, 6, 16, 16, generator=torch.Generator().manual_seed(6)) * 2 - 1
    lit = relight(clips, torch.tensor([[1.0, 0.5, 1.0, 0.5, 1.0, 0.5], [1.0] * 6]))
    expected = unsteadiness(lit) @ blind.summary.weight[:, -3:].T + blind.summary.bias
    close(blind(lit).features, expected)


def test_harmonics_say_where_a_channel_is_active():
    maps = torch.zeros(1, 2, 4, 8)
    maps[0, 1, 3, 2] = 32.0  # the mean over the map is 1
    pooled = HarmonicPool()(maps)[0].view(5, 2)
    assert pooled[:, 0].abs().max() == 0
    place = encode_positions(torch.tensor([2.5 / 8, 3.5 / 4]))
    assert float(pooled[0, 1]) == pytest.approx(1)
    gain = pooled[1:, 1].norm() / math.sqrt(2)
    torch.testing.assert_close(pooled[1:, 1] / gain, place)
    # A channel that is active everywhere is nowhere in particular.
    even = HarmonicPool()(torch.ones(1, 2, 4, 8))[0].view(5, 2)
    torch.testing.assert_close(even[1:], torch.zeros(4, 2), atol=1e-6, rtol=0)


@torch.no_grad()
def test_names_are_those_of_the_largest_logits(network, clips):
    (said, other), reading = network.read(clips), network(clips)
    for name, known in NAMES.items():
        assert getattr(said, name) == known[int(getattr(reading, name)[0].argmax())]
        assert getattr(other, name) == known[int(getattr(reading, name)[1].argmax())]


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 3, 2, 16, 48), (2, 3, 9, 64, 64)])
def test_any_length_and_any_size_of_whole_cells(network, shape):
    reading = network(torch.zeros(shape))
    assert reading.features.shape == (shape[0], FEATURES)
    assert reading.position.shape == (shape[0], shape[2], 2)
    assert torch.isfinite(reading.features).all()


@pytest.mark.parametrize(
    "shape", [(3, 4, 16, 16), (1, 1, 4, 16, 16), (1, 3, 1, 16, 16), (1, 3, 4, 20, 16), (1, 3, 4, 16, 60)]
)
def test_what_it_cannot_read_is_refused(network, shape):
    with pytest.raises(InvalidArgumentError, match="expected"):
        network(torch.zeros(shape))


def test_single_pictures_of_another_form_are_refused(network):
    with pytest.raises(InvalidArgumentError, match="multiples of 8"):
        network.embed_images(torch.zeros(1, 3, 20, 16))


@torch.no_grad()
def test_saved_and_loaded_bitwise(network, clips, reading, tmp_path):
    network.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", WEIGHTS}
    state = torch.get_rng_state()
    ours = load_classifier(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    for loaded in (ours, ShapesClassifier.from_pretrained(tmp_path, use_safetensors=True)):
        assert not loaded.training
        assert torch.equal(loaded(clips).features, reading.features)
        assert tuple(loaded.config["widths"]) == tuple(network.config["widths"])


@torch.no_grad()
def test_half_precision_weights_load_in_float32(network, clips, reading, tmp_path):
    half = load_classifier_copy(network, tmp_path / "full").half()
    half.save_pretrained(tmp_path / "half")
    size = (tmp_path / "half" / WEIGHTS).stat().st_size
    assert size < 520_000
    loaded = load_classifier(tmp_path / "half")
    for name, value in load_file(tmp_path / "half" / WEIGHTS).items():
        assert value.dtype == torch.float16
        assert torch.equal(loaded.state_dict()[name], value.float())
    away = (loaded(clips).features - reading.features).norm() / reading.features.norm()
    assert 0 < float(away) < 5e-3
    same = half(clips)  # and as they are: codes are float32 all the same
    assert same.features.dtype == torch.float16
    assert same.noise.dtype == torch.float32


def load_classifier_copy(network: ShapesClassifier, folder) -> ShapesClassifier:
    network.save_pretrained(folder)
    return load_classifier(folder)


def test_bundled_by_name_or_within_a_checkpoint(network, tmp_path, monkeypatch):
    network.save_pretrained(tmp_path / "model" / "classifier")
    monkeypatch.setattr(plugins, "model_folder", {BUNDLED: tmp_path / "model"}.__getitem__)
    one, two = load_classifier(), load_classifier(str(tmp_path / "model"))
    for name, value in network.state_dict().items():
        assert torch.equal(one.state_dict()[name], value)
        assert torch.equal(two.state_dict()[name], value)


def test_what_is_no_classifier_is_refused(network, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown model 'shapes/clasifier'"):
        load_classifier("shapes/clasifier")
    with pytest.raises(CheckpointError, match="no folder"):
        load_classifier(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_classifier(tmp_path)
    network.save_pretrained(tmp_path)
    weights = tmp_path / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_classifier(tmp_path)
    weights.rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is missing"):
        load_classifier(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    with pytest.raises(CheckpointError, match="UNet2DModel"):
        load_classifier(tmp_path)
    network.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"widths": [7, 8, 8]}))
    with pytest.raises(CheckpointError, match="does not describe a ShapesClassifier"):
        load_classifier(tmp_path)
