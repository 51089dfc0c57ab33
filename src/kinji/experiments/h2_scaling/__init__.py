"""H2-ULV beside LORAPO, a tile low-rank Cholesky, on one kernel matrix.

The published comparison (arXiv:2208.10907) puts about 1000 N on the diagonal of ``1/r`` on the unit sphere, which
leaves almost a multiple of the identity: beside each result stand the condition number and the error of
``b / diagonal``. The natural diagonal is the average of the kernel over what a point owns. Accuracy is judged against
the true kernel, evaluated row by row.

Observations by ``quantity``:

``time``, ``result``
    Seconds of each repetition on one thread; size, operations and accuracy of each way to solve. On more, the thread
    pools of the two libraries that the tiles call get into each other's way. "h2_ulv" is H2-ULV as published,
    "h2_ulv_decoupled" the same with decoupled lifts and fill-ins scaled to the far field, "h2_ulv_cg" the library's
    solver, which iterates with factors in single precision to the residual of the tiles.
``task_graph``, ``independence``
    What can run at once, and that no box needs another.
``fill_ins``, ``admissibility``, ``diagonal``
    The error with one thing changed at a time.
``rank``
    The rank that one accuracy takes, for HSS and for H2.
``preconditioner``
    Iterations with factors in single and in double precision.
``workers``
    Seconds of factorization and substitutions on some cores.

With ``--device cuda`` the tiles are on the GPU as well, and workers, which are cores of a CPU, are refused. It has not
yet been run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from numpy.linalg import LinAlgError

from kinji.errors import KinjiError
from kinji.experiments.cases import H2ScalingCase
from kinji.experiments.context import Context
from kinji.experiments.h2_scaling.problem import Row, build_problem, describe_problem, judge
from kinji.experiments.h2_scaling.solvers import (
    VARIANTS,
    describe_accurate,
    describe_h2,
    describe_tiles,
    h2_solutions,
    run_accurately,
    run_block_low_rank,
    run_h2_ulv,
)
from kinji.experiments.h2_scaling.structure import describe_graph, describe_independence
from kinji.experiments.h2_scaling.sweeps import (
    ablate_fill_ins,
    compare_precisions,
    measure_ranks,
    sweep_admissibility,
    sweep_diagonal,
)
from kinji.experiments.h2_scaling.workers import scale_over_workers
from kinji.experiments.int8_dgemm.threads import limited_to
from kinji.hmatrix.block_low_rank import solve_tiles
from kinji.hmatrix.task_graph import h2_ulv_graph, tile_cholesky_graph

WARM_UP_POINTS = 1024


def measure(case: H2ScalingCase, context: Context) -> Iterator[Row]:
    """Run the solvers in turn, ``repetitions`` times, then what else the case asks for.

    A variant of H2-ULV that meets a block that is not positive definite is a "failure", and the others go on.

    Raises
    ------
    KinjiError
        If workers are asked for on a GPU.
    numpy.linalg.LinAlgError
        If that happens to the tiles, to the library's solver or in a sweep.
    """
    if case.workers and context.device != "cpu":
        raise KinjiError(f"workers = {case.workers} are cores of a CPU: leave them out with --device {context.device}.")
    warm_up(case, context.device)
    problem = build_problem(case, context.device)
    residual = case.tolerance
    for repetition in context.progress.track(range(case.repetitions), "factorizations"):
        with limited_to(1):
            if case.tile:
                baseline, row = run_block_low_rank(case, problem)
                yield {"repetition": repetition, **row}
                tiles_accuracy = judge(problem, {"blr": solve_tiles(baseline.tiles, problem.b)})["blr"]
                residual = tiles_accuracy["relative_residual"]
            runs = {}
            for method in VARIANTS:
                try:
                    runs[method], row = run_h2_ulv(case, problem, method)
                except LinAlgError as error:
                    row = {"quantity": "failure", "method": method, "message": str(error)}
                yield {"repetition": repetition, **row}
            accurate, row = run_accurately(case, problem, residual)
            yield {"repetition": repetition, **row}
    context.progress.say("judging the solutions against the true kernel")
    facts = describe_problem(problem, accurate.solver.operator)
    if case.tile:
        yield {"quantity": "result", "method": "blr", **describe_tiles(baseline), **tiles_accuracy, **facts}
    described = {method: describe_h2(run) for method, run in runs.items()}
    described |= {f"{method}_sequential": about for method, about in described.items()}
    described["h2_ulv_cg"] = describe_accurate(accurate)
    for method, accuracy in judge(problem, h2_solutions(problem, runs, accurate)).items():
        yield {"quantity": "result", "method": method, **described[method], **accuracy, **facts}
    factor = accurate.solver.factor
    yield describe_graph("blr", tile_cholesky_graph(len(factor.matrix.field.tree.members)))  # tiles like boxes
    yield describe_graph("h2_ulv", h2_ulv_graph(factor))
    yield describe_independence(factor, case.seed)
    yield from ablate_fill_ins(case, context, problem)
    yield from sweep_admissibility(case, context, problem)
    yield from sweep_diagonal(case, context)
    yield from measure_ranks(case, context, problem)
    yield from compare_precisions(case, problem, residual)
    yield from scale_over_workers(case, context, problem)


def warm_up(case: H2ScalingCase, device: str) -> None:
    """Compile, and start the threads, on a small matrix."""
    small = replace(case, n=WARM_UP_POINTS, leaf=64, rank=16, samples=100, tile=256, diagonal="dominant")
    problem = build_problem(small, device)
    run_block_low_rank(small, problem)
    for method in VARIANTS:
        run_h2_ulv(small, problem, method)
    run_accurately(small, problem, case.tolerance)
