"""PyTorch's kernels on the CPU for attention as training has it: short sequences, many of them, gradients.

Run ``python benchmarks/attention.py --out benchmarks/results/attention_cpu.json``. What ``sdpa`` is here
beside ``flash``, which PyTorch itself would take, and ``math``: forward and backward, float32 and under
bfloat16 autocast.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import record
import torch

from vidgen.nn import attend

CASES = {
    "time, 5 keyframes": (1024, 5, 2),
    "time, 16 frames": (1024, 16, 4),
    "space, 8 x 8": (128, 64, 4),
    "time, 128 frames": (128, 128, 4),
    "space, 16 x 16": (16, 256, 4),
    "space, 32 x 32": (2, 1024, 4),
}
HEAD_DIM = 32


def seconds(shape: tuple[int, int, int], backend: str, half: bool, repeats: int) -> list[float]:
    """Times of forward and backward, after two turns to warm up."""
    sequences, tokens, heads = shape
    x = torch.randn(sequences, tokens, heads, HEAD_DIM, requires_grad=True)
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            attend(x, x, x, backend=backend).float().sum().backward()
        times.append(time.perf_counter() - began)
    return times[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the JSON record goes; else printed")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = record.header(
        "attention",
        record.cpu(),
        "float32 and bfloat16",
        torch=torch.__version__,
        capability=torch.backends.cpu.get_cpu_capability(),
        threads=args.threads,
        head_dim=HEAD_DIM,
    )
    rows: list[dict[str, Any]] = []
    for name, shape in CASES.items():
        for half in (False, True):
            row: dict[str, Any] = {"case": name, "sequences_tokens_heads": shape, "autocast": half}
            for backend in ("flash", "math", "sdpa"):
                times = seconds(shape, backend, half, args.repeats)
                row[backend] = record.spread(times, "seconds", digits=5)
            row["flash_over_sdpa"] = round(row["flash"]["seconds_median"] / row["sdpa"]["seconds_median"], 2)
            print(f"{name:20} {'bfloat16' if half else 'float32':9} flash / sdpa {row['flash_over_sdpa']}")
            rows.append(row)
    record.write({**result, "cases": rows}, args.out)


if __name__ == "__main__":
    main()
