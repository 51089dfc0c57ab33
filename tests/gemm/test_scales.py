from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from kinji.gemm.moduli import MODULI, moduli
from kinji.gemm.scales import ENERGY_BITS, integer_bits

counts = st.integers(1, len(MODULI))


@given(counts, st.floats(2.0**10, 2.0**53))
def test_integers_take_all_the_bits_the_capacity_leaves_and_no_more(count, energy):
    constants = moduli(count)
    (bits,) = integer_bits(torch.tensor([energy], dtype=torch.float64), constants).tolist()
    squared_norm = Fraction(energy) * Fraction(4) ** (bits - ENERGY_BITS)
    rounding = Fraction(1, 2**50)
    assert squared_norm <= Fraction(constants.capacity) * (1 + rounding)
    assert 4 * squared_norm > Fraction(constants.capacity) * (1 - rounding)


@given(counts)
def test_a_row_of_zeros_takes_none(count):
    assert integer_bits(torch.zeros(1, dtype=torch.float64), moduli(count)).item() == 0
