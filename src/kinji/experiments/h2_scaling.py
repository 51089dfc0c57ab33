"""H2-ULV beside LORAPO, a tile low-rank Cholesky, on one kernel matrix of a sphere.

The published comparison (arXiv:2208.10907) puts about 1000 N on the diagonal of ``1/r`` on the unit sphere,
which leaves almost a multiple of the identity: beside each result stand the condition number and the error of
``b / diagonal``. The natural diagonal is the average of the kernel over what a point owns. Accuracy is judged
against the true kernel, evaluated row by row; conjugate gradients with the H2 factors as preconditioner are
run down to the residual of the baseline.

``--device cuda`` has not yet been run on a GPU.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from kinji.experiments.cases import H2ScalingCase
from kinji.experiments.context import Context
from kinji.hmatrix.block_low_rank import BlockLowRankMatrix, compress_tiles, factorize_tiles, solve_tiles
from kinji.hmatrix.geometry import fibonacci_sphere, self_term
from kinji.hmatrix.h2_matrix import H2Matrix, build_near_field, compress
from kinji.hmatrix.h2_ulv import H2Factor, eliminate_complements, factorize, orthogonalize, transform_blocks
from kinji.hmatrix.kernels import Kernel, true_product
from kinji.hmatrix.krylov import IterativeSolution, conjugate_gradients, extreme_eigenvalues
from kinji.hmatrix.substitution import solve
from kinji.hmatrix.task_graph import TaskGraph, h2_ulv_graph, tile_cholesky_graph

Row = dict[str, int | float | str | bool]
T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """Points on a sphere, the diagonal, a known solution and its exact right-hand side, both ``(N, 1)``."""

    points: Tensor
    diagonal: float
    x: Tensor
    b: Tensor

    def kernel(self) -> Kernel:
        """Return an evaluator whose count of entries starts at zero."""
        return Kernel("laplace", diagonal=self.diagonal)


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
class Accurate:
    """What an accurate solution takes beyond the factors: an H2 matrix without fill-ins, and the iterations."""

    operator: H2Matrix
    solution: IterativeSolution


def measure(case: H2ScalingCase, context: Context) -> Iterator[Row]:
    """Run both solvers in turn, ``repetitions`` times.

    Yields
    ------
    dict
        By ``quantity``: "time" (one per solver and repetition), "result" (one per solver and way to solve),
        "task_graph" (one per solver), "independence" and "fill_ins" (one per rank, with and without).

    Raises
    ------
    numpy.linalg.LinAlgError
        If a factorization meets a block that is not positive definite.
    """
    problem = build_problem(case, context.device)
    for repetition in context.progress.track(range(case.repetitions), "factorizations"):
        baseline, row = run_block_low_rank(case, problem)
        yield {"repetition": repetition, **row}
        ours, row = run_h2_ulv(case, problem)
        yield {"repetition": repetition, **row}
    context.progress.say("judging the solutions against the true kernel")
    baseline_accuracy = judge(problem, {"blr": solve_tiles(baseline.tiles, problem.b)})["blr"]
    accurate, row = run_conjugate_gradients(case, problem, ours.factor, baseline_accuracy["relative_residual"], row)
    yield {"repetition": 0, **row}
    facts = describe_problem(problem, accurate.operator)
    yield {"quantity": "result", "method": "blr", **describe_tiles(baseline), **baseline_accuracy, **facts}
    for method, accuracy in judge(problem, h2_solutions(problem, ours.factor, accurate)).items():
        row = {**describe_h2(ours), **describe_iterations(method, accurate), **accuracy, **facts}
        yield {"quantity": "result", "method": method, **row}
    yield describe_graph("blr", tile_cholesky_graph(len(ours.factor.matrix.field.tree.members)))  # tiles like boxes
    yield describe_graph("h2_ulv", h2_ulv_graph(ours.factor))
    yield describe_independence(ours.factor, case.seed)
    for rank in context.progress.track(case.ablation_ranks, "fill-in ablation"):
        yield from ablate_fill_ins(case, problem, rank)


def build_problem(case: H2ScalingCase, device: str) -> Problem:
    """Choose the diagonal and make a right-hand side of a random known solution with the true kernel."""
    points = fibonacci_sphere(case.n, device=device)
    natural = self_term(4.0 * math.pi)  # the sphere of radius sqrt(N): every point owns an area of 4 pi
    # SC22: 1/(r + 1e-3/N) on the unit sphere, so 1000 N there and 1000 sqrt(N) on a sphere of radius sqrt(N)
    diagonal = natural if case.diagonal == "natural" else 1000.0 * math.sqrt(case.n)
    x = torch.randn(case.n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(case.seed)).to(device)
    return Problem(points, diagonal, x, true_product(Kernel(diagonal=diagonal), points, x))


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


def run_h2_ulv(case: H2ScalingCase, problem: Problem) -> tuple[H2Run, Row]:
    """Compress, factorize and solve level by level."""
    kernel = problem.kernel()
    matrix, construct_seconds = timed(lambda: compress_h2(case, problem, kernel, case.rank, fill_ins=True))
    factor, factor_seconds = timed(lambda: factorize(matrix))
    _, solve_seconds = timed(lambda: solve(factor, problem.b))
    _, sequential_seconds = timed(lambda: solve(factor, problem.b, substitution="sequential"))
    row = times("h2_ulv", construct_seconds, factor_seconds, solve_seconds)
    return H2Run(factor, kernel.entries), row | {"sequential_solve_seconds": sequential_seconds}


def compress_h2(case: H2ScalingCase, problem: Problem, kernel: Kernel, rank: int, *, fill_ins: bool) -> H2Matrix:
    """Build the H2 matrix whose bases serve a factorization."""
    field = build_near_field(kernel, problem.points, theta=case.theta, leaf_size=case.leaf)
    return compress(field, rank=rank, samples=case.samples, fill_ins=fill_ins, seed=case.seed)


def run_conjugate_gradients(
    case: H2ScalingCase, problem: Problem, factor: H2Factor, target: float, spent: Row
) -> tuple[Accurate, Row]:
    """Iterate on an H2 matrix without fill-ins, preconditioned by factors that took the times ``spent``."""
    field = factor.matrix.field
    operator, operator_seconds = timed(
        lambda: compress(field, rank=2 * case.rank, samples=2 * case.samples, fill_ins=False, seed=case.seed)
    )
    solution, solve_seconds = timed(
        lambda: conjugate_gradients(
            operator.matvec, problem.b, precondition=lambda r: solve(factor, r), tolerance=target
        )
    )
    construct_seconds = float(spent["construct_seconds"]) + operator_seconds
    row = times("h2_ulv_cg", construct_seconds, float(spent["factor_seconds"]), solve_seconds)
    return Accurate(operator, solution), row


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


def h2_solutions(problem: Problem, factor: H2Factor, accurate: Accurate) -> dict[str, Tensor]:
    """Solve in every way the H2 factors offer."""
    return {
        "h2_ulv": solve(factor, problem.b),
        "h2_ulv_sequential": solve(factor, problem.b, substitution="sequential"),
        "h2_ulv_cg": accurate.solution.x,
    }


def judge(problem: Problem, solutions: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Measure residuals against the true kernel, and errors against the known solution, both relative."""
    columns = torch.cat(list(solutions.values()), dim=1)
    residuals = (true_product(problem.kernel(), problem.points, columns) - problem.b).norm(dim=0) / problem.b.norm()
    errors = (columns - problem.x).norm(dim=0) / problem.x.norm()
    return {
        method: {"relative_residual": float(residual), "relative_error": float(error)}
        for method, residual, error in zip(solutions, residuals, errors, strict=True)
    }


