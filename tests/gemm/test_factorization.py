from fractions import Fraction
from functools import partial

import numba
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinji.gemm import scheme_one
from kinji.gemm.factorization import backward_error, cholesky, lu

from .strategies import exact_product

UNIT_ROUNDOFF = 2.0**-53
rng = np.random.default_rng
orders, blocks, seeds = st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32)


def multiply_fp32(a, b):
    return (a.float() @ b.float()).double()


PRODUCTS = {"native": torch.matmul, "emulated": partial(scheme_one, slices=9)}


def positive_definite(n, seed=0):
    g = rng(seed).standard_normal((n, 2 * n + 1))
    return g @ g.T / n


def graded(n, condition):
    """Symmetric positive definite, of eigenvalues that fall geometrically."""
    q = np.linalg.qr(rng(0).standard_normal((n, n))).Q * np.geomspace(1, condition**-0.5, n)
    return q @ q.T


def norm_of_magnitudes(a, left, right):
    return np.linalg.norm(abs(left) @ abs(right)) / np.linalg.norm(a)


def is_lower(x):
    return (x == np.tril(x)).all()


@pytest.mark.parametrize("product", PRODUCTS)
@given(orders, blocks, seeds)
def test_cholesky_is_backward_stable(product, n, block, seed):
    a = positive_definite(n, seed)
    factor = cholesky(a, multiply=PRODUCTS[product], block=block)
    assert is_lower(factor)
    bound = (n + 1) * UNIT_ROUNDOFF * 1.01  # Higham, Accuracy and Stability, theorem 10.3
    assert backward_error(a, factor, factor.T) <= bound * norm_of_magnitudes(a, factor, factor.T)


@pytest.mark.parametrize("product", PRODUCTS)
@given(orders, blocks, seeds)
def test_lu_pivots_and_is_backward_stable(product, n, block, seed):
    a = rng(seed).standard_normal((n, n))
    order, lower, upper = lu(a, multiply=PRODUCTS[product], block=block)
    assert sorted(order) == list(range(n))
    assert is_lower(lower)
    assert is_lower(upper.T)
    assert (np.diagonal(lower) == 1).all()
    assert np.abs(lower).max() <= 1
    bound = n * UNIT_ROUNDOFF * 1.01  # Higham, theorem 9.3
    assert backward_error(a[order], lower, upper) <= bound * norm_of_magnitudes(a, lower, upper)


@pytest.mark.parametrize("block", [1, 7, 32, 96, 97, 1000])
def test_every_block_size_gives_the_factors_of_lapack(block):
    a, g = positive_definite(96), rng(1).standard_normal((96, 96))
    np.testing.assert_allclose(cholesky(a, block=block), np.linalg.cholesky(a), rtol=1e-13, atol=1e-14)
    for ours, theirs in zip(lu(g, block=block), scipy.linalg.lu(g, p_indices=True), strict=True):
        np.testing.assert_allclose(ours, theirs if theirs.ndim == 2 else np.argsort(theirs), rtol=1e-11, atol=1e-12)


small = st.integers(-3, 3).map(float)


@pytest.mark.parametrize("product", PRODUCTS)
@given(st.data(), st.integers(1, 9), st.integers(1, 10))
def test_factors_that_need_no_rounding_come_out_exactly(product, data, n, block):
    entries = np.array(data.draw(st.lists(small, min_size=n * n, max_size=n * n))).reshape(n, n)
    lower = np.tril(entries, -1) + np.eye(n) * 2.0 ** np.arange(n)
    assert (cholesky(lower @ lower.T, multiply=PRODUCTS[product], block=block) == lower).all()
    unit, upper = np.tril(entries, -1) / 4 + np.eye(n), np.triu(entries, 1) + np.eye(n)
    order, ours, theirs = lu(unit @ upper, multiply=PRODUCTS[product], block=block)
    assert (order == np.arange(n)).all()  # |L| < 1 below the diagonal: no other pivots
    assert (ours == unit).all()
    assert (theirs == upper).all()


class Counting:
    """Multiplies, and adds up the operations."""

    def __init__(self, multiply=torch.matmul):
        self.multiply, self.flops, self.depth = multiply, 0, 0

    def __call__(self, a, b):
        self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        self.depth = max(self.depth, a.shape[1])
        return self.multiply(a, b)


@pytest.mark.parametrize(("n", "block"), [(96, 8), (100, 8), (60, 7)])
def test_all_but_a_block_over_n_of_the_operations_are_the_product_s(n, block):
    of_cholesky, of_lu = Counting(), Counting()
    cholesky(positive_definite(n), multiply=of_cholesky, block=block)
    lu(rng(2).standard_normal((n, n)), multiply=of_lu, block=block)
    assert of_cholesky.depth == of_lu.depth == block
    panels = 3 * block / n
    assert of_cholesky.flops == pytest.approx(n**3 / 3, rel=panels)
    assert of_lu.flops == pytest.approx(2 * n**3 / 3, rel=panels)


