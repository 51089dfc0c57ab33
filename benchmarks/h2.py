"""Side by side: H2-ULV, the library's solver and hmat-oss on 1/r over a sphere, with the DGEMM rate of the same run.

``python benchmarks/h2.py [--json FILE] [--sizes 16384 65536] [--workers 1 2] [--repetitions 3] [--device cuda]``

All sides run interleaved, on one thread unless workers are named, or on a GPU, without hmat-oss. Error and rank stand
beside every time.

- factorization and construction at fixed rank, theta 2, leaves of 256, on the published, dominant diagonal: `of DGEMM`
  is the rate by the published formula, which counts more than is executed here; `construct` is construction over that
  formula's operations at the rate of DGEMM and 60 % of it;
- from kernel to solution with an error of 1e-6 at most on the natural diagonal, beside hmat-oss, which is skipped where
  it is not installed, and the growth exponent of that time;
- bytes per point.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from gemm import restart_with_fastest_openblas
from hmat_oss import Peer, build
from rich.progress import track

from kinji.experiments.int8_dgemm.threads import limited_to
from kinji.hmatrix import Kernel, build_near_field, compress, fibonacci_sphere, solve, true_product
from kinji.hmatrix import factorize as factorize_kernel
from kinji.hmatrix.h2_ulv import factorize

T = TypeVar("T")
GEMM_SIZE = {"cpu": 2048, "cuda": 8192}
WARM_UP = 2048
RANK, LEAF, THETA = 100, 256, 2.0
SHARE = 0.6
TOLERANCE = 1e-8
PEER_TOLERANCE = 1e-6


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return the result and the seconds of ``work``."""
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


class Problem:
    """Points, and a known solution with its exact right-hand side on one diagonal."""

    def __init__(self, n: int, diagonal: float, device: str) -> None:
        self.points = fibonacci_sphere(n, device=device)
        self.kernel = Kernel("laplace", diagonal=diagonal)
        self.x = torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
        self.b = true_product(self.kernel, self.points, self.x)

    def error(self, solution: torch.Tensor) -> float:
        """Return the relative error of a solution."""
        return float((solution - self.x).norm() / self.x.norm())


def measure_fixed_rank(problem: Problem, workers: int) -> dict[str, float]:
    """Return seconds, operations and error of H2-ULV at fixed rank."""
    size, device = GEMM_SIZE[problem.points.device.type], problem.points.device
    with limited_to(workers):
        a: Any = np.random.default_rng(0).standard_normal((size, size))
        a = a if device.type == "cpu" else torch.from_numpy(a).to(device)  # NumPy's OpenBLAS, or cuBLAS
        _, dgemm = timed(lambda: a @ a)
        field, near = timed(
            lambda: build_near_field(problem.kernel, problem.points, theta=THETA, leaf_size=LEAF),
        )
        matrix, bases = timed(lambda: compress(field, rank=RANK))
        factor, seconds = timed(lambda: factorize(matrix))
        solve(factor, problem.b)  # which wakes the threads: one takes less than a tenth of a second
        solution, parallel = timed(lambda: solve(factor, problem.b))
        _, sequential = timed(lambda: solve(factor, problem.b, substitution="sequential"))
    return {
        "DGEMM flop/s": 2.0 * size**3 / dgemm,
        "construct": near + bases,
        "factorize": seconds,
        "substitute, parallel": parallel,
        "substitute, sequential": sequential,
        "formula flops": factor.published_flops,
        "error": problem.error(solution),
        "bytes per point": (factor.nbytes + matrix.nbytes - field.blocks.nbytes) / len(problem.points),
    }


def measure_accurate(problem: Problem, workers: int) -> dict[str, float]:
    """Return seconds and error of the library's solver."""
    with limited_to(workers):
        solver, construct = timed(lambda: factorize_kernel(problem.points, problem.kernel))
        solution, iterate = timed(lambda: solver.iterate(problem.b, tolerance=TOLERANCE))
    return {
        "construct and factorize": construct,
        "solve": iterate,
        "total": construct + iterate,
        "iterations": solution.iterations,
        "error": problem.error(solution.x),
        "largest rank": max(level.rank for level in solver.operator.levels.values()),
        "bytes per point": solver.nbytes / len(problem.points),
    }


