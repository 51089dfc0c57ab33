"""Side by side: FP64 products on the INT8 unit and native ones, in seconds of one product.

``python benchmarks/gemm.py [--json FILE] [--sizes 256 1024] [--slices 8 9] [--repetitions 5]``
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kinji.experiments.int8_dgemm import blas_kernel
from kinji.gemm import scheme_one
from kinji.gemm.products import multiply_int8


def sides(n: int, slices: list[int]) -> dict[str, Callable[[], object]]:
    """Return what is timed for n x n operands, by name."""
    a, b = np.random.default_rng(0).standard_normal((2, n, n))
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    digits = torch.randint(-63, 64, (n, n), dtype=torch.int8)
    schemes = {f"scheme I, {s} slices": lambda s=s: scheme_one(x, y, slices=s) for s in slices}
    return {
        f"DGEMM, numpy ({blas_kernel('numpy')})": lambda: a @ b,
        f"DGEMM, torch ({blas_kernel('torch')})": lambda: x @ y,
        "one INT8 product": lambda: multiply_int8(digits, digits),
        **schemes,
        f"scheme I, {slices[-1]} slices, pair by pair": lambda: scheme_one(x, y, slices=slices[-1], grouped=False),
    }


def measure(n: int, slices: list[int], repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of each repetition of each side, interleaved, after one call of each to warm up."""
    calls = sides(n, slices)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(-1, repetitions):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print a table for people; write a list of measurements for machines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write {name, value, unit, repetitions} for each side here")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--slices", type=int, nargs="+", default=[8, 9])
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for n in options.sizes:
        seconds = measure(n, options.slices, options.repetitions)
        native = min(np.median(values) for name, values in seconds.items() if name.startswith("DGEMM"))
        print(f"\nn = {n:<38}{'seconds':>10}{'over DGEMM':>13}{'GFLOP/s':>10}")
        for name, values in seconds.items():
            median = float(np.median(values))
            print(f"{name:<42}{median:>10.4f}{median / native:>13.2f}{2e-9 * n**3 / median:>10.1f}")
            rows.append({"name": f"{name}, n = {n}", "value": median, "unit": "s", "repetitions": values})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
