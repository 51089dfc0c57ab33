import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from kinji.gemm.moduli import LOW_BITS, MODULI, moduli

counts = pytest.mark.parametrize("count", range(1, len(MODULI) + 1))


def exact_weights(count):
    """The least w_l >= 0 with w_l = 1 mod p_l and 0 mod all others, and the product of all."""
    chosen = MODULI[:count]
    product = math.prod(chosen)
    return [next(w for w in range(0, p * product, product // p) if w % p == 1 % p) for p in chosen], product


def parts_as_integers(count):
    """The parts of each weight, those of the product, and what they leave out of each."""
    constants, (weights, product) = moduli(count), exact_weights(count)
    parts = [[int(x) for x in part] for part in constants.weights_3L]
    of_product = [int(x) for x in constants.product_3]
    rest = [w - sum(column) for w, column in zip(weights, zip(*parts, strict=True), strict=True)]
    return parts, of_product, rest, product - sum(of_product)


def greatest_residues(count):
    return [p // 2 for p in MODULI[:count]]


def greatest_quotient(count):
    """What rint(S / P) can be: S = sum of w_l r_l, P of the moduli."""
    weights, product = exact_weights(count)
    return round(Fraction(sum(w * r for w, r in zip(weights, greatest_residues(count), strict=True)), product))


def test_moduli_are_coprime_and_fit_eight_bits():
    assert all(math.gcd(p, q) == 1 for p, q in itertools.combinations(MODULI, 2))
    assert max(MODULI) == 256


@counts
def test_parts_add_up_to_the_weights_or_leave_out_no_more_than_the_loss(count):
    _, _, rest, rest_of_product = parts_as_integers(count)
    assert all(x >= 0 for x in (*rest, rest_of_product))
    left_out = sum(x * r for x, r in zip(rest, greatest_residues(count), strict=True))
    left_out += rest_of_product * greatest_quotient(count)
    loss = moduli(count).loss
    assert left_out <= loss
    assert (loss == 0) == (left_out == 0) == (count <= 15)


@counts
def test_sums_of_parts_times_residues_and_their_reduction_are_exact_in_fp64(count):
    parts, of_product, _, _ = parts_as_integers(count)
    for part, p in zip(parts, of_product, strict=True):
        values = [x for x in (*part, p) if x]
        grid = min((x & -x for x in values), default=1)
        greatest_sum = sum(x * r for x, r in zip(part, greatest_residues(count), strict=True))
        assert greatest_sum + p * greatest_quotient(count) <= 2**53 * grid


@counts
def test_the_first_part_alone_tells_the_quotient_of_every_integer_within_the_capacity(count):
    parts, of_product, rest, _ = parts_as_integers(count)
    product, constants = math.prod(MODULI[:count]), moduli(count)
    beyond = sum((y + z + w) * r for y, z, w, r in zip(*parts[1:], rest, greatest_residues(count), strict=True))
    rounding = 3 * 2.0**-53 * (greatest_quotient(count) + 1)  # of 1 / P, of the product with it, of a half
    assert Fraction(constants.capacity) / product + Fraction(beyond, product) + Fraction(rounding) < Fraction(1, 2)
    assert constants.capacity > 0.4999 * product  # and next to nothing is given away
    assert constants.inverse_product == 1 / product
    assert of_product[0] > 0.99 * product


@counts
def test_carries_and_inverses(count):
    constants = moduli(count)
    for p, inverse, carry in zip(MODULI, constants.inverses_L, constants.carries_L, strict=False):
        assert (2**LOW_BITS - int(carry)) % p == 0
        assert abs(carry) <= p / 2
        assert inverse == 1 / p
    np.testing.assert_array_equal(constants.moduli_L, MODULI[:count])


@pytest.mark.parametrize("count", [-1, 0, 21])
def test_there_are_twenty(count):
    with pytest.raises(ValueError, match=f"moduli is {count}: take 1 to 20"):
        moduli(count)
