import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kinji.gemm.lower_bound import lower_bound, spare_disjoint
from kinji.gemm.operands import as_operands, measured
from kinji.gemm.ozaki_two import measured_complex

from .strategies import complex_operands, exact_magnitude, exponential_pair, few, fractions, operands

slices = st.integers(1, 5)


def bound_and_scale(a, b, count):
    """The bound, of operands scaled to below 1, and what takes it back."""
    a, b = as_operands(a, b)
    found = measured_complex(a, b) if a.is_complex() else measured(a, b)
    scales = [[Fraction(2) ** e for e in x.exponent_R.tolist()] for x in (found.a_scales, found.b_scales)]
    return fractions(lower_bound(found, count).numpy()), np.multiply.outer(*map(np.array, scales))


@given(operands(), slices)
def test_never_above_the_product_of_magnitudes_nor_far_below(ab, count):
    bound, scale = bound_and_scale(*ab, count)
    missing = exact_magnitude(*ab) / scale - bound
    assert (missing >= 0).all()
    assert (missing <= ab[0].shape[1] * (count + 1) * Fraction(2) ** (-7 * count)).all()


@given(complex_operands(), slices)
@example((np.array([[2.0**-1073 * (1 + 1j)]]), np.array([[1.0 + 0j]])), 4)
@example((np.array([[1.7e308 + 1.7e308j]]), np.array([[1.0 + 0j]])), 4)
def test_never_above_the_product_of_moduli(ab, count):
    bound, scale = bound_and_scale(*ab, count)
    assert (bound * scale <= exact_magnitude(*ab)).all()


def test_seven_bits_a_slice_of_complex_operands():
    (a, b), (c, d) = exponential_pair(0, 7, 40, 5), exponential_pair(1, 7, 40, 5)
    a, b = a + 1j * c, b + 1j * d
    for count in (1, 2, 4):
        bound, scale = bound_and_scale(a, b, count)
        missing = (exact_magnitude(a, b) / scale - bound).astype(float)
        assert missing.max() <= 4 * 40 * (count + 1) * 2.0 ** (-7 * count)


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_rows_that_are_not_finite_are_bounded_by_zero(dtype, bad):
    a, b = np.ones((3, 4), dtype), np.ones((4, 2), dtype)
    a[1, 2] = b[0, 0] = bad
    bound, _ = bound_and_scale(a, b, 3)
    assert (bound > 0).tolist() == [[False, True], [False, False], [False, True]]


@few
@given(operands(elements=st.sampled_from([0.0, 1.0, -(2.0**-1074), 1e150])))
def test_entries_without_a_common_index_are_spared(ab):
    found = measured(*as_operands(*ab))
    common = (ab[0] != 0).astype(int) @ (ab[1] != 0).astype(int)
    spared = spare_disjoint(torch.ones(common.shape, dtype=torch.float64), found)
    np.testing.assert_array_equal(spared, np.where(common == 0, np.inf, 1.0))


def test_a_common_index_is_seen_among_many():
    k = 2**17 + 3
    a, b = np.ones((2, k)), np.ones((k, 1))
    a[0, :-1] = b[-1] = 0
    found = measured(*as_operands(a, b))
    assert spare_disjoint(torch.ones((2, 1), dtype=torch.float64), found).tolist() == [[math.inf], [1.0]]
