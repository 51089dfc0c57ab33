"""Blocked Cholesky and LU that take the product as an argument, and the backward error of what they return.

Right-looking, by block columns: factorize a panel in FP64, then subtract a product from all that lies behind it. These
updates are all but O(n^2 block) of the arithmetic, and the caller's `multiply` computes every one of them:
``cholesky(a, multiply=partial(scheme_one, slices=9))`` is a factorization on the INT8 unit. All else is torch
operations on the device of A.

Source of the algorithms: Golub and Van Loan, Matrix Computations, 4th edition, sections 3.4 and 4.2.

Dimension letters: N order of A, M rows and K inner dimension of a product, B columns of a panel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from numba import get_num_threads, njit, prange, types
from numba.extending import intrinsic

from kinji.gemm.operands import Matrix, as_kind_of

Multiply: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

BLOCK = 128


@overload
def cholesky(a_NN: np.ndarray, *, multiply: Multiply = ..., block: int = ...) -> np.ndarray: ...
@overload
def cholesky(a_NN: torch.Tensor, *, multiply: Multiply = ..., block: int = ...) -> torch.Tensor: ...
def cholesky(a_NN: Matrix, *, multiply: Multiply = torch.matmul, block: int = BLOCK) -> Matrix:
    """Return the lower triangular L with A = L L^T.

    Parameters
    ----------
    a_NN
        A symmetric positive definite FP64 array or tensor. Only its lower triangle is read.
    multiply
        Returns the product (M x N) of two FP64 tensors (M x K, K x N), K at most `block`. It computes all updates:
        those of the block columns of the lower triangle, down from their diagonal block.
    block
        Columns of a panel.

    Returns
    -------
    np.ndarray or torch.Tensor
        L, of the kind of A, on its device.

    Raises
    ------
    TypeError, ValueError
        If A is not a square FP64 matrix, holds an infinity or a NaN, or `block` is less than 1.
    numpy.linalg.LinAlgError
        If a leading minor is not positive: A is not positive definite, or too ill-conditioned for `multiply`.
    """
    l_NN = _square_copy(a_NN, block).tril_()
    _refuse_non_finite(l_NN)
    for start in range(0, len(l_NN), block):
        stop = start + block
        _factorize_cholesky_panel(l_NN[start:, start:stop], start)
        for left in range(stop, len(l_NN), block):
            rows_MB, columns_BB = l_NN[left:, start:stop], l_NN[left : left + block, start:stop]
            l_NN[left:, left : left + block] -= multiply(rows_MB, columns_BB.T)
    return as_kind_of(a_NN, l_NN)


def _factorize_cholesky_panel(panel_MB: torch.Tensor, start: int) -> None:
    B = panel_MB.shape[1]
    diagonal_BB, info = torch.linalg.cholesky_ex(panel_MB[:B])
    panel_MB[:B] = diagonal_BB
    panel_MB[B:] = torch.linalg.solve_triangular(diagonal_BB.T, panel_MB[B:], upper=True, left=False)
    if int(info) or not _is_finite(panel_MB):
        raise np.linalg.LinAlgError(
            f"leading minor of order {start + (int(info) or B)}: not positive. Either A is not positive definite, or "
            "`multiply` is too inaccurate for its condition: pass a more accurate product, or add to A's diagonal."
        )


@overload
def lu(
    a_NN: np.ndarray, *, multiply: Multiply = ..., block: int = ...
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
@overload
def lu(
    a_NN: torch.Tensor, *, multiply: Multiply = ..., block: int = ...
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...
def lu(a_NN: Matrix, *, multiply: Multiply = torch.matmul, block: int = BLOCK) -> tuple[Matrix, Matrix, Matrix]:
    """Return (p, L, U) with A[p] = L U, by partial pivoting: L unit lower triangular with |L| <= 1, U upper triangular.

    Parameters
    ----------
    a_NN
        An FP64 array or tensor.
    multiply
        Returns the product (M x N) of two FP64 tensors (M x K, K x N), K at most `block`. It computes all updates, one
        for each panel but the last.
    block
        Columns of a panel.

    Returns
    -------
    tuple of np.ndarray or torch.Tensor
        The rows of A in the order of the pivots (N, int64), L and U, of the kind of A, on its device.

    Raises
    ------
    TypeError, ValueError
        If A is not a square FP64 matrix, holds an infinity or a NaN, or `block` is less than 1.
    numpy.linalg.LinAlgError
        If a column holds no pivot: A is singular.
    """
    lu_NN = _square_copy(a_NN, block)
    _refuse_non_finite(lu_NN)
    order_N = torch.arange(len(lu_NN), device=lu_NN.device)
    for start in range(0, len(lu_NN), block):
        stop = start + block
        pivoted_M = _factorize_lu_panel(lu_NN[start:], start, stop)
        order_N[start:] = order_N[start:][pivoted_M]
        if stop < len(lu_NN):
            lu_NN[stop:, stop:] -= multiply(lu_NN[stop:, start:stop], lu_NN[start:stop, stop:])
    l_NN = lu_NN.tril(-1).fill_diagonal_(1)
    return as_kind_of(a_NN, order_N), as_kind_of(a_NN, l_NN), as_kind_of(a_NN, lu_NN.triu_())


def _factorize_lu_panel(rows_MN: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Pivot all rows, factorize columns start:stop, solve for U to their right; return the order of the rows."""
    panel_MB, pivots, info = torch.linalg.lu_factor_ex(rows_MN[:, start:stop])
    B = panel_MB.shape[1]
    order_M = _order_of_rows(pivots, len(rows_MN)).to(rows_MN.device)
    rows_MN[:] = rows_MN[order_M]
    rows_MN[:, start:stop] = panel_MB
    right_BN = rows_MN[:B, stop:]
    right_BN[:] = torch.linalg.solve_triangular(panel_MB[:B], right_BN, upper=False, unitriangular=True)
    if int(info) or not _is_finite(rows_MN[:, start:]):
        raise np.linalg.LinAlgError(
            f"column {start + max(int(info) - 1, 0)}: no finite pivot other than zero. Either A is singular, or its "
            "entries or `multiply` overflowed: check the rank of A, or scale it down by a power of two."
        )
    return order_M


