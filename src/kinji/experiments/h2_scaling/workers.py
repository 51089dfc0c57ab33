"""Strong scaling over the cores of one machine: the factorization and both substitutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kinji.experiments.cases import H2ScalingCase
from kinji.experiments.context import Context
from kinji.experiments.h2_scaling.problem import Problem, Row
from kinji.experiments.h2_scaling.solvers import DECOUPLED, compress_h2, timed
from kinji.experiments.int8_dgemm.threads import limited_to
from kinji.hmatrix.h2_ulv import factorize
from kinji.hmatrix.substitution import solve

SHORT_CALLS = 5


def scale_over_workers(case: H2ScalingCase, context: Context, problem: Problem) -> Iterator[Row]:
    """Yield the seconds of each part for each number of workers, interleaved, after one call of each."""
    if not case.workers:
        return
    fill_ins, lift = DECOUPLED
    matrix = compress_h2(case, problem, problem.kernel(), case.rank, fill_ins)
    factor = factorize(matrix, lift=lift)
    parts: dict[str, tuple[int, Callable[[], object]]] = {
        "factor": (1, lambda: factorize(matrix, lift=lift)),
        "parallel substitution": (SHORT_CALLS, lambda: solve(factor, problem.b)),
        "sequential substitution": (SHORT_CALLS, lambda: solve(factor, problem.b, substitution="sequential")),
    }
    rounds = [(r, workers, part) for r in range(-1, case.repetitions) for part in parts for workers in case.workers]
    for repetition, workers, part in context.progress.track(rounds, "workers"):
        calls, work = parts[part]
        with limited_to(workers):
            _, seconds = timed(lambda calls=calls, work=work: [work() for _ in range(calls)])  # type: ignore[misc]
        if repetition >= 0:
            about: Row = {"part": part, "workers": workers, "repetition": repetition}
            yield {"quantity": "workers", "method": "h2_ulv_decoupled", **about, "part_seconds": seconds / calls}
