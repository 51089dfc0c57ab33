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
``tolerance``
    H2-ULV with ranks chosen by an accuracy of the bases instead of fixed: the fill-ins in them take more with N.
``preconditioner``
    Iterations with factors in single and in double precision.
``workers``
    Seconds of factorization and substitutions on some cores. Each of some hundred short loops waits for its slowest
    worker: with anything else running on the cores, these times say little.
``block``
    Where the blocks of the formats are, and their ranks at the tolerance of the case.

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
from kinji.experiments.h2_scaling.formats import describe_formats
from kinji.experiments.h2_scaling.problem import Problem, Row, build_problem, describe_problem, judge
from kinji.experiments.h2_scaling.solvers import (
    VARIANTS,
    Outcome,
    run_accurately,
    run_block_low_rank,
    run_h2_ulv,
)
from kinji.experiments.h2_scaling.structure import describe_graph, describe_independence
from kinji.experiments.h2_scaling.sweeps import (
    ablate_fill_ins,
    compare_precisions,
    factorize_to_tolerance,
    measure_ranks,
    sweep_admissibility,
    sweep_diagonal,
)
from kinji.experiments.h2_scaling.workers import scale_over_workers
from kinji.experiments.int8_dgemm.threads import limited_to
from kinji.hmatrix.solver import KernelSolver
from kinji.hmatrix.task_graph import h2_ulv_graph, tile_cholesky_graph

WARM_UP_POINTS = 1024


def measure(case: H2ScalingCase, context: Context) -> Iterator[Row]:
    """Run the solvers in turn, ``repetitions`` times, then what else the case asks for.

    A variant of H2-ULV, or a point of a sweep, that meets a block that is not positive definite is a "failure", and
    the others go on.

    Raises
    ------
    KinjiError
        If workers are asked for on a GPU.
    numpy.linalg.LinAlgError
        If that happens to the tiles or to the library's solver.
    """
    if case.workers and context.device != "cpu":
        raise KinjiError(f"workers = {case.workers} are cores of a CPU: leave them out with --device {context.device}.")
    warm_up(case, context.device)
    problem = build_problem(case, context.device)
    residual = case.tolerance
    for repetition in context.progress.track(range(case.repetitions), "factorizations"):
        outcomes: dict[str, Outcome] = {}
        with limited_to(1):
            if case.tile:
                outcomes["blr"], row = run_block_low_rank(case, problem)
                yield {"repetition": repetition, **row}
                residual = judge(problem, outcomes["blr"].solutions)["blr"]["relative_residual"]
            for method in VARIANTS:
                try:
                    outcomes[method], row = run_h2_ulv(case, problem, method)
                except LinAlgError as error:
                    row = {"quantity": "failure", "method": method, "message": str(error)}
                yield {"repetition": repetition, **row}
            solver, outcomes["h2_ulv_cg"], row = run_accurately(case, problem, residual)
            yield {"repetition": repetition, **row}
        if repetition < case.repetitions - 1:
            del solver  # two do not fit the memory that one may fill
    context.progress.say("judging the solutions against the true kernel")
    yield from describe_results(problem, outcomes, solver)
    yield describe_graph("blr", tile_cholesky_graph(len(solver.operator.field.tree.members)))  # tiles like boxes
    yield describe_graph("h2_ulv", h2_ulv_graph(solver.factor))
    yield describe_independence(solver.factor, case.seed)
    del solver
    yield from ablate_fill_ins(case, context, problem)
    yield from sweep_admissibility(case, context, problem)
    yield from sweep_diagonal(case, context)
    yield from measure_ranks(case, context, problem)
    yield from factorize_to_tolerance(case, context, problem)
    yield from compare_precisions(case, problem, residual)
    with limited_to(1):  # matrices too small for more
        yield from describe_formats(case, context, problem)
    yield from scale_over_workers(case, context, problem)


def describe_results(problem: Problem, outcomes: dict[str, Outcome], solver: KernelSolver) -> Iterator[Row]:
    """Yield the result of every method: size, work, accuracy, and how hard the problem is."""
    accuracies = judge(problem, {m: x for outcome in outcomes.values() for m, x in outcome.solutions.items()})
    facts = describe_problem(problem, solver.operator)
    for outcome in outcomes.values():
        for method in outcome.solutions:
            yield {"quantity": "result", "method": method, **outcome.about, **accuracies[method], **facts}


def warm_up(case: H2ScalingCase, device: str) -> None:
    """Compile, and start the threads, on a small matrix."""
    small = replace(case, n=WARM_UP_POINTS, leaf=64, rank=16, samples=100, tile=256, diagonal="dominant")
    problem = build_problem(small, device)
    run_block_low_rank(small, problem)
    for method in VARIANTS:
        run_h2_ulv(small, problem, method)
    run_accurately(small, problem, case.tolerance)
