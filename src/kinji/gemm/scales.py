"""What the schemes know of each row of an operand before they cut it up.

Dimension letters: R rows of an operand (rows of A, columns of B).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from kinji.gemm.moduli import Moduli

ENERGY_BITS = 16


class RowScales(NamedTuple):
    """One entry a row; a row that is not all finite counts as one of zeros.

    Attributes
    ----------
    exponent_R
        e, the least integer with |x| < 2^e for all x of the row; 0 for a row of zeros.
    energy_R, sum_R
        Sums of q^2 and of q, q the integer ceil(2^16 |x| / 2^e): upper bounds on the squared 2-norm and the 1-norm
        of 2^16 x / 2^e (but for the K 2^-1058 of numbers that vanish beside the row's greatest).
    span_R
        Bits from 2^e down to the lowest bit set in the row: 2^(span - e) x is a row of integers.
    finite_R
        False for a row with an infinity or a NaN.
    """

    exponent_R: torch.Tensor
    energy_R: torch.Tensor
    sum_R: torch.Tensor
    span_R: torch.Tensor
    finite_R: torch.Tensor


def integer_bits(energy_R: torch.Tensor, constants: Moduli) -> torch.Tensor:
    """Return m (int64), the greatest integers with 2^(2 m) 2^-32 energy <= the capacity of the moduli.

    With `energy` the bound of `RowScales` on the squared 2-norm of x / 2^e, the integers trunc(2^(m - e) x) of
    rows of A and columns of B have |A'||B'| within the capacity, by Cauchy and Schwarz; 0 for a row of zeros.
    """
    ratio_R = constants.capacity * 4.0**ENERGY_BITS / energy_R
    bits_R = (torch.frexp(ratio_R).exponent - 1) >> 1
    return bits_R.to(torch.int64).masked_fill_(energy_R == 0, 0)