def _order_of_rows(pivots_B: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the order after row i was swapped with row pivots[i] - 1, for each i in turn."""
    order = list(range(rows))
    for i, pivot in enumerate(pivots_B.tolist()):
        order[i], order[pivot - 1] = order[pivot - 1], order[i]
    return torch.tensor(order)


def backward_error(a_MN: Matrix, left_MK: Matrix, right_KN: Matrix) -> float:
    """Return ||A - left right||_F / ||A||_F, the product as if computed in twice FP64 precision.

    Each entry is a sum of products split without error into heads and tails, compensated: Dot2 of Ogita, Rump and
    Oishi, SIAM J. Sci. Comput. 26(6), 2005, section 5. Its error is at most about u |A - left right| + (K + 1)^2 u^2
    (|A| + |left| |right|) with u = 2^-53: 1e-26 (|A| + |left| |right|) for K = 1000. Runs on the CPU, on numba's
    threads, which change no bit.

    Raises
    ------
    ValueError
        If the shapes do not conform, A is zero or empty, or an operand holds an infinity or a NaN.
    """
    a, left, right = (_as_array(x) for x in (a_MN, left_MK, right_KN))
    if left.shape[1:] != right.shape[:1] or a.shape != left.shape[:1] + right.shape[1:]:
        raise ValueError(f"A is {a.shape}, the factors are {left.shape} and {right.shape}: they do not conform.")
    if not all(np.isfinite(x).all() for x in (a, left, right)):
        raise ValueError("A or a factor holds an infinity or a NaN: a factorization that broke down has no error.")
    if not a.any():
        raise ValueError(f"A of shape {a.shape} is zero: an error relative to it is not defined.")
    g, e, f = (int(np.frexp(np.abs(x).max(initial=0))[1]) for x in (a, left, right))
    scale = max(g, e + f)  # powers of two that keep all products from overflow, and underflow harmless
    a, left, right = np.ldexp(a, -scale), np.ldexp(left, -e), np.ldexp(right, e - scale)
    residual = _residual(a, left, right, get_num_threads())
    return float(np.sqrt(np.square(residual).sum() / np.square(a).sum()))


def _as_array(x: Matrix) -> np.ndarray:
    return np.asarray(x.numpy(force=True) if isinstance(x, torch.Tensor) else x, dtype=np.float64, order="C")


def _emit_fma(_typing: Any, _x: Any, _y: Any, _z: Any) -> Any:
    signature = types.float64(types.float64, types.float64, types.float64)
    return signature, lambda _target, builder, _signature, operands: builder.fma(*operands)


_fused_multiply_add: Any = intrinsic(_emit_fma)  # x y + z, rounded once


@njit(parallel=True, cache=True)
def _residual(a_MN: np.ndarray, left_MK: np.ndarray, right_KN: np.ndarray, threads: int) -> np.ndarray:
    M, N = a_MN.shape
    residual_MN = np.empty((M, N))
    for thread in prange(threads):
        for i in range(thread, M, threads):  # in turn: the rows of a triangle grow
            head_N, tail_N = a_MN[i].copy(), np.zeros(N)
            for k in np.flatnonzero(left_MK[i]):
                _subtract(head_N, tail_N, left_MK[i, k], right_KN[k])
            residual_MN[i] = head_N + tail_N
    return residual_MN


@njit
def _subtract(head_N: np.ndarray, tail_N: np.ndarray, x: float, y_N: np.ndarray) -> None:
    for j in range(y_N.size):
        product = x * y_N[j]
        product_tail = _fused_multiply_add(x, y_N[j], -product)
        difference = head_N[j] - product
        virtual = difference - head_N[j]
        tail_N[j] += ((head_N[j] - (difference - virtual)) - (product + virtual)) - product_tail
        head_N[j] = difference


def _square_copy(a_NN: Matrix, block: int) -> torch.Tensor:
    if not isinstance(a_NN, (np.ndarray, torch.Tensor)):
        raise TypeError(f"A is a {type(a_NN).__name__}: pass a NumPy array or a torch tensor.")
    if a_NN.dtype not in (np.dtype(np.float64), torch.float64):
        raise TypeError(f"A is {a_NN.dtype}: convert it to float64 first.")
    if a_NN.ndim != 2 or a_NN.shape[0] != a_NN.shape[1]:
        raise ValueError(f"A has shape {tuple(a_NN.shape)}: pass a square matrix.")
    if block < 1:
        raise ValueError(f"block is {block}: take at least one column, and about {BLOCK} for speed.")
    if isinstance(a_NN, np.ndarray):
        return torch.from_numpy(np.array(a_NN, order="C"))
    return a_NN.detach().clone(memory_format=torch.contiguous_format)


def _refuse_non_finite(a_NN: torch.Tensor) -> None:
    bad = torch.isfinite(a_NN).logical_not().nonzero()
    if len(bad):
        raise ValueError(f"A holds an infinity or a NaN at {tuple(bad[0].tolist())}: mask or mend it first.")


def _is_finite(x: torch.Tensor) -> bool:
    return bool(torch.isfinite(x).all())
