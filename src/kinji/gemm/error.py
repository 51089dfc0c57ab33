"""How far from A B the schemes may be, rigorously and in O(M N) operations.

Norms of rows are bounded by integer sums (`RowScales`), so a bound is the same on every machine. What is left out of
entry (i, j), with rows of A scaled by 2^-(e_i) and columns of B by 2^-(f_j) to below 1:

scheme I, S slices of b bits
    K (S + 1) 2^-Sb: slice p of A misses what is left of B after S + 1 - p slices, and what is left of A misses B,
    S + 1 terms below 2^-Sb for each of the K products.
scheme II, integers of m_i and n_j bits
    2^-(m_i) sum_k |b_kj| + 2^-(n_j) sum_k |a_ik|, without the term of an operand whose row is a row of integers
    already, and the `loss` of the reconstruction.

Rounding adds at most (S - 1) 2^-53 |A||B| in scheme I, and 2^-53 |C'| in scheme II.

Dimension letters: M rows of A, K inner dimension, N columns of B, R rows of an operand.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from kinji.gemm.complex_products import COMPLEX_STEP
from kinji.gemm.moduli import Moduli
from kinji.gemm.moduli import moduli as constants_of
from kinji.gemm.operands import Matrix, as_operands, measured
from kinji.gemm.ozaki_one import bits_per_slice
from kinji.gemm.ozaki_two import measured_complex
from kinji.gemm.scales import ENERGY_BITS, RowScales, integer_bits


class Steps(NamedTuple):
    """Of each row of an operand, scaled to below 1: how much truncation takes off an entry, and the sum of all |x|."""

    step_R: torch.Tensor
    sum_R: torch.Tensor


def truncation_bound(a_MK: Matrix, b_KN: Matrix, *, slices: int | None = None, moduli: int | None = None) -> np.ndarray:
    """Return the bound on what scheme I with `slices`, or scheme II with `moduli`, leaves out of each entry (M x N).

    Rounding comes on top, and half of 2^-1074 where the entry is subnormal. Complex operands take `moduli`; entries
    that an infinity or a NaN reaches have no meaning here.

    Raises
    ------
    TypeError, ValueError
        What the schemes raise for the same operands, or unless one of `slices` and `moduli` is given.
    """
    a, b = as_operands(a_MK, b_KN)
    if (slices is None) == (moduli is None) or (slices and a.is_complex()):
        raise ValueError(f"slices={slices}, moduli={moduli} for {a.dtype}: give one, and moduli for complex operands.")
    _, _, a_scales, b_scales, _ = measured_complex(a, b) if a.is_complex() else measured(a, b)
    if slices:
        bound_MN = torch.full((len(a), b.shape[1]), scheme_one_bound(a.shape[1], slices), dtype=torch.float64)
    else:
        constants = constants_of(moduli or 0)
        x, y = (truncation_steps(scales, constants, of_parts=a.is_complex()) for scales in (a_scales, b_scales))
        bound_MN = x.step_R[:, None] * y.sum_R + x.sum_R[:, None] * y.step_R
    exponent_MN = a_scales.exponent_R[:, None] + b_scales.exponent_R
    return np.ldexp(bound_MN.numpy(force=True), exponent_MN.numpy(force=True))


def scheme_one_bound(k: int, slices: int) -> float:
    """Return what S slices leave out of an entry of operands scaled to below 1."""
    return k * (slices + 1) * 2.0 ** (-slices * bits_per_slice(k))


def truncation_steps(scales: RowScales, constants: Moduli, *, of_parts: bool) -> Steps:
    """Return what scheme II with these moduli makes of each row (`of_parts`: real and imaginary parts side by side)."""
    bits_R = integer_bits(scales.energy_R, constants)
    inexact_R = (bits_R < scales.span_R) * (COMPLEX_STEP if of_parts else 1.0)
    lost_R = loss_over_norms(constants) * norms(scales, of_parts=of_parts).step_R
    return Steps(inexact_R * _units(scales, constants) + lost_R, scales.sum_R * 2.0**-ENERGY_BITS)


def _units(scales: RowScales, constants: Moduli) -> torch.Tensor:
    return torch.ldexp(torch.ones_like(scales.energy_R), -integer_bits(scales.energy_R, constants))


def norms(scales: RowScales, *, of_parts: bool = False) -> Steps:
    """Return, in place of the steps of particular moduli, the 2-norms they are in proportion to."""
    norm_R = scales.energy_R.sqrt() * 2.0**-ENERGY_BITS * (COMPLEX_STEP if of_parts else 1.0)
    return Steps(norm_R, scales.sum_R * 2.0**-ENERGY_BITS)


def steps_over_norms(constants: Moduli) -> float:
    """Return a bound on 2^-m over the 2-norm of a row, the loss of the reconstruction included.

    m is the greatest integer with 2^(2 m) norm^2 <= capacity, or one less: rounded down from a logarithm rounded down.
    """
    return 2 / math.sqrt(constants.capacity) * (1 + 2.0**-40) + loss_over_norms(constants)


def loss_over_norms(constants: Moduli) -> float:
    """Return a bound on `loss` 2^-m 2^-n over (|a| sum + |b| sum), norms and sums of a row of A and a column of B."""
    return 2 * constants.loss / constants.capacity * (1 + 2.0**-40)


def capacity_for_integers(scales: RowScales) -> float:
    """Return the capacity from which on moduli take every row to integers without truncation."""
    needed_R = torch.ldexp(scales.energy_R, 2 * (scales.span_R - ENERGY_BITS))
    return float(needed_R.max()) * (1 + 2.0**-40)
