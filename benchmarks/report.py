"""Puts the medians of ``results/`` into ``README.md`` as a table: ``python benchmarks/report.py``."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
MARK = "<!-- results -->\n"


def load(name: str) -> dict:
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def rows() -> list[tuple[str, str]]:
    reading, imports, speed = load("clip_reading"), load("import_time"), load("vdm_speed_cpu")
    found = [
        (
            f"{task.replace('_', ' ')}, {f['file']}: vidgen over a plain PyAV loop",
            f[task]["vidgen_over_pyav_loop"],
        )
        for f in reading["files"]
        for task in ("clips", "open_and_clip", "sequential")
    ]
    found += [(f"`{name}`", f"{row['seconds_median']:.3f} s") for name, row in imports["tasks"].items()]
    found += [
        (f"`vdm/tiny`: {name}", f"{row['seconds_median']:.3f} s") for name, row in speed["seconds"].items()
    ]
    found += [
        (
            f"attention, {row['case']}, {'bfloat16' if row['autocast'] else 'float32'}: flash over `sdpa`",
            row["flash_over_sdpa"],
        )
        for row in load("attention_cpu")["cases"]
    ]
    found += [("`vdm/tiny`: video network over its 2D network alone", speed["video_over_2d"])]
    return [(name, str(value)) for name, value in found]


def damage() -> list[str]:
    """What damage does to the bundled Frechet distance, a line for each kind."""
    found = load("corruptions")
    null = found["null"]
    lines = [
        "",
        f"Damage to {found['videos']} videos of {found['frames']} frames, as the Frechet distance on the "
        f"bundled classifier's features sees it, over its null, and, in brackets, as a control sees it that "
        f"averages frame features over time. The null is the mean of {len(null['values'])} clean sets of that "
        f"size, {null['mean']:.3g} (standard deviation {null['std']:.2g}, {null['min']:.3g} to "
        f"{null['max']:.3g}); the set that is damaged has {found['undamaged']['distance']:.3g} before it is. "
        "z is how many standard deviations of the nulls a control lies above their mean:",
        "",
        "| damage | unit | levels | distance over null | rank correlation, or z |",
        "|---|---|---|---|---|",
    ]
    for name, kind in found["corruptions"].items():
        levels = ", ".join(f"{row['level']:g}" for row in kind["levels"])
        over = ", ".join(f"{row['over_null']:.2f} ({row['blind_over_null']:.2f})" for row in kind["levels"])
        lines.append(f"| {name} | {kind['unit']} | {levels} | {over} | {verdict(kind, null['max'])} |")
    return lines


def verdict(kind: dict, largest: float) -> str:
    """How well distances follow the levels of damage, or where a control lies among the nulls."""
    if not kind["control"]:
        return f"{kind['rank_correlation']:.2f}"
    worst = max(level["distance"] for level in kind["levels"])
    side = "below" if worst <= largest else "above"
    return f"control, z = {kind['z']:.1f}: {worst:.2f}, {side} the largest null"


def mutated() -> list[str]:
    """What became of damaged video files."""
    found = load("mutated_videos")
    counts = {"silently different": 0} | found["outcomes"]
    outcomes = ", ".join(f"{name} {count}" for name, count in counts.items())
    return [
        "",
        f"Of {found['files']} damaged video files of {len(found['sources'])} containers and codecs: "
        f"{outcomes}. *Different, without a mark* are other pixels that FFmpeg decodes without any mark of "
        "damage, as of flipped bits in codecs without check sums.",
    ]


def solvers() -> list[str]:
    """How many cells of solvers are right."""
    found = load("solvers")
    counts = ", ".join(f"{name} {count}" for name, count in found["cells"].items())
    return ["", f"Solvers on {found['data']}, within {found['tolerance']}: {counts}."]


def main() -> None:
    device = load("vdm_speed_cpu")["device"]
    table = [f"On {device}:", "", "| what | median |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows())]
    table += damage() + mutated() + solvers()
    readme = HERE / "README.md"
    head = readme.read_text().partition(MARK)[0]
    readme.write_text(f"{head}{MARK}\n" + "\n".join(table) + "\n")


if __name__ == "__main__":
    main()
