"""Hostile operands: exponents all over the range of FP64, zeros, subnormal numbers, both signs."""

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

LARGEST = 1e150  # so that no product of a test overflows
numbers = st.one_of(
    st.just(0.0),
    st.floats(-LARGEST, LARGEST, allow_nan=False, allow_subnormal=True),
    st.builds(lambda s, e: s * 2.0**e, st.floats(-1, 1, allow_subnormal=False), st.integers(-1074, 490)),
    st.floats(-4, 4, allow_subnormal=False),
)


def matrices(rows, columns, elements=numbers):
    return hnp.arrays(np.float64, (rows, columns), elements=elements)


@st.composite
def operands(draw, largest=6, elements=numbers):
    m, k, n = (draw(st.integers(1, largest)) for _ in range(3))
    return draw(matrices(m, k, elements)), draw(matrices(k, n, elements))


def exponential(rng, shape, phi):
    return (rng.random(shape) - 0.5) * np.exp(phi * rng.standard_normal(shape))


def exact_product(a, b):
    m, k, n = *a.shape, b.shape[1]
    return [[sum(Fraction(a[i, s]) * Fraction(b[s, j]) for s in range(k)) for j in range(n)] for i in range(m)]
