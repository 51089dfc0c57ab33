"""Products of batches.

Dimension letters: as in `executor`.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from kinji.hmatrix.executor import Numbers
from kinji.hmatrix.lapack import gemm, one_blas_thread


@one_blas_thread()
def multiply(
    a: Tensor,
    b: Tensor,
    *,
    left: Tensor | None = None,
    right: Tensor | None = None,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> Tensor:
    """See `executor.Executor`."""
    count = len(a if left is None else left)
    rows, columns = a.shape[2 if transpose_a else 1], b.shape[1 if transpose_b else 2]
    out = a.new_empty(count, rows, columns)
    i, j = (np.arange(count) if index is None else index.numpy() for index in (left, right))
    if columns == 1 and not transpose_b:
        vectors = np.ascontiguousarray(b.numpy()[:, :, 0])
        _multiply_vectors(a.numpy(), vectors, i, j, transpose_a, out.numpy()[:, :, 0])
    else:
        _multiply_loop(a.numpy(), b.numpy(), i, j, transpose_a, transpose_b, 1.0, 0.0, out.numpy())
    return out


@one_blas_thread()
def subtract_product(c: Tensor, a: Tensor, b: Tensor, *, transpose_a: bool = False, transpose_b: bool = False) -> None:
    """See `executor.Executor`."""
    every = np.arange(len(c))
    _multiply_loop(a.numpy(), b.numpy(), every, every, transpose_a, transpose_b, -1.0, 1.0, c.numpy())


@njit(parallel=True, cache=True)
def _multiply_loop(
    a: np.ndarray,
    b: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    transpose_a: bool,
    transpose_b: bool,
    alpha: float,
    beta: float,
    out: np.ndarray,
) -> None:
    for p in prange(len(out)):
        gemm(transpose_a, transpose_b, alpha, a[left[p]], b[right[p]], beta, out[p])


@njit(parallel=True, cache=True)
def _multiply_vectors(
    a: np.ndarray, x: np.ndarray, left: np.ndarray, right: np.ndarray, transpose: bool, out: np.ndarray
) -> None:
    """Do as `gemm` with one column, for which it would copy the matrix."""
    for p in prange(len(out)):
        _multiply_vector(a[left[p]], x[right[p]], transpose, out[p])


@njit(cache=True)
def _multiply_vector(a: np.ndarray, x: np.ndarray, transpose: bool, out: np.ndarray) -> None:
    if transpose:
        out[:] = 0
    for m in range(len(a)):
        if transpose:
            add_multiple(x[m], a[m], out)
        else:
            out[m] = dot(a[m], x)


@njit(cache=True, fastmath={"reassoc", "contract"})
def dot(x: np.ndarray, y: np.ndarray) -> float:
    """Return the inner product."""
    total = x.dtype.type(0)
    for z in range(len(x)):
        total += x[z] * y[z]
    return total


@njit(cache=True, fastmath={"contract"})
def add_multiple(factor: float, x: np.ndarray, y: np.ndarray) -> None:
    """Add ``factor x`` to y."""
    for z in range(len(x)):
        y[z] += factor * x[z]


def take(blocksBMM: Tensor, rowsBI: Tensor, columnsBJ: Tensor) -> Tensor:
    """See `executor.Executor`."""
    out = blocksBMM.new_empty(len(rowsBI), rowsBI.shape[1], columnsBJ.shape[1])
    _take_loop(blocksBMM.numpy(), rowsBI.numpy(), columnsBJ.numpy(), out.numpy())
    return out


@njit(parallel=True, cache=True)
def _take_loop(blocksBMM: np.ndarray, rowsBI: np.ndarray, columnsBJ: np.ndarray, out: np.ndarray) -> None:
    for b in prange(len(out)):
        for i in range(out.shape[1]):
            row = blocksBMM[b, rowsBI[b, i]]
            for j in range(out.shape[2]):
                out[b, i, j] = row[columnsBJ[b, j]]


def put_blocks(out: Tensor, at: tuple[Numbers, Numbers, Numbers], blocksPRR: Tensor) -> None:
    """See `executor.Executor`."""
    _put_loop(out.numpy(), *at, blocksPRR.numpy())


@njit(parallel=True, cache=True)
def _put_loop(
    out: np.ndarray, numbers: np.ndarray, rows: np.ndarray, columns: np.ndarray, blocksPRR: np.ndarray
) -> None:
    for p in prange(len(blocksPRR)):
        out[numbers[p], rows[p], :, columns[p], :] = blocksPRR[p]


@one_blas_thread()
def lifts(interpolationBCR: Tensor, liftBCR: Tensor, orderBM: Tensor) -> Tensor:
    """See `executor.Executor`."""
    out = liftBCR.new_empty(*orderBM.shape, liftBCR.shape[2])
    _lifts_loop(interpolationBCR.numpy(), liftBCR.numpy(), orderBM.numpy(), out.numpy())
    return out


@njit(parallel=True, cache=True)
def _lifts_loop(interpolationBCR: np.ndarray, liftBCR: np.ndarray, orderBM: np.ndarray, out: np.ndarray) -> None:
    rank = liftBCR.shape[2]
    for b in prange(len(out)):
        skeletonRR = np.eye(rank, dtype=out.dtype)
        gemm(True, False, 1.0, interpolationBCR[b], liftBCR[b], 1.0, skeletonRR)
        for m in range(len(orderBM[b])):
            out[b, orderBM[b, m]] = skeletonRR[m] if m < rank else -liftBCR[b, m - rank]
