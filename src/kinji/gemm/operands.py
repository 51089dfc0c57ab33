"""Operands of a product: checked, as FP64 tensors, the second transposed, and measured row by row.

Dimension letters: M rows of A, K inner dimension, N columns of B.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from kinji.gemm.backend import Kernels, kernels
from kinji.gemm.scales import RowScales

Matrix: TypeAlias = np.ndarray | torch.Tensor
DTYPES = ("float32", "float64", "complex64", "complex128")


class Operands(NamedTuple):
    """A and the transpose of B, FP64 and contiguous, what is known of their rows, and the kernels for them."""

    a_MK: torch.Tensor
    b_NK: torch.Tensor
    a_scales: RowScales
    b_scales: RowScales
    on: Kernels


def as_operands(a_MK: Matrix, b_KN: Matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both operands as tensors of FP64, or complex128 if one is complex; single precision is widened.

    They share memory with the arrays given where they can.

    Raises
    ------
    TypeError
        If an operand is neither a NumPy array nor a torch tensor, holds neither floating-point nor complex numbers of
        32 or 64 bits a part, or the two are of different kinds.
    ValueError
        If an operand is not a matrix, the inner dimensions differ, or the two lie on different devices.
    """
    if isinstance(a_MK, np.ndarray) != isinstance(b_KN, np.ndarray):
        raise TypeError(f"A is a {type(a_MK).__name__} and B a {type(b_KN).__name__}: pass two arrays or two tensors.")
    a, b = _as_tensor("A", a_MK), _as_tensor("B", b_KN)
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"A is {tuple(a.shape)} and B is {tuple(b.shape)}: columns of A must equal rows of B.")
    if a.device != b.device:
        raise ValueError(f"A is on {a.device} and B on {b.device}: move one with .to(device).")
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    return a.to(wide), b.to(wide)


def measured(a_MK: torch.Tensor, b_KN: torch.Tensor) -> Operands:
    """Return real operands ready to be cut up."""
    on = kernels(a_MK.device)
    a, b = a_MK.contiguous(), on.workspace("transposed", b_KN.T.shape, torch.float64).copy_(b_KN.T)
    return Operands(a, b, on.row_scales(a), on.row_scales(b), on)


def propagate(c_MN: torch.Tensor, operands: Operands) -> None:
    """Write what IEEE arithmetic makes of the entries that an infinity or a NaN reaches, in place."""
    finite = operands.a_scales.finite_R, operands.b_scales.finite_R
    operands.on.propagate(c_MN, operands.a_MK, operands.b_NK, *finite)


def as_kind_of(operand: Matrix, product_MN: torch.Tensor) -> Matrix:
    """Return the product as an array if `operand` is one, else as the tensor it is."""
    return product_MN.numpy() if isinstance(operand, np.ndarray) else product_MN


def _as_tensor(name: str, matrix: Matrix) -> torch.Tensor:
    if not isinstance(matrix, (np.ndarray, torch.Tensor)):
        raise TypeError(f"{name} is a {type(matrix).__name__}: pass a NumPy array or a torch tensor.")
    if str(matrix.dtype).removeprefix("torch.") not in DTYPES:
        raise TypeError(f"{name} is {matrix.dtype}: convert it to float64 or complex128 first.")
    if matrix.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}: pass a matrix of two dimensions.")
    return matrix.detach().resolve_conj() if isinstance(matrix, torch.Tensor) else torch.from_numpy(_shareable(matrix))


def _shareable(array: np.ndarray) -> np.ndarray:
    # torch takes neither negative strides nor, without a warning, read-only memory
    return array if array.flags.writeable and min(array.strides) >= 0 else array.copy()
