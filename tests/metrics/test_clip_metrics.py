"""CLIP of open_clip and of transformers on tiny models: embeddings, CLIPSIM, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiny_clip import TINY, build, of_open_clip
from vidgen.conditioning.clip_pixels import ClipPixels
from vidgen.errors import CheckpointError, InvalidArgumentError
from vidgen.metrics.extractors.clip import ClipExtractor, ClipModel, HubClip, OpenClip, clipsim

NAME = "vidgen-metric"
TEXTS = ["a red circle moves left", "two blue squares"]
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]


def save_hub(folder: Path, seed: int = 0) -> Path:
    """A tiny random CLIP that spells: one token for each letter."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    # From files: transformers 4 makes one of nothing else.
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    common = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text = common | {"vocab_size": len(words), "max_position_embeddings": 24}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config=common | {"image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = transformers.CLIPModel(config)
        for parameter in network.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    processor = {"image_mean": MEAN, "image_std": STD, "image_processor_type": "CLIPImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("open"), NAME, TINY)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hub(tmp_path_factory.mktemp("hub") / "clip-tiny")


@pytest.fixture(scope="module", params=["open_clip", "transformers"])
def model(request: pytest.FixtureRequest, file: Path, hub: Path) -> ClipModel:
    return OpenClip(NAME, file) if request.param == "open_clip" else HubClip(hub)


def clips(batch: int = 2, frames: int = 3, size: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, size, size, generator=generator) * 2 - 1


@torch.no_grad()
def test_open_clips_embeddings_are_its_own(file: Path) -> None:
    model, whole = OpenClip(NAME, file), of_open_clip(NAME, file)
    images = clips(2, 1, 32)[:, :, 0]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    expected = whole.encode_image(((images + 1) / 2 - mean) / std)
    torch.testing.assert_close(model.embed_images(images), expected, atol=1e-5, rtol=1e-5)
    import open_clip

    tokens = open_clip.SimpleTokenizer(context_length=10)(TEXTS)
    torch.testing.assert_close(model.embed_texts(TEXTS), whole.encode_text(tokens), atol=1e-5, rtol=1e-5)
    assert model.name == "clip_vidgen_metric"


@torch.no_grad()
def test_transformers_embeddings_are_its_own(hub: Path) -> None:
    model, network = HubClip(hub), transformers.CLIPModel.from_pretrained(hub).eval()
    images = clips(2, 1, 16)[:, :, 0]
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))
    pixels = ((images + 1) / 2 - mean) / std
    vision = network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(model.embed_images(images), vision, atol=1e-5, rtol=1e-5)
    one_by_one = []  # without any padding
    for text in TEXTS:
        spelt = [[2 + LETTERS.index(letter) for letter in word] for word in text.split()]
        ids = [0, *(i for word in spelt for i in (*word[:-1], word[-1] + len(LETTERS))), 1]
        hidden = network.text_model(input_ids=torch.tensor([ids])).last_hidden_state[:, -1]
        one_by_one.append(network.text_projection(hidden))
    torch.testing.assert_close(model.embed_texts(TEXTS), torch.cat(one_by_one), atol=1e-5, rtol=1e-5)
    assert model.name == "clip_tiny"


def test_frames_are_items_in_the_order_of_videos_whatever_the_chunk(model: ClipModel) -> None:
    given = clips()
    before = given.clone()
    extractor = ClipExtractor(model, chunk=4)
    found = extractor.extract(given)
    frames = given.transpose(1, 2).reshape(6, 3, 20, 20)
    torch.testing.assert_close(found.values, model.embed_images(frames), atol=1e-5, rtol=1e-5)
    assert extractor.per_frame
    assert found.logits is None
    assert extractor.name == model.name
    assert torch.equal(given, before)
    assert not found.values.requires_grad
    assert extractor.to("cpu").device == torch.device("cpu")
    with pytest.raises(InvalidArgumentError, match="reach 254"):
        extractor.extract(given * 255)


