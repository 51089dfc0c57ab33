"""How far scheme I may be off, and how many slices the published rule would take.

Dimension letters: M rows of A, K inner dimension, N columns of B, S slices.
"""

from __future__ import annotations

import numpy as np
import torch

from kinji.gemm.operands import Matrix, as_operands
from kinji.gemm.products import exact_bits
from kinji.gemm.splitting import MOST_BITS, bits_per_slice, row_exponents

PUBLISHED_SLICES = range(3, 19)
DOUBLE_BITS = 53


def truncation_bound(a_MK: Matrix, b_KN: Matrix, *, slices: int) -> np.ndarray:
    """Return the bound K (S + 1) 2^(e_i + f_j - Sb) on what scheme I leaves out of entry (i, j), M x N.

    With |a_ik| < 2^(e_i) and |b_kj| < 2^(f_j), slice p of A misses what is left of B after S + 1 - p slices,
    and what is left of A misses B: S + 1 terms below 2^(e_i + f_j - Sb) for each of the K products. FP64
    rounding adds at most S 2^-53 (|A| |B|)_ij. Raises what `scheme_one` raises for the same operands.
    """
    a, b = as_operands(a_MK, b_KN)
    bits = bits_per_slice(a.shape[1], exact_bits(a.device))
    e_M, f_N = row_exponents(a, "A: row"), row_exponents(b.T, "B: column")
    exponent_MN = (e_M[:, None] + f_N[None, :] - slices * bits).numpy(force=True)
    return np.ldexp(float(a.shape[1] * (slices + 1)), exponent_MN)


def published_slice_count(a_MK: Matrix, b_KN: Matrix, *, mean_lost_bits: float = 0.0) -> int | None:
    """Return the slices that the published automatic rule takes, or ``None`` where it takes native FP64.

    The rule (AUTO mode of the ozIMMU code) counts the significand bits that S slices leave out of the entries
    of A and B and takes the least S whose mean over all entries is at most `mean_lost_bits`. It looks at each
    operand alone: an entry that loses all its bits may be the one that carries the product.
    """
    a, b = as_operands(a_MK, b_KN)
    needed = torch.cat([_needed_bits(a, "A: row"), _needed_bits(b.T, "B: column")])
    bits = bits_per_slice(a.shape[1], MOST_BITS)
    for slices in PUBLISHED_SLICES:
        lost = (needed - slices * bits).clamp(min=0).sum()
        if float(lost) <= mean_lost_bits * (a.numel() + b.numel()):
            return slices
    return None


def _needed_bits(x_RK: torch.Tensor, name: str) -> torch.Tensor:
    # one more than the distance to the row's exponent asks for: the published exponent is one higher than ours
    entries = (row_exponents(x_RK, name)[:, None] - torch.frexp(x_RK).exponent)[x_RK != 0]
    return entries + DOUBLE_BITS + 1
