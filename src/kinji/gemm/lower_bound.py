"""A lower bound on |A||B|, by scheme I: slices are truncated, so those of |A| and |B| make less than |A||B|.

Dimension letters: M rows of A, K inner dimension, N columns of B, R rows of an operand.
"""

from __future__ import annotations

import torch

from kinji.gemm.backend import Kernels
from kinji.gemm.operands import Operands
from kinji.gemm.ozaki_one import bits_per_slice, multiply_diagonals, pairs_per_product, slices_of
from kinji.gemm.scales import RowScales

BELOW_MODULUS = 1 - 2.0**-50  # the modulus of a complex number is rounded
LEAST_NUMBER = 2.0**-1074  # and by so much if it is subnormal


def lower_bound(operands: Operands, slices: int) -> torch.Tensor:
    """Return a lower bound on |A||B| (M x N) of operands scaled to below 1, by S(S+1)/2 INT8 products.

    It is exact, and so the same on every machine. Rows that are not finite give zeros.
    """
    a_MK, b_NK, a_scales, b_scales, on = operands
    bits = bits_per_slice(a_MK.shape[1])
    a_MSK = _magnitude_slices("digits of A", a_MK, a_scales, range(1, slices + 1), bits, on)
    b_NSK = _magnitude_slices("digits of B", b_NK, b_scales, range(slices, 0, -1), bits, on)
    products_PMN, diagonal_P = multiply_diagonals(a_MSK, b_NSK, pairs_per_product(a_MSK.shape[2], bits), on)
    exponents = (torch.full_like(scales.exponent_R, a_MK.is_complex()) for scales in (a_scales, b_scales))
    return on.accumulate(products_PMN, diagonal_P, bits, *exponents)


def _magnitude_slices(
    name: str, x_RK: torch.Tensor, scales: RowScales, numbers: range, bits: int, on: Kernels
) -> torch.Tensor:
    if x_RK.is_complex():  # its modulus may be 2^(1/2) times the greatest part
        x_RK = (x_RK.abs() * BELOW_MODULUS - LEAST_NUMBER).clamp(min=0).contiguous()
        scales = scales._replace(exponent_R=scales.exponent_R + 1, finite_R=x_RK.isfinite().all(1))
    return slices_of(name, x_RK, scales, numbers, bits, on).abs_()


def spare_disjoint(lower_MN: torch.Tensor, operands: Operands) -> torch.Tensor:
    """Return the bound with infinities where no k has both a_ik and b_kj: such an entry is 0, and comes out as 0."""
    a, b = (_support(x_RK, operands.on) for x_RK in (operands.a_MK, operands.b_NK))
    common_MN = operands.on.workspace("products", tuple(lower_MN.shape), torch.int32)
    operands.on.multiply_int8(a, b, common_MN)
    return lower_MN.masked_fill_(common_MN == 0, torch.inf)


def _support(x_RK: torch.Tensor, on: Kernels) -> torch.Tensor:
    support_RK = torch.zeros((len(x_RK), on.depth(x_RK.shape[1])), dtype=torch.int8, device=x_RK.device)
    support_RK[:, : x_RK.shape[1]] = x_RK != 0
    return support_RK
