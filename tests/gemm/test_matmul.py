import math
from fractions import Fraction

import numba
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kinji.gemm import cpu, matmul, sample_reference, scheme_one, scheme_two
from kinji.gemm.matmul import AccuracyError

from .strategies import (
    LEAST,
    ROUNDOFF,
    complex_operands,
    exact_magnitude,
    exact_parts,
    exact_product,
    exponential_pair,
    few,
    fractions,
    hidden_small,
    integers,
    matrices,
    moderate,
    numbers,
    operands,
    powers_of_two,
)

rng = np.random.default_rng


def keeps(product, a, b):
    """Say whether the product is within the bound it claims, in exact arithmetic."""
    allowed = Fraction(product.bound) * ROUNDOFF * exact_magnitude(a, b) + LEAST / 2
    if not np.iscomplexobj(product.value):
        return (abs(fractions(product.value) - exact_product(a, b)) <= allowed).all()
    real, imaginary = exact_parts(a, b)
    squared = (fractions(product.value.real) - real) ** 2 + (fractions(product.value.imag) - imaginary) ** 2
    return (squared <= allowed**2).all()


def products_taken(product):
    return product.count * (product.count + 1) // 2 if product.scheme == "scheme_one" else product.count


class Counting:
    """Adds up the INT8 operations, in units of one full product."""

    def __init__(self, patch, m, k, n):
        self.spent, self.one, multiply = 0, m * k * n, cpu.multiply_int8

        def counted(a, b, out):
            self.spent += len(a) * a.shape[1] * len(b)
            multiply(a, b, out)

        patch.setattr(cpu, "multiply_int8", counted)

    @property
    def products(self):
        return self.spent / self.one


# the guarantee

errors = st.just("dgemm") | st.floats(-10, 45).map(lambda x: 2.0**x)
graded = st.floats(-4, 4).filter(lambda x: x == 0 or abs(x) > 2.0**-12)


@st.composite
def scaled_operands(draw):
    """Rows of A and columns of B of any scale, numbers within them of a few bits' range, and zeros."""
    a, b = draw(operands(largest=5, elements=graded | integers(4) | integers(53)))
    return draw(powers_of_two(len(a)))[:, None] * a, b * draw(powers_of_two(b.shape[1]))


def within(error, k):
    return max(k, 1) if error == "dgemm" else error


@settings(max_examples=200)
@given(scaled_operands() | operands(elements=graded), errors)
def test_what_is_returned_is_as_accurate_as_it_says_and_as_asked(ab, error):
    try:
        product = matmul(*ab, error=error)
    except AccuracyError:
        assume(False)
    assert product.bound <= within(error, ab[0].shape[1])
    assert keeps(product, *ab)


@few
@given(operands() | operands(elements=numbers.map(lambda x: x * 1e-160)), errors)
def test_the_most_hostile_operands_are_refused_or_multiplied_as_accurately_as_asked(ab, error):
    try:
        product = matmul(*ab, error=error)
    except AccuracyError:
        return
    assert product.bound <= within(error, ab[0].shape[1])
    assert keeps(product, *ab)


@given(complex_operands(elements=graded | integers(4)), errors)
def test_complex_products_are_as_accurate_as_they_say(ab, error):
    try:
        product = matmul(*ab, error=error)
    except AccuracyError:
        assume(False)
    assert product.scheme == "scheme_two"
    assert product.bound <= within(error, ab[0].shape[1])
    assert keeps(product, *ab)


@few
@given(operands(elements=moderate), errors)
def test_a_fallback_always_returns_within_the_bound_it_says(ab, error):
    product = matmul(*ab, error=error, fallback="native")
    assert keeps(product, *ab)
    if product.scheme == "native":
        assert (product.count, product.bound) == (0, ab[0].shape[1])
        np.testing.assert_array_equal(product.value, (torch.from_numpy(ab[0]) @ torch.from_numpy(ab[1])).numpy())


@pytest.mark.parametrize("phi", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 16, 64, 256])
def test_dgemm_s_accuracy_is_met_without_fallback_up_to_phi_two(k, phi):
    n = min(max(k, 8), 128)
    for seed in range(3 if k < 64 else 1):
        a, b = exponential_pair(seed, n, k, n, phi)
        product = matmul(a, b)
        reference = sample_reference(a, b, samples=500, seed=0)
        assert product.scheme == "scheme_two"
        assert reference.error_in_roundoffs(product.value) <= product.bound <= k


