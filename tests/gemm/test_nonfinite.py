"""What infinities and NaNs make of a product, against IEEE arithmetic entry by entry."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinji.gemm import matmul, scheme_one, scheme_two

from .strategies import complex_matrix, complex_operands, exact_product, few, fractions, operands

INF, NAN = math.inf, math.nan
PRODUCTS = {
    "scheme one": partial(scheme_one, slices=9),
    "scheme two": partial(scheme_two, moduli=15),
    "accurate scheme two": partial(scheme_two, moduli=15, scaling="accurate"),
    "matmul": lambda a, b: matmul(a, b, error=1e3).value,
}
COMPLEX = ("scheme one", "scheme two", "matmul")
products = pytest.mark.parametrize("multiply", PRODUCTS.values(), ids=PRODUCTS)
complex_products = pytest.mark.parametrize("multiply", [PRODUCTS[name] for name in COMPLEX], ids=COMPLEX)

special = st.sampled_from([INF, -INF, NAN])
some_special = st.just(0.0) | special | st.sampled_from([0.0, -0.0, 1.0, -3.0, 0.5])


def ieee_sum(factors):
    """The sum of products x y of which one factor is not finite, as if no finite product overflowed."""
    return sum(
        math.copysign(1, x) * math.copysign(1, y) if math.isfinite(x) and math.isfinite(y) else x * y
        for x, y in factors
    )


def row_and_column(a, b, i, j):
    return list(zip(a[i].tolist(), b[:, j].tolist(), strict=True))


def reached(a, b):
    return ~(np.isfinite(a).all(axis=1)[:, None] & np.isfinite(b).all(axis=0))


def without(a, b):
    """The operands with rows of A and columns of B that are not finite set to zero."""
    return np.where(np.isfinite(a).all(axis=1)[:, None], a, 0), np.where(np.isfinite(b).all(axis=0), b, 0)


def assert_real(multiply, a, b):
    expected = multiply(*without(a, b))
    for i, j in np.argwhere(reached(a, b)):
        expected[i, j] = ieee_sum(row_and_column(a, b, i, j))
    np.testing.assert_array_equal(multiply(a, b), expected)


def assert_complex(multiply, a, b):
    """Both parts of an entry that is reached are two real products each."""
    expected = multiply(*without(a, b))
    real, imaginary = expected.real.copy(), expected.imag.copy()
    for i, j in np.argwhere(reached(a, b)):
        both = row_and_column(a, b, i, j)
        real[i, j] = ieee_sum([pair for x, y in both for pair in ((x.real, y.real), (-x.imag, y.imag))])
        imaginary[i, j] = ieee_sum([pair for x, y in both for pair in ((x.real, y.imag), (x.imag, y.real))])
    product = multiply(a, b)
    np.testing.assert_array_equal(product.real, real)
    np.testing.assert_array_equal(product.imag, imaginary)


def test_the_oracle_is_native_arithmetic_where_nothing_overflows():
    a = np.array(list(itertools.product([INF, -INF, NAN, 0.0, 1.0, -2.0], repeat=2)))
    with np.errstate(invalid="ignore"):
        native = (a[:, None] * a).sum(axis=2)
    for i, j in np.argwhere(reached(a, a.T)):
        np.testing.assert_equal(ieee_sum(row_and_column(a, a.T, i, j)), native[i, j])


@products
def test_every_combination_is_as_in_ieee_arithmetic(multiply):
    a = np.array(list(itertools.product([INF, -INF, NAN, 0.0, -0.0, 2.0, -1.0], repeat=3)))
    assert_real(multiply, a[::3], a.T)


@complex_products
def test_every_complex_combination_is_as_four_real_products_make_it(multiply):
    values = np.array(list(itertools.product([INF, -INF, NAN, 0.0, -0.0, 2.0], repeat=2)))
    a = complex_matrix(values[:, :1], values[:, 1:])
    assert_complex(multiply, a, a.T)


@products
@few
@given(operands(elements=some_special))
def test_operands_full_of_them_are_as_in_ieee_arithmetic(multiply, ab):
    assert_real(multiply, *ab)


@complex_products
@few
@given(complex_operands(elements=some_special))
def test_complex_operands_full_of_them_are_as_four_real_products_make_them(multiply, ab):
    assert_complex(multiply, *ab)


@products
@pytest.mark.parametrize("bad", [INF, -INF, NAN])
def test_other_rows_and_columns_keep_their_bits(multiply, bad):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((20, 50)), rng.standard_normal((50, 30))
    expected = multiply(a, b)
    a[3, 7] = b[40, 11] = bad
    product, bad_entries = multiply(a, b), reached(a, b)
    assert bad_entries.sum() == 20 + 30 - 1
    assert not np.isfinite(product[bad_entries]).any()
    np.testing.assert_array_equal(product[~bad_entries], expected[~bad_entries])


@products
def test_every_nan_has_the_same_bits(multiply):
    payload = np.array([[0x7FF8000000000123]], dtype=np.uint64).view(np.float64)
    one, zero, infinite = np.ones((1, 1)), np.zeros((1, 1)), np.full((1, 1), INF)
    nans = [multiply(*ab) for ab in ((payload, one), (-payload, one), (infinite, zero), (infinite, -0 * one))]
    assert len({x.view(np.uint64).item() for x in nans}) == 1


@products
@pytest.mark.parametrize("k", [1, 9])
def test_finite_products_that_overflow_make_no_nan(multiply, k):
    a, b = np.full((1, 2 * k), 1e308), np.full((2 * k, 1), 1e308)
    assert multiply(a, b).item() == INF
    b[::2] *= -1
    assert multiply(a, b).item() == 0
    a[0, 0] = INF
    assert multiply(a, b).item() == -INF


def test_an_infinity_elsewhere_leaves_a_small_error_within_reach():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((16, 64)), rng.standard_normal((64, 16))
    a[3, 3] = INF
    product, rows = matmul(a, b, error=0.8), np.arange(16) != 3
    assert product.bound <= 0.8
    errors = abs(fractions(product.value[rows]) - exact_product(a[rows], b))
    assert (errors <= product.bound * 2.0**-53 * exact_product(abs(a[rows]), abs(b))).all()
