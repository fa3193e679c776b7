"""How the Frechet distance on the classifier's features reacts to damage, beside its null.

Run ``python benchmarks/corruptions.py --out benchmarks/results/corruptions.json``. One set of clean videos is
held against others of the same size: clean ones (the null, several times), and one that is damaged in every way
and at every level. The same distance on frame features averaged over time is the control that is blind to time.
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

from vidgen.classifier import CORRUPTIONS, ShapesClassifier, corrupt, kept_colours, load_classifier
from vidgen.metrics.distances import frechet_distance
from vidgen.metrics.statistics import Statistics
from vidgen.video.scene import COLOURS
from vidgen.video.synthetic import ShapesDataset
from vidgen.video.transforms import to_clip
from vidgen.weights import weight_hash

BATCH = 16
MODES = "dropped colours"


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


def distances(one: Sequence[Statistics], other: Sequence[Statistics]) -> tuple[float, float]:
    """The distance, and that of the blind control."""
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


def row(found: tuple[float, float], null: tuple[float, float], level: float) -> dict[str, float]:
    return {
        "level": level,
        "distance": found[0],
        "over_null": round(found[0] / null[0], 2),
        "blind_distance": found[1],
        "blind_over_null": round(found[1] / null[1], 2),
    }


def summary(rows: list[dict[str, float]], null: tuple[float, float], **more: Any) -> dict[str, Any]:
    """The rows of one corruption, with the rank correlation over its levels, level 0 being the null."""
    levels = [0.0, *(each["level"] for each in rows)]
    of = {"rank_correlation": "distance", "blind_rank_correlation": "blind_distance"}
    found = {
        name: round(rank_correlation(levels, [null[i], *(each[key] for each in rows)]), 3)
        for i, (name, key) in enumerate(of.items())
    }
    return {**more, **found, "severe_over_null": rows[-1]["over_null"], "levels": rows}


def measure(network: ShapesClassifier, number: int, frames: int, nulls: int) -> dict[str, Any]:
    data = ShapesDataset((nulls + 2 + len(COLOURS)) * number * 2, num_frames=frames, split="test")
    judge = Judge(network)
    real = judge(videos_of(data, range(number)))
    clean = [
        distances(real, judge(videos_of(data, range((k + 2) * number, (k + 3) * number)))) for k in range(nulls)
    ]
    other = videos_of(data, range(number, 2 * number))
    null = distances(real, judge(other))
    values = [null[0], *(found[0] for found in clean)]
    result: dict[str, Any] = {
        "null": {"distance": null[0], "blind_distance": null[1], "values": values},
        "identical": frechet_distance(real[0], real[0]),
    }
    damaged: dict[str, Any] = {}
    for name, kind in CORRUPTIONS.items():
        rows = [row(distances(real, judge(other, name, level)), null, level) for level in kind.levels]
        more = {"unit": kind.unit, "control": kind.control}
        damaged[name] = {**more, "levels": rows} if kind.control else summary(rows, null, **more)
        if kind.control:
            # At most the largest null; below the smallest is no damage either: these are the same videos.
            damaged[name]["inside_null"] = rows[0]["distance"] <= max(values)
    rows = []
    for dropped in range(1, len(COLOURS)):
        chosen = list(islice(of_colours(data, kept_colours(dropped), number), number))
        rows.append(row(distances(real, judge(videos_of(data, chosen))), null, dropped))
    damaged[MODES] = summary(rows, null, unit=f"of {len(COLOURS)}", control=False)
    return {**result, "corruptions": damaged}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="shapes/classifier", help="folder or bundled name")
    parser.add_argument("--videos", type=int, default=512, help="of each set")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--nulls", type=int, default=4, help="clean sets besides the one that is damaged")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    network = load_classifier(options.source)
    settings = {"videos": options.videos, "frames": options.frames, "weights": weight_hash(network)}
    head = record.header("corruptions", record.cpu(), "float32", **settings)
    found = measure(network, options.videos, options.frames, options.nulls)
    record.write({**head, **found}, options.out)


if __name__ == "__main__":
    main()
