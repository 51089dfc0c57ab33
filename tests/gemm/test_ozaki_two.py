from fractions import Fraction

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinji.gemm import cpu, sample_reference, scheme_one, scheme_two, truncation_bound
from kinji.gemm.error import capacity_for_integers
from kinji.gemm.moduli import MODULI, moduli
from kinji.gemm.operands import as_operands, measured
from kinji.gemm.ozaki_two import accurately_measured, shifts

from .strategies import (
    LEAST,
    ROUNDOFF,
    exact_product,
    exponential_pair,
    few,
    fractions,
    integers,
    matrices,
    moderate,
    operands,
    powers_of_two,
    rounded,
)

SCALINGS = ("fast", "accurate")
scalings, counts = st.sampled_from(SCALINGS), st.integers(1, len(MODULI))
each_scaling = pytest.mark.parametrize("scaling", SCALINGS)
rng = np.random.default_rng


def measure(a, b, scaling):
    found = measured(*as_operands(a, b))
    return accurately_measured(found) if scaling == "accurate" else found


def error_bound(a, b, count, scaling):
    """What integers of so many bits leave out, from the shifts themselves: sum_k of 2^-m |b_kj| + 2^-n |a_ik|."""
    constants, (_, _, a_scales, b_scales, _) = moduli(count), measure(a, b, scaling)
    units_M, units_N = (
        np.array([Fraction(2) ** -shift for shift in shifts(scales, constants).tolist()])
        for scales in (a_scales, b_scales)
    )
    sums_M, sums_N = fractions(abs(a)).sum(axis=1), fractions(abs(b)).sum(axis=0)
    loss = Fraction(constants.loss) * np.outer(units_M, units_N)
    return np.outer(units_M, sums_N) + np.outer(sums_M, units_N) + loss


@given(operands(), counts, scalings)
def test_the_error_stays_below_the_bound_on_hostile_operands(ab, count, scaling):
    product = fractions(scheme_two(*ab, moduli=count, scaling=scaling))
    rounding = ROUNDOFF * abs(product) + LEAST
    assert (abs(product - exact_product(*ab)) <= error_bound(*ab, count, scaling) + rounding).all()


@given(operands(), counts)
def test_the_error_of_the_fast_scaling_stays_below_the_truncation_bound(ab, count):
    product, truncation = fractions(scheme_two(*ab, moduli=count)), truncation_bound(*ab, moduli=count)
    rounding = ROUNDOFF * abs(product) + LEAST
    assert (abs(product - exact_product(*ab)) <= fractions(truncation) + rounding).all()


@few
@given(operands(elements=integers(53)), scalings)
def test_fifteen_moduli_round_products_of_the_widest_integers_once(ab, scaling):
    exact = exact_product(*ab)
    expected = np.vectorize(rounded, otypes=[float])(exact)
    np.testing.assert_array_equal(scheme_two(*ab, moduli=15, scaling=scaling), expected)


@few
@given(operands(elements=integers(20)))
def test_integers_need_no_more_moduli_than_their_capacity_says(ab):
    needed = max(capacity_for_integers(scales) for scales in measured(*as_operands(*ab))[2:4])
    count = next(count for count in range(1, 21) if moduli(count).capacity >= needed)
    assert (scheme_two(*ab, moduli=count) == exact_product(*ab)).all()


ROWS = {
    "equal": lambda k: np.full(k, 1 - 2.0**-53),
    "alternating": lambda k: np.resize([1 - 2.0**-53, -1 + 2.0**-53], k),
    "one spike": lambda k: np.eye(1, k)[0],
    "one huge": lambda k: np.where(np.arange(k) == k // 2, 1.99, 2.0**-8),
    "half spikes": lambda k: np.where(np.arange(k) % 2, 0.999, 2.0**-5),
    "graded": lambda k: 0.999 * 2.0 ** -np.arange(k, dtype=float),
}


@each_scaling
@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, 11, 60])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_capacity_is_never_exceeded(row, k, scaling):
    """Parallel rows leave Cauchy and Schwarz no room: one bit more in either, and the product wraps around."""
    a = row(k)[None]
    b = np.hstack([a.T, -a.T])
    exact = exact_product(a, b)
    for count in range(1, len(MODULI) + 1):
        product = fractions(scheme_two(a, b, moduli=count, scaling=scaling))
        assert (abs(product - exact) <= error_bound(a, b, count, scaling) + ROUNDOFF * abs(exact)).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("k", "scaling"), [(2**15 + 1, "fast"), (2**18, "fast"), (2**19, "accurate")])
