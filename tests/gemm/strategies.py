"""Hostile operands, and the exact products to judge ours by."""

import math
from fractions import Fraction

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

LARGEST = 1e150  # so that no product of a test overflows
ROUNDOFF = Fraction(1, 2**53)
LEAST = Fraction(1, 2**1074)
GUARD_BITS = 200
few = settings(max_examples=40)  # for what fails at once where it fails

# exponents all over the range of FP64, zeros, subnormal numbers, both signs
numbers = st.one_of(
    st.just(0.0),
    st.floats(-LARGEST, LARGEST, allow_nan=False, allow_subnormal=True),
    st.builds(lambda s, e: s * 2.0**e, st.floats(-1, 1, allow_subnormal=False), st.integers(-1074, 490)),
    st.floats(-4, 4, allow_subnormal=False),
)
finite = st.floats(allow_nan=False, allow_infinity=False) | numbers
moderate = st.floats(-(2.0**40), 2.0**40, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 2.0**-40)


def integers(bits):
    return st.integers(-(2**bits), 2**bits).map(float)


def matrices(rows, columns, elements=numbers):
    return hnp.arrays(np.float64, (rows, columns), elements=elements)


@st.composite
def operands(draw, largest=6, elements=numbers):
    m, k, n = (draw(st.integers(1, largest)) for _ in range(3))
    return draw(matrices(m, k, elements)), draw(matrices(k, n, elements))


def complex_matrix(real, imaginary):
    return np.stack([real, imaginary], axis=-1).view(np.complex128)[..., 0]  # 1j * inf would be nan + 1j * inf


@st.composite
def complex_operands(draw, largest=4, elements=numbers):
    parts = draw(operands(largest, elements))
    return tuple(complex_matrix(real, draw(matrices(*real.shape, elements))) for real in parts)


def powers_of_two(n, most=300):
    return st.lists(st.integers(-most, most), min_size=n, max_size=n).map(lambda x: 2.0 ** np.array(x))


def exponential(rng, shape, phi):
    return (rng.random(shape) - 0.5) * np.exp(phi * rng.standard_normal(shape))


def exponential_pair(seed, m, k, n, phi=0.5):
    rng = np.random.default_rng(seed)
    return exponential(rng, (m, k), phi), exponential(rng, (k, n), phi)


def hidden_small(n, carriers=4):
    """Large columns of A meet rows of zeros in B; a few columns, 2^60 smaller, carry the product."""
    a, b = (np.random.default_rng(seed).uniform(1, 2, (n, n)) for seed in (0, 1))
    a[:, :carriers] *= 2.0**-60
    b[carriers:] = 0
    return a, b


def exact_product(a, b):
    """Return A B as fractions."""
    return _over(_integers(a) @ _integers(b), 2 * 1074)


def exact_parts(a, b):
    """Return the real and the imaginary part of A B as fractions."""
    parts = np.vstack([b.real, b.imag])
    return exact_product(np.hstack([a.real, -a.imag]), parts), exact_product(np.hstack([a.imag, a.real]), parts)


def exact_magnitude(a, b):
    """Return |A||B| as fractions; of complex operands, less at most 2^-199 of it."""
    return _over(_moduli(a) @ _moduli(b), 2 * (1074 + GUARD_BITS))


def rounded(x):
    """Return the fraction rounded to FP64, once."""
    try:
        return float(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf


fractions = np.vectorize(Fraction, otypes=[object])
_integers = np.vectorize(lambda x: int(Fraction(x) * 2**1074), otypes=[object])
_root = np.vectorize(math.isqrt, otypes=[object])


def _moduli(x):
    return _root((_integers(x.real) ** 2 + _integers(x.imag) ** 2) << 2 * GUARD_BITS)


def _over(x, bits):
    return np.vectorize(lambda i: Fraction(i, 2**bits), otypes=[object])(x)