def test_cholesky_multiplies_the_lower_triangle_alone():
    multiply, n, block = Counting(), 96, 8
    cholesky(positive_definite(n), multiply=multiply, block=block)
    columns = np.arange(block, n, block)  # each updated by every panel to its left, from its diagonal block down
    assert multiply.flops == sum(2 * (n - left) * block * left for left in columns)


def test_nothing_but_the_product_updates():
    a, g, block = positive_definite(30), rng(3).standard_normal((30, 30)), 8
    factor = cholesky(a, multiply=lambda x, y: torch.zeros(len(x), y.shape[1], dtype=x.dtype), block=block)
    for at in range(0, 30, block):
        here = slice(at, at + block)
        np.testing.assert_allclose(factor[here, here], np.linalg.cholesky(a[here, here]), rtol=1e-13, atol=1e-14)
    order, _, upper = lu(g, multiply=lambda x, y: torch.zeros(len(x), y.shape[1], dtype=x.dtype), block=29)
    assert upper[-1, -1] == g[order[-1], -1]


def test_the_product_decides_the_error():
    a, g = positive_definite(96), rng(4).standard_normal((96, 96))

    def errors(multiply):
        factor, (order, lower, upper) = cholesky(a, multiply=multiply, block=16), lu(g, multiply=multiply, block=16)
        return np.array([backward_error(a, factor, factor.T), backward_error(g[order], lower, upper)])

    native, single = errors(torch.matmul), errors(multiply_fp32)
    assert (single > 1e7 * native).all()
    assert (single < 1e-6).all()
    assert (errors(PRODUCTS["emulated"]) < 1.1 * native).all()


def test_too_inaccurate_a_product_breaks_down_and_says_how_to_mend_it():
    a = graded(96, 1e12)
    with pytest.raises(np.linalg.LinAlgError, match=r"leading minor of order [5-9][0-9]: .* more accurate product"):
        cholesky(a, multiply=multiply_fp32, block=16)
    for multiply in PRODUCTS.values():
        factor = cholesky(a, multiply=multiply, block=16)
        assert backward_error(a, factor, factor.T) < 1e-15


@pytest.mark.parametrize("block", [1, 3, 4, 100])
@pytest.mark.parametrize("bad", range(7))
def test_the_first_bad_minor_or_column_is_named(block, bad):
    indefinite = np.diag(np.where(np.arange(7) >= bad, -1.0, 4.0))
    with pytest.raises(np.linalg.LinAlgError, match=f"leading minor of order {bad + 1}: not positive"):
        cholesky(indefinite, block=block)
    singular = rng(bad).standard_normal((7, 7))
    singular[:, bad:] = 0
    with pytest.raises(np.linalg.LinAlgError, match=f"column {bad}: no finite pivot"):
        lu(singular, block=block)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("factorize", [cholesky, lu])
def test_a_product_that_overflows_is_a_breakdown_and_multiplied_no_further(factorize, value):
    def overflow(x, y):
        assert x.isfinite().all()
        assert y.isfinite().all()
        product = x @ y
        product[-1, 0] = value
        return product

    with pytest.raises(np.linalg.LinAlgError, match="`multiply`"):
        factorize(positive_definite(12), multiply=overflow, block=4)


def with_entry(i, j, value):
    a = positive_definite(5)
    a[i, j] = value
    return a


BAD = [
    (np.ones((2, 3)), ValueError, r"shape \(2, 3\): pass a square"),
    (np.ones(4), ValueError, "square"),
    (np.eye(3, dtype=np.int64), TypeError, "A is int64: convert"),
    (torch.eye(3, dtype=torch.float32), TypeError, "A is torch.float32"),
    (np.eye(3, dtype=complex), TypeError, "A is complex128"),
    ([[1.0]], TypeError, "A is a list"),
    (with_entry(3, 1, np.nan), ValueError, r"NaN at \(3, 1\)"),
    (with_entry(4, 4, -np.inf), ValueError, r"at \(4, 4\)"),
]


@pytest.mark.parametrize("factorize", [cholesky, lu])
@pytest.mark.parametrize(("bad", "error", "message"), BAD)
def test_bad_matrices_are_refused(factorize, bad, error, message):
    with pytest.raises(error, match=message):
        factorize(bad)


@pytest.mark.parametrize("factorize", [cholesky, lu])
def test_no_columns_make_no_panel(factorize):
    with pytest.raises(ValueError, match="block is 0"):
        factorize(np.eye(2), block=0)