def cosines(model: ClipModel, given: Tensor, texts: list[str]) -> list[float]:
    """In float64, a video and a frame at a time."""
    scores = []
    for video, text in zip(given, texts, strict=True):
        word = model.embed_texts([text])[0].double()
        parts = []
        for frame in video.unbind(1):
            image = model.embed_images(frame[None])[0].double()
            parts.append(float(word @ image / (word.norm() * image.norm())))
        scores.append(sum(parts) / len(parts))
    return scores


def test_clipsim_is_the_mean_cosine_of_each_video_with_its_prompt(model: ClipModel) -> None:
    given = clips()
    found = clipsim(given, TEXTS, model, chunk=4)
    expected = cosines(model, given, TEXTS)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    swapped = clipsim(given, TEXTS[::-1], model)
    assert (swapped - found).abs().min() > 1e-3  # the prompts are told apart


def test_clipsim_reads_a_stream_once_and_a_batch_at_a_time(model: ClipModel) -> None:
    batches = [clips(2, 3), clips(1, 5, seed=1)]
    texts = [*TEXTS, "a bee"]
    read = []

    def stream() -> Iterator[Tensor]:
        for batch in batches:
            read.append(len(batch))
            yield batch

    found = clipsim(stream(), iter(texts), model)
    assert read == [2, 1]
    expected = cosines(model, batches[0], TEXTS) + cosines(model, batches[1], ["a bee"])
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_clipsim_refuses_prompts_that_are_not_one_per_video(model: ClipModel) -> None:
    for prompts, message in [(TEXTS[:1], "fewer prompts"), ([*TEXTS, "x"], "more prompts"), ("ab", "the text")]:
        with pytest.raises(InvalidArgumentError, match=message):
            clipsim(clips(), prompts, model)
    with pytest.raises(InvalidArgumentError, match="no videos"):
        clipsim(iter([]), [], model)
    with pytest.raises(InvalidArgumentError, match="chunk is 0"):
        clipsim(clips(), TEXTS, model, chunk=0)


def test_long_prompts_are_refused_or_cut(file: Path, hub: Path) -> None:
    long = "a red circle moves left " * 8
    for kind, source in ((OpenClip, (NAME, file)), (HubClip, (hub,))):
        model = kind(*source)
        for refusing in (model.embed_texts, model.check_texts):
            with pytest.raises(InvalidArgumentError, match="truncate=True"):
                refusing(["a"] * 300 + [long])
        model.check_texts(["a"])
        cut = kind(*source, truncate=True)
        cut.check_texts(["a", long])
        assert cut.embed_texts(["a", long]).isfinite().all()
        assert cut.fingerprint() != kind(*source).fingerprint()


def test_fingerprints_tell_models_apart(file: Path, hub: Path, tmp_path: Path) -> None:
    other = save_hub(tmp_path / "clip-tiny", seed=1)
    found = [
        OpenClip(NAME, file).fingerprint(),
        OpenClip(NAME, file, preprocessing={"resize_mode": "squash"}).fingerprint(),
        HubClip(hub).fingerprint(),
        HubClip(hub, preprocessing=ClipPixels((16, 16), MEAN, STD, "bilinear")).fingerprint(),
        HubClip(other).fingerprint(),
        HubClip(hub, name="clip_mine").fingerprint(),
        ClipExtractor(HubClip(hub)).fingerprint(),
    ]
    assert len({json.dumps(one, sort_keys=True) for one in found}) == len(found)
    assert all(json.loads(json.dumps(one)) == one for one in found)


def test_what_is_missing_is_never_made_up(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        HubClip(tmp_path / "none")
    folder = save_hub(tmp_path / "m")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="mean and std"):
        HubClip(folder)
    whole = load_file(folder / "model.safetensors")
    part = {name: value for name, value in whole.items() if name != "visual_projection.weight"}
    save_file(part, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"visual_projection\.weight.*stay random"):
        HubClip(folder)
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="tokenizer"):
        HubClip(folder)
    (folder / "model.safetensors").unlink()
    torch.save(whole, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights"):
        HubClip(folder)


def test_loading_moves_no_random_state_and_everything_is_frozen(file: Path, hub: Path) -> None:
    before = torch.random.get_rng_state()
    OpenClip(NAME, file)
    network = HubClip(hub).network
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training
