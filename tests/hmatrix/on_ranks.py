"""What 1, 2 and 4 ranks of MPI compute, beside what one process does: run once, under mpiexec, by `test_distributed`.

Rank 0 writes the findings to the file named on the command line.
"""

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from numpy.linalg import LinAlgError

from kinji.hmatrix import compiled, eager, solver
from kinji.hmatrix.geometry import fibonacci_sphere
from kinji.hmatrix.h2_matrix import build_near_field, compress
from kinji.hmatrix.h2_ulv import factorize
from kinji.hmatrix.kernels import Kernel
from kinji.hmatrix.substitution import solve
from tests.hmatrix.problems import cube_points, normal, relative_error

N = 2500  # 32 leaves of 78 or 79 points: ghosts
VARIANTS = [("2023", "decoupled", "cholesky"), ("sc22", "orthonormal", "lu")]


def results(comm, fill_ins, lift, method, *, place=fibonacci_sphere, n=N, theta=2.0, dtype=torch.float64, on=compiled):
    """Everything the library computes from one matrix, by name, whole vectors; None for comm is one process."""
    field = build_near_field(Kernel(diagonal=20.0), place(n), leaf_size=64, theta=theta, comm=comm, dtype=dtype)
    matrix = compress(replace(field, on=on), rank=40, samples=300, fill_ins=fill_ins, tolerance=1e-4)
    factor, shares = factorize(matrix, lift=lift, method=method), field.shares
    own = normal(n, 2)[shares.rows]
    return {
        "product": shares.collect(matrix.matvec(own)),
        "parallel": shares.collect(solve(factor, own)),
        "diagonal": shares.collect(solve(factor, own, substitution="diagonal")),
        "logdet": torch.tensor(factor.logdet(), dtype=torch.float64),
        "length": shares.total(own.square().sum(dim=0)),
        "ranks": torch.tensor([0.0, *(basis.rank for basis in matrix.levels.values())]) + 1.0,
    }


@cache
def results_alone(*variant, **problem):
    """What one process computes without MPI."""
    return results(None, *variant, **problem)


def errors(comm, *variant, **problem):
    """Relative errors against one process without MPI."""
    shared, alone = results(comm, *variant, **problem), results_alone(*variant, **problem)
    return {name: relative_error(shared[name], alone[name]) for name in alone}


def solver_errors(comm):
    """The solver of controlled accuracy: its solution, and its number of iterations, against one process."""
    points, b = fibonacci_sphere(N), normal(N, 2)
    options = {"leaf_size": 64, "rank": 30, "largest_rank": 60, "samples": 300, "tolerance": 1e-6}
    shared, alone = (solver.factorize(points, Kernel(diagonal=20.0), comm=c, **options) for c in (comm, None))
    shares = shared.operator.field.shares
    one, other = shared.iterate(b[shares.rows], tolerance=1e-10), alone.iterate(b, tolerance=1e-10)
    restored = solver.KernelSolver.from_state(shared.state_dict(), comm=comm)
    products = (s.matvec(b[shares.rows]) for s in (restored, shared))
    return {
        "solution": relative_error(shares.collect(one.x), other.x),
        "iterations": one.iterations - other.iterations,
        "restored": relative_error(*products),
    }


def costs(comm, n):
    """Bytes that the busiest rank sends and stores; of the factors also what one process stores."""
    kernel, points = Kernel(diagonal=20.0), fibonacci_sphere(n)
    field = build_near_field(kernel, points, leaf_size=32, comm=comm)
    matrix, sent = compress(field, rank=16, samples=64), field.shares.ranks.sent_bytes
    factor = factorize(matrix)
    built, own = sent["halo"], normal(len(field.shares.rows), 1)
    solve(factor, matrix.matvec(own))
    alone = factorize(compress(build_near_field(kernel, points, leaf_size=32), rank=16, samples=64))
    found = {"build": built, "apply": sent["halo"] - built, "gathered": sent["gathered"], "stored": factor.nbytes}
    return {name: max(comm.allgather(count)) for name, count in found.items()} | {"stored alone": alone.nbytes}


def message(error, work, *arguments, **options):
    """The text of an error, None if there is none."""
    try:
        work(*arguments, **options)
    except error as raised:
        return str(raised)
    return None


def indefinite(comm, diagonal, fill_ins):
    """What is said on each rank, and then by one process, where a few boxes are not definite."""

    def work(comm):
        field = build_near_field(Kernel(diagonal=diagonal), cube_points(N), leaf_size=64, theta=1.0, comm=comm)
        factorize(compress(field, rank=20, samples=300, fill_ins=fill_ins))

    return [*comm.allgather(message(LinAlgError, work, comm)), message(LinAlgError, work, None)]


def sequential(comm):
    """The error of the substitution that several ranks do not have."""
    field = build_near_field(Kernel(diagonal=20.0), fibonacci_sphere(600), leaf_size=64, comm=comm)
    factor, own = factorize(compress(field, rank=20, samples=64)), normal(len(field.shares.rows), 1)
    return message(ValueError, solve, factor, own, substitution="sequential")


def compile_all():
    """Let one process compile what the ranks will run, so that they find it compiled."""
    for dtype in (torch.float64, torch.float32):
        for variant in VARIANTS:
            results_alone(*variant, n=600, dtype=dtype)


def main():
    from mpi4py import MPI  # which starts MPI: not in the process that runs the tests

    torch.set_num_threads(1)
    world, findings, variant = MPI.COMM_WORLD, {}, VARIANTS[0]
    for size in (1, 2, 4):
        comm = world.Split(int(world.rank < size))
        if world.rank < size:
            findings |= {f"{size} {' '.join(variant)}": errors(comm, *variant) for variant in VARIANTS}
        world.Barrier()
    findings["few leaves"] = errors(world, *variant, n=150)
    findings["dense"] = errors(world, *variant, n=600, theta=1e9)
    findings["volume"] = errors(world, "none", "decoupled", "lu", place=cube_points, n=1500, theta=1.0)
    findings["hss"] = errors(world, *variant, theta=0.0)
    findings["single"] = errors(world, *variant, dtype=torch.float32)
    findings["eager"] = errors(world, *variant, n=1500, on=eager)
    findings["solver"] = solver_errors(world)
    findings["costs"] = [costs(world, n) for n in (2048, 8192)]
    findings["indefinite"] = [indefinite(world, 15.0, "2023"), indefinite(world, 6.0, "none")]
    findings["sequential"] = sequential(world)
    three = world.Split(int(world.rank < 3))
    findings["three"] = message(ValueError, build_near_field, Kernel(diagonal=1.0), fibonacci_sphere(99), comm=three)
    if world.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(findings, indent=1))


if __name__ == "__main__":
    main()
