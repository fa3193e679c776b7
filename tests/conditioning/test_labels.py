from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vidgen.conditioning import ClassEncoder, TextEncoder
from vidgen.errors import InvalidArgumentError

CLASSES = ("Red circle", "blue square", "7", "0")


@pytest.fixture
def encoder() -> ClassEncoder:
    torch.manual_seed(0)
    return ClassEncoder(CLASSES, width=6)


def test_names_are_found_whatever_their_case_and_spacing(encoder: ClassEncoder) -> None:
    assert encoder.labels(["red circle", " RED  circle ", "Blue Square"]) == [0, 0, 1]


def test_numbers_are_found_and_names_win_over_them(encoder: ClassEncoder) -> None:
    assert encoder.labels(["1", "3", "7", "0"]) == [1, 3, 2, 3]


def test_tokens_are_the_rows_of_the_classes(encoder: ClassEncoder) -> None:
    tokens = encoder.encode(["blue square", "", "red circle", "  "])
    rows = encoder.embedding.weight
    assert torch.equal(tokens, rows[[1, 4, 0, 4]][:, None])
    assert encoder.width == 6
    assert torch.equal(tokens, encoder.encode_labels(torch.tensor([1, -1, 0, -1])))
    assert isinstance(encoder, TextEncoder)
    assert not encoder.frozen


def test_every_class_and_the_null_class_learn(encoder: ClassEncoder) -> None:
    encoder.encode([*CLASSES, ""]).square().sum().backward()
    assert (encoder.embedding.weight.grad.abs().sum(1) > 0).all()


def test_unknown_classes_are_all_named_with_the_nearest_and_the_known(encoder: ClassEncoder) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        encoder.check(["red circle", "blue sqare", "4", "-1", "zzz"])
    message = str(caught.value)
    assert "'blue sqare' (did you mean 'blue square'?)" in message
    assert all(part in message for part in ("'4'", "'-1'", "'zzz'", "red circle, blue square, 7, 0", '"3"'))
    assert "'red circle'" not in message.split("It knows")[0]
    with pytest.raises(InvalidArgumentError, match="zzz"):
        encoder.encode(["zzz"])


def test_a_long_list_of_classes_is_cut() -> None:
    encoder = ClassEncoder([f"class number {i}" for i in range(1000)], width=2)
    with pytest.raises(InvalidArgumentError, match=r"class number 99, and 900 more") as caught:
        encoder.check(["klass number 999"])
    assert "did you mean 'class number 999'" in str(caught.value)


@pytest.mark.parametrize("labels", [[-2], [0, 4]])
def test_class_numbers_out_of_range_are_refused(encoder: ClassEncoder, labels: list[int]) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"{labels[-1]}.*expected 0 to 3, or -1"):
        encoder.encode_labels(torch.tensor(labels))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), "at least one name"),
        ("cat", "sequence of at least one name"),
        (("cat", " CAT"), "'cat', which is empty or comes twice"),
        (("cat", " "), "'', which is empty"),
    ],
)
def test_unusable_classes_are_refused(classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        ClassEncoder(classes)
    with pytest.raises(InvalidArgumentError, match="width=0"):
        ClassEncoder(CLASSES, width=0)


def test_saves_and_loads_with_its_classes(encoder: ClassEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    loaded = ClassEncoder.from_pretrained(tmp_path, use_safetensors=True)
    assert torch.equal(loaded.encode([*CLASSES, ""]), encoder.encode([*CLASSES, ""]))


def test_a_class_is_found_in_any_unicode_form_and_digits_without_end_are_refused() -> None:
    encoder = ClassEncoder(["cafe\u0301", "b"], width=2)
    assert encoder.labels(["café", "cafe\u0301"]) == [0, 0]
    with pytest.raises(InvalidArgumentError, match="never learnt"):
        encoder.check(["9" * 5000])
