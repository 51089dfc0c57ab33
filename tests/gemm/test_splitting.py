from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinji.gemm import splitting
from kinji.gemm.splitting import bits_per_slice, row_exponents, split_rows

from .strategies import matrices

rows = st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(lambda shape: matrices(*shape))


def split(x, slices, bits=7, numbers=None):
    tensor = torch.from_numpy(x)
    e = row_exponents(tensor, "X: row")
    digits = split_rows(tensor, e, numbers or range(1, slices + 1), bits, tensor.shape)
    return e.numpy(), digits.numpy()


@given(rows, st.integers(1, 14), st.integers(1, 7))
def test_digits_and_a_small_remainder_make_up_every_entry(x, slices, bits):
    e, digits = split(x, slices, bits)
    for (i, j), value in np.ndenumerate(x):
        unit = [Fraction(2) ** (int(e[i]) - bits * s) for s in range(1, slices + 1)]
        remainder = Fraction(value) - sum(int(d) * u for d, u in zip(digits[i, :, j], unit, strict=True))
        assert abs(remainder) < unit[-1]
        assert all(int(d) * value >= 0 and abs(int(d)) < 2**bits for d in digits[i, :, j])
        assert remainder * Fraction(value) >= 0  # truncated towards zero


def test_eight_slices_hold_a_row_of_one_magnitude_exactly():
    x = np.random.default_rng(0).uniform(1, 2, (3, 50))
    e, digits = split(x, 8)
    weights = 2.0 ** (e[:, None] - 7 * np.arange(1, 9))
    assert (np.einsum("rsk,rs->rk", digits.astype(float), weights) == x).all()


@given(rows, st.integers(1, 14), st.integers(1, 7))
def test_tensor_operations_give_the_digits_of_the_compiled_loop(x, slices, bits):
    tensor = torch.from_numpy(x)
    e = row_exponents(tensor, "X: row")
    _, compiled = split(x, slices, bits)
    by_tensors = torch.empty(compiled.shape, dtype=torch.int8)
    splitting._split_tensor(tensor, e, torch.arange(1, slices + 1), bits, by_tensors)
    np.testing.assert_array_equal(by_tensors.numpy(), compiled)


@given(rows)
def test_slices_are_stored_in_the_order_asked_for(x):
    _, forward = split(x, 5)
    _, backward = split(x, 5, numbers=range(5, 0, -1))
    np.testing.assert_array_equal(backward, forward[:, ::-1])


def test_padding_is_zero():
    x = torch.ones((2, 3), dtype=torch.float64)
    digits = split_rows(x, row_exponents(x, "X: row"), [1], 7, (4, 8))
    assert digits.shape == (4, 1, 8)
    assert digits[:2, 0, :3].eq(64).all()
    assert digits.sum() == 64 * 6


@given(rows)
def test_a_row_exponent_is_the_least_power_of_two_above_the_row(x):
    for peak, e in zip(np.abs(x).max(axis=1), row_exponents(torch.from_numpy(x), "X: row").tolist(), strict=True):
        assert peak == 0 or Fraction(2) ** (e - 1) <= Fraction(peak) < Fraction(2) ** e


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_non_finite_rows_are_refused_by_name(bad):
    x = torch.ones((3, 4), dtype=torch.float64)
    x[1, 2] = bad
    with pytest.raises(ValueError, match="X: row 1 holds an infinity or a NaN"):
        row_exponents(x, "X: row")


@pytest.mark.parametrize(("k", "bits"), [(1, 7), (2**17, 7), (2**17 + 1, 6), (2**19, 6), (2**29, 1)])
def test_bits_per_slice_follow_the_published_rule(k, bits):
    assert bits_per_slice(k) == bits


@given(st.integers(1, 2**29))
def test_int32_holds_every_sum_of_k_products(k):
    assert k * (2 ** bits_per_slice(k) - 1) ** 2 < 2**31


def test_an_inner_dimension_beyond_int32_is_refused():
    with pytest.raises(ValueError, match="split it"):
        bits_per_slice(2**29 + 1)
