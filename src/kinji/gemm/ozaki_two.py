"""Ozaki scheme II: an FP64 product from N products of residues, one for each of N moduli of 8 bits.

Rows of A and columns of B are scaled by powers of two and truncated to integers A', B' with |A'||B'| < P / 2,
P the product of the moduli; A' B' mod p is one exact INT8 product for each p, and the Chinese remainder theorem
gives A' B'. Only the truncation and one last rounding err.

The powers of two come from one of two bounds on |A'||B'|. "fast": Cauchy and Schwarz, on rows scaled to [1/2, 1)
first; the published code squares the rows as they are, and its accuracy changes with their scale. "accurate": one
more INT8 product, of |A| and |B| rounded up to 6 bits.

Source: Ozaki, Uchino and Imamura, Ozaki Scheme II (arXiv 2504.08009); Uchino, Ozaki and Imamura, SC Workshops
2025 (arXiv 2508.03984).

Dimension letters: M rows of A, K inner dimension, N columns of B, R rows of an operand, L moduli, P products.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Literal, TypeAlias, overload

import numpy as np
import torch

from kinji.gemm.backend import Kernels, kernels
from kinji.gemm.complex_products import parts, propagate_complex
from kinji.gemm.moduli import MODULI, Moduli
from kinji.gemm.moduli import moduli as constants_of
from kinji.gemm.operands import Matrix, Operands, as_kind_of, as_operands, measured, propagate
from kinji.gemm.ozaki_one import slices_of
from kinji.gemm.scales import ENERGY_BITS, RowScales, integer_bits

Scaling: TypeAlias = Literal["fast", "accurate"]
K_BLOCK = 2**15  # three sums of so many products of residues fit INT32
MAGNITUDE_BITS = 6


@overload
def scheme_two(a_MK: np.ndarray, b_KN: np.ndarray, *, moduli: int, scaling: Scaling = ...) -> np.ndarray: ...
@overload
def scheme_two(a_MK: torch.Tensor, b_KN: torch.Tensor, *, moduli: int, scaling: Scaling = ...) -> torch.Tensor: ...
def scheme_two(a_MK: Matrix, b_KN: Matrix, *, moduli: int, scaling: Scaling = "fast") -> Matrix:
    """Return A B in FP64 or complex128, computed on the INT8 unit with `moduli` moduli.

    Parameters
    ----------
    a_MK, b_KN
        Real or complex operands of single or double precision, two NumPy arrays or two torch tensors on one device.
    moduli
        N, 1 to 20; the error shrinks by about 2^-3.8 with each. It is bounded by `kinji.gemm.truncation_bound`.
    scaling
        Where the powers of two come from, see above. Complex operands take "fast".

    Returns
    -------
    np.ndarray or torch.Tensor
        A B, M x N, of the operands' kind, on their device. Its bits depend on A, B, `moduli` and `scaling` alone: not
        on threads, blocking or device. Infinities and NaNs propagate as in IEEE arithmetic. A complex product takes
        three real ones for each modulus.

    Raises
    ------
    TypeError, ValueError
        For operands that are not conforming matrices of floating-point numbers, or a number of moduli or a scaling that
        does not exist.
    """
    constants = constants_of(moduli)
    a, b = as_operands(a_MK, b_KN)
    if scaling not in ("fast", "accurate") or (scaling == "accurate" and a.is_complex()):
        raise ValueError(f"scaling is {scaling!r} for {a.dtype}: take 'fast', or 'accurate' for real operands.")
    if 0 in (*a.shape, *b.shape):
        return as_kind_of(a_MK, a.new_zeros(len(a), b.shape[1]))
    with torch.cuda.device_of(a):
        if a.is_complex():
            return as_kind_of(a_MK, multiply_complex(measured_complex(a, b), constants))
        operands = accurately_measured(measured(a, b)) if scaling == "accurate" else measured(a, b)
        return as_kind_of(a_MK, multiply_real(operands, constants))


def multiply_real(operands: Operands, constants: Moduli) -> torch.Tensor:
    """Return real A B with what infinities and NaNs make of it."""
    c_MN = multiply_residues(operands, constants)
    propagate(c_MN, operands)
    return c_MN


def multiply_complex(operands: Operands, constants: Moduli) -> torch.Tensor:
    """Return complex A B with what infinities and NaNs make of it."""
    finite = operands.a_scales.finite_R, operands.b_scales.finite_R
    c_MN = multiply_complex_residues(operands, constants)
    return propagate_complex(c_MN, operands.a_MK, operands.b_NK.T, *finite)


def accurately_measured(operands: Operands) -> Operands:
    """Return the operands with bounds on the largest entry of |A||B| in each row and column as energies."""
    a_MK, b_NK, a_scales, b_scales, on = operands
    a, b = (_magnitudes(name, *x, on) for name, x in (("A", (a_MK, a_scales)), ("B", (b_NK, b_scales))))
    above_MN = _products("products", a[None], b[None], on).sum(0)
    unit = 4.0 ** (ENERGY_BITS - MAGNITUDE_BITS)
    energy_M, energy_N = (above_MN.amax(axis).double() * unit for axis in (1, 0))
    bounded = a_scales._replace(energy_R=energy_M), b_scales._replace(energy_R=energy_N)
    return Operands(a_MK, b_NK, *bounded, on)


def _magnitudes(name: str, x_RK: torch.Tensor, scales: RowScales, on: Kernels) -> torch.Tensor:
    digits_R1K = slices_of(f"digits of {name}", x_RK, scales, range(1, 2), MAGNITUDE_BITS, on)
    digits_RK = digits_R1K[:, 0].abs_()
    digits_RK[:, : x_RK.shape[1]] += (x_RK != 0) & scales.finite_R[:, None]
    return digits_RK


def multiply_residues(operands: Operands, constants: Moduli) -> torch.Tensor:
    """Return A B modulo the product of the moduli; rows that are not finite count as zeros."""
    a_MK, b_NK, a_scales, b_scales, on = operands
    shift_M, shift_N = shifts(a_scales, constants), shifts(b_scales, constants)
    a_LMK = _residues("residues of A", a_MK, shift_M, a_scales, constants, on)
    b_LNK = _residues("residues of B", b_NK, shift_N, b_scales, constants, on)
    return on.reconstruct(_products("products", a_LMK, b_LNK, on), constants, -shift_M, -shift_N)


def shifts(scales: RowScales, constants: Moduli) -> torch.Tensor:
    """Return the exponents of the powers of two that take each row to integers."""
    return integer_bits(scales.energy_R, constants) - scales.exponent_R


def multiply_complex_residues(operands: Operands, constants: Moduli) -> torch.Tensor:
    """Return complex A B from three products for each modulus: sums of parts are exact among residues."""
    a_MK, b_NK, a_scales, b_scales, on = operands
    shift_M, shift_N = shifts(a_scales, constants), shifts(b_scales, constants)
    a_parts = _residues_of_parts("A", a_MK, shift_M, a_scales, constants, on)
    b_parts = _residues_of_parts("B", b_NK, shift_N, b_scales, constants, on)
    names = ("products", "products of imaginary parts", "products of both")
    real, imaginary, both = (_products(*pair, on) for pair in zip(names, a_parts, b_parts, strict=True))
    both -= real + imaginary
    real -= imaginary
    return torch.complex(*(on.reconstruct(x_PMN, constants, -shift_M, -shift_N) for x_PMN in (real, both)))


def measured_complex(a_MK: torch.Tensor, b_KN: torch.Tensor) -> Operands:
    """Return complex operands with the scales of rows of real and imaginary parts."""
    on, b_NK = kernels(a_MK.device), b_KN.T
    return Operands(a_MK, b_NK, on.row_scales(parts(a_MK)), on.row_scales(parts(b_NK)), on)


def _residues_of_parts(
    name: str, x_RK: torch.Tensor, shift_R: torch.Tensor, scales: RowScales, constants: Moduli, on: Kernels
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the residues of the real parts, the imaginary parts, and their sums."""
    real = _residues(f"residues of {name}", x_RK.real.contiguous(), shift_R, scales, constants, on)
    imaginary = _residues(f"residues of imaginary {name}", x_RK.imag.contiguous(), shift_R, scales, constants, on)
    p_L11 = _moduli(len(constants.moduli_L), x_RK.device)
    both = real.to(torch.int16) + imaginary
    both -= p_L11 * (both > p_L11 // 2)
    both += p_L11 * (both < -(p_L11 // 2))
    return real, imaginary, both.to(torch.int8)


@cache
def _moduli(count: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(MODULI[:count], dtype=torch.int16, device=device)[:, None, None]


def _residues(
    name: str, x_RK: torch.Tensor, shift_R: torch.Tensor, scales: RowScales, constants: Moduli, on: Kernels
) -> torch.Tensor:
    residues_LRK = on.workspace(name, (len(constants.moduli_L), len(x_RK), on.depth(x_RK.shape[1])), torch.int8)
    on.residues(x_RK, shift_R, scales.finite_R, constants, residues_LRK)
    return residues_LRK


def _products(name: str, a_LMK: torch.Tensor, b_LNK: torch.Tensor, on: Kernels) -> torch.Tensor:
    """Return A B^T (int32) for each modulus and, faster, each block of the inner dimension."""
    (L, M, K), N = a_LMK.shape, b_LNK.shape[1]
    blocks = [slice(at, at + K_BLOCK) for at in range(0, K, K_BLOCK)]
    products_PMN = on.workspace(name, (L * len(blocks), M, N), torch.int32)
    for product_MN, (at, block) in zip(products_PMN, itertools.product(range(L), blocks), strict=True):
        on.multiply_int8(a_LMK[at, :, block], b_LNK[at, :, block], product_MN)
    return products_PMN
