"""Products over pairs of boxes; the order of the sums is that of the pairs, whatever the number of workers.

Dimension letters: as in `executor`.
"""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, njit, prange
from torch import Tensor

from kinji.hmatrix.executor import Numbers
from kinji.hmatrix.lapack import gemm, one_blas_thread

PRODUCT_BYTES = 1 << 21


@one_blas_thread()
def multiply_pairs(
    blocksPMM: Tensor, pairs: Tensor, xBMK: Tensor, yBMK: Tensor, lower: Tensor, upper: Tensor, own: int
) -> None:
    """Read each block once for both of its products with a vector, twice for those with a matrix; see `Executor`."""
    blocks, numbers = blocksPMM[own:].numpy(), pairs[own:].numpy()
    x, y, low, up = (array.numpy() for array in (xBMK, yBMK, lower, upper))
    if x.shape[2] == 1:
        workers = get_num_threads()
        at_once = max(4 * workers, PRODUCT_BYTES // max(1, xBMK[0].nbytes))
        products = np.empty((at_once, 2, x.shape[1]), dtype=x.dtype)
        vectors = x[:, :, 0], y[:, :, 0], low[:, :, 0], up[:, :, 0]
        _multiply_vectors(blocks, numbers, *vectors, products, workers)
    else:
        _multiply_matrices(blocks, numbers, *_pairs_of_boxes(numbers, len(low)), x, y, low, up)


def _pairs_of_boxes(pairs: Numbers, boxes: int) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Return the pairs in the order of their first box and where those of each box start; the same for the second."""
    second = np.where(pairs[:, 0] == pairs[:, 1], boxes, pairs[:, 1])  # once only
    lists = []
    for box in (pairs[:, 0], second):
        order = np.argsort(box, kind="stable")
        lists += [order, np.searchsorted(box[order], np.arange(boxes + 1))]
    return lists[0], lists[1], lists[2], lists[3]


@njit(parallel=True, cache=True)
def _multiply_matrices(
    blocksPMM: np.ndarray,
    pairs: np.ndarray,
    by_first: np.ndarray,
    first_start: np.ndarray,
    by_second: np.ndarray,
    second_start: np.ndarray,
    xBMK: np.ndarray,
    yBMK: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> None:
    for b in prange(len(lower)):
        for p in by_first[first_start[b] : first_start[b + 1]]:
            gemm(False, False, 1.0, blocksPMM[p], xBMK[pairs[p, 1]], 1.0, lower[b])
        for p in by_second[second_start[b] : second_start[b + 1]]:
            gemm(True, False, 1.0, blocksPMM[p], yBMK[pairs[p, 0]], 1.0, upper[b])


@njit(parallel=True, cache=True)
def _multiply_vectors(
    blocksPMM: np.ndarray,
    pairs: np.ndarray,
    xBM: np.ndarray,
    yBM: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    products: np.ndarray,
    workers: int,
) -> None:
    M, at_once = xBM.shape[1], len(products)
    for start in range(0, len(pairs), at_once):
        batch = pairs[start : start + at_once]
        for n in prange(len(batch)):
            _multiply_both(blocksPMM[start + n], xBM[batch[n, 1]], yBM[batch[n, 0]], products[n])
        for worker in prange(workers):
            _add_products(products, batch, worker * M // workers, (worker + 1) * M // workers, lower, upper)


@njit(cache=True)
def _multiply_both(blockMM: np.ndarray, x: np.ndarray, y: np.ndarray, products: np.ndarray) -> None:
    products[1] = 0
    for m in range(len(blockMM)):
        products[0, m] = _row_of_both(blockMM[m], x, y[m], products[1])


@njit(cache=True, fastmath={"reassoc", "contract"})
def _row_of_both(row: np.ndarray, x: np.ndarray, y: float, transposed: np.ndarray) -> float:
    """Return ``row @ x`` and add ``row y`` to `transposed`."""
    total = row.dtype.type(0)
    for n in range(len(row)):
        total += row[n] * x[n]
        transposed[n] += row[n] * y
    return total


@njit(cache=True)
def _add_products(
    products: np.ndarray, pairs: np.ndarray, first: int, end: int, lower: np.ndarray, upper: np.ndarray
) -> None:
    """Add rows `first` to `end` of every product to those of its box."""
    for n in range(len(pairs)):
        i, j = pairs[n]
        if i < len(lower):
            for m in range(first, end):
                lower[i, m] += products[n, 0, m]
        if i != j and j < len(upper):
            for m in range(first, end):
                upper[j, m] += products[n, 1, m]


@one_blas_thread()
def project(blocksPMM: Tensor, pairs: Tensor, basesBMR: Tensor) -> Tensor:
    """See `executor.Executor`."""
    rank, workers = basesBMR.shape[2], get_num_threads()
    out = blocksPMM.new_empty(len(blocksPMM), rank, rank)
    _project_loop(blocksPMM.numpy(), pairs.numpy(), basesBMR.numpy(), out.numpy(), workers)
    return out


@njit(parallel=True, cache=True)
def _project_loop(
    blocksPMM: np.ndarray, pairs: np.ndarray, basesBMR: np.ndarray, out: np.ndarray, workers: int
) -> None:
    for worker in prange(workers):
        mine = slice(worker * len(out) // workers, (worker + 1) * len(out) // workers)
        _project_blocks(blocksPMM[mine], pairs[mine], basesBMR, out[mine])


@njit(cache=True)
def _project_blocks(blocksPMM: np.ndarray, pairs: np.ndarray, basesBMR: np.ndarray, out: np.ndarray) -> None:
    halfMR = np.empty(basesBMR.shape[1:], dtype=out.dtype)
    for p in range(len(out)):
        i, j = pairs[p]
        gemm(False, False, 1.0, blocksPMM[p], basesBMR[j], 0.0, halfMR)
        gemm(True, False, 1.0, basesBMR[i], halfMR, 0.0, out[p])