def test_sums_of_the_greatest_residues_do_not_wrap_around(k, sign, scaling):
    """Modulo 255 every product is 127^2, and INT32 holds 2^17 of them; of 64^2 it holds less than 2^19."""
    integer = 2**41 - (2**41 - 127) % 255
    a = np.full((1, k), float(integer))
    assert integer % 255 == 127
    assert scheme_two(a, sign * a.T, moduli=15, scaling=scaling).item() == sign * rounded(k * integer**2)


@each_scaling
@pytest.mark.parametrize("k", [2**15 + 1, 2**16 + 1, 2**17 + 9])
def test_long_inner_dimensions_are_as_accurate_as_short_ones(k, scaling):
    a, b = exponential_pair(4, 2, k, 2)
    reference = sample_reference(a, b, samples=8, seed=0)
    assert reference.error_in_roundoffs(scheme_two(a, b, moduli=16, scaling=scaling)) < 1


@each_scaling
@pytest.mark.parametrize("phi", [0.1, 0.5])
@pytest.mark.parametrize("n", [64, 257])
def test_fifteen_moduli_are_as_accurate_as_native_products(n, phi, scaling):
    a, b = exponential_pair(1, n, n, n, phi)
    reference = sample_reference(a, b, samples=1000, seed=0)
    product = scheme_two(a, b, moduli=15, scaling=scaling)
    assert reference.error_in_roundoffs(product) < reference.error_in_roundoffs(a @ b)


def test_each_modulus_takes_about_four_bits_off_the_error():
    a, b = exponential_pair(0, 64, 64, 64)
    reference = sample_reference(a, b, samples=300, seed=0)
    errors = [reference.error_in_roundoffs(scheme_two(a, b, moduli=count)) for count in range(5, 15)]
    falls = np.log2(np.array(errors[:-1]) / errors[1:])
    assert falls.mean() == pytest.approx(3.9, abs=0.2)
    assert falls.min() > 2


def test_one_modulus_fewer_changes_bits():
    a, b = exponential_pair(9, 64, 64, 64)
    assert (scheme_two(a, b, moduli=13) != scheme_two(a, b, moduli=14)).mean() > 0.9


def test_the_accurate_scaling_takes_more_bits_where_rows_and_columns_hardly_meet():
    a, b = rng(2).uniform(0.5, 1, (2, 256, 256))
    a[:, 100:] *= 2.0**-12
    b[:100] *= 2.0**-12
    reference = sample_reference(a, b, samples=300, seed=0)
    fast, accurate = (
        reference.error_in_roundoffs(scheme_two(a, b, moduli=12, scaling=scaling)) for scaling in SCALINGS
    )
    assert accurate < fast / 4


def test_scheme_one_agrees_to_a_roundoff():
    a, b = exponential_pair(3, 30, 40, 20, phi=1.0)
    bound = 2.0**-53 * 3 * abs(a) @ abs(b)
    assert (abs(scheme_two(a, b, moduli=18) - scheme_one(a, b, slices=11)) <= bound).all()


# what changes no bit


@few
@given(operands(), counts, scalings)
def test_transposed_operands_give_the_transposed_bits(ab, count, scaling):
    a, b = ab
    expected = scheme_two(a, b, moduli=count, scaling=scaling).T
    np.testing.assert_array_equal(scheme_two(b.T, a.T, moduli=count, scaling=scaling), expected)


@few
@given(
    matrices(4, 5, moderate), matrices(5, 3, moderate), powers_of_two(4), powers_of_two(3), st.integers(1, 20), scalings
)
def test_powers_of_two_on_rows_of_a_and_columns_of_b_pass_through(a, b, rows, columns, count, scaling):
    scaled = scheme_two(rows[:, None] * a, b * columns, moduli=count, scaling=scaling)
    expected = rows[:, None] * scheme_two(a, b, moduli=count, scaling=scaling) * columns
    np.testing.assert_array_equal(scaled, expected)


@each_scaling
@pytest.mark.parametrize("power", [-20, 20])
def test_one_power_of_two_on_both_operands_passes_through(power, scaling):
    """The published fast scaling squares rows as they are, and loses 20 bits here."""
    a, b = exponential_pair(5, 40, 100, 40)
    scaled = scheme_two(a * 2.0**power, b * 2.0**power, moduli=15, scaling=scaling)
    np.testing.assert_array_equal(scaled, scheme_two(a, b, moduli=15, scaling=scaling) * 4.0**power)


@few
@given(operands(), counts, scalings)
def test_padding_with_zeros_changes_no_bit(ab, count, scaling):
    a, b = np.pad(ab[0], ((0, 2), (0, 3))), np.pad(ab[1], ((0, 3), (0, 1)))
    expected = np.pad(scheme_two(*ab, moduli=count, scaling=scaling), ((0, 2), (0, 1)))
    np.testing.assert_array_equal(scheme_two(a, b, moduli=count, scaling=scaling), expected)


