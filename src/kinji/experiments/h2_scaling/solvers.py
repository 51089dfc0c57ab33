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
from kinji.hmatrix.block_low_rank import BlockLowRankMatrix, compress_tiles, factorize_tiles
from kinji.hmatrix.h2_matrix import H2Matrix, build_near_field, compress
from kinji.hmatrix.h2_ulv import H2Factor, Lift, factorize
from kinji.hmatrix.kernels import Kernel
from kinji.hmatrix.solver import KernelSolver
from kinji.hmatrix.solver import factorize as factorize_kernel
from kinji.hmatrix.substitution import solve
from kinji.hmatrix.tile_substitution import solve_tiles

T = TypeVar("T")
PUBLISHED: tuple[FillIns, Lift] = ("2023", "orthonormal")
DECOUPLED: tuple[FillIns, Lift] = ("sc22", "decoupled")
VARIANTS: dict[str, tuple[FillIns, Lift]] = {"h2_ulv": PUBLISHED, "h2_ulv_decoupled": DECOUPLED}


@dataclass(frozen=True)
class Outcome:
    """Solutions by method, size and work: what is kept of a factorization, which itself may fill the memory."""

    solutions: dict[str, Tensor]
    about: Row


def run_block_low_rank(case: H2ScalingCase, problem: Problem) -> tuple[Outcome, Row]:
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
    construct_flops = tiles.flops.total
    _, factor_seconds = timed(lambda: factorize_tiles(tiles))
    x, solve_seconds = timed(lambda: solve_tiles(tiles, problem.b))
    about = {"kernel_entries": kernel.entries, **describe_tiles(tiles, construct_flops)}
    return Outcome({"blr": x}, about), times("blr", construct_seconds, factor_seconds, solve_seconds)


def run_h2_ulv(case: H2ScalingCase, problem: Problem, method: str) -> tuple[Outcome, Row]:
    """Compress, factorize and solve level by level, in one of `VARIANTS`."""
    kernel, (fill_ins, lift) = problem.kernel(), VARIANTS[method]
    matrix, construct_seconds = timed(lambda: compress_h2(case, problem, kernel, case.rank, fill_ins))
    factor, factor_seconds = timed(lambda: factorize(matrix, lift=lift))
    x, solve_seconds = timed(lambda: solve(factor, problem.b))
    x_in_turn, sequential_seconds = timed(lambda: solve(factor, problem.b, substitution="sequential"))
    row = times(method, construct_seconds, factor_seconds, solve_seconds)
    about = {"kernel_entries": kernel.entries, **describe_h2(factor)}
    outcome = Outcome({method: x, f"{method}_sequential": x_in_turn}, about)
    return outcome, row | {"sequential_solve_seconds": sequential_seconds}


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
) -> tuple[KernelSolver, Outcome, Row]:
    """Factorize and iterate to a relative residual: the library's own way."""
    kernel = problem.kernel()
    options = {"theta": case.theta, "leaf_size": case.leaf, "seed": case.seed, "double": double}
    solver, construct_seconds = timed(lambda: factorize_kernel(problem.points, kernel, **options))
    solution, solve_seconds = timed(lambda: solver.iterate(problem.b, tolerance=residual))
    about = {"kernel_entries": kernel.entries, **describe_solver(solver)}
    about |= {"iterations": solution.iterations, "converged": solution.converged}
    return solver, Outcome({"h2_ulv_cg": solution.x}, about), times("h2_ulv_cg", construct_seconds, 0.0, solve_seconds)


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


def describe_tiles(tiles: BlockLowRankMatrix, construct_flops: float) -> Row:
    """Size and work of a tile low-rank factorization."""
    return {
        "factor_bytes": tiles.nbytes,
        "construct_flops": construct_flops,
        "factor_flops": tiles.flops.total - construct_flops,
        "rank_max": max(tiles.ranks, default=0),
        "rank_mean": sum(tiles.ranks) / max(1, len(tiles.ranks)),
        "boxes": tiles.width,
        "levels": 1,
    }


def describe_h2(factor: H2Factor) -> Row:
    """Size and work of an H2-ULV factorization."""
    ranks = [level.basis.rank for level in factor.levels]
    return {
        "factor_bytes": factor.nbytes,
        "factor_flops": factor.flops,
        "published_factor_flops": factor.published_flops,
        "rank_max": max(ranks, default=0),
        "rank_mean": sum(ranks) / max(1, len(ranks)),
        "boxes": len(factor.matrix.field.tree.members),
        "levels": len(ranks),
    }


def describe_solver(solver: KernelSolver) -> Row:
    """Size of a solver of controlled accuracy, and the rank of its product."""
    rank = max((level.rank for level in solver.operator.levels.values()), default=0)
    return describe_h2(solver.factor) | {"factor_bytes": solver.nbytes, "operator_rank_max": rank}
