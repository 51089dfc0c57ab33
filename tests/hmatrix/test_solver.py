"""The library's front door against dense references, and what it says to those who cannot come in."""

import functools
import io
import types

import numpy as np
import psutil
import pytest
import scipy.sparse.linalg
import torch
from numpy.linalg import LinAlgError

from kinji.hmatrix import Kernel, fibonacci_sphere
from kinji.hmatrix.solver import KernelSolver, factorize
from tests.hmatrix.problems import normal, relative_error, sphere_problem

N = 700
SMALL = {"leaf_size": 32, "rank": 20}


@functools.cache
def problem(double=False):
    kernel, points, dense, x = sphere_problem(N, diagonal=1.0)
    return factorize(points, kernel, double=double, **SMALL), dense, x


@pytest.mark.parametrize("double", [False, True])
def test_solutions_and_products_are_the_dense_ones(double):
    solver, dense, x = problem(double)
    assert relative_error(solver.matvec(x), dense @ x) < 1e-7
    assert relative_error(solver.solve(dense @ x), x) < 1e-6
    assert solver.solve(dense @ x[:, 0]).shape == (N,)
    assert relative_error(solver.precondition(dense @ x), x) < 0.5
    assert solver.logdet() == pytest.approx(float(torch.linalg.slogdet(dense)[1]), rel=2e-2)


def test_a_tighter_tolerance_takes_more_iterations_and_reaches_it():
    solver, dense, x = problem()
    rough, fine = (solver.iterate(dense @ x, tolerance=tolerance) for tolerance in (1e-2, 1e-9))
    assert rough.iterations < fine.iterations
    assert relative_error(solver.matvec(fine.x), dense @ x) < 1e-8


def test_scipy_iterates_with_its_operators():
    solver, dense, x = problem()
    b = (dense @ x[:, 0]).numpy()
    operator, inverse = solver.as_linear_operator(), solver.as_preconditioner()
    assert operator.shape == inverse.shape == (N, N)
    np.testing.assert_array_equal(operator @ x.numpy(), solver.matvec(x).numpy())
    solution, failed = scipy.sparse.linalg.cg(operator, b, M=inverse, rtol=1e-9)
    assert not failed
    assert relative_error(torch.from_numpy(solution), x[:, 0]) < 1e-6


@pytest.mark.parametrize("double", [False, True])
def test_its_arrays_go_to_a_file_and_back(double):
    solver, dense, x = problem(double)
    file = io.BytesIO()
    torch.save(solver.state_dict(), file)
    file.seek(0)
    again = KernelSolver.from_state(torch.load(file))
    assert torch.equal(again.solve(dense @ x), solver.solve(dense @ x))
    assert again.logdet() == solver.logdet()
    assert again.nbytes == solver.nbytes


@pytest.mark.parametrize("n", [1, 2, 63])
def test_fewer_points_than_two_leaves_are_solved_densely(n):
    kernel, points, dense, x = sphere_problem(n, diagonal=1.0)
    assert relative_error(factorize(points, kernel, leaf_size=32).solve(dense @ x), x) < 1e-6


def test_a_rank_beyond_the_box_is_the_box():
    kernel, points, dense, x = sphere_problem(N, diagonal=1.0)
    solver = factorize(points, kernel, leaf_size=16, rank=1000, largest_rank=1000, double=True)
    assert relative_error(solver.precondition(dense @ x), x) < 1e-9


def spoiled(change):
    points = fibonacci_sphere(N)
    change(points)
    return points


def duplicate(points):
    points[7] = points[3]


def not_a_number(points):
    points[5, 1] = torch.nan


@pytest.mark.parametrize(
    ("points", "options", "error", "message"),
    [
        (spoiled(duplicate), {}, ValueError, "points 3 and 7 coincide: merge duplicates"),
        (spoiled(not_a_number), {}, ValueError, "point 5 has a coordinate that is not finite"),
        (fibonacci_sphere(N).float(), {}, TypeError, "convert them to torch.float64"),
        (fibonacci_sphere(N)[:, :2], {}, ValueError, "one row of 3 coordinates per point"),
        (fibonacci_sphere(N)[:0], {}, ValueError, "one row of 3 coordinates per point"),
        (fibonacci_sphere(N), {"leaf_size": 0}, ValueError, "a leaf needs at least one point"),
        (fibonacci_sphere(N), {"rank": 0}, ValueError, "both must be at least 1"),
        (fibonacci_sphere(N), {"theta": -1.0}, ValueError, "must not be negative"),
        (fibonacci_sphere(N), {"fill_ins": "2022"}, ValueError, "choose none, sc22 or 2023"),
        (fibonacci_sphere(N), {"method": "qr"}, ValueError, "cholesky or lu"),
        (fibonacci_sphere(N), {"leafsize": 32}, TypeError, "leafsize"),
    ],
)
def test_what_cannot_be_solved_is_refused_with_the_reason(points, options, error, message):
    with pytest.raises(error, match=message):
        factorize(points, Kernel("laplace"), **{**SMALL, **options})


def test_an_indefinite_matrix_is_refused_with_the_place_and_the_remedy():
    with pytest.raises(LinAlgError, match=r"level \d+, box \d+: .* raise the diagonal of the kernel"):
        factorize(fibonacci_sphere(N), Kernel("laplace", diagonal=1e-3), **SMALL)


def test_memory_is_foreseen_before_anything_large_is_allocated(monkeypatch):
    kernel = Kernel("laplace")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1 << 20))
    with pytest.raises(MemoryError, match=r"need [\d,]+ MiB and 1 MiB are free on cpu: lower the leaf size"):
        factorize(fibonacci_sphere(N), kernel, **SMALL)
    assert kernel.entries == 0


@pytest.mark.parametrize("shape", [(N - 1,), (N + 1, 2), (N, 0), (N, 1, 1)])
@pytest.mark.parametrize("method", ["solve", "matvec", "precondition"])
def test_misshapen_vectors_are_refused(shape, method):
    with pytest.raises(ValueError, match=rf"vectors have shape .*: expected \({N},\) or \({N}, number of vectors\)"):
        getattr(problem()[0], method)(normal(*shape))


def test_too_few_iterations_are_an_error_that_says_what_to_raise():
    solver, dense, x = problem()
    with pytest.raises(ArithmeticError, match=r"after 1 iterations: raise the rank of the factors \(now 20\)"):
        solver.solve(dense @ x, tolerance=1e-12, max_iterations=1)
    assert not solver.iterate(dense @ x, tolerance=1e-12, max_iterations=1).converged


def test_a_state_without_all_its_parts_is_refused():
    state = problem()[0].state_dict()
    del state["root"]
    with pytest.raises(KeyError, match="root"):
        KernelSolver.from_state(state)
