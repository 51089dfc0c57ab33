"""Ozaki scheme I: an FP64 product from S(S+1)/2 exact INT8 products.

Source: Ootomo, Ozaki and Yokota, DGEMM on integer matrix multiplication unit, IJHPCA 38(4), 2024 (arXiv
2306.11975); the grouping of an anti-diagonal: Uchino, Ozaki and Imamura, IJHPCA 39(3), 2025 (arXiv
2409.13313).

On the CPU the element-wise loops are compiled (numba) and run on numba's threads, the products on torch's. On
CUDA both are torch operations, with the same integer arithmetic and the same FP64 roundings; not yet run on a
GPU.

Dimension letters: M rows of A, K inner dimension, N columns of B, S slices.
"""

from __future__ import annotations

from typing import overload

import numpy as np
import torch

from kinji.gemm.accumulation import scale, shift_and_add
from kinji.gemm.operands import Matrix, as_kind_of, as_operands
from kinji.gemm.products import anti_diagonal, exact_bits, padded, pairs_per_product
from kinji.gemm.splitting import bits_per_slice, row_exponents, split_rows


@overload
def scheme_one(a_MK: np.ndarray, b_KN: np.ndarray, *, slices: int, grouped: bool = ...) -> np.ndarray: ...
@overload
def scheme_one(a_MK: torch.Tensor, b_KN: torch.Tensor, *, slices: int, grouped: bool = ...) -> torch.Tensor: ...
def scheme_one(a_MK: Matrix, b_KN: Matrix, *, slices: int, grouped: bool = True) -> Matrix:
    """Return A B in FP64, computed on the INT8 unit with `slices` slices of each operand.

    Parameters
    ----------
    a_MK, b_KN
        Finite FP64 operands, two NumPy arrays or two torch tensors on one device.
    slices
        S, at least 1; the error shrinks by 2^-7 with each. It is bounded by `kinji.gemm.truncation_bound`.
    grouped
        Multiply an anti-diagonal of slice pairs at once, S products in all, where INT32 holds its sum; else
        each pair for itself, S(S+1)/2 products as published. The result is the same to the bit.

    Returns
    -------
    np.ndarray or torch.Tensor
        A B, M x N, of the operands' kind, on their device. Its bits depend on A, B and `slices` alone: not on
        threads, blocking or grouping.

    Raises
    ------
    TypeError, ValueError
        For operands that are not conforming finite FP64 matrices, or fewer than one slice.

    Warns
    -----
    RuntimeWarning
        Once, if this processor's INT8 product saturates: slices then hold 6 bits, not 7.
    """
    if slices < 1:
        raise ValueError(f"slices is {slices}: take at least 1, and about 9 for the accuracy of native FP64.")
    a, b = as_operands(a_MK, b_KN)
    return as_kind_of(a_MK, _multiply(a, b.T.contiguous(), slices, grouped))


def _multiply(a_MK: torch.Tensor, b_NK: torch.Tensor, slices: int, grouped: bool) -> torch.Tensor:
    (M, K), N, device = a_MK.shape, len(b_NK), a_MK.device
    c_MN = torch.zeros((M, N), dtype=torch.float64, device=device)
    if 0 in (M, K, N):
        return c_MN
    bits = bits_per_slice(K, exact_bits(device))
    e_M, f_N = row_exponents(a_MK, "A: row"), row_exponents(b_NK, "B: column")
    depth = padded(K, device)
    a_MSK = split_rows(a_MK.contiguous(), e_M, range(1, slices + 1), bits, (padded(M, device), depth))
    b_NSK = split_rows(b_NK, f_N, range(slices, 0, -1), bits, (padded(N, device), depth))
    pairs = pairs_per_product(K, bits) if grouped else 1
    for t in range(slices, 0, -1):
        shift_and_add(c_MN, anti_diagonal(a_MSK, b_NSK, t, pairs), bits)
    scale(c_MN, e_M - 2 * bits, f_N)
    return c_MN
