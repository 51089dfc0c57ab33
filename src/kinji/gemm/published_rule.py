"""How the published code of scheme I picks the number of slices, for comparison: it can be wrong by all of the product.

Dimension letters: R rows of an operand (rows of A, columns of B), K inner dimension, M rows of A, N columns of B.
"""

from __future__ import annotations

import torch

from kinji.gemm.operands import Matrix, as_operands, measured
from kinji.gemm.ozaki_one import bits_per_slice

PUBLISHED_SLICES = range(3, 19)
DOUBLE_BITS = 53


def published_slice_count(a_MK: Matrix, b_KN: Matrix, *, mean_lost_bits: float = 0.0) -> int | None:
    """Return the slices that the published automatic rule takes, or ``None`` where it takes native FP64.

    The rule (AUTO mode of the ozIMMU code) counts the significand bits that S slices leave out of the entries
    of A and B and takes the least S whose mean over all entries is at most `mean_lost_bits`. It looks at each
    operand alone: an entry that loses all its bits may be the one that carries the product. Operands with an infinity
    or a NaN go to native FP64.
    """
    a, b = as_operands(a_MK, b_KN)
    operands = measured(a, b)
    if not (operands.a_scales.finite_R.all() and operands.b_scales.finite_R.all()):
        return None
    rows = (operands.a_MK, operands.a_scales.exponent_R), (operands.b_NK, operands.b_scales.exponent_R)
    needed = torch.cat([_needed_bits(*x) for x in rows])
    bits = bits_per_slice(a.shape[1])
    for slices in PUBLISHED_SLICES:
        lost = (needed - slices * bits).clamp(min=0).sum()
        if float(lost) <= mean_lost_bits * (a.numel() + b.numel()):
            return slices
    return None


def _needed_bits(x_RK: torch.Tensor, exponent_R: torch.Tensor) -> torch.Tensor:
    # one more than the distance to the row's exponent asks for: the published exponent is one higher than ours
    entries = (exponent_R[:, None] - torch.frexp(x_RK).exponent)[x_RK != 0]
    return entries + DOUBLE_BITS + 1
