"""Side by side: FP64 products on the INT8 unit and native ones, and what the count of INT8 products explains.

``python benchmarks/gemm.py [--json FILE] [--sizes 256 2048] [--threads 1 2] [--slices 8 9] [--moduli 14 15]``

All sides run interleaved. R is the rate of one INT8 product over native DGEMM's (NumPy's BLAS), both of this run.
`over count` is a scheme's time over that of its INT8 products alone, N / R or S(S+1) / (2 R) of native time; `inside` is
the part of its time spent in them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numba
import numpy as np
import threadpoolctl
import torch
from rich.progress import track

from kinji.experiments.int8_dgemm.sides import blas_kernel
from kinji.experiments.int8_dgemm.timing import SETTLE_SECONDS, SHORT, int8_product
from kinji.gemm import cpu, matmul, scheme_one, scheme_two

CPU = torch.device("cpu")
Call = Callable[[], object]


def sides(n: int, slices: list[int], moduli: list[int]) -> dict[str, tuple[int, Call]]:
    """Return what is timed for n x n operands by name, with the INT8 products each takes."""
    a, b = np.random.default_rng(0).standard_normal((2, n, n))
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    one_product = int8_product(n, CPU)
    return {
        f"DGEMM, numpy ({blas_kernel('numpy', CPU)})": (0, lambda: a @ b),
        f"DGEMM, torch ({blas_kernel('torch', CPU)})": (0, lambda: x @ y),
        "one INT8 product": (1, lambda: one_product(x, y)),
        **{f"scheme II, {N} moduli": (N, lambda N=N: scheme_two(x, y, moduli=N)) for N in moduli},
        **{f"scheme I, {S} slices": (S * (S + 1) // 2, lambda S=S: scheme_one(x, y, slices=S)) for S in slices},
        "matmul(error='dgemm')": (0, lambda: matmul(x, y)),
    }


def measure(calls: dict[str, tuple[int, Call]], n: int, threads: list[int], repetitions: int) -> dict:
    """Return the seconds of each repetition of each side and number of threads, interleaved, after one call of each."""
    seconds: dict[tuple[str, int], list[float]] = {(name, count): [] for count in threads for name in calls}
    rounds = [(r, count, name) for r in range(-1, repetitions) for count in threads for name in calls]
    for repetition, count, name in track(rounds, f"n = {n}", transient=True):
        with limited_to(count):
            time.sleep(SETTLE_SECONDS)  # threads of the library before spin for a while
            elapsed = seconds_of(calls[name][1], max(1, SHORT // n) ** 2)
        if repetition >= 0:
            seconds[name, count].append(elapsed)
    return seconds


def seconds_of(call: Call, calls: int) -> float:
    """Return the mean seconds of `calls` calls, after one that wakes the threads if they are short."""
    if calls > 1:
        call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


@contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """Limit torch, numba and BLAS."""
    torch.set_num_threads(threads)
    numba.set_num_threads(threads)
    with threadpoolctl.threadpool_limits(threads):
        yield


def share_inside(call: Call, threads: int) -> float:
    """Return the part of a call's time that its INT8 products take."""
    inside, multiply = [], cpu.multiply_int8

    def timed(*operands: torch.Tensor) -> None:
        start = time.perf_counter()
        multiply(*operands)
        inside.append(time.perf_counter() - start)

    cpu.multiply_int8 = timed
    try:
        with limited_to(threads):
            call()
            inside.clear()
            start = time.perf_counter()
            call()
            return sum(inside) / (time.perf_counter() - start)
    finally:
        cpu.multiply_int8 = multiply


def report(n: int, calls: dict[str, tuple[int, Call]], seconds: dict, threads: list[int]) -> list[dict]:
    """Print a table for people; return what machines want."""
    rows = []
    for count in threads:
        median = {name: statistics.median(seconds[name, count]) for name in calls}
        native, product = next(iter(median.values())), median["one INT8 product"]
        print(f"\nn = {n}, {count} thread(s), R = {native / product:.2f}")
        print(f"{'':<40}{'seconds':>10}{'over DGEMM':>12}{'over count':>12}{'inside':>8}{'1 thread':>10}")
        for name, (products, call) in calls.items():
            over = f"{median[name] / (products * product):>12.2f}" if products > 1 else f"{'':>12}"
            inside = f"{share_inside(call, count):>8.2f}" if products > 1 else f"{'':>8}"
            gain = statistics.median(seconds[name, threads[0]]) / median[name]
            print(f"{name:<40}{median[name]:>10.4f}{median[name] / native:>12.2f}{over}{inside}{gain:>9.2f}x")
            label = f"{name}, n = {n}, {count} threads"
            rows.append({"name": label, "value": median[name], "unit": "s", "repetitions": seconds[name, count]})
    return rows


def main() -> None:
    """Time the sizes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name, value, unit, repetitions} for each side here")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 2048, 4096])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--slices", type=int, nargs="+", default=[8, 9])
    parser.add_argument("--moduli", type=int, nargs="+", default=[13, 14, 15])
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for n in options.sizes:
        calls = sides(n, options.slices, options.moduli)
        rows += report(n, calls, measure(calls, n, options.threads, options.repetitions), options.threads)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
