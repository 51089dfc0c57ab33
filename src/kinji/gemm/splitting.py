"""FP64 rows as sums of INT8 slices, without rounding error.

Row i of X is x_ij = ± 2^(e_i) (d_ij1 2^-b + d_ij2 2^-2b + ... + d_ijS 2^-Sb) + remainder. Its shared exponent
e_i is the least with max_j |x_ij| < 2^(e_i); digits 0 <= d_ijs < 2^b carry the sign of x_ij; they are
truncated, not rounded, so |remainder| < 2^(e_i - Sb).

Source: Ootomo, Ozaki and Yokota, DGEMM on integer matrix multiplication unit, IJHPCA 38(4), 2024 (arXiv
2306.11975). Their code sets e_i one higher, which leaves the top bit of the first slice empty; here all its
bits are used.

Dimension letters: R rows of an operand (rows of A, columns of B), K inner dimension, S slices in the order
stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import njit, prange

MOST_BITS = 7
INT32_BITS = 31
FRACTION_BITS = 52
FRACTION_MASK = (1 << FRACTION_BITS) - 1
EXPONENT_MASK = 0x7FF
SIGNIFICAND_BIAS = 1075  # |x| = significand * 2^(biased exponent - 1075), with biased exponent 1 for subnormal x
WIDEST_SHIFT = 63


def bits_per_slice(k: int, most: int = MOST_BITS) -> int:
    """Return b = min(most, floor((31 - ceil(log2 k)) / 2)): k products of b-bit digits fit INT32.

    `most` is what the INT8 unit multiplies exactly (`kinji.gemm.products.exact_bits`).

    Raises
    ------
    ValueError
        If not even one bit fits, k > 2^29.
    """
    bits = min(most, (INT32_BITS - math.ceil(math.log2(max(k, 1)))) // 2)
    if bits < 1:
        raise ValueError(f"inner dimension {k}: its sums overflow INT32 at any slice width; split it below 2^29.")
    return bits


def row_exponents(x_RK: torch.Tensor, name: str) -> torch.Tensor:
    """Return e_R (int64), the least exponents with |x_ij| < 2^(e_i); 0 for a row of zeros.

    Raises
    ------
    ValueError
        If a row, called `name` in the message, holds an infinity or a NaN.
    """
    low_R, high_R = torch.aminmax(x_RK, dim=1)
    peak_R = torch.maximum(-low_R, high_R)
    bad_R = torch.isfinite(peak_R).logical_not().nonzero()
    if len(bad_R):
        raise ValueError(
            f"{name} {int(bad_R[0])} holds an infinity or a NaN: slices hold finite numbers only; mask them."
        )
    return torch.frexp(peak_R).exponent.to(torch.int64)


def split_rows(
    x_RK: torch.Tensor, e_R: torch.Tensor, numbers: Sequence[int], bits: int, padded: tuple[int, int]
) -> torch.Tensor:
    """Return the signed digits of x_RK (contiguous), int8 of shape (rows, S, columns), zero in the padding.

    Parameters
    ----------
    numbers
        The slice numbers, from 1, in the order in which they are stored.
    bits
        b, the bits of a slice.
    padded
        Rows and columns of each slice, at least those of x_RK.
    """
    R, K = x_RK.shape
    rows, columns = padded
    make = torch.empty if padded == (R, K) else torch.zeros
    digits_RSK = make((rows, len(numbers), columns), dtype=torch.int8, device=x_RK.device)
    split = _split_compiled if x_RK.device.type == "cpu" else _split_tensor
    split(x_RK, e_R, torch.tensor(numbers, device=x_RK.device), bits, digits_RSK[:R, :, :K])
    return digits_RSK


def _split_compiled(
    x_RK: torch.Tensor, e_R: torch.Tensor, numbers_S: torch.Tensor, bits: int, digits_RSK: torch.Tensor
) -> None:
    _split_loop(x_RK.view(torch.int64).numpy(), e_R.numpy(), numbers_S.numpy(), bits, digits_RSK.numpy())


@njit(parallel=True, cache=True)
def _split_loop(
    pattern_RK: np.ndarray, e_R: np.ndarray, numbers_S: np.ndarray, bits: int, digits_RSK: np.ndarray
) -> None:
    R, K = pattern_RK.shape
    for i in prange(R):
        for s in range(numbers_S.size):
            drop = SIGNIFICAND_BIAS + e_R[i] - bits * numbers_S[s]
            for j in range(K):
                pattern = pattern_RK[i, j]
                biased = (pattern >> FRACTION_BITS) & EXPONENT_MASK
                significand = (pattern & FRACTION_MASK) | (np.int64(min(biased, 1)) << FRACTION_BITS)
                shift = drop - max(biased, 1)
                widened = significand << min(max(-shift, 0), bits)  # digits past the significand are zeros
                digit = (widened >> min(max(shift, 0), WIDEST_SHIFT)) & ((1 << bits) - 1)
                digits_RSK[i, s, j] = -digit if pattern < 0 else digit


def _split_tensor(
    x_RK: torch.Tensor, e_R: torch.Tensor, numbers_S: torch.Tensor, bits: int, digits_RSK: torch.Tensor
) -> None:
    pattern_RK = x_RK.view(torch.int64)
    biased_RK = (pattern_RK >> FRACTION_BITS) & EXPONENT_MASK
    significand_RK = (pattern_RK & FRACTION_MASK) | (biased_RK.clamp(max=1) << FRACTION_BITS)
    for s, number in enumerate(numbers_S.tolist()):
        shift_RK = SIGNIFICAND_BIAS + e_R[:, None] - bits * number - biased_RK.clamp(min=1)
        widened_RK = significand_RK << (-shift_RK).clamp(0, bits)
        digit_RK = (widened_RK >> shift_RK.clamp(0, WIDEST_SHIFT)) & ((1 << bits) - 1)
        digits_RSK[:, s] = torch.where(pattern_RK < 0, -digit_RK, digit_RK).to(torch.int8)
