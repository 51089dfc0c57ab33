"""Operands of an FP64 product: checked, and as torch tensors.

Dimension letters: M rows of A, K inner dimension, N columns of B.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch

Matrix: TypeAlias = np.ndarray | torch.Tensor


def as_operands(a_MK: Matrix, b_KN: Matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both operands as FP64 tensors that share memory with the arrays given where they can.

    Raises
    ------
    TypeError
        If an operand is neither a NumPy array nor a torch tensor, is not FP64, or the two are of different
        kinds.
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
    return a, b


def as_kind_of(operand: Matrix, product_MN: torch.Tensor) -> Matrix:
    """Return the product as an array if `operand` is one, else as the tensor it is."""
    return product_MN.numpy() if isinstance(operand, np.ndarray) else product_MN


def _as_tensor(name: str, matrix: Matrix) -> torch.Tensor:
    if not isinstance(matrix, (np.ndarray, torch.Tensor)):
        raise TypeError(f"{name} is a {type(matrix).__name__}: pass a NumPy array or a torch tensor.")
    if matrix.dtype not in (np.dtype(np.float64), torch.float64):
        raise TypeError(f"{name} is {matrix.dtype}: convert it to float64 first.")
    if matrix.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}: pass a matrix of two dimensions.")
    return matrix.detach() if isinstance(matrix, torch.Tensor) else torch.from_numpy(_shareable(matrix))


def _shareable(array: np.ndarray) -> np.ndarray:
    # torch takes neither negative strides nor, without a warning, read-only memory
    return array if array.flags.writeable and min(array.strides) >= 0 else array.copy()
