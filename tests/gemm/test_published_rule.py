import numpy as np
import pytest

from kinji.gemm import matmul, published_slice_count, sample_reference, scheme_one, scheme_two
from kinji.gemm.matmul import AccuracyError

from .strategies import exponential_pair, hidden_small


def test_the_rule_counts_bits_by_hand():
    a, b = np.array([[1.0, 2.0**-4]]), np.array([[1.0], [0.0]])
    # needed: 54 and 58 in A, 54 in B; of 4 entries, 8 slices of 7 bits lose 2, 7 slices lose 5 + 9 + 5
    assert published_slice_count(a, b) == 9
    for total, slices in ((1.9, 9), (2, 8), (18.9, 8), (19, 7)):
        assert published_slice_count(a, b, mean_lost_bits=total / 4) == slices


def test_narrower_slices_of_long_sums_count():
    a = np.ones((1, 2**17 + 1))
    assert published_slice_count(a[:, 1:], a.T[1:], mean_lost_bits=0) == 8
    assert published_slice_count(a, a.T, mean_lost_bits=0) == 9


def test_the_rule_leaves_wide_operands_to_native_products():
    a, b = exponential_pair(0, 8, 8, 8, phi=20.0)
    assert published_slice_count(a, b) is None
    assert published_slice_count(a, b, mean_lost_bits=100) == 3


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_operands_that_are_not_finite_go_to_native_products(bad):
    assert published_slice_count(np.array([[1.0]]), np.array([[bad]]), mean_lost_bits=100) is None
    assert published_slice_count(np.array([[bad]]), np.array([[1.0]]), mean_lost_bits=100) is None


@pytest.mark.parametrize("mean_lost_bits", [1.0, 1.5])
def test_the_rule_is_blind_where_few_entries_carry_the_product(mean_lost_bits):
    a, b = hidden_small(256)
    slices = published_slice_count(a, b, mean_lost_bits=mean_lost_bits)
    reference = sample_reference(a, b, samples=50, seed=0)
    assert reference.relative_error(scheme_one(a, b, slices=slices)) == pytest.approx(1)
    assert reference.relative_error(scheme_two(a, b, moduli=15)) > 0.1
    assert reference.relative_error(a @ b) < 1e-14
    with pytest.raises(AccuracyError):
        matmul(a, b)
