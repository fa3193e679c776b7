from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import torch

from vidgen.conditioning import TextEncoder, VocabularyEncoder, split_words, vocabulary
from vidgen.errors import InvalidArgumentError

CAPTIONS = ["a red circle moves left", "A blue square, bounces", "a well-known red square"]


@pytest.fixture
def encoder() -> VocabularyEncoder:
    torch.manual_seed(0)
    words = vocabulary(CAPTIONS)
    return VocabularyEncoder(words, width=16, layers=1, heads=2, max_words=6).eval()


def test_vocabulary_is_the_sorted_words() -> None:
    words = vocabulary(iter(CAPTIONS))
    assert words == sorted(["a", "red", "circle", "moves", "left", "blue", "square", "bounces", "well-known"])


def test_a_token_knows_the_words_around_it_and_their_order(encoder: VocabularyEncoder) -> None:
    one, other = encoder.encode(["red circle left", "left circle red"])
    assert not torch.allclose(one[2], other[2], atol=1e-3)  # 'circle', at the same place in both


def test_case_and_punctuation_do_not_matter(encoder: VocabularyEncoder) -> None:
    one, other = encoder.encode(["a red square moves", "A red  SQUARE, moves."])
    assert torch.equal(one, other)


def test_embedding_does_not_depend_on_the_batch(encoder: VocabularyEncoder) -> None:
    alone = encoder.encode(["a red circle"])
    among = encoder.encode(["a blue square bounces left", "a red circle", ""])
    assert torch.allclose(alone[0], among[1], atol=1e-5)
    assert alone.shape == (1, 7, 16)


def test_empty_prompt_differs_from_any_prompt(encoder: VocabularyEncoder) -> None:
    empty, red = encoder.encode(["", "red"])
    assert not torch.allclose(empty, red, atol=1e-2)
    assert torch.equal(encoder.encode([""]), encoder.encode(["  "]))


def test_every_parameter_learns(encoder: VocabularyEncoder) -> None:
    encoder.train()
    encoder.encode(CAPTIONS).square().mul(torch.linspace(0, 1, 16)).sum().backward()
    still = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_all_unknown_words_are_named_with_their_nearest(encoder: VocabularyEncoder) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        encoder.encode(["a red cirle", "zzz"])
    message = str(caught.value)
    assert "'cirle' (did you mean 'circle'?)" in message
    assert "'zzz'" in message
    assert "bounces" in message  # the known ones
    assert "'red'" not in message.split("It knows")[0]


def test_too_long_a_prompt_is_refused(encoder: VocabularyEncoder) -> None:
    assert encoder.encode(["red " * 6]).isfinite().all()
    with pytest.raises(InvalidArgumentError, match=r"7 words; this encoder reads up to 6"):
        encoder.encode(["red " * 7])


@pytest.mark.parametrize(
    "wrong",
    [
        {"words": ["b", "a"]},
        {"words": ["A"]},
        {"words": ["two words"]},
        {"words": ["a"], "width": 10, "heads": 4},
        {"words": ["a"], "max_words": 0},
    ],
)
def test_unusable_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        VocabularyEncoder(**wrong)


def test_saves_and_loads_with_its_words(encoder: VocabularyEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    loaded = VocabularyEncoder.from_pretrained(tmp_path, use_safetensors=True)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    assert torch.allclose(loaded.encode(CAPTIONS), encoder.encode(CAPTIONS), atol=1e-5)


def test_check_refuses_what_encode_refuses_without_running_the_network(
    encoder: VocabularyEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "forward", lambda ids: pytest.fail("the network ran"))
    encoder.check(["a red circle", ""])
    with pytest.raises(InvalidArgumentError, match=r"'cirle'.*'zzz'"):
        encoder.check(["a red cirle", "zzz"])
    with pytest.raises(InvalidArgumentError, match="7 words"):
        encoder.check(["red", "red " * 7])


def test_is_a_text_encoder_that_learns(encoder: VocabularyEncoder) -> None:
    assert isinstance(encoder, TextEncoder)
    assert not encoder.frozen
    assert encoder.width == encoder.encode(["red"]).shape[2] == 16


def test_new_words_leave_old_prompts_as_they_are(encoder: VocabularyEncoder, tmp_path: Path) -> None:
    texts = ["a red circle", "", "blue square bounces"]
    before, words = encoder.encode(texts), list(encoder.config.words)
    encoder.requires_grad_(False)
    assert encoder.grow(["A zebra, moves a-b!"], words=["red"]) == ["a-b", "zebra"]
    assert encoder.config.words == sorted([*words, "zebra", "a-b"])
    assert torch.equal(encoder.encode(texts), before)
    assert not any(p.requires_grad for p in encoder.parameters())
    new = encoder.encode(["zebra", "a-b"])
    assert not torch.allclose(new[0], new[1], atol=1e-3)
    encoder.save_pretrained(tmp_path)
    loaded = VocabularyEncoder.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.encode(["zebra moves"]), encoder.encode(["zebra moves"]))
    assert encoder.grow(texts) == []


