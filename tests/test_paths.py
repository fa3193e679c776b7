"""``~`` in paths."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vidgen
from vidgen.cli import app
from vidgen.codecs import load_codec
from vidgen.conditioning import pixels_of
from vidgen.errors import InvalidArgumentError
from vidgen.metrics.sources import check_there
from vidgen.paths import expanded
from vidgen.video.dataset import DataConfig, open_dataset

NOBODY = "~nobody-of-that-name/x"


def test_the_home_folder_is_spelled_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a/b") == expanded(Path("~/a/b")) == tmp_path / "a" / "b"
    assert expanded("a/~b") == Path("a/~b")


@pytest.mark.parametrize(
    "use",
    [
        expanded,
        vidgen.load,
        load_codec,
        check_there,
        lambda path: pixels_of(path, (8, 8), "it"),
        lambda path: open_dataset(DataConfig(path), progress=False),
    ],
)
def test_the_home_of_nobody_is_refused(use: Callable[[str], Any]) -> None:
    with pytest.raises(
        InvalidArgumentError, match=re.escape(f"'{NOBODY}' begins with ~nobody-of-that-name, and no")
    ):
        use(NOBODY)


@pytest.mark.parametrize(
    "words", [["data", "inspect"], ["eval"], ["train", "vdm", "--out", "run", "--data"], ["generate"], ["info"]]
)
def test_a_command_says_so_and_ends_with_2(words: list[str]) -> None:
    done = CliRunner().invoke(app, [*words, NOBODY])
    assert done.exit_code == 2
    assert "no such home folder" in done.output
