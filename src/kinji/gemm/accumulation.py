"""Anti-diagonals to the FP64 product, by Horner's rule in 2^-b from the least significant one.

C_ij = 2^(e_i + f_j) (D_1 2^-2b + D_2 2^-3b + ... + D_S 2^-(S+1)b)_ij with D_t the exact integer sum of the
slice products A_p B_q, p + q = t + 1. Only the additions round: at most S - 1 times in each entry.

The published code adds every product to FP64 as it comes, the largest first; exact sums within an
anti-diagonal make the result independent of how its products are grouped.

Dimension letters: M rows, N columns of the product.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

DOUBLE_BIAS = 1023
FRACTION_BITS = 52
FIRST_SCALING = 900  # C is 0 or within 2^-160 ... 2^60 before it: the first scaling is exact, the second rounds once


def shift_and_add(c_MN: torch.Tensor, diagonal_MN: torch.Tensor, bits: int) -> None:
    """Replace C by 2^-b C + D, in place; the padding of D is dropped."""
    M, N = c_MN.shape
    kernel = _shift_and_add_compiled if c_MN.device.type == "cpu" else _shift_and_add_tensor
    kernel(c_MN, diagonal_MN[:M, :N], 2.0**-bits)


def scale(c_MN: torch.Tensor, e_M: torch.Tensor, f_N: torch.Tensor) -> None:
    """Multiply C_ij by 2^(e_i + f_j), in place, rounded once where the result is subnormal."""
    kernel = _scale_compiled if c_MN.device.type == "cpu" else _scale_tensor
    kernel(c_MN, e_M, f_N)


def _shift_and_add_compiled(c_MN: torch.Tensor, diagonal_MN: torch.Tensor, shift: float) -> None:
    _shift_and_add_loop(c_MN.numpy(), diagonal_MN.numpy(), shift)


@njit(parallel=True, cache=True)
def _shift_and_add_loop(c_MN: np.ndarray, diagonal_MN: np.ndarray, shift: float) -> None:
    M, N = c_MN.shape
    for i in prange(M):
        for j in range(N):
            c_MN[i, j] = c_MN[i, j] * shift + diagonal_MN[i, j]


def _shift_and_add_tensor(c_MN: torch.Tensor, diagonal_MN: torch.Tensor, shift: float) -> None:
    c_MN.mul_(shift).add_(diagonal_MN)


def _scale_compiled(c_MN: torch.Tensor, e_M: torch.Tensor, f_N: torch.Tensor) -> None:
    _scale_loop(c_MN.numpy(), e_M.numpy(), f_N.numpy())


@njit(parallel=True, cache=True)
def _scale_loop(c_MN: np.ndarray, e_M: np.ndarray, f_N: np.ndarray) -> None:
    M, N = c_MN.shape
    for i in prange(M):
        for j in range(N):
            exponent = e_M[i] + f_N[j]
            first = min(max(exponent, -FIRST_SCALING), FIRST_SCALING)
            second = min(max(exponent - first, 1 - DOUBLE_BIAS), DOUBLE_BIAS)
            c_MN[i, j] = c_MN[i, j] * _power_of_two(first) * _power_of_two(second)


@njit(inline="always")
def _power_of_two(exponent: int) -> float:
    return np.int64((exponent + DOUBLE_BIAS) << FRACTION_BITS).view(np.float64)


def _scale_tensor(c_MN: torch.Tensor, e_M: torch.Tensor, f_N: torch.Tensor) -> None:
    exponent_MN = e_M[:, None] + f_N[None, :]
    first_MN = exponent_MN.clamp(-FIRST_SCALING, FIRST_SCALING)
    second_MN = (exponent_MN - first_MN).clamp(1 - DOUBLE_BIAS, DOUBLE_BIAS)
    for power_MN in (first_MN, second_MN):
        c_MN.mul_(((power_MN + DOUBLE_BIAS) << FRACTION_BITS).view(torch.float64))
