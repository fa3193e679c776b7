"""What every benchmark record says of itself, and how it is written."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def revision() -> str:
    """Return the commit that is measured, marked where files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--", "../src", "../benchmarks/*.py")
    return (git("rev-parse", "HEAD") or "no commit") + (" and changes" if changed else "")


def cpu() -> str:
    return f"cpu ({os.cpu_count()} cores, {platform.machine()})"


def header(benchmark: str, device: str, dtype: str, **more: Any) -> dict[str, Any]:
    """Return the head of a record."""
    return {
        "benchmark": benchmark,
        "revision": revision(),
        "device": device,
        "dtype": dtype,
        "python": platform.python_version(),
        **more,
    }


def spread(values: Sequence[float], name: str, digits: int = 4) -> dict[str, float]:
    """Return median, p10 and p90 of ``values``."""
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return {
        f"{name}_median": round(statistics.median(values), digits),
        f"{name}_p10": round(cuts[0], digits),
        f"{name}_p90": round(cuts[-1], digits),
        "repeats": len(values),
    }


def write(record: dict[str, Any], out: Path | None) -> None:
    """Print ``record``, or write it to ``out``: to a temporary name first."""
    text = json.dumps(record, indent=1) + "\n"
    if out is None:
        print(text)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(text)
    part.replace(out)
