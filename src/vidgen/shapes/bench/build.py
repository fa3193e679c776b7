"""Makes a bundled model again: its recipe, its half-precision weights, its quality, its card."""

from __future__ import annotations

import json
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import vidgen
from vidgen import config as configs
from vidgen import plugins
from vidgen.checkpoint import INDEX, replaced_folder, save_strategy
from vidgen.errors import CheckpointError
from vidgen.paths import expanded
from vidgen.recipe import Recipe
from vidgen.shapes.bench.card import write_card
from vidgen.shapes.bench.quality import Quality, assess
from vidgen.training import Trainer

__all__ = ["Build", "build_model", "model_recipe", "renew_card"]

RECORD = "record.json"


@dataclass(frozen=True)
class Build:
    """A model that was made.

    Attributes:
        folder: its half-precision weights, ``record.json``, card and contact sheets.
        record: recipe, steps, device, time, sizes and quality, in plain values.
    """

    folder: Path
    record: dict[str, Any]


def model_recipe(name: str) -> Recipe:
    """Return the recipe that trains the model ``name``: a bundled one, or what it would be with another recipe.

    Raises:
        UnknownNameError: no recipe has that name.
    """
    recipe: Recipe = plugins.load(plugins.RECIPES, name)()
    return recipe


def build_model(
    name: str,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    device: str | None = None,
    progress: bool = True,
    quality: bool = True,
) -> Build:
    """Train the model ``name`` by its recipe and write it to ``out`` as the package has its models.

    out/
      run/      the training; where it was cut off, it goes on
      model/    half-precision weights, record, card, contact sheets

    What the recipe starts from is stored once: components that training left as they are in a bundled model, to
    the bit, become references to it. What only training needs is in the run alone.

    Args:
        name: of the model, which is that of its recipe: ``"shapes/vdm"``.
        out: a folder.
        recipe: another recipe than the model's own (a shorter one, say).
        device: where to train and to assess; None is the best there.
        progress: show bars.
        quality: also measure how good it is, by generating and judging hundreds of videos: minutes on a CPU.

    Raises:
        UnknownNameError: no recipe has that name.
        CheckpointError, TrainingError, VideoError: see ``Trainer``.
    """
    recipe = model_recipe(name) if recipe is None else recipe
    out = expanded(out)
    trainer = Trainer(recipe, out / "run", device=device, progress=progress)
    trainer.run()
    folder = out / "model"
    with replaced_folder(folder) as temporary:
        # Assessed as it will be loaded: from the rounded weights.
        save_strategy(trainer.strategy.to("cpu", torch.float16), temporary / "weights", whole=False)
        for part in sorted((temporary / "weights").iterdir()):
            part.rename(temporary / part.name)
        (temporary / "weights").rmdir()
        found = assess(temporary, device=device, progress=progress) if quality else Quality()
        record = _record(name, trainer, temporary, found)
        configs.write_json(temporary / RECORD, record)
        write_card(temporary, record, found.sheets)
    return Build(folder, record)


def renew_card(folder: str | Path, *, device: str | None = None, progress: bool = True) -> Build:
    """Measure a model that ``build_model`` made anew, and write the numbers to its record and card.

    Raises:
        CheckpointError: ``folder`` holds no model, or no record.
    """
    folder = expanded(folder)
    try:
        record = configs.read_json(folder / RECORD)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / RECORD} cannot be read ({error}); expected the folder of a model as `vidgen models "
            "train` writes it."
        ) from error
    found = assess(folder, device=device, progress=progress)
    record["quality"] = found.to_json()
    configs.write_json(folder / RECORD, record)
    write_card(folder, record, found.sheets)
    return Build(folder, record)


def _record(name: str, trainer: Trainer, folder: Path, quality: Quality) -> dict[str, Any]:
    weights = sorted(folder.rglob("*.safetensors"))
    components = configs.read_json(folder / INDEX)["components"]
    return {
        "model": name,
        "vidgen": vidgen.__version__,
        "recipe": configs.to_dict(trainer.recipe),
        "steps": trainer.folder.steps()[-1],
        "training_seconds": round(_seconds(trainer.folder.folder / "log.jsonl", trainer.config.log_every)),
        "device": _device(trainer.processes.device),
        "parameters": trainer.strategy.num_parameters(),
        "references": {name: entry["from"] for name, entry in components.items() if isinstance(entry, dict)},
        "left_out": sorted(set(trainer.strategy.modules) - set(components)),
        "bytes": sum(file.stat().st_size for file in weights),
        "quality": quality.to_json(),
    }


def _seconds(log: Path, every: int) -> float:
    """Return the time that the steps took, by the median of each stage's log lines.

    A line is a mean over at most ``every`` steps; in one of them the machine may have slept.
    """
    means: dict[str, list[float]] = {}
    steps: Counter[str] = Counter()
    last = 0
    for text in log.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if "seconds" in line:
            means.setdefault(line["stage"], []).append(line["seconds"])
            steps[line["stage"]] += min(every, line["step"] - last)
            last = line["step"]
    return sum(median(found) * steps[stage] for stage, found in means.items())


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # What is written down is what another run can be compared with.
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"
