import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinji.gemm import sample_reference, scheme_one, scheme_two, truncation_bound
from kinji.gemm.error import (
    capacity_for_integers,
    loss_over_norms,
    norms,
    steps_over_norms,
    truncation_steps,
)
from kinji.gemm.moduli import MODULI, moduli
from kinji.gemm.operands import as_operands, measured
from kinji.gemm.ozaki_two import measured_complex

from .strategies import complex_operands, exact_product, exponential_pair, fractions, hidden_small, integers, operands

counts = st.integers(1, len(MODULI))


def scales_of(a, b):
    a, b = as_operands(a, b)
    return (measured_complex(a, b) if a.is_complex() else measured(a, b))[2:4]


def test_the_bound_of_slices_is_that_of_the_formula():
    a, b = np.array([[0.9, -0.1], [3.0, 0.0]]), np.array([[0.4], [0.3]])
    expected = 2 * 4 * 2.0 ** (-3 * 7) * np.array([[1.0], [4.0]]) * 0.5
    np.testing.assert_array_equal(truncation_bound(a, b, slices=3), expected)


def test_the_bound_of_slices_is_attained():
    """Every digit at its largest: what is left out comes close to the bound."""
    a = np.full((1, 64), np.nextafter(1, 0))
    bound = truncation_bound(a, a.T, slices=3).item()
    error = sample_reference(a, a.T, samples=1, seed=0).errors(scheme_one(a, a.T, slices=3)).item()
    assert 0.9 * bound < error <= bound


@pytest.mark.parametrize("count", [3, 6, 9, 12])
def test_the_bound_of_moduli_is_attained(count):
    """All numbers but the first, which keeps the norms, are next to a whole unit above the last integer."""
    a = np.full((1, 64), 1 - 2.0**-53)
    bound = truncation_bound(a, a.T, moduli=count).item()
    error = sample_reference(a, a.T, samples=1, seed=0).errors(scheme_two(a, a.T, moduli=count)).item()
    assert 0.9 * bound < error <= bound


@pytest.mark.parametrize("choice", [{"slices": 9}, {"moduli": 15}, {"moduli": 18}])
def test_the_bound_says_where_nothing_is_known_of_the_product(choice):
    a, b = hidden_small(64)
    reference = sample_reference(a, b, samples=50, seed=0)
    product = scheme_one(a, b, **choice) if "slices" in choice else scheme_two(a, b, **choice)
    bound = truncation_bound(a, b, **choice)[reference.rows_P, reference.columns_P]
    assert (bound >= reference.errors(product)).all()
    assert reference.relative_error(product) > 1e-3
    assert (bound > 1e-3 * np.abs(reference.head_P)).all()


@given(operands(elements=integers(20)))
def test_moduli_enough_for_integers_leave_out_nothing(ab):
    needed = max(map(capacity_for_integers, scales_of(*ab)))
    count = next(count for count in range(1, 21) if moduli(count).capacity >= needed)
    assert not truncation_bound(*ab, moduli=count).any()
    if count > 1:
        assert truncation_bound(*ab, moduli=count - 1).any()


@pytest.mark.parametrize("count", range(16, 21))
def test_what_the_reconstruction_leaves_out_is_part_of_the_bound(count):
    h = 2.0**58  # (h + 1) (h - 1) - h h = -1: integers, but far below the last bit of the reconstruction
    a, b = np.array([[h, h, 1, 1, h]]), np.array([[h, -1, h, -1, -h]]).T
    assert exact_product(a, b).item() == -1
    bound = truncation_bound(a, b, moduli=count).item()
    assert 0 < bound < 2.0**-100 * h * h * 3
    assert abs(Fraction(scheme_two(a, b, moduli=count).item()) + 1) <= Fraction(bound)


@given(operands() | complex_operands(), counts)
def test_the_bound_before_the_moduli_are_chosen_is_no_less_than_that_of_their_steps(ab, count):
    constants, of_parts = moduli(count), np.iscomplexobj(ab[0])
    for scales in scales_of(*ab):
        steps, norm = truncation_steps(scales, constants, of_parts=of_parts), norms(scales, of_parts=of_parts)
        assert (steps.step_R <= steps_over_norms(constants) * norm.step_R).all()
        assert torch.equal(steps.sum_R, norm.sum_R)
        if constants.capacity >= capacity_for_integers(scales):
            assert (steps.step_R <= loss_over_norms(constants) * norm.step_R).all()


@given(operands() | complex_operands())
def test_norms_and_sums_are_upper_bounds_to_sixteen_bits(ab):
    for x, scales in zip((ab[0], ab[1].T), scales_of(*ab), strict=True):
        parts = np.hstack([x.real, x.imag]) if np.iscomplexobj(x) else x
        scaled = fractions(abs(parts)) / np.array([[Fraction(2) ** e] for e in scales.exponent_R.tolist()])
        length = parts.shape[1]
        steps = norms(scales)
        for row, norm, total in zip(scaled, steps.step_R.tolist(), steps.sum_R.tolist(), strict=True):
            assert sum(row) - Fraction(1, 2**1000) <= Fraction(total) <= sum(row) + Fraction(length, 2**16)
            assert math.sqrt(sum(row * row)) <= norm * (1 + 2.0**-50)
            assert norm <= (math.sqrt(sum(row * row)) + math.sqrt(length) / 2**16) * (1 + 2.0**-50)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_the_bound_is_an_array_one_entry_each(kind):
    a, b = (kind(x) for x in exponential_pair(0, 3, 4, 5))
    for choice in ({"slices": 4}, {"moduli": 8}):
        bound = truncation_bound(a, b, **choice)
        assert isinstance(bound, np.ndarray)
        assert bound.shape == (3, 5)
        assert (bound > 0).all()


BAD = [({}, "give one"), ({"slices": 3, "moduli": 3}, "give one"), ({"slices": 0}, "."), ({"moduli": 21}, "1 to 20")]


@pytest.mark.parametrize(("choice", "message"), BAD)
def test_one_of_slices_and_moduli_is_asked_for(choice, message):
    with pytest.raises(ValueError, match=message):
        truncation_bound(np.ones((2, 2)), np.ones((2, 2)), **choice)


def test_complex_operands_are_bounded_for_moduli():
    with pytest.raises(ValueError, match="moduli for complex operands"):
        truncation_bound(np.ones((2, 2), complex), np.ones((2, 2)), slices=4)