@few
@given(operands(), counts, scalings, st.randoms(use_true_random=False))
def test_the_order_of_rows_columns_and_summation_changes_no_bit(ab, count, scaling, random):
    a, b = ab
    rows, inner, columns = (random.sample(range(n), n) for n in (*a.shape, b.shape[1]))
    expected = scheme_two(a, b, moduli=count, scaling=scaling)[np.ix_(rows, columns)]
    permuted = a[np.ix_(rows, inner)], b[np.ix_(inner, columns)]
    np.testing.assert_array_equal(scheme_two(*permuted, moduli=count, scaling=scaling), expected)


@few
@given(operands(), counts, scalings)
def test_signs_pass_through(ab, count, scaling):
    a, b = ab
    expected = scheme_two(a, b, moduli=count, scaling=scaling)
    np.testing.assert_array_equal(scheme_two(-a, b, moduli=count, scaling=scaling), -expected)


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("torch_threads")
def test_threads_and_blocks_of_rows_and_columns_change_no_bit():
    a, b = exponential_pair(6, 96, 130, 70, phi=1.0)
    whole = scheme_two(a, b, moduli=15)
    assert (np.vstack([scheme_two(x, b, moduli=15) for x in np.array_split(a, 5)]) == whole).all()
    assert (np.hstack([scheme_two(a, x, moduli=15) for x in np.array_split(b, 3, axis=1)]) == whole).all()
    for scaling in SCALINGS:
        expected = scheme_two(a, b, moduli=15, scaling=scaling)
        for threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(threads)
            torch.set_num_threads(threads)
            np.testing.assert_array_equal(scheme_two(a, b, moduli=15, scaling=scaling), expected)


def test_blocks_of_the_inner_dimension_change_no_bit(monkeypatch):
    a, b = exponential_pair(7, 20, 100, 30)
    for multiply in (lambda: scheme_two(a, b, moduli=15), lambda: scheme_two(a + 1j * a, b - 1j * b, moduli=15)):
        expected = multiply()
        for block in (1, 7, 50, 99, 100):
            with monkeypatch.context() as patch:
                patch.setattr("kinji.gemm.ozaki_two.K_BLOCK", block)
                np.testing.assert_array_equal(multiply(), expected)


@pytest.mark.parametrize(("scaling", "products"), [("fast", 15), ("accurate", 16)])
def test_a_modulus_is_one_product(monkeypatch, scaling, products):
    calls, multiply = [], cpu.multiply_int8
    monkeypatch.setattr(cpu, "multiply_int8", lambda *x: (calls.append(x), multiply(*x)))
    scheme_two(*exponential_pair(2, 5, 90, 4), moduli=15, scaling=scaling)
    assert len(calls) == products


@each_scaling
def test_overflow_is_infinite_and_underflow_rounds_to_subnormal_numbers(scaling):
    def product(a, b):
        return scheme_two(np.array([a]), np.array([b]).T, moduli=15, scaling=scaling).item()

    assert product([1e300, -1e300], [1e300, 0.0]) == np.inf
    assert product([-1e300, 0.0], [1e300, 0.0]) == -np.inf
    assert product([1e300, -1e300], [1e300, 1e300]) == 0  # native products make a NaN of it
    assert product([1.5e308, 1.5e308], [1.0, -1.0]) == 0
    assert product([3e-150, 0.0], [1e-170, 0.0]) == 3e-150 * 1e-170
    assert product([5e-324], [1.7e308]) == 5e-324 * 1.7e308
    assert product([5e-324], [0.5]) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_scaling
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 100, 7), (130, 515, 65)])
def test_a_gpu_gives_the_bits_of_the_cpu(shape, scaling):
    a, b = (torch.from_numpy(x) for x in exponential_pair(1, *shape, phi=1.0))
    ours, theirs = (scheme_two(x, y, moduli=15, scaling=scaling) for x, y in ((a, b), (a.cuda(), b.cuda())))
    assert torch.equal(theirs.cpu(), ours)


@pytest.mark.parametrize("count", [-1, 0, 21])
def test_there_are_twenty_moduli(count):
    with pytest.raises(ValueError, match="take 1 to 20"):
        scheme_two(np.ones((2, 2)), np.ones((2, 2)), moduli=count)


@pytest.mark.parametrize(("dtype", "scaling"), [(float, "exact"), (float, None), (complex, "accurate")])
def test_other_scalings_are_refused(dtype, scaling):
    with pytest.raises(ValueError, match=r"scaling is .* take 'fast'"):
        scheme_two(np.ones((2, 2), dtype), np.ones((2, 2), dtype), moduli=9, scaling=scaling)
