"""Puts GLOBER's records into ``docs/glober.md`` as tables: ``python benchmarks/report_glober.py``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "glober.md"
MARK = "<!-- results -->\n"


def load(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / f"{name}.json").read_text())  # type: ignore[no-any-return]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows), ""]


def looks(agreement: dict[str, float]) -> str:
    """Shape, colour and motion in per cent."""
    return " / ".join(f"{100 * agreement[name]:.0f}" for name in ("shape", "colour", "motion"))


def decoding(name: str = "glober_decoding_cpu") -> list[str]:
    found = load(name)
    done = [row for row in found["lengths"] if "failed" not in row]
    rows = [
        (
            row["frames"],
            row["chunk"],
            row["seconds"],
            row["codec_seconds"],
            f"{100 * row['generator_share']:.1f}%",
            round(row["peak_megabytes"] - row["peak_megabytes_before"]),
        )
        for row in done
    ]
    beside = {row["frames"]: row.get("seconds", "failed") for row in found.get("vdm", ())}
    rows = [(*row, beside.get(row[0], "")) for row in rows]
    return [
        f"Cost, `{found['recipe']}` on {found['device']}, {found['threads']} thread(s), {found['dtype']}, "
        f"{found['steps']} steps, one guided video, random weights:",
        "",
        *table(
            (
                "frames",
                "of a call",
                "s",
                "codec alone, s",
                "share of v",
                "MB more than at rest",
                "`vdm`, same UNet, s",
            ),
            rows,
        ),
        *(f"{row['frames']} frames: {row['failed']}." for row in found["lengths"] if "failed" in row),
        " ".join(_costs(found)),
        "",
    ]


def _costs(found: dict[str, Any]) -> Iterator[str]:
    if line := found.get("linear"):
        each = 1000 * line["seconds_per_frame"]
        yield f"The frames cost {each:.0f} ms each (linear, r² {line['r_squared']:.4f})."
    branch = found["branch"]
    if "failed" in branch:
        yield f"The branch was not measured: {branch['failed']}."
    else:
        yield (
            f"An evaluation that computes the branch again takes {branch['ratio']:.2f} times as long as one "
            "that reuses it."
        )


def trained() -> list[str]:
    found = load("glober_shapes")
    near, origin, order = found["reconstruction"], found["origin"], found["order"]
    guided = found["origin_guided"]
    rows = [
        ("clips as they are", looks(found["real_clips"])),
        ("through the frame codec alone", looks(found["codec_alone"])),
        ("encoded and decoded, own prompt", looks(near["agreement"])),
        ("the same, no prompt", looks(origin["no_prompt_as_clip"])),
        ("the same, contradicting prompt: as the clip", looks(origin["contradicting_prompt_as_clip"])),
        ("... as that prompt", looks(origin["contradicting_prompt_as_prompt"])),
        (f"contradicting, guided by {guided['frame_guidance']}: as the clip", looks(guided["as_clip"])),
        ("... as that prompt", looks(guided["as_prompt"])),
        ("v set to zero, no prompt", looks(origin["zeroed_v_as_clip"])),
    ]
    frames = [
        (row["frame_guidance"], f"{row['distance']:.2f}", looks(row["agreement"]))
        for row in found["guidance_of_frames"]
    ]
    whole = [
        (row["global_guidance"], f"{row['distance']:.2f}", looks(row["agreement"]))
        for row in found["guidance_of_v"]
    ]
    return [
        f"`{found['model']}`, {found['videos']} test videos, {found['steps']} steps, {found['dtype']}. Shape / "
        "colour / motion read by the bundled classifier, per cent; frames are unguided where nothing is said:",
        "",
        *table(("video", "agrees"), rows),
        f"Frames at indices of the training: {near['psnr_seen']:.1f} dB, the object "
        f"{near['pixels_off_seen']:.2f} pixels off (median); half-way between them: "
        f"{near['psnr_between']:.1f} dB, {near['pixels_off_between']:.2f} pixels. The discriminator, whose "
        f"swapped pairs were no fakes, scores {100 * order['swapped_scored_lower']:.0f}% of swapped real pairs "
        "lower (50% is chance, and all that can be had of data that look alike backwards).",
        "",
        *constancy(found["constancy"]),
        "Guidance of frames, reconstructions (table 7). Their distance is to the very clips that they are of:",
        "",
        *table(("scale", "Frechet distance", "shape / colour / motion"), frames),
        f"Guidance of `v`, samples (table 8). Two sets of {found['videos']} real videos, other ones, are "
        f"{found['null_distance']:.2f} apart: distances of so few are large.",
        "",
        *table(("scale", "Frechet distance", "shape / colour / motion"), whole),
    ]


def constancy(found: dict[str, dict[str, float]]) -> list[str]:
    rows = [
        (name, f"{row['size_median']:.2f}", f"{row['size_90']:.2f}", f"{100 * row['background']:.0f}%")
        for name, row in found.items()
    ]
    return [
        "What never changes in a clip, from frame to frame: the object's size, its largest over its smallest, "
        "and the background, the share of videos in which it jumps by more than 12 of 255 in some frame:",
        "",
        *table(("videos", "size, median", "size, 90th percentile", "background jumps"), rows),
    ]


def order() -> list[str]:
    found = load("glober_order")
    shares = found["swapped_scored_lower"]
    return [
        f"A fresh discriminator, taught by eq. 10 with swapped pairs among the fakes ({found['steps']} steps "
        f"of {found['batch']} clips, estimates of `{found['model']}`), scores the swapped pair lower in "
        f"{100 * shares['all_move_right']:.0f}% of {found['unseen']} unseen clips where all clips move right, "
        f"and in {100 * shares['all_clips']:.0f}% where they move in all directions, and so look alike "
        "backwards.",
        "",
    ]


def ablations() -> list[str]:
    found = load("glober_ablations")
    rows = [
        (
            name,
            f"{row['reconstruction']['psnr_seen']:.1f}",
            f"{row['reconstruction']['pixels_off_seen']:.2f}",
            looks(row["reconstruction"]["agreement"]),
            f"{row['reconstruction_distance']:.1f}",
            looks(row["origin"]["contradicting_prompt_as_clip"]),
            f"{row['sample_distance']:.1f}",
            looks(row["sample_agreement"]),
        )
        for name, row in found["variants"].items()
    ]
    return [
        f"Ablations (tables 4, 5 and 10 in miniature): each variant {found['steps']} steps of batch "
        f"{found['batch']} in both stages, {found['videos']} videos, {found['solver_steps']} solver steps, on "
        f"{found['device']}. So short a training leaves every model unfinished; the two seeds of the base say "
        "how much a difference must be to mean anything. The base's CRA weighs 0.002 and knows no order; the "
        "encoders of a smaller v are deeper too. Distances are biased upwards by the small number of "
        "videos and compare within the table alone:",
        "",
        *table(
            (
                "variant",
                "PSNR, dB",
                "pixels off",
                "reconstruction",
                "its distance",
                "contradicting prompt, as the clip",
                "samples' distance",
                "samples",
            ),
            rows,
        ),
    ]


def main() -> None:
    parts = {
        "glober_decoding_cpu": decoding,
        "glober_decoding_cuda": lambda: decoding("glober_decoding_cuda"),
        "glober_shapes": trained,
        "glober_order": order,
        "glober_ablations": ablations,
    }
    lines = [
        line for name, part in parts.items() if (HERE / "results" / f"{name}.json").is_file() for line in part()
    ]
    head = PAGE.read_text().partition(MARK)[0]
    PAGE.write_text(f"{head}{MARK}\n" + "\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