def measure_peer(peer: Peer, n: int) -> dict[str, float]:
    """Return seconds and error of hmat-oss, run once."""
    found = peer.measure(n, PEER_TOLERANCE)
    total = found["compress"] + found["factorize"] + found["solve"]
    return {"total": total, "error": found["error"], "bytes per point": found["bytes"] / n}


def main() -> None:
    """Time the sizes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name, value, unit, repetitions} for each line here")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--openblas-as-it-is", action="store_true", help="do not look for OpenBLAS's fastest kernel")
    options = parser.parse_args()
    if options.device == "cuda":
        options.workers = [1]
    elif not options.openblas_as_it_is:
        restart_with_fastest_openblas()
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # for the peer
    with tempfile.TemporaryDirectory() as folder:
        peer = build(Path(folder)) if options.device == "cpu" else "left out on a GPU"
        print(f"hmat-oss: {peer if isinstance(peer, str) else f'runs on {peer.blas}'}")
        sides = measure(options, peer)
    report(options, sides)
    if options.json:
        options.json.write_text(json.dumps([row for side in sides.items() for row in rows(*side)], indent=1) + "\n")


def measure(options: argparse.Namespace, peer: Peer | str) -> dict[tuple[str, int], dict[str, list[float]]]:
    """Return what every repetition of every side at every N gave, after a small one of each."""
    sides: dict[tuple[str, int], dict[str, list[float]]] = {}
    rounds = [(WARM_UP, -1), *((n, r) for n in options.sizes for r in range(options.repetitions))]
    for n, repetition in track(rounds, "H2", transient=True):
        if repetition <= 0:
            dominant, natural = (Problem(n, diagonal, options.device) for diagonal in (1000.0 * math.sqrt(n), 1.0))
        found = {
            f"fixed rank, {workers} worker(s)": measure_fixed_rank(dominant, workers) for workers in options.workers
        }
        found["solver, 1 worker"] = measure_accurate(natural, 1)
        if isinstance(peer, Peer):
            found["hmat-oss"] = measure_peer(peer, n)
        for side, values in found.items() if repetition >= 0 else ():
            for name, value in values.items():
                sides.setdefault((side, n), {}).setdefault(name, []).append(value)
    return sides


def report(options: argparse.Namespace, sides: dict[tuple[str, int], dict[str, list[float]]]) -> None:
    """Print a table for people, and the ratios that matter."""
    median = {side: {name: statistics.median(v) for name, v in values.items()} for side, values in sides.items()}
    for (side, n), values in median.items():
        print(f"\n{side}, N = {n}")
        for name, value in values.items():
            print(f"  {name:<26}{value:>14.4g}")
    first = options.workers[0]
    for n in options.sizes:
        one = median[f"fixed rank, {first} worker(s)", n]
        at_dgemm = one["formula flops"] / one["DGEMM flop/s"]
        print(
            f"\nN = {n}: factorization at {at_dgemm / one['factorize']:.2f} of DGEMM by the published formula,", end=" "
        )
        print(f"construction {one['construct'] / (at_dgemm / SHARE):.2f} of that formula at 60 % of DGEMM")
        for workers in options.workers[1:]:
            many = median[f"fixed rank, {workers} worker(s)", n]
            for part in ("factorize", "substitute, parallel", "substitute, sequential"):
                print(f"  efficiency of {workers} workers, {part}: {one[part] * first / (many[part] * workers):.2f}")
        if ("hmat-oss", n) in median:
            ratio = median["hmat-oss", n]["total"] / median["solver, 1 worker", n]["total"]
            print(f"  hmat-oss over the solver, kernel to solution: {ratio:.2f}")
    if len(options.sizes) > 1:
        totals = [median["solver, 1 worker", n]["total"] for n in options.sizes]
        print(f"\nsolver, kernel to solution ~ N^{np.polyfit(np.log(options.sizes), np.log(totals), 1)[0]:.2f}")


def rows(side: tuple[str, int], values: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the lines of one side at one N for machines."""
    units = dict.fromkeys(("formula flops", "error", "iterations", "largest rank"), "1")
    units |= {"DGEMM flop/s": "1/s", "bytes per point": "B"}
    return [
        {
            "name": f"{side[0]}, N = {side[1]}, {name}",
            "value": statistics.median(repetitions),
            "unit": units.get(name, "s"),
            "repetitions": repetitions,
        }
        for name, repetitions in values.items()
    ]


if __name__ == "__main__":
    main()