def test_longer_prompts_are_read_after_growing(encoder: VocabularyEncoder) -> None:
    long = "a red square moves left a blue square"
    with pytest.raises(InvalidArgumentError, match="reads up to 6"):
        encoder.check([long])
    head = encoder.position[:7].clone()
    assert encoder.grow([long]) == []
    assert encoder.encode([long]).shape == (1, 9, 16)
    assert torch.equal(encoder.position[:7], head)
    encoder.grow(max_words=3)  # never less
    assert encoder.config.max_words == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("नीला गोला, नाला", ["नीला", "गोला", "नाला"]),  # Hindi: vowel signs
        ("กินน้ำ กิน", ["กินน้ำ", "กิน"]),  # Thai: vowels and tones above the line
        ("كِتَاب كتاب", ["كِتَاب", "كتاب"]),  # Arabic, with harakat and without
        ("שָׁלוֹם", ["שָׁלוֹם"]),
        ("က္ကူ", ["က္ကူ"]),  # Burmese: stacked letters
        ("می\u200cخواهم", ["می\u200cخواهم"]),  # Persian: a joiner of no width inside a word
        ("x̄ moves", ["x̄", "moves"]),  # a mark for which there is no composed letter
        ("a \u2018quoted\u2019 word", ["a", "quoted", "word"]),
        ("\u2764\ufe0f heart", ["heart"]),  # a mark on no letter is no word
        ("rock-'n'-roll 1,000 x_y a--b", ["rock", "n", "roll", "1", "000", "x_y", "a", "b"]),
    ],
)
def test_words_of_every_script_stay_whole(text: str, words: list[str]) -> None:
    assert split_words(text) == [unicodedata.normalize("NFC", word) for word in words]
    assert split_words(unicodedata.normalize("NFD", text)) == split_words(text)


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("a man\u2019s hat", "a man's hat"),
        ("a man\uff07s hat", "a man's hat"),
        ("п\u02bcять", "п'ять"),
        ("L\u2019\u00c9TE\u0301", "l'été"),
        ("well\u2011known", "well-known"),
        ("well\u2010known", "well-known"),
        ("bal\u00adloon\ufeff", "balloon"),
        ("\u200fשלום\u200e", "שלום"),
    ],
)
def test_a_word_is_the_same_however_it_was_typed(typed: str, plain: str) -> None:
    assert split_words(typed) == split_words(plain) == plain.split()


def test_words_are_words_again() -> None:
    letters = [chr(code) for code in [*range(0x3400), *range(0xA640, 0xAC00), *range(0xF900, 0x10400)]]
    words = split_words(" ".join(f"{letter} a{letter}b" for letter in letters))
    assert split_words(" ".join(words)) == words
    assert split_words(unicodedata.normalize("NFD", " ".join(words))) == words


def test_a_vocabulary_of_earlier_days_keeps_its_meaning(tmp_path: Path) -> None:
    words = ["a", "hat", "man", "s", "न", "ल"]  # of "a man’s hat" and "नीला", as they were parted
    old = VocabularyEncoder(words, width=16, layers=1, heads=2, max_words=4, word_rule=1)
    old.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    assert config.pop("word_rule") == 1
    file.write_text(json.dumps(config))  # as it was written then
    for loaded in (
        VocabularyEncoder.from_pretrained(tmp_path, use_safetensors=True),
        VocabularyEncoder.from_config(VocabularyEncoder.load_config(tmp_path)),
    ):
        assert loaded.tokenize(["a man\u2019s hat", "नीला"]).tolist() == [[1, 2, 4, 5, 3], [1, 6, 7, 0, 0]]
        assert loaded.config.word_rule == 1  # and is saved with it
    new = VocabularyEncoder(words=words, width=16, layers=1, heads=2, max_words=4)
    assert VocabularyEncoder.from_config(new.config).config.word_rule == 2
    with pytest.raises(InvalidArgumentError, match="man's"):
        new.tokenize(["a man\u2019s hat"])
    with pytest.raises(InvalidArgumentError, match="word_rule=3; expected 2"):
        VocabularyEncoder(["a"], word_rule=3)
