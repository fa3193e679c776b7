"""What importing vidgen and asking for help cost, beside an empty interpreter and torch.

Run ``python benchmarks/import_time.py --out benchmarks/results/import_time.json``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import record

TASKS = {
    "python -c pass": ["-c", "pass"],
    "import vidgen": ["-c", "import vidgen"],
    "vidgen --help": ["-m", "vidgen.cli", "--help"],
    "vidgen list": ["-m", "vidgen.cli", "list"],
    "import torch": ["-c", "import torch"],
    "import diffusers": ["-c", "import diffusers"],
    "import vidgen.sampling": ["-c", "import vidgen.sampling"],
}


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON record goes; else printed")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in TASKS}
    for turn in range(args.repeats + 1):
        for name, arguments in TASKS.items():
            cost = seconds(arguments)
            if turn:  # the first turn warms the disk's cache
                times[name].append(cost)
    result = record.header("import_time", record.cpu(), "none", warmup=1)
    result["tasks"] = {name: record.spread(values, "seconds") for name, values in times.items()}
    for name, row in result["tasks"].items():
        print(f"{name:24} {row['seconds_median']:.3f} s")
    record.write(result, args.out)


if __name__ == "__main__":
    main()
