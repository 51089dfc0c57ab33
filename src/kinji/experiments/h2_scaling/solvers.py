"""The solvers side by side: LORAPO's tile Cholesky, H2-ULV as published and with decoupled lifts, and iterations."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from kinji.experiments.cases import H2ScalingCase
from kinji.experiments.h2_scaling.problem import Problem, Row
from kinji.hmatrix.basis import FillIns
from kinji.hmatrix.block_low_rank import BlockLowRankMatrix, compress_tiles, factorize_tiles, solve_tiles
from kinji.hmatrix.h2_matrix import H2Matrix, build_near_field, compress
from kinji.hmatrix.h2_ulv import H2Factor, Lift, factorize
from kinji.hmatrix.kernels import Kernel
from kinji.hmatrix.krylov import IterativeSolution
from kinji.hmatrix.solver import KernelSolver
from kinji.hmatrix.solver import factorize as factorize_kernel
from kinji.hmatrix.substitution import solve

T = TypeVar("T")
PUBLISHED: tuple[FillIns, Lift] = ("2023", "orthonormal")
DECOUPLED: tuple[FillIns, Lift] = ("sc22", "decoupled")
VARIANTS: dict[str, tuple[FillIns, Lift]] = {"h2_ulv": PUBLISHED, "h2_ulv_decoupled": DECOUPLED}


@dataclass(frozen=True)
class TileRun:
    """A factorized tile matrix, the kernel entries it took, and the operations of its compression."""

    tiles: BlockLowRankMatrix
    kernel_entries: int
    construct_flops: float


@dataclass(frozen=True)
class H2Run:
    """An H2-ULV factorization and the kernel entries it took."""

    factor: H2Factor
    kernel_entries: int


@dataclass(frozen=True)
class AccurateRun:
    """A solver of controlled accuracy, its iterations and the kernel entries it took."""

    solver: KernelSolver
    solution: IterativeSolution
    kernel_entries: int


def run_block_low_rank(case: H2ScalingCase, problem: Problem) -> tuple[TileRun, Row]:
    """Compress, factorize and solve by tiles."""
    kernel = problem.kernel()
    tiles, construct_seconds = timed(
        lambda: compress_tiles(
            kernel,
            problem.points,
            tile_size=case.tile,
            tolerance=case.tolerance,
            max_rank=case.tile,
            seed=case.seed,
        )
    )
    run = TileRun(tiles, kernel.entries, tiles.flops.total)
    _, factor_seconds = timed(lambda: factorize_tiles(tiles))
    _, solve_seconds = timed(lambda: solve_tiles(tiles, problem.b))
    return run, times("blr", construct_seconds, factor_seconds, solve_seconds)


def run_h2_ulv(case: H2ScalingCase, problem: Problem, method: str) -> tuple[H2Run, Row]:
    """Compress, factorize and solve level by level, in one of `VARIANTS`."""
    kernel, (fill_ins, lift) = problem.kernel(), VARIANTS[method]
    matrix, construct_seconds = timed(lambda: compress_h2(case, problem, kernel, case.rank, fill_ins))
    factor, factor_seconds = timed(lambda: factorize(matrix, lift=lift))
    _, solve_seconds = timed(lambda: solve(factor, problem.b))
    _, sequential_seconds = timed(lambda: solve(factor, problem.b, substitution="sequential"))
    row = times(method, construct_seconds, factor_seconds, solve_seconds)
    return H2Run(factor, kernel.entries), row | {"sequential_solve_seconds": sequential_seconds}


def compress_h2(
    case: H2ScalingCase,
    problem: Problem,
    kernel: Kernel,
    rank: int,
    fill_ins: FillIns,
    *,
    theta: float | None = None,
    tolerance: float = 1e-10,
) -> H2Matrix:
    """Build an H2 matrix from the kernel on."""
    theta = case.theta if theta is None else theta
    field = build_near_field(kernel, problem.points, theta=theta, leaf_size=case.leaf)
    return compress(field, rank=rank, tolerance=tolerance, samples=case.samples, fill_ins=fill_ins, seed=case.seed)


def run_accurately(
    case: H2ScalingCase, problem: Problem, residual: float, *, double: bool = False
) -> tuple[AccurateRun, Row]:
    """Factorize and iterate to a relative residual: the library's own way."""
    kernel = problem.kernel()
    options = {"theta": case.theta, "leaf_size": case.leaf, "seed": case.seed, "double": double}
    solver, construct_seconds = timed(lambda: factorize_kernel(problem.points, kernel, **options))
    solution, solve_seconds = timed(lambda: solver.iterate(problem.b, tolerance=residual))
    return AccurateRun(solver, solution, kernel.entries), times("h2_ulv_cg", construct_seconds, 0.0, solve_seconds)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return the result and the wall-clock seconds of ``work``, waiting for the device."""
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def times(method: str, construct_seconds: float, factor_seconds: float, solve_seconds: float) -> Row:
    """Return the row of one timed run."""
    return {
        "quantity": "time",
        "method": method,
        "construct_seconds": construct_seconds,
        "factor_seconds": factor_seconds,
        "solve_seconds": solve_seconds,
    }


def h2_solutions(problem: Problem, runs: dict[str, H2Run], accurate: AccurateRun) -> dict[str, Tensor]:
    """Solve in every way the H2 factors offer."""
    direct = {method: solve(run.factor, problem.b) for method, run in runs.items()}
    sequential = {
        f"{method}_sequential": solve(run.factor, problem.b, substitution="sequential") for method, run in runs.items()
    }
    return direct | sequential | {"h2_ulv_cg": accurate.solution.x}


def describe_tiles(run: TileRun) -> Row:
    """Size and work of a tile low-rank factorization."""
    tiles = run.tiles
    return {
        "kernel_entries": run.kernel_entries,
        "factor_bytes": tiles.nbytes,
        "construct_flops": run.construct_flops,
        "factor_flops": tiles.flops.total - run.construct_flops,
        "rank_max": max(tiles.ranks, default=0),
        "rank_mean": sum(tiles.ranks) / max(1, len(tiles.ranks)),
        "boxes": tiles.width,
        "levels": 1,
    }


def describe_h2(run: H2Run) -> Row:
    """Size and work of an H2-ULV factorization."""
    factor = run.factor
    ranks = [level.basis.rank for level in factor.levels]
    return {
        "kernel_entries": run.kernel_entries,
        "factor_bytes": factor.nbytes,
        "factor_flops": factor.flops,
        "published_factor_flops": factor.published_flops,
        "rank_max": max(ranks, default=0),
        "rank_mean": sum(ranks) / max(1, len(ranks)),
        "boxes": len(factor.matrix.field.tree.members),
        "levels": len(ranks),
    }


def describe_accurate(run: AccurateRun) -> Row:
    """Size of a solver of controlled accuracy, its rank at the tolerance, and its iterations."""
    return describe_h2(H2Run(run.solver.factor, run.kernel_entries)) | {
        "iterations": run.solution.iterations,
        "converged": run.solution.converged,
        "factor_bytes": run.solver.nbytes,
        "operator_rank_max": max((level.rank for level in run.solver.operator.levels.values()), default=0),
    }
