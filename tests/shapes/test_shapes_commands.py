"""``vidgen models train`` and ``vidgen generate --sheet``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from vidgen import checkpoint
from vidgen.cli import app
from vidgen.codecs import load_codec
from vidgen.strategies.vdm import VDM, VDMConfig

SHORT = [
    "--set=model.block_out_channels=[8,8]",
    "--set=norm_num_groups=4",
    "--set=training.steps=2",
    "--set=batch_size=2",
    "--set=videos=8",
    "--set=size=16",
]


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def test_a_model_is_made_again_by_its_recipe(tmp_path: Path) -> None:
    out = tmp_path / "made"
    result = run(
        "models", "train", "shapes/codec", "--out", out, "--device", "cpu", "--no-quality", "-q", *SHORT
    )
    record = json.loads((out / "model" / "record.json").read_text())
    assert f"made: {out / 'model'} ({record['bytes']:,} bytes of weights)" in result.stdout
    assert record["steps"] == 2
    assert load_codec(out / "model").space_factor == 2


def test_a_model_that_is_none_is_named(tmp_path: Path) -> None:
    result = run("models", "train", "shapes/vdn", "--out", tmp_path / "x", code=2)
    assert "Did you mean 'shapes/vdm'" in result.stderr
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = VDMConfig(
        sample_frames=4,
        sample_size=(16, 16),
        words=("circle", "red"),
        widths=(16, 16),
        head_dim=16,
        text_width=16,
        text_layers=1,
        context=2,
        num_inference_steps=2,
    )
    return checkpoint.save_strategy(checkpoint.build(VDM, config), tmp_path_factory.mktemp("sheet") / "model")


def test_generate_draws_a_row_for_each_video(model: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    result = run(
        "generate",
        model,
        "red circle",
        "red",
        "--out",
        tmp_path / "v.mp4",
        "--sheet",
        sheet,
        "--sheet-columns",
        3,
    )
    assert str(sheet) in result.stdout
    with Image.open(sheet) as picture:
        assert picture.size == (3 * 18, 2 * 18)
    assert sorted(path.name for path in sheet.parent.iterdir()) == ["sheet.png"]


def test_a_sheet_that_is_no_picture_is_refused_before_anything_is_made(model: Path, tmp_path: Path) -> None:
    result = run(
        "generate", model, "red", "--out", tmp_path / "v.mp4", "--sheet", tmp_path / "sheet.mp4", code=2
    )
    assert "expected a picture" in result.stderr
    assert not (tmp_path / "v.mp4").exists()
