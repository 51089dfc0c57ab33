from fractions import Fraction

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinji.gemm import cpu, sample_reference, scheme_one, truncation_bound
from kinji.gemm.ozaki_one import bits_per_slice, multiply_diagonals, pairs_per_product

from .strategies import (
    LEAST,
    ROUNDOFF,
    exact_magnitude,
    exact_product,
    exponential_pair,
    few,
    fractions,
    integers,
    matrices,
    moderate,
    operands,
    powers_of_two,
)

rng = np.random.default_rng


@pytest.mark.parametrize(("k", "bits"), [(0, 7), (1, 7), (2**17, 7), (2**17 + 1, 6), (2**19, 6), (2**29, 1)])
def test_bits_per_slice_follow_the_published_rule(k, bits):
    assert bits_per_slice(k) == bits


@given(st.integers(1, 2**29))
def test_int32_holds_every_sum_of_k_products(k):
    assert k * (2 ** bits_per_slice(k) - 1) ** 2 < 2**31


def test_an_inner_dimension_beyond_int32_is_refused():
    with pytest.raises(ValueError, match="split it"):
        bits_per_slice(2**29 + 1)


@pytest.mark.parametrize(("k", "bits"), [(1, 7), (1000, 7), (2**17, 7), (2**19, 6), (2**29, 1)])
def test_grouping_takes_as_many_pairs_as_int32_holds(k, bits):
    pairs, largest = pairs_per_product(k, bits), (2**bits - 1) ** 2
    assert pairs * k * largest <= 2**31 - 1 < (pairs + 1) * k * largest
    assert pairs >= 1