@pytest.mark.parametrize("error", [0.9, 1.5, 4.0, 100.0, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("phi", [0.1, 1.0])
def test_errors_from_below_one_roundoff_to_single_precision(phi, error):
    a, b = exponential_pair(1, 40, 100, 50, phi)
    product, reference = matmul(a, b, error=error), sample_reference(a, b, samples=500, seed=0)
    assert reference.error_in_roundoffs(product.value) <= product.bound <= error
    fewer = scheme_two(a, b, moduli=product.count - 2)
    assert reference.error_in_roundoffs(fewer) > error / 10  # and is not extravagant


def test_the_value_is_that_of_the_scheme_and_count_it_names():
    a, b = exponential_pair(2, 30, 40, 20)
    product = matmul(a, b)
    np.testing.assert_array_equal(product.value, scheme_two(a, b, moduli=product.count))
    product = matmul(a + 1j * a, b)
    np.testing.assert_array_equal(product.value, scheme_two(a + 1j * a, b, moduli=product.count))


def test_two_slices_are_taken_where_they_are_cheaper_than_moduli():
    a, b = rng(0).random((6, 100)), rng(1).random((100, 6))
    product = matmul(a, b, error=2.0**44)
    assert (product.scheme, product.count) == ("scheme_one", 2)
    assert product.bound <= 2.0**44
    assert keeps(product, a, b)
    np.testing.assert_array_equal(product.value, scheme_one(a, b, slices=2))
    assert matmul(a, b, error=product.bound * 0.99).count > 3  # moduli


# what it costs


@pytest.mark.parametrize("seed", range(12))
def test_a_looser_error_never_takes_more_products(monkeypatch, seed):
    """Those of the lower bounds included: it may stop at a coarser one, and then take as many products more."""
    phi, n = (0.1, 0.5, 1.0, 2.0)[seed % 4], (3, 16, 64)[seed % 3]
    a, b = exponential_pair(seed, n, n, n, phi)
    spent = []
    for error in (1.5, 2, 3, 5, 10, 30, 100, 1e3, 1e4, 1e6, 1e9, 1e12):
        with monkeypatch.context() as patch:
            counting = Counting(patch, n, n, n)
            try:
                assert products_taken(matmul(a, b, error=error)) < counting.products
            except AccuracyError:
                assert not spent  # nor is it refused
                continue
            spent.append(counting.products)
    assert len(spent) > 8
    assert spent == sorted(spent, reverse=True)


def test_the_first_lower_bound_is_one_product(monkeypatch):
    counting = Counting(monkeypatch, 64, 64, 64)
    product = matmul(*exponential_pair(0, 64, 64, 64))
    assert counting.products == products_taken(product) + 1


# refusals


def ill_scaled(n):
    """A D and D^-1 B, D of powers of two all over: every entry of |A||B| is far below its row's greatest."""
    a, b = exponential_pair(4, n, n, n)
    d = 2.0 ** rng(4).integers(-150, 150, n)
    return a * d, b / d[:, None]


@pytest.mark.parametrize("adversarial", [hidden_small, ill_scaled])
@pytest.mark.parametrize("error", ["dgemm", 1e6])
def test_adversarial_operands_are_refused_with_the_reason_or_multiplied_natively(adversarial, error):
    a, b = adversarial(100)
    with pytest.raises(AccuracyError, match="too far below its row's and column's greatest to be bounded"):
        matmul(a, b, error=error)
    product = matmul(a, b, error=error, fallback="native")
    assert (product.scheme, product.count, product.bound) == ("native", 0, 100)
    np.testing.assert_allclose(product.value, a @ b, rtol=1e-11)
    assert sample_reference(a, b, samples=100, seed=0).error_in_roundoffs(product.value) <= 100


def test_wide_operands_are_refused_with_what_can_be_proved():
    a, b = exponential_pair(0, 20, 20, 20, phi=4.0)
    with pytest.raises(AccuracyError, match=r"20 moduli are proved to leave out no more than .*; ask for more"):
        matmul(a, b, error=1.001)


@pytest.mark.parametrize("error", [0.5, 1e-3])
def test_positive_operands_cannot_beat_one_rounding_and_are_told_so(error):
    a, b = rng(5).random((2, 30, 30))
    with pytest.raises(AccuracyError, match="rounding to FP64 alone may take 1 here"):
        matmul(a, b, error=error)
    assert matmul(a, b, error=error, fallback="native").scheme == "native"


def test_complex_fallbacks_say_the_complex_bound():
    a, b = hidden_small(20)
    product = matmul(a + 1j * a, b, fallback="native")
    assert (product.scheme, product.count) == ("native", 0)
    assert product.bound == pytest.approx(2**0.5 * 22)
    assert keeps(product, a + 1j * a, b + 0j)


def test_an_accuracy_error_is_an_arithmetic_error():
    assert issubclass(AccuracyError, ArithmeticError)


@pytest.mark.parametrize("error", [0, -1, math.nan, math.inf, "DGEMM", "", None, (1.0,)])
def test_errors_that_are_no_number_of_roundoffs_are_refused(error):
    with pytest.raises(ValueError, match=r"error is .*: give a positive number"):
        matmul(np.ones((2, 2)), np.ones((2, 2)), error=error)


@pytest.mark.parametrize("error", [4, np.float32(4), np.int64(4), Fraction(4)])
def test_numbers_of_every_kind_are_errors(error):
    a, b = exponential_pair(11, 5, 6, 7)
    assert matmul(a, b, error=error).bound == matmul(a, b, error=4.0).bound


@pytest.mark.parametrize("fallback", ["dgemm", True, ""])
def test_other_fallbacks_are_refused(fallback):
    with pytest.raises(ValueError, match=r"fallback is .*: take 'native'"):
        matmul(np.ones((2, 2)), np.ones((2, 2)), fallback=fallback)


# structure

n = 12
dense = rng(6).standard_normal((n, n))
STRUCTURED = {
    "upper triangular": (np.triu(dense), np.triu(dense.T)),
    "upper times lower": (np.triu(dense), np.tril(dense)),
    "identity": (np.eye(n), dense),
    "permutation": (np.eye(n)[rng(7).permutation(n)], dense),
    "diagonal": (np.diag(dense[0]), dense),
    "block diagonal": (np.kron(np.eye(3), dense[:4, :4]), np.kron(np.eye(3), dense[4:8, :4])),
    "bidiagonal": (np.diag(dense[0]) + np.diag(dense[1, 1:], 1), np.diag(dense[2]) + np.diag(dense[3, 1:], -1)),
    "a row of zeros": (dense * (np.arange(n) != 5)[:, None], dense),
    "all zeros": (np.zeros((n, n)), dense),
}


@pytest.mark.parametrize("error", ["dgemm", 1.5, 1e5])
@pytest.mark.parametrize("structure", STRUCTURED)
def test_entries_that_are_zero_by_structure_stop_nothing_and_come_out_as_zeros(structure, error):
    a, b = STRUCTURED[structure]
    product = matmul(a, b, error=error)
    assert product.bound <= within(error, n)
    assert keeps(product, a, b)
    assert not product.value[exact_magnitude(a, b) == 0].any()


@few
@given(operands(elements=integers(20)))
def test_products_of_integers_are_proved_exact_but_for_their_rounding(ab):
    product = matmul(*ab, error=1.0)
    assert product.bound <= 1
    assert (product.value == exact_product(*ab)).all()


def test_an_error_below_one_is_kept_where_sums_cancel():
    """(h + 1) (h - 1) - h h = -1, of which a product of 120 bits has to be left."""
    h = 2.0**60
    a, b = np.array([[h, h, 1, 1, h]]), np.array([[h, -1, h, -1, -h]]).T
    for error in (0.5, 1e-3, 1e-6, 1e-10, 1e-14, 1e-15):
        assert keeps(matmul(a, b, error=error), a, b)


def test_one_infinite_row_changes_neither_choice_nor_bound():
    a, b = exponential_pair(8, 30, 40, 20)
    expected = matmul(a[1:], b)
    a[0, 0] = np.inf
    product = matmul(a, b)
    assert (product.scheme, product.count, product.bound) == (expected.scheme, expected.count, expected.bound)
    np.testing.assert_array_equal(product.value[1:], expected.value)
    assert not np.isfinite(product.value[0]).any()


# what changes nothing


@few
@given(matrices(4, 5, moderate), matrices(5, 3, moderate), powers_of_two(4), powers_of_two(3), errors)
def test_powers_of_two_change_neither_choice_nor_bits(a, b, rows, columns, error):
    plain = matmul(a, b, error=error, fallback="native")
    scaled = matmul(rows[:, None] * a, b * columns, error=error, fallback="native")
    assert (scaled.scheme, scaled.count, scaled.bound) == (plain.scheme, plain.count, plain.bound)
    np.testing.assert_array_equal(scaled.value, rows[:, None] * plain.value * columns)


@pytest.mark.parametrize("error", ["dgemm", 0.95, 1e4])
def test_threads_and_repetition_change_neither_choice_nor_bits(error):
    a, b = exponential_pair(9, 64, 64, 64, phi=1.0)
    expected, before = matmul(a, b, error=error), torch.get_num_threads()
    for threads in (*range(1, numba.config.NUMBA_NUM_THREADS + 1), 1):
        numba.set_num_threads(threads)
        torch.set_num_threads(threads)
        product = matmul(a, b, error=error)
        assert (product.scheme, product.count, product.bound) == (expected.scheme, expected.count, expected.bound)
        np.testing.assert_array_equal(product.value, expected.value)
    torch.set_num_threads(before)


def test_inner_dimensions_beyond_two_to_the_seventeen():
    a, b = exponential_pair(10, 3, 2**17 + 1, 2, phi=1.0)
    product, reference = matmul(a, b, error=64.0), sample_reference(a, b, samples=6, seed=0)
    assert reference.error_in_roundoffs(product.value) <= product.bound <= 64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("error", ["dgemm", 0.95, 1e4])
def test_a_gpu_makes_the_choice_and_the_bits_of_the_cpu(error):
    a, b = (torch.from_numpy(x) for x in exponential_pair(9, 64, 64, 64, phi=1.0))
    ours, theirs = matmul(a, b, error=error), matmul(a.cuda(), b.cuda(), error=error)
    assert (theirs.scheme, theirs.count, theirs.bound) == (ours.scheme, ours.count, ours.bound)
    assert torch.equal(theirs.value.cpu(), ours.value)
