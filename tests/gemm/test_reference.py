from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinji.gemm.reference import sample_reference, two_product

from .strategies import exact_product, matrices, operands

moderate = st.floats(-(2.0**200), 2.0**200).filter(lambda x: x == 0 or abs(x) > 2.0**-400)


@given(matrices(2, 6, moderate))
def test_two_products_lose_nothing(xy):
    p, e = two_product(*xy)
    for x, y, head, tail in zip(*xy, p, e, strict=True):
        assert Fraction(x) * Fraction(y) == Fraction(head) + Fraction(tail)
        assert head == x * y


@given(operands(elements=moderate))
def test_heads_are_correctly_rounded_and_tails_what_they_left_out(ab):
    a, b = ab
    reference, exact = sample_reference(a, b, samples=5, seed=1), exact_product(a, b)
    magnitude = exact_product(abs(a), abs(b))
    for p, (i, j) in enumerate(zip(reference.rows_P, reference.columns_P, strict=True)):
        assert reference.head_P[p] == float(exact[i][j])
        assert reference.tail_P[p] == float(exact[i][j] - Fraction(reference.head_P[p]))
        assert reference.magnitude_P[p] == pytest.approx(float(magnitude[i][j]), rel=1e-15)


def test_an_error_far_below_one_roundoff_is_seen():
    a, b = np.array([[1.0, 2.0**-80]]), np.array([[1.0], [1.0]])
    reference = sample_reference(a, b, samples=1, seed=0)
    assert reference.errors(np.ones((1, 1))).item() == 2.0**-80
    assert reference.error_in_roundoffs(np.full((1, 1), 1 + 2.0**-52)) == pytest.approx(2.0)
    assert reference.relative_error(np.full((1, 1), 1.5)) == pytest.approx(0.5)


@pytest.mark.parametrize(("x", "y"), [(2.0**1000, 1.0), (2.0**-500, 2.0**-500), (2.0**600, 2.0**500)])
def test_factors_beyond_the_exact_range_are_refused(x, y):
    with pytest.raises(ValueError, match="scale the operands"):
        two_product(np.array([x]), np.array([y]))
