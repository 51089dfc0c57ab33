import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
from numba import njit
from threadpoolctl import threadpool_info

from kinji.hmatrix import lapack

KINDS = {np.float32: 2e-5, np.float64: 1e-13}
SIZES = [(5, 4, 3), (1, 1, 1), (1, 7, 2), (7, 1, 1), (3, 4, 0), (0, 4, 3), (4, 0, 3)]


@pytest.fixture(scope="module")
def routines():
    """The routines inside compiled functions that take parts of wider matrices."""

    def gemm(trans_a, trans_b, alpha, a, b, beta, c):
        lapack.gemm(trans_a, trans_b, alpha, a, b, beta, c)

    def solve_triangular(left, lower, trans, unit, a, b):
        lapack.solve_triangular(left, lower, trans, unit, a, b)

    def cholesky(a):
        return lapack.cholesky(a)

    def lu(a, pivots):
        return lapack.lu(a, pivots)

    arguments = {
        gemm: "(b1, b1, f8, {0}[:, :], {0}[:, :], f8, {0}[:, :])",
        solve_triangular: "(b1, b1, b1, b1, {0}[:, :], {0}[:, :])",
        cholesky: "({0}[:, :],)",
        lu: "({0}[:, :], i4[:])",
    }
    compiled = {f.__name__: njit([text.format(kind) for kind in ("f4", "f8")])(f) for f, text in arguments.items()}
    return SimpleNamespace(**compiled)


def part(matrix):
    """A copy of a matrix inside a wider one that is otherwise not a number; returns both."""
    whole = np.full((matrix.shape[0] + 2, matrix.shape[1] + 5), np.nan, dtype=matrix.dtype)
    inner = whole[1:-1, 2:-3]
    inner[:] = matrix
    return whole, inner


def surroundings_are_untouched(whole):
    inner = np.zeros(whole.shape, dtype=bool)
    inner[1:-1, 2:-3] = True
    return np.isnan(whole[~inner]).all()


def random(kind, *shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(kind)


def close(ours, exact, kind):
    np.testing.assert_allclose(ours, exact, rtol=0, atol=KINDS[kind] * max(1.0, np.abs(exact).max(initial=0.0)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("trans_a", "trans_b"), list(itertools.product([False, True], repeat=2)))
def test_gemm_is_numpys_product(routines, kind, trans_a, trans_b):
    for m, n, k in SIZES:
        a, b, c = (random(kind, *shape) for shape in ((m, k), (k, n), (m, n)))
        _, stored_a = part(a.T if trans_a else a)
        _, stored_b = part(b.T if trans_b else b)
        whole, out = part(c)
        routines.gemm(trans_a, trans_b, -1.5, stored_a, stored_b, 0.5, out)
        close(out, -1.5 * (a @ b) + 0.5 * c, kind)
        assert surroundings_are_untouched(whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [0, 3])
def test_gemm_with_beta_zero_does_not_read_the_output(routines, kind, k):
    a, b = random(kind, 4, k), random(kind, k, 5)
    out = np.full((4, 5), np.nan, dtype=kind)
    routines.gemm(False, False, 1.0, a, b, 0.0, out)
    close(out, a @ b, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("left", "lower", "trans", "unit"), list(itertools.product([False, True], repeat=4)))
def test_triangular_solution_is_numpys(routines, kind, left, lower, trans, unit):
    """The other triangle, and a unit diagonal, are not numbers: they must not be read."""
    for order, sides in ((5, 3), (1, 1), (4, 1), (1, 6), (0, 3), (3, 0)):
        square = random(kind, order, order) / (2 * order + 1) + 2.0 * np.eye(order, dtype=kind)
        triangle = np.tril(square) if lower else np.triu(square)
        if unit:
            np.fill_diagonal(triangle, 1.0)
        mask = np.tril(np.ones_like(square)) if lower else np.triu(np.ones_like(square))
        stored = np.where(mask - np.eye(order) * unit > 0, square, np.nan).astype(kind)
        b = random(kind, order, sides) if left else random(kind, sides, order)
        op = (triangle.T if trans else triangle).astype(np.float64)
        _, a = part(stored)
        whole, x = part(b)
        routines.solve_triangular(left, lower, trans, unit, a, x)
        close(x, np.linalg.solve(op, b) if left else np.linalg.solve(op.T, b.T).T, kind)
        assert surroundings_are_untouched(whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [0, 1, 6, 70])
def test_cholesky_is_numpys_and_leaves_the_upper_triangle(routines, kind, order):
    root = random(kind, order, order + 2)
    a = root @ root.T + np.eye(order, dtype=kind)
    upper = np.triu(np.ones((order, order), dtype=bool), 1)
    whole, out = part(np.where(upper, kind(7.0), a))
    assert routines.cholesky(out) == 0
    close(np.tril(out), np.linalg.cholesky(a.astype(np.float64)), kind)
    assert (out[upper] == 7.0).all()
    assert surroundings_are_untouched(whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_cholesky_names_the_first_pivot_that_fails(routines, kind, bad):
    a = np.diag(np.array([1.0, 2.0, bad, 1.0, bad], dtype=kind))
    assert routines.cholesky(a) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [0, 1, 6, 70])
def test_lu_is_that_of_the_transpose(routines, kind, order):
    a = random(kind, order, order)
    whole, out = part(a)
    pivots = np.zeros(order, dtype=np.int32)
    assert routines.lu(out, pivots) == 0
    assert surroundings_are_untouched(whole)
    if order:
        expected, exchanged = scipy.linalg.lu_factor(a.T)
        close(out.T, expected, kind)
        np.testing.assert_array_equal(pivots, exchanged + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_lu_names_the_first_pivot_that_is_zero(routines, kind):
    a = np.diag(np.array([1.0, 0.0, 2.0, 0.0], dtype=kind))
    assert routines.lu(a, np.zeros(4, dtype=np.int32)) == 2


def test_blas_has_one_thread_inside_and_its_own_again_after():
    def threads():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    before = threads()
    with lapack.one_blas_thread():
        assert threads() == [1] * len(before) != []
    assert threads() == before
