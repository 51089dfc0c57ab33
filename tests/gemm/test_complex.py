import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinji.gemm import cpu, scheme_one, scheme_two, truncation_bound
from kinji.gemm.complex_products import three_products

from .strategies import (
    LEAST,
    ROUNDOFF,
    complex_operands,
    exact_parts,
    exact_product,
    exponential_pair,
    few,
    fractions,
    integers,
    moderate,
    rounded,
)

counts = st.integers(1, 20)


def complex_pair(seed, m, k, n, phi=0.5):
    (a, b), (c, d) = exponential_pair(seed, m, k, n, phi), exponential_pair(seed + 1, m, k, n, phi)
    return a + 1j * c, b + 1j * d


def squared_error(product, exact):
    real, imaginary = exact
    return (fractions(product.real) - real) ** 2 + (fractions(product.imag) - imaginary) ** 2


def part_bounds(product, truncation):
    """What truncation and the rounding of either part may be together, squared: |x + i y|^2 with both at their most."""
    rounding = [ROUNDOFF * abs(fractions(part)) + LEAST for part in (product.real, product.imag)]
    return (truncation + rounding[0] + rounding[1]) ** 2


@given(complex_operands(), counts)
def test_residue_products_stay_within_the_bound_of_moduli(ab, count):
    product = scheme_two(*ab, moduli=count)
    bound = part_bounds(product, fractions(truncation_bound(*ab, moduli=count)))
    assert (squared_error(product, exact_parts(*ab)) <= bound).all()


def test_the_bound_allows_for_truncation_of_both_parts():
    """Real and imaginary parts lose next to a whole unit each, 2^(1/2) in modulus; real operands would lose one."""
    a = np.full((1, 64), (1 - 2.0**-53) * (1 + 1j))
    b = np.full((64, 1), (1 - 2.0**-53) + 0j)
    bound = truncation_bound(a, b, moduli=5).item() ** 2
    error = squared_error(scheme_two(a, b, moduli=5), exact_parts(a, b)).item()
    assert bound / 4 < error <= bound


@few
@given(complex_operands(elements=moderate), st.integers(1, 12))
def test_three_slice_products_stay_within_the_bound_of_parts(ab, slices):
    """Each of the three products errs by its own bound, and sums of parts round beside (|Re| + |Im|)(|Re| + |Im|)."""
    a, b = ab
    product, (real, imaginary) = scheme_one(a, b, slices=slices), exact_parts(a, b)
    of_real, of_imaginary, of_both = (
        fractions(truncation_bound(x, y, slices=slices))
        for x, y in ((a.real, b.real), (a.imag, b.imag), (a.real + a.imag, b.real + b.imag))
    )
    sums = exact_product(abs(a.real) + abs(a.imag), abs(b.real) + abs(b.imag))
    rounding = (2 * slices + 8) * ROUNDOFF * sums + 4 * LEAST
    assert (abs(fractions(product.real) - real) <= of_real + of_imaginary + rounding).all()
    assert (abs(fractions(product.imag) - imaginary) <= of_real + of_imaginary + of_both + rounding).all()


@few
@given(complex_operands(elements=integers(40)))
def test_products_of_complex_integers_come_out_exactly(ab):
    real, imaginary = (np.vectorize(rounded, otypes=[float])(part) for part in exact_parts(*ab))
    np.testing.assert_array_equal(scheme_two(*ab, moduli=15), real + 1j * imaginary)


@pytest.mark.parametrize("count", [1, 2, 15, 20])
def test_both_parts_share_three_products_a_modulus(monkeypatch, count):
    calls, multiply = [], cpu.multiply_int8
    monkeypatch.setattr(cpu, "multiply_int8", lambda *x: (calls.append(x), multiply(*x)))
    scheme_two(*complex_pair(0, 5, 6, 7), moduli=count)
    assert len(calls) == 3 * count


def test_both_parts_share_three_slice_products():
    calls, (a, b) = [], (torch.from_numpy(x) for x in complex_pair(0, 5, 6, 7))

    def multiply(x, y):
        assert not x.is_complex()
        calls.append(x)
        return x @ y

    torch.testing.assert_close(three_products(multiply, a, b), a @ b, rtol=1e-13, atol=1e-13)
    assert len(calls) == 3


def test_sums_of_the_greatest_residues_do_not_wrap_around():
    """Modulo 255 the parts are 127, their sums -1: the products differ by 2 * 127^2, of which INT32 holds 2^16."""
    k = 2**17 + 1
    integer = 2**40 + (127 - 2**40) % 255
    a = np.full((1, k), float(integer) * (1 + 1j))
    assert scheme_two(a, a.T, moduli=15).item() == 1j * rounded(2 * k * integer**2)
    assert scheme_two(a, a.conj().T, moduli=15).item() == rounded(2 * k * integer**2)


@pytest.mark.parametrize("count", range(1, 21))
def test_the_capacity_is_never_exceeded(count):
    for k in (1, 2, 3, 5, 7, 11):
        a = np.full((1, k), (1 - 2.0**-53) * (1 + 1j))
        b = np.hstack([a.conj().T, a.T])  # all of the norm goes into the real, or the imaginary part
        product = scheme_two(a, b, moduli=count)
        bound = part_bounds(product, fractions(truncation_bound(a, b, moduli=count)))
        assert (squared_error(product, exact_parts(a, b)) <= bound).all()


@few
@given(complex_operands(), counts)
def test_real_operands_written_as_complex_ones_have_no_imaginary_part(ab, count):
    a, b = ab[0].real, ab[1].real
    product = scheme_two(a + 0j, b + 0j, moduli=count)
    np.testing.assert_array_equal(product.real, scheme_two(a, b, moduli=count))
    assert not product.imag.any()


@few
@given(complex_operands(), counts)
def test_conjugates_transposes_and_quarter_turns_pass_through(ab, count):
    a, b = ab
    expected = scheme_two(a, b, moduli=count)
    np.testing.assert_array_equal(scheme_two(a.conj(), b.conj(), moduli=count), expected.conj())
    np.testing.assert_array_equal(scheme_two(b.T, a.T, moduli=count), expected.T)
    turned = -a.imag + 1j * a.real
    np.testing.assert_array_equal(scheme_two(turned, b, moduli=count), -expected.imag + 1j * expected.real)


@pytest.mark.parametrize(
    "multiply", [lambda a, b: scheme_two(a, b, moduli=16), lambda a, b: scheme_one(a, b, slices=9)]
)
def test_complex_products_are_as_accurate_as_native_ones(multiply):
    a, b = complex_pair(2, 33, 64, 20)
    exact = exact_parts(a, b)
    magnitude = abs(a) @ abs(b)

    def error(product):
        return np.sqrt(squared_error(product, exact).astype(float)) / magnitude

    assert error(multiply(a, b)).max() < error(a @ b).max()


def test_infinite_products_of_finite_parts_stay_apart():
    product = scheme_two(np.array([[2.0**40 + 1j]]), np.array([[2.0**1000 + 0j]]), moduli=15).item()
    assert (product.real, product.imag) == (np.inf, 2.0**1000)
