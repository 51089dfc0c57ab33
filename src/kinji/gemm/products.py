"""Exact INT8 products: the self-test of the unit, and the sum of one anti-diagonal of slice pairs.

Dimension letters: M rows of A, N columns of B, K inner dimension, S slices. A is stored as [A_1 | A_2 | ... |
A_S], B transposed as [B_S | ... | B_1]: the pairs (p, q) with p + q = t + 1 then lie side by side, and
neighbours of them are one product over strided views, exact while INT32 holds it.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch

from kinji.gemm.splitting import MOST_BITS

INT32_MAX = 2**31 - 1
SAFE_BITS = 6  # saturating 16-bit intermediate sums (u8 x s8 without VNNI) hold 6-bit digits
SELF_TEST_SHAPES = (
    (1, 100, 1),
    (17, 64, 24),
    (40, 200, 33),
    (64, 256, 64),
)  # vector, blocked and ragged kernels


def multiply_int8(a_MK: torch.Tensor, b_NK: torch.Tensor) -> torch.Tensor:
    """Return A B^T (int32, M x N) of int8 operands, on the INT8 unit."""
    return torch._int_mm(a_MK, b_NK.T)


@cache
def exact_bits(device: torch.device) -> int:
    """Return the widest digits that `device` multiplies exactly: 7 bits, or 6 with a warning.

    On x86 processors without VNNI, oneDNN adds pairs of u8 x s8 products in saturating 16-bit arithmetic and
    returns wrong sums of full-range int8 without a word.

    Raises
    ------
    ArithmeticError
        If the unit is not exact for 6-bit digits either.
    """
    if _is_exact(MOST_BITS, device):
        return MOST_BITS
    if not _is_exact(SAFE_BITS, device):
        raise ArithmeticError(f"torch._int_mm returns wrong sums on {device}: no slice width is exact there.")
    message = f"torch._int_mm saturates on {device} (no VNNI?): slices hold {SAFE_BITS} bits instead of {MOST_BITS}."
    warnings.warn(message, RuntimeWarning, stacklevel=2)
    return SAFE_BITS


def _is_exact(bits: int, device: torch.device) -> bool:
    return all(_product_is_exact(shape, sign * (2**bits - 1), device) for shape in SELF_TEST_SHAPES for sign in (1, -1))


def _product_is_exact(shape: tuple[int, int, int], digit: int, device: torch.device) -> bool:
    M, K, N = shape
    rows, columns, depth = padded(M, device), padded(N, device), padded(K, device)
    a = torch.full((rows, depth), abs(digit), dtype=torch.int8, device=device)
    b = torch.full((columns, depth), digit, dtype=torch.int8, device=device)
    return bool((multiply_int8(a, b) == depth * abs(digit) * digit).all())


def padded(size: int, device: torch.device) -> int:
    """Return the size to store: CUDA's INT8 product takes more than 16 rows, and multiples of 8 elsewhere."""
    return size if device.type == "cpu" else -(-size // 32) * 32


def pairs_per_product(k: int, bits: int) -> int:
    """Return how many slice pairs of inner dimension k one INT32 sum holds exactly."""
    return INT32_MAX // (k * (2**bits - 1) ** 2)


def anti_diagonal(a_MSK: torch.Tensor, b_NSK: torch.Tensor, t: int, pairs: int) -> torch.Tensor:
    """Return the exact sum of A_p B_q over p + q = t + 1, by products of at most `pairs` slice pairs.

    Returns
    -------
    torch.Tensor
        M x N, int32 if one product was enough, else int64.
    """
    K, S = a_MSK.shape[2], a_MSK.shape[1]
    a, b = a_MSK.flatten(1)[:, : t * K], b_NSK.flatten(1)[:, (S - t) * K :]
    first, *rest = (
        multiply_int8(a[:, at : at + pairs * K], b[:, at : at + pairs * K]) for at in range(0, t * K, pairs * K)
    )
    if not rest:
        return first
    total = first.to(torch.int64)
    for product in rest:
        total += product
    return total