def test_empty_and_one_by_one_matrices():
    assert cholesky(np.empty((0, 0))).shape == (0, 0)
    assert [x.shape for x in lu(np.empty((0, 0)))] == [(0,), (0, 0), (0, 0)]
    assert cholesky(np.array([[9.0]])) == 3
    assert [x.item() for x in lu(np.array([[-7.0]]))] == [0, 1, -7]


def test_cholesky_reads_the_lower_triangle_alone():
    a = positive_definite(20)
    np.testing.assert_array_equal(cholesky(a + np.triu(np.full((20, 20), np.nan), 1), block=6), cholesky(a, block=6))


@pytest.mark.parametrize("factorize", [lambda a: (cholesky(a, block=8),), lambda a: lu(a, block=8)])
def test_layout_and_kind_change_no_bit_and_the_matrix_stays_as_it_is(factorize):
    a = positive_definite(30)
    kept, expected, frozen = a.copy(), factorize(a), a.copy()
    frozen.flags.writeable = False
    for x in (np.asfortranarray(a), frozen, np.repeat(a, 2, axis=1)[:, ::2], a[::-1, ::-1].copy()[::-1, ::-1]):
        for ours, first in zip(factorize(x), expected, strict=True):
            assert isinstance(ours, np.ndarray)
            np.testing.assert_array_equal(ours, first)
    for ours, first in zip(factorize(torch.from_numpy(a).requires_grad_()), expected, strict=True):
        assert torch.equal(ours, torch.from_numpy(first))
    np.testing.assert_array_equal(a, kept)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_factorizes_as_well():
    a, g = torch.from_numpy(positive_definite(150)).cuda(), torch.from_numpy(rng(5).standard_normal((150, 150))).cuda()
    factor, (order, lower, upper) = cholesky(a, block=64), lu(g, block=64)
    assert factor.is_cuda
    assert order.is_cuda
    assert backward_error(a, factor, factor.T) < 1e-15
    assert backward_error(g[order], lower, upper) < 1e-14
    with pytest.raises(np.linalg.LinAlgError, match="leading minor of order 1"):
        cholesky(-a)
    with pytest.raises(np.linalg.LinAlgError, match="column 0"):
        lu(0 * g)


def exact_error(a, left, right):
    product = exact_product(left, right)
    residual = sum((Fraction(x) - product[i][j]) ** 2 for (i, j), x in np.ndenumerate(a))
    return float(residual / sum(Fraction(x) ** 2 for x in a.flat)) ** 0.5


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5), st.integers(-200, 200), st.integers(-200, 200), seeds)
def test_the_error_is_that_of_exact_arithmetic(m, k, n, e, f, seed):
    left, right = rng(seed).standard_normal((m, k)) * 2.0**e, rng(seed + 1).standard_normal((k, n)) * 2.0**f
    rounded = left @ right  # all that is left to see lies below the rounding of FP64
    for a in (rounded, rounded * (1 + 2.0**-40), -rounded):
        second_order = (k + 1) ** 2 * UNIT_ROUNDOFF**2 * norm_of_magnitudes(a, left, right)
        expected = exact_error(a, left, right)
        assert backward_error(a, left, right) == pytest.approx(expected, rel=1e-14, abs=2 * second_order)


def test_the_error_of_lapack_s_factors_agrees_with_exact_arithmetic():
    a = graded(12, 1e10)
    factor = np.linalg.cholesky(a)
    assert backward_error(a, factor, factor.T) == pytest.approx(exact_error(a, factor, factor.T), rel=1e-12)
    assert 0 < backward_error(a, factor, factor.T) < 1e-15


def test_the_error_holds_at_both_ends_of_the_range():
    a = positive_definite(8)
    factor = np.linalg.cholesky(a)
    expected = backward_error(a, factor, factor.T)
    for e in (-500, 500):
        assert backward_error(np.ldexp(a, 2 * e), np.ldexp(factor, e), np.ldexp(factor.T, e)) == expected
    assert backward_error(a, 0 * factor, factor.T) == 1
    assert backward_error(a, np.empty((8, 0)), np.empty((0, 8))) == 1


def test_threads_and_kinds_change_no_bit_of_the_error():
    a = positive_definite(33)
    factor = np.linalg.cholesky(a)
    expected = backward_error(a, factor, factor.T)
    for threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        numba.set_num_threads(threads)
        assert backward_error(*(torch.from_numpy(x).requires_grad_() for x in (a, factor, factor.T))) == expected


three = np.ones((3, 3))
NO_FACTORS = [
    ((three, three[:2], three), "do not conform"),
    ((three, three[:, :2], three), "do not conform"),
    ((three, three, three * np.nan), "broke down"),
    ((0 * three, three, three), "is zero"),
    ((np.empty((0, 0)),) * 3, "is zero"),
]


@pytest.mark.parametrize(("bad", "message"), NO_FACTORS)
def test_what_has_no_error_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        backward_error(*bad)
