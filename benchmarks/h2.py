"""Side by side: H2-ULV and a block low-rank Cholesky on one kernel matrix, with the DGEMM rate of the same run.

``python benchmarks/h2.py [--json FILE] [--sizes 4096 16384] [--diagonal natural] [--rank 100] [--repetitions 3]``

The rate of the H2-ULV factorization counts the operations it executes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from kinji.experiments.cases import H2ScalingCase
from kinji.experiments.h2_scaling import Problem, build_problem, judge, run_block_low_rank, run_h2_ulv
from kinji.hmatrix.block_low_rank import solve_tiles
from kinji.hmatrix.substitution import solve

STAGES = ("construct_seconds", "factor_seconds", "solve_seconds")
GEMM_SIZE = 2048


def gemm_rate() -> float:
    """Return the rate of one DGEMM, in GFLOP/s."""
    a = torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=torch.float64)
    start = time.perf_counter()
    torch.matmul(a, a)
    return 2e-9 * GEMM_SIZE**3 / (time.perf_counter() - start)


def measure(case: H2ScalingCase) -> list[dict[str, Any]]:
    """Return every repetition of each stage of both solvers and of DGEMM, interleaved, with errors beside them."""
    problem = build_problem(case, "cpu")
    seconds: dict[tuple[str, str], list[float]] = {}
    rates = []
    for _ in range(case.repetitions):
        rates.append(gemm_rate())
        tiles, blr = run_block_low_rank(case, problem)
        run, h2 = run_h2_ulv(case, problem)
        for row in (blr, h2):
            for stage in STAGES:
                seconds.setdefault((str(row["method"]), stage), []).append(float(row[stage]))
    rows = [measurement(f"{method}, N = {case.n}, {stage}", "s", s) for (method, stage), s in seconds.items()]
    h2_rates = [1e-9 * run.factor.flops / s for s in seconds["h2_ulv", "factor_seconds"]]
    rows.append(measurement(f"h2_ulv, N = {case.n}, factor rate", "GFLOP/s", h2_rates))
    rows.append(measurement(f"DGEMM, n = {GEMM_SIZE}", "GFLOP/s", rates))
    solutions = {"blr": solve_tiles(tiles.tiles, problem.b), "h2_ulv": solve(run.factor, problem.b)}
    return rows + errors(case, problem, solutions)


def errors(case: H2ScalingCase, problem: Problem, solutions: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Return the relative error of each solution, and of dividing by the diagonal."""
    judged = judge(problem, solutions | {"b / diagonal": problem.b / problem.diagonal})
    return [
        measurement(f"{method}, N = {case.n}, error", "1", [accuracy["relative_error"]])
        for method, accuracy in judged.items()
    ]


def measurement(name: str, unit: str, repetitions: list[float]) -> dict[str, Any]:
    """Return one line of the table: the median, and every repetition."""
    return {"name": name, "value": statistics.median(repetitions), "unit": unit, "repetitions": repetitions}


def main() -> None:
    """Print a table for people; write a list of measurements for machines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write {name, value, unit, repetitions} for each line here")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--diagonal", choices=["dominant", "natural"], default="natural")
    parser.add_argument("--rank", type=int, default=100)
    parser.add_argument("--tile", type=int, help="default: 16 sqrt(N), which is near the best")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for n in options.sizes:
        tile = options.tile or round(16 * n**0.5)
        rows += measure(
            H2ScalingCase(n=n, diagonal=options.diagonal, rank=options.rank, tile=tile, repetitions=options.repetitions)
        )
    for row in rows:
        print(f"{row['name']:<44} {row['value']:>12.4g} {row['unit']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
