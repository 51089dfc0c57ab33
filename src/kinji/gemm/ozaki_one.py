"""Ozaki scheme I: an FP64 product from S(S+1)/2 exact INT8 products.

Row i of A is a_ik = ± 2^(e_i) (d_ik1 2^-b + d_ik2 2^-2b + ... + d_ikS 2^-Sb) + remainder: its shared exponent
e_i is the least with |a_ik| < 2^(e_i), digits 0 <= d_iks < 2^b carry the sign of a_ik, and they are truncated,
not rounded; columns of B likewise, with exponents f_j. The published code sets e_i one higher, which leaves the
top bit of the first slice empty; here all its bits are used. Then

C_ij = 2^(e_i + f_j) (D_1 2^-2b + D_2 2^-3b + ... + D_S 2^-(S+1)b)_ij,

D_t the exact integer sum of the slice products A_p B_q, p + q = t + 1. A is stored as [A_1 | A_2 | ... | A_S], B
transposed as [B_S | ... | B_1]: the pairs of a diagonal lie side by side, and neighbours of them are one product
over strided views, exact while INT32 holds it. Only the S - 1 additions of diagonals round.

Source: Ootomo, Ozaki and Yokota, DGEMM on integer matrix multiplication unit, IJHPCA 38(4), 2024 (arXiv
2306.11975); the grouping of an anti-diagonal: Uchino, Ozaki and Imamura, IJHPCA 39(3), 2025 (arXiv
2409.13313).

Dimension letters: M rows of A, K inner dimension, N columns of B, S slices, P products.
"""

from __future__ import annotations

import math
from functools import partial
from typing import overload

import numpy as np
import torch

from kinji.gemm.backend import Kernels
from kinji.gemm.complex_products import RealMultiply, propagate_complex, three_products
from kinji.gemm.operands import Matrix, Operands, as_kind_of, as_operands, measured, propagate
from kinji.gemm.scales import RowScales

MOST_BITS = 7
INT32_BITS = 31
INT32_MAX = 2**31 - 1


def bits_per_slice(k: int) -> int:
    """Return b = min(7, floor((31 - ceil(log2 k)) / 2)): k products of b-bit digits fit INT32.

    Raises
    ------
    ValueError
        If not even one bit fits, k > 2^29.
    """
    bits = min(MOST_BITS, (INT32_BITS - math.ceil(math.log2(max(k, 1)))) // 2)
    if bits < 1:
        raise ValueError(f"inner dimension {k}: its sums overflow INT32 at any slice width; split it below 2^29.")
    return bits


@overload
def scheme_one(a_MK: np.ndarray, b_KN: np.ndarray, *, slices: int, grouped: bool = ...) -> np.ndarray: ...
@overload
def scheme_one(a_MK: torch.Tensor, b_KN: torch.Tensor, *, slices: int, grouped: bool = ...) -> torch.Tensor: ...
def scheme_one(a_MK: Matrix, b_KN: Matrix, *, slices: int, grouped: bool = True) -> Matrix:
    """Return A B in FP64 or complex128, computed on the INT8 unit with `slices` slices of each operand.

    Parameters
    ----------
    a_MK, b_KN
        Real or complex operands of single or double precision, two NumPy arrays or two torch tensors on one device.
    slices
        S, at least 1; the error shrinks by 2^-7 with each. It is bounded by `kinji.gemm.truncation_bound`.
    grouped
        Multiply an anti-diagonal of slice pairs at once, S products in all, where INT32 holds its sum; else
        each pair for itself, S(S+1)/2 products as published. The result is the same to the bit.

    Returns
    -------
    np.ndarray or torch.Tensor
        A B, M x N, of the operands' kind, on their device. Its bits depend on A, B and `slices` alone: not on
        threads, blocking, grouping or device. Infinities and NaNs propagate as in IEEE arithmetic. A complex product
        takes three real ones.

    Raises
    ------
    TypeError, ValueError
        For operands that are not conforming matrices of floating-point numbers, or fewer than one slice.
    """
    if slices < 1:
        raise ValueError(f"slices is {slices}: take at least 1, and about 9 for the accuracy of native FP64.")
    a, b = as_operands(a_MK, b_KN)
    multiply = partial(_multiply, slices=slices, grouped=grouped)
    with torch.cuda.device_of(a):
        return as_kind_of(a_MK, _multiply_complex(multiply, a, b) if a.is_complex() else multiply(a, b))


def _multiply(a_MK: torch.Tensor, b_KN: torch.Tensor, slices: int, grouped: bool) -> torch.Tensor:
    if 0 in (*a_MK.shape, *b_KN.shape):
        return a_MK.new_zeros(len(a_MK), b_KN.shape[1])
    operands = measured(a_MK, b_KN)
    c_MN = multiply_slices(operands, slices, grouped=grouped)
    propagate(c_MN, operands)
    return c_MN


def _multiply_complex(multiply: RealMultiply, a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    finite_M, finite_N = a_MK.isfinite().all(1), b_KN.isfinite().all(0)
    return propagate_complex(three_products(multiply, a_MK, b_KN), a_MK, b_KN, finite_M, finite_N)


def multiply_slices(operands: Operands, slices: int, *, grouped: bool = True) -> torch.Tensor:
    """Return A B by `slices` slices of each operand; rows that are not finite count as zeros."""
    a_MK, b_NK, a_scales, b_scales, on = operands
    bits = bits_per_slice(a_MK.shape[1])
    a_MSK = slices_of("digits of A", a_MK, a_scales, range(1, slices + 1), bits, on)
    b_NSK = slices_of("digits of B", b_NK, b_scales, range(slices, 0, -1), bits, on)
    pairs = pairs_per_product(a_MSK.shape[2], bits) if grouped else 1
    products_PMN, diagonal_P = multiply_diagonals(a_MSK, b_NSK, pairs, on)
    return on.accumulate(products_PMN, diagonal_P, bits, a_scales.exponent_R, b_scales.exponent_R)


def slices_of(name: str, x_RK: torch.Tensor, scales: RowScales, numbers: range, bits: int, on: Kernels) -> torch.Tensor:
    """Return the digits of each row (int8, R x S x depth(K)), in the workspace called `name`."""
    (R, K), S = x_RK.shape, len(numbers)
    digits_RSK = on.workspace(name, (R, S, on.depth(K)), torch.int8)
    on.split(x_RK, scales, numbers, bits, digits_RSK)
    return digits_RSK


def pairs_per_product(k: int, bits: int) -> int:
    """Return how many slice pairs of inner dimension k one INT32 sum holds exactly."""
    return INT32_MAX // (k * (2**bits - 1) ** 2)


def multiply_diagonals(
    a_MSK: torch.Tensor, b_NSK: torch.Tensor, pairs: int, on: Kernels
) -> tuple[torch.Tensor, list[int]]:
    """Return products of at most `pairs` neighbouring slice pairs (int32, P x M x N), and the diagonal t of each."""
    M, S, K = a_MSK.shape
    a_MK, b_NK = a_MSK.flatten(1), b_NSK.flatten(1)
    parts = [(t, at, min(at + pairs, t)) for t in range(1, S + 1) for at in range(0, t, pairs)]
    products_PMN = on.workspace("products", (len(parts), M, len(b_NK)), torch.int32)
    for product_MN, (t, first, last) in zip(products_PMN, parts, strict=True):
        a, b = a_MK[:, first * K : last * K], b_NK[:, (S - t + first) * K : (S - t + last) * K]
        on.multiply_int8(a, b, product_MN)
    return products_PMN, [t for t, _, _ in parts]
