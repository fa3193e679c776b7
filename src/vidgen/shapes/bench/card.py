"""The card of a bundled model: what it is, how it was made, how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["write_card"]

ABOUT = {
    "frame_codec": "A VAE for single frames, of Stable Diffusion's layout: the others work in its latents.",
    "classifier": "Reads shape, colour, motion, size, background and position of the object in a shapes video.",
    "ldm": "Text to images, of Stable Diffusion's layout: what the video models start from.",
    "vdm": "Text to videos: all frames of a clip at once, longer videos in windows; from an image model.",
    "glober": "Text to videos: one global feature of the whole video, then every frame on its own. "
    "Nothing passes between frames: sizes and hues can change a little from one to the next.",
}

_ROWS = "One row for each video, from its first frame to its last"
_LONG = "Four times as many frames as in a clip of the training"
_LONGS = {"glober": f"{_LONG}, in the same time; 16 of each are shown"}
_PICTURES = {
    "frame_codec": "Frames that it never saw; below them the same, encoded and decoded",
    "classifier": f"Test videos that it reads. {_ROWS}",
    "ldm": "Pictures of the first prompts",
}


def write_card(folder: Path, record: Mapping[str, Any], sheets: Mapping[str, Image.Image]) -> None:
    """Write ``README.md`` and the contact sheets to ``folder``.

    Args:
        folder: of the model.
        record: as ``build_model`` makes it.
        sheets: pictures by file name.
    """
    for name, sheet in sheets.items():
        sheet.save(folder / name, optimize=True)
    (folder / "README.md").write_text(_text(record, list(sheets)), encoding="utf-8")


def _text(record: Mapping[str, Any], sheets: list[str]) -> str:
    recipe = record["recipe"]
    about = ABOUT.get(recipe["strategy"], f"A model of the strategy `{recipe['strategy']}`.")
    parameters = ", ".join(f"{name} {count:,}" for name, count in record["parameters"].items())
    lines = [
        f"# {record['model']}",
        "",
        about,
        "",
        f"Parameters: {parameters}. Weights: {record['bytes']:,} bytes in half precision.",
        "",
        *_elsewhere(record),
        f"Made by `vidgen models train {record['model']}`: {record['steps']:,} steps, "
        f"{record['training_seconds'] / 60:.0f} minutes of training steps on {record['device']}.",
        "",
        *_quality(record["quality"]),
    ]
    for name in sheets:
        known, default = (_LONGS, _LONG) if name == "sheet_long.png" else (_PICTURES, _ROWS)
        caption = known.get(recipe["strategy"], default)
        lines += [f"![{caption}]({name})", "", f"*{caption}.*", ""]
    lines += ["The whole recipe:", ""]
    if recipe.get("model", {}).get("pretrained"):
        start = recipe["model"]["pretrained"]
        lines += [
            f"Codec, words, text encoder, noise process and 2D network, with its sizes, are `{start}`'s.",
            "",
        ]
    lines += ["```json", json.dumps(recipe, indent=1), "```", ""]
    return "\n".join(lines)


def _elsewhere(record: Mapping[str, Any]) -> list[str]:
    """Say which components are not stored here."""
    found = [f"{name} is that of `{source}`" for name, source in record.get("references", {}).items()]
    found += [f"{name} is for training only and left out" for name in record.get("left_out", ())]
    return [f"Not stored here: {', '.join(found)}.", ""] if found else []


def _quality(quality: Mapping[str, Any]) -> list[str]:
    rows = [("all", name, value, None, "") for name, value in quality["values"].items()]
    for group, scores in quality["scores"].items():
        rows += [(group, s["key"], s["value"], s.get("null"), " ".join(s.get("notes", ()))) for s in scores]
    if not rows:
        return []
    lines = ["| prompts | measure | value | null | notes |", "|---|---|---|---|---|"]
    for group, key, value, null, notes in rows:
        beside = "" if null is None else f"{null:.4g}"
        lines.append(f"| {group} | `{key}` | {value:.4g} | {beside} | {notes} |")
    return [*lines, "", "`record.json` has the scores with their protocols.", ""]