def describe_problem(problem: Problem, operator: H2Matrix) -> Row:
    """Say how hard the problem is: the condition number, and the error of dividing by the diagonal."""
    smallest, largest = extreme_eigenvalues(operator.matvec, problem.b)
    trivial_error = (problem.b / problem.diagonal - problem.x).norm() / problem.x.norm()
    return {
        "diagonal_entry": problem.diagonal,
        "condition_number": largest / smallest,
        "diagonal_solve_relative_error": float(trivial_error),
    }


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
    ranks = [level.rank for level in factor.levels]
    return {
        "kernel_entries": run.kernel_entries,
        "factor_bytes": factor.nbytes,
        "factor_flops": factor.flops,
        "rank_max": max(ranks, default=0),
        "rank_mean": sum(ranks) / max(1, len(ranks)),
        "boxes": len(factor.matrix.field.tree.members),
        "levels": len(ranks),
    }


def describe_iterations(method: str, accurate: Accurate) -> Row:
    """What only the iterative way has: iterations, whether they got there, and what the operator takes on top."""
    if method != "h2_ulv_cg":
        return {}
    return {
        "iterations": accurate.solution.iterations,
        "converged": accurate.solution.converged,
        "operator_bytes": accurate.operator.nbytes,
        "kernel_entries": accurate.operator.field.kernel.entries,
    }


def describe_graph(method: str, graph: TaskGraph) -> Row:
    """Size, depth and width of a task graph."""
    return {
        "quantity": "task_graph",
        "method": method,
        "tasks": graph.tasks,
        "depth": graph.depth,
        "width": graph.width,
    }


def describe_independence(factor: H2Factor, seed: int) -> Row:
    """Factorize the leaf level again with boxes and pairs in a random order and compare the factors bit for bit."""
    matrix, level = factor.matrix, factor.levels[0]
    blocks, boxes = matrix.field.blocks, len(level.transform)
    generator = torch.Generator().manual_seed(seed)
    box_order = torch.randperm(boxes, generator=generator).to(blocks.device)
    pair_order = torch.randperm(len(blocks), generator=generator).to(blocks.device)
    orthogonal, _ = orthogonalize(matrix.levels[matrix.field.tree.depth], None)
    transform = eliminate_complements(
        blocks[:boxes][box_order], orthogonal[box_order], level.rank, level=matrix.field.tree.depth
    )
    renumbered = torch.argsort(box_order)[level.pairs[pair_order]]
    transformed = transform_blocks(blocks[pair_order], transform, renumbered)
    same = torch.equal(transform, level.transform[box_order]) and torch.equal(transformed, level.blocks[pair_order])
    return {"quantity": "independence", "method": "h2_ulv", "boxes": boxes, "pairs": len(blocks), "identical": same}


def ablate_fill_ins(case: H2ScalingCase, problem: Problem, rank: int) -> Iterator[Row]:
    """Factorize with and without fill-ins in the bases at one rank."""
    for fill_ins in (True, False):
        matrix = compress_h2(case, problem, problem.kernel(), rank, fill_ins=fill_ins)
        solution = solve(factorize(matrix), problem.b)
        yield {
            "quantity": "fill_ins",
            "method": "h2_ulv",
            "basis_rank": rank,
            "fill_ins": fill_ins,
            **judge(problem, {"h2_ulv": solution})["h2_ulv"],
        }
