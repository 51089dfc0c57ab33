"""What the error of H2-ULV depends on, one thing changed at a time, and the ranks that an accuracy takes.

Where a block is not positive definite, a point of a sweep is a "failure", and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from numpy.linalg import LinAlgError

from kinji.experiments.cases import H2ScalingCase
from kinji.experiments.context import Context
from kinji.experiments.h2_scaling.problem import Problem, Row, build_problem, error_of
from kinji.experiments.h2_scaling.solvers import DECOUPLED, compress_h2, describe_h2, run_accurately
from kinji.hmatrix.basis import FillIns
from kinji.hmatrix.h2_matrix import H2Matrix
from kinji.hmatrix.h2_ulv import Lift, factorize
from kinji.hmatrix.substitution import solve

FILL_INS: tuple[FillIns, ...] = ("none", "sc22", "2023")
LIFTS: tuple[Lift, ...] = ("orthonormal", "decoupled")
LARGEST_RANK = 1000


def ablate_fill_ins(case: H2ScalingCase, context: Context, problem: Problem) -> Iterator[Row]:
    """Yield the error for every rank, kind of fill-ins in the bases, and lift of the skeleton."""
    for rank in context.progress.track(case.ablation_ranks, "fill-in ablation"):
        for fill_ins in FILL_INS:
            matrix = compress_h2(case, problem, problem.kernel(), rank, fill_ins)
            for lift in LIFTS:
                about: Row = {"basis_rank": rank, "fill_ins": fill_ins, "lift": lift}
                yield _point("fill_ins", "h2_ulv", about, partial(_error, matrix, lift, problem))


def _error(matrix: H2Matrix, lift: Lift, problem: Problem) -> Row:
    return {"relative_error": error_of(problem, solve(factorize(matrix, lift=lift), problem.b))}


def sweep_admissibility(case: H2ScalingCase, context: Context, problem: Problem) -> Iterator[Row]:
    """Yield the error, operations and bytes for every admissibility constant."""
    fill_ins, lift = DECOUPLED

    def point(theta: float) -> Row:
        factor = factorize(compress_h2(case, problem, problem.kernel(), case.rank, fill_ins, theta=theta), lift=lift)
        error = error_of(problem, solve(factor, problem.b))
        return {"relative_error": error, "factor_flops": factor.flops, "factor_bytes": factor.nbytes}

    for theta in context.progress.track(case.sweep_thetas, "admissibility"):
        yield _point("admissibility", "h2_ulv_decoupled", {"swept_theta": theta}, partial(point, theta))


def sweep_diagonal(case: H2ScalingCase, context: Context) -> Iterator[Row]:
    """Yield the error for every multiple of the natural diagonal, and that of dividing by the diagonal."""
    fill_ins, lift = DECOUPLED

    def point(multiple: float) -> Row:
        problem = build_problem(case, context.device, times_natural=multiple)
        factor = factorize(compress_h2(case, problem, problem.kernel(), case.rank, fill_ins), lift=lift)
        return {
            "relative_error": error_of(problem, solve(factor, problem.b)),
            "diagonal_solve_relative_error": error_of(problem, problem.b / problem.diagonal),
        }

    for multiple in context.progress.track(case.sweep_diagonals, "diagonals"):
        yield _point("diagonal", "h2_ulv_decoupled", {"times_natural": multiple}, partial(point, multiple))


def measure_ranks(case: H2ScalingCase, context: Context, problem: Problem) -> Iterator[Row]:
    """Yield the greatest rank that each accuracy of the far field takes, for HSS (theta = 0) and for H2."""
    rounds = [(t, s) for t in case.rank_tolerances for s in (("hss", 0.0), ("h2", case.theta))]
    for tolerance, (structure, theta) in context.progress.track(rounds, "ranks at a tolerance"):
        options = {"theta": theta, "tolerance": tolerance}
        matrix = compress_h2(case, problem, problem.kernel(), LARGEST_RANK, "none", **options)
        rank = max((level.rank for level in matrix.levels.values()), default=0)
        yield {"quantity": "rank", "method": structure, "rank_at_tolerance": rank, "rank_tolerance": tolerance}


def factorize_to_tolerance(case: H2ScalingCase, context: Context, problem: Problem) -> Iterator[Row]:
    """Yield ranks, work and error with the rank of each level chosen by a tolerance of its bases and their fill-ins."""
    fill_ins, lift = DECOUPLED

    def point(tolerance: float) -> Row:
        matrix = compress_h2(case, problem, problem.kernel(), LARGEST_RANK, fill_ins, tolerance=tolerance)
        factor = factorize(matrix, lift=lift)
        return {**describe_h2(factor), "relative_error": error_of(problem, solve(factor, problem.b))}

    for tolerance in context.progress.track(case.rank_tolerances, "factors at a tolerance"):
        yield _point("tolerance", "h2_ulv_tolerance", {"rank_tolerance": tolerance}, partial(point, tolerance))


def compare_precisions(case: H2ScalingCase, problem: Problem, residual: float) -> Iterator[Row]:
    """Yield the iterations that factors in single and in double precision take to one residual."""
    for double in (False, True):
        outcome, row = run_accurately(case, problem, residual, double=double)[1:]  # no solver is kept
        yield row | {
            "quantity": "preconditioner",
            "precision": "double" if double else "single",
            "iterations": outcome.about["iterations"],
            "converged": outcome.about["converged"],
        }


def _point(quantity: str, method: str, about: Row, work: Callable[[], Row]) -> Row:
    """Return what ``work`` does at a point of a sweep, or that it failed there."""
    try:
        return {"quantity": quantity, "method": method, **about, **work()}
    except LinAlgError as error:
        return {"quantity": "failure", "method": method, **about, "message": str(error)}
