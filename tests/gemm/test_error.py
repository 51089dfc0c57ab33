import numpy as np
import pytest

from kinji.gemm import published_slice_count, sample_reference, scheme_one, truncation_bound

from .strategies import exponential

rng = np.random.default_rng


def hidden_small(n, carriers=4):
    """Large columns of A meet rows of zeros in B; a few columns, 2^60 smaller, carry the product."""
    a, b = rng(0).uniform(1, 2, (n, n)), rng(1).uniform(1, 2, (n, n))
    a[:, :carriers] *= 2.0**-60
    b[carriers:] = 0
    return a, b


def test_the_rule_counts_bits_by_hand():
    a, b = np.array([[1.0, 2.0**-4]]), np.array([[1.0], [0.0]])
    # needed: 54 and 58 in A, 54 in B; of 4 entries, 8 slices of 7 bits lose 2, 7 slices lose 5 + 9 + 5
    assert published_slice_count(a, b) == 9
    for total, slices in ((1.9, 9), (2, 8), (18.9, 8), (19, 7)):
        assert published_slice_count(a, b, mean_lost_bits=total / 4) == slices


def test_the_rule_leaves_wide_operands_to_native_products():
    assert published_slice_count(exponential(rng(0), (8, 8), 20.0), np.eye(8)) is None


def test_the_rule_is_blind_where_few_entries_carry_the_product_and_the_bound_is_not():
    a, b = hidden_small(256)
    slices = published_slice_count(a, b, mean_lost_bits=1.5)
    reference = sample_reference(a, b, samples=50, seed=0)
    product = scheme_one(a, b, slices=slices)
    assert reference.relative_error(product) == pytest.approx(1)
    assert reference.relative_error(a @ b) < 1e-14
    bound = truncation_bound(a, b, slices=slices)[reference.rows_P, reference.columns_P]
    assert (bound >= reference.errors(product)).all()
    assert (bound > np.abs(reference.head_P)).all()  # it says that nothing is known about the product


def test_the_bound_is_attained_within_its_dimension():
    """Every digit at its largest: what is left out comes close to the bound."""
    a = np.full((1, 64), np.nextafter(1, 0))
    bound = truncation_bound(a, a.T, slices=3).item()
    error = sample_reference(a, a.T, samples=1, seed=0).errors(scheme_one(a, a.T, slices=3)).item()
    assert 0.9 * bound < error <= bound
