"""How the Frechet distance on the classifier's features reacts to damage, beside its null.

Run ``python benchmarks/corruptions.py --out benchmarks/results/corruptions.json``. One set of clean videos is
held against others of the same size: clean ones (the nulls), and one that is damaged in every way and at every
level. Distances are reported over the mean of the nulls; damage that no metric may react to (a control) also by
how many standard deviations of the nulls it lies from their mean. The same distance on frame features averaged
over time is the control that is blind to time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch

from vidgen.metrics.distances import frechet_distance
from vidgen.metrics.statistics import Statistics
from vidgen.shapes.classifier import CORRUPTIONS, ShapesClassifier, corrupt, kept_colours, load_classifier
from vidgen.shapes.scene import COLOURS
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.video.transforms import to_clip
from vidgen.weights import weight_hash

BATCH = 16
MODES = "dropped colours"
INSIDE = 2.0  # standard deviations of the nulls above their mean that a control may have
Pair = tuple[float, float]
"""A distance, and that of the control that is blind to time."""


class Judge:
    """Features of videos, and the average over time of those of their frames, as two sets of statistics."""

    def __init__(self, network: ShapesClassifier) -> None:
        self.network = network

    @torch.inference_mode()
    def __call__(self, videos: np.ndarray, name: str | None = None, level: float = 0.0) -> list[Statistics]:
        found: list[Statistics] | None = None
        for start in range(0, len(videos), BATCH):
            batch = videos[start : start + BATCH]
            clips = torch.stack([to_clip(video) for video in batch])
            if name is not None:
                clips = corrupt(clips, name, level, range(start, start + len(batch)))
            reading = self.network(clips)
            features = [reading.features, reading.frame_features.mean(1)]
            found = found or [Statistics(values.shape[1]) for values in features]
            for statistics, values in zip(found, features, strict=True):
                statistics.update(values)
        assert found is not None
        return found


def distances(one: Sequence[Statistics], other: Sequence[Statistics]) -> Pair:
    first, second = (frechet_distance(a, b) for a, b in zip(one, other, strict=True))
    return first, second


def rank_correlation(levels: Sequence[float], values: Sequence[float]) -> float:
    """Spearman's, for levels without ties."""
    ranks = [np.argsort(np.argsort(numbers)) for numbers in (levels, values)]
    return float(np.corrcoef(*ranks)[0, 1])


def videos_of(data: ShapesDataset, indices: Sequence[int]) -> np.ndarray:
    return np.stack([data.render(index, range(data.num_frames)) for index in indices])


def of_colours(data: ShapesDataset, kept: Sequence[str], first: int) -> Iterator[int]:
    """Videos from ``first`` on whose object has one of the colours ``kept``."""
    return (index for index in count(first) if data.scene(index).specs[0].colour in kept)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and range of the nulls."""
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def row(found: Pair, null: Pair, level: float) -> dict[str, float]:
    """The distances, and what they are over the nulls' means ``null``."""
    return {
        "level": level,
        "distance": found[0],
        "over_null": round(found[0] / null[0], 2),
        "blind_distance": found[1],
        "blind_over_null": round(found[1] / null[1], 2),
    }


def control(rows: list[dict[str, float]], null: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The row of a control, and where it lies among the nulls.

    Below their mean is no damage, however far: the set may just lie near.
    """
    z = (rows[0]["distance"] - null["mean"]) / null["std"]
    return {**more, "z": round(z, 2), "inside_null": z <= INSIDE, "levels": rows}


def summary(rows: list[dict[str, float]], undamaged: Pair, **more: Any) -> dict[str, Any]:
    """The rows of one corruption, with the rank correlation over its levels, 0 being the undamaged set."""
    levels = [0.0, *(each["level"] for each in rows)]
    of = {"rank_correlation": "distance", "blind_rank_correlation": "blind_distance"}
    found = {
        name: round(rank_correlation(levels, [undamaged[i], *(each[key] for each in rows)]), 3)
        for i, (name, key) in enumerate(of.items())
    }
    return {**more, **found, "severe_over_null": rows[-1]["over_null"], "levels": rows}


def measure(network: ShapesClassifier, number: int, frames: int, nulls: int) -> dict[str, Any]:
    data = ShapesDataset((nulls + 2 + len(COLOURS)) * number * 2, num_frames=frames, split="test")
    judge = Judge(network)
    real = judge(videos_of(data, range(number)))
    other = videos_of(data, range(number, 2 * number))
    undamaged = distances(real, judge(other))
    clean = [
        distances(real, judge(videos_of(data, range((k + 2) * number, (k + 3) * number)))) for k in range(nulls)
    ]
    null, blind = (spread(values) for values in zip(*clean, strict=True))
    means = (null["mean"], blind["mean"])
    damaged: dict[str, Any] = {}
    for name, kind in CORRUPTIONS.items():
        rows = [row(distances(real, judge(other, name, level)), means, level) for level in kind.levels]
        more = {"unit": kind.unit, "control": kind.control}
        damaged[name] = control(rows, null, **more) if kind.control else summary(rows, undamaged, **more)
    rows = []
    for dropped in range(1, len(COLOURS)):
        chosen = list(islice(of_colours(data, kept_colours(dropped), number), number))
        rows.append(row(distances(real, judge(videos_of(data, chosen))), means, dropped))
    damaged[MODES] = summary(rows, undamaged, unit=f"of {len(COLOURS)}", control=False)
    return {
        "null": null,
        "blind_null": blind,
        "undamaged": row(undamaged, means, 0.0),
        "identical": frechet_distance(real[0], real[0]),
        "corruptions": damaged,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="shapes/classifier", help="folder or bundled name")
    parser.add_argument("--videos", type=int, default=512, help="of each set")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--nulls", type=int, default=8, help="clean sets that give the null, 2 or more")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.nulls < 2:
        parser.error(f"--nulls {options.nulls}: a standard deviation needs 2 or more")
    network = load_classifier(options.source)
    settings = {"videos": options.videos, "frames": options.frames, "weights": weight_hash(network)}
    head = record.header("corruptions", record.cpu(), "float32", **settings)
    found = measure(network, options.videos, options.frames, options.nulls)
    record.write({**head, **found}, options.out)


if __name__ == "__main__":
    main()