@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**32))
def test_products_of_a_diagonal_add_up_to_the_integer_sum_of_its_pairs(slices, pairs, seed):
    a, b = (torch.from_numpy(rng(seed + n).integers(-127, 128, (n, slices, 4), np.int8)) for n in (3, 5))
    products, diagonals = multiply_diagonals(a, b, pairs, cpu)
    assert diagonals == sorted(diagonals)
    assert max(diagonals.count(t) for t in diagonals) == -(-slices // pairs)
    for t in range(1, slices + 1):  # b is stored last slice first
        expected = sum(a[:, p].long() @ b[:, slices - t + p].long().T for p in range(t))
        of_diagonal = [product.long() for product, of in zip(products, diagonals, strict=True) if of == t]
        assert torch.equal(sum(of_diagonal), expected)


@given(operands(), st.integers(1, 12))
def test_the_error_stays_below_the_bound_on_hostile_operands(ab, slices):
    product, truncation = scheme_one(*ab, slices=slices), fractions(truncation_bound(*ab, slices=slices))
    rounding = (slices - 1) * ROUNDOFF * exact_magnitude(*ab) + LEAST
    assert (abs(fractions(product) - exact_product(*ab)) <= truncation + rounding).all()


@few
@given(operands(elements=integers(24)))
def test_integer_products_come_out_exactly(ab):
    assert (scheme_one(*ab, slices=8) == exact_product(*ab)).all()


def test_each_slice_takes_seven_bits_off_the_error():
    a, b = exponential_pair(0, 64, 64, 64)
    reference = sample_reference(a, b, samples=300, seed=0)
    errors = [reference.error_in_roundoffs(scheme_one(a, b, slices=s)) for s in range(3, 8)]
    falls = np.array(errors[:-1]) / errors[1:]
    assert ((falls > 2**6) & (falls < 2**8)).all()


def test_the_last_diagonal_is_part_of_the_product():
    """With one slice of two missing in either operand, the error would be 2^-7."""
    a = np.array([[127 / 128 + 127 / 2**14, 0.0]])
    assert Fraction(scheme_one(a, a.T, slices=2).item()) == Fraction(127**2, 2**14) + 2 * Fraction(127**2, 2**21)


@pytest.mark.parametrize("phi", [0.1, 0.5])
@pytest.mark.parametrize("n", [64, 257])
def test_nine_slices_are_as_accurate_as_native_products(n, phi):
    a, b = exponential_pair(1, n, n, n, phi)
    reference = sample_reference(a, b, samples=1000, seed=0)
    assert reference.error_in_roundoffs(scheme_one(a, b, slices=9)) < reference.error_in_roundoffs(a @ b)


@few
@given(operands(), st.integers(1, 12))
def test_grouping_changes_no_bit(ab, slices):
    grouped, single = (scheme_one(*ab, slices=slices, grouped=grouped) for grouped in (True, False))
    np.testing.assert_array_equal(grouped, single)


@pytest.mark.parametrize(("grouped", "products"), [(True, 7), (False, 28)])
def test_a_diagonal_is_one_product_where_int32_holds_it(monkeypatch, grouped, products):
    calls, multiply = [], cpu.multiply_int8
    monkeypatch.setattr(cpu, "multiply_int8", lambda *x: (calls.append(x), multiply(*x)))
    scheme_one(*exponential_pair(2, 5, 90, 4), slices=7, grouped=grouped)
    assert len(calls) == products


def test_grouping_changes_no_bit_where_int32_holds_only_part_of_an_anti_diagonal():
    a, b = exponential_pair(3, 3, 2**15 + 77, 5, phi=1.0)  # at most four pairs fit
    np.testing.assert_array_equal(scheme_one(a, b, slices=7), scheme_one(a, b, slices=7, grouped=False))


@pytest.mark.parametrize("k", [2**15, 2**17])
def test_the_longest_sums_of_the_largest_digits_are_exact(k):
    a = np.full((1, k), 1 - 2.0**-14)  # two slices of nothing but ones
    assert Fraction(scheme_one(a, a.T, slices=3).item()) == k * Fraction(a[0, 0]) ** 2


def test_inner_dimensions_beyond_two_to_the_seventeen_take_narrower_slices():
    a, b = exponential_pair(4, 2, 2**17 + 9, 2)
    reference = sample_reference(a, b, samples=4, seed=0)
    assert reference.error_in_roundoffs(scheme_one(a, b, slices=11)) < 1


@few
@given(operands(), st.integers(1, 12))
def test_transposed_operands_give_the_transposed_bits(ab, slices):
    a, b = ab
    np.testing.assert_array_equal(scheme_one(b.T, a.T, slices=slices), scheme_one(a, b, slices=slices).T)


@few
@given(matrices(4, 5, moderate), matrices(5, 3, moderate), powers_of_two(4), powers_of_two(3), st.integers(1, 10))
def test_powers_of_two_on_rows_of_a_and_columns_of_b_pass_through(a, b, rows, columns, slices):
    scaled = scheme_one(rows[:, None] * a, b * columns, slices=slices)
    np.testing.assert_array_equal(scaled, rows[:, None] * scheme_one(a, b, slices=slices) * columns)


@few
@given(operands(), st.integers(1, 12))
def test_padding_with_zeros_changes_no_bit(ab, slices):
    a, b = np.pad(ab[0], ((0, 2), (0, 3))), np.pad(ab[1], ((0, 3), (0, 1)))
    expected = np.pad(scheme_one(*ab, slices=slices), ((0, 2), (0, 1)))
    np.testing.assert_array_equal(scheme_one(a, b, slices=slices), expected)


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("torch_threads")
def test_threads_blocks_and_the_order_of_summation_change_no_bit():
    a, b = exponential_pair(6, 96, 130, 70, phi=1.0)
    whole, order = scheme_one(a, b, slices=9), rng(8).permutation(130)
    np.testing.assert_array_equal(np.vstack([scheme_one(x, b, slices=9) for x in np.array_split(a, 5)]), whole)
    np.testing.assert_array_equal(np.hstack([scheme_one(a, x, slices=9) for x in np.array_split(b, 3, axis=1)]), whole)
    np.testing.assert_array_equal(scheme_one(a[:, order], b[order], slices=9), whole)
    assert (a[:, order] @ b[order] != a @ b).any()  # native products do depend on the order
    for threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        numba.set_num_threads(threads)
        torch.set_num_threads(threads)
        np.testing.assert_array_equal(scheme_one(a, b, slices=9), whole)


def test_one_slice_fewer_changes_bits():
    a, b = exponential_pair(9, 64, 64, 64)
    assert (scheme_one(a, b, slices=8) != scheme_one(a, b, slices=9)).mean() > 0.9


def test_overflow_is_infinite_and_underflow_rounds_to_subnormal_numbers():
    huge, tiny = np.array([[1e300, -1e300]]), np.array([[1e-170], [0.0]])
    assert scheme_one(huge, np.array([[1e300], [0.0]]), slices=9).item() == np.inf
    assert scheme_one(huge, np.array([[1e300], [1e300]]), slices=9).item() == 0  # native products make a NaN of it
    assert scheme_one(np.array([[3e-150, 0.0]]), tiny, slices=9).item() == 3e-150 * 1e-170


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 100, 7), (130, 515, 65)])
def test_a_gpu_gives_the_bits_of_the_cpu(shape):
    a, b = (torch.from_numpy(x) for x in exponential_pair(1, *shape, phi=1.0))
    assert torch.equal(scheme_one(a.cuda(), b.cuda(), slices=9).cpu(), scheme_one(a, b, slices=9))


@pytest.mark.parametrize("slices", [0, -1])
def test_no_slices_is_no_product(slices):
    with pytest.raises(ValueError, match="at least 1"):
        scheme_one(np.ones((2, 2)), np.ones((2, 2)), slices=slices)
