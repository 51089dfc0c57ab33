import pytest
import torch
from numpy.linalg import LinAlgError

from kinji.hmatrix.h2_matrix import build_near_field, compress
from kinji.hmatrix.h2_ulv import factorize
from kinji.hmatrix.krylov import conjugate_gradients, extreme_eigenvalues
from kinji.hmatrix.substitution import solve
from tests.hmatrix.problems import relative_error, sphere_problem


def identity(r):
    return r


def test_an_inaccurate_factorization_still_gives_an_accurate_solution():
    kernel, points, dense, x = sphere_problem(1500, diagonal=1.0, sides=1)
    field = build_near_field(kernel, points, leaf_size=64)
    operator = compress(field, rank=100, fill_ins="none")
    factor = factorize(compress(field, rank=30))
    b = dense @ x
    direct = relative_error(solve(factor, b), x)
    plain = conjugate_gradients(operator.matvec, b, precondition=identity, tolerance=1e-9)
    solution = conjugate_gradients(operator.matvec, b, precondition=lambda r: solve(factor, r), tolerance=1e-9)
    assert solution.converged
    assert direct > 1e-3
    assert relative_error(solution.x, x) < 1e-7
    assert solution.iterations < plain.iterations / 2


def test_as_many_iterations_as_distinct_eigenvalues():
    diagonal = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).repeat(10)[:, None]
    b = torch.arange(1.0, 31.0, dtype=torch.float64)[:, None]
    solution = conjugate_gradients(lambda x: diagonal * x, b, precondition=identity, tolerance=1e-12)
    assert (solution.iterations, solution.converged) == (3, True)
    assert relative_error(solution.x, b / diagonal) < 1e-12


def test_an_exhausted_budget_is_reported():
    diagonal = torch.logspace(0, 6, 100, dtype=torch.float64)[:, None]
    b = torch.ones_like(diagonal)
    solution = conjugate_gradients(lambda x: diagonal * x, b, precondition=identity, tolerance=1e-12, max_iterations=5)
    assert (solution.iterations, solution.converged) == (5, False)


def test_an_indefinite_matrix_or_preconditioner_is_refused():
    b = torch.ones(4, 1, dtype=torch.float64)
    with pytest.raises(LinAlgError, match="the matrix is not positive definite"):
        conjugate_gradients(lambda x: -x, b, precondition=identity, tolerance=1e-6)
    with pytest.raises(LinAlgError, match="the preconditioner is not positive definite"):
        conjugate_gradients(identity, b, precondition=lambda r: -r, tolerance=1e-6)


@pytest.mark.parametrize("diagonal", [1.0, 1e3])
def test_extreme_eigenvalues_are_those_of_the_dense_matrix(diagonal):
    _, _, dense, x = sphere_problem(800, diagonal=diagonal, sides=1)
    smallest, largest = extreme_eigenvalues(lambda v: dense @ v, x)
    exact = torch.linalg.eigvalsh(dense)
    assert largest == pytest.approx(float(exact[-1]), rel=1e-10)
    assert float(exact[0]) <= smallest * (1 + 1e-12)
    assert smallest == pytest.approx(float(exact[0]), rel=0.05)


def test_an_invariant_subspace_ends_the_search():
    diagonal = torch.tensor([[3.0], [7.0], [3.0]], dtype=torch.float64)
    assert extreme_eigenvalues(lambda v: diagonal * v, torch.ones_like(diagonal)) == pytest.approx((3.0, 7.0))
