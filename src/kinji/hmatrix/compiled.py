"""The batched routines of `executor` on a CPU: loops over boxes compiled by numba, one BLAS thread for each worker.

Dimension letters: as in `executor`; W workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numba import get_num_threads, njit, prange
from torch import Tensor

from kinji.hmatrix.executor import Factors, Method, Part
from kinji.hmatrix.kernels import Kernel
from kinji.hmatrix.lapack import cholesky, gemm, lu, one_blas_thread, solve_triangular
from kinji.hmatrix.profiles import CODES, evaluate, squared_distances

SAMPLES_AT_ONCE = 256
PRODUCT_BYTES = 1 << 21
BOTH, LOWER_ONLY, UPPER_ONLY = range(3)
SIDES = {"both": BOTH, "lower": LOWER_ONLY, "upper": UPPER_ONLY}


def kernel_blocks(kernel: Kernel, points: Tensor, rowsPM: Tensor, columnsPQ: Tensor, out: Tensor) -> None:
    """Evaluate in double precision; see `executor.Executor`."""
    kernel.entries += out.numel()
    arrays = (points.numpy(), rowsPM.numpy(), columnsPQ.numpy(), out.numpy())
    _kernel_blocks_loop(CODES[kernel.name], kernel.length_scale, *arrays)


@njit(parallel=True, cache=True, error_model="numpy")
def _kernel_blocks_loop(
    code: int, scale: float, points: np.ndarray, rowsPM: np.ndarray, columnsPQ: np.ndarray, out: np.ndarray
) -> None:
    for p in prange(len(rowsPM)):
        _evaluate(code, scale, points, rowsPM[p], columnsPQ[p], out[p])


@njit(cache=True)
def _evaluate(
    code: int, scale: float, points: np.ndarray, rowsM: np.ndarray, columnsQ: np.ndarray, outMQ: np.ndarray
) -> None:
    y3Q, valueQ = np.empty((3, len(columnsQ))), np.empty(len(columnsQ))
    for q in range(len(columnsQ)):
        for axis in range(3):
            y3Q[axis, q] = points[columnsQ[q], axis]
    for m in range(len(rowsM)):
        squared_distances(y3Q, points[rowsM[m], 0], points[rowsM[m], 1], points[rowsM[m], 2], valueQ)
        evaluate(code, scale, valueQ)
        for q in range(len(columnsQ)):
            outMQ[m, q] = valueQ[q]


def sketch(kernel: Kernel, points: Tensor, rowsBM: Tensor, columnsBS: Tensor, randomSZ: Tensor) -> Tensor:
    """See `executor.Executor`."""
    (boxes, size), (samples, columns) = rowsBM.shape, randomSZ.shape
    kernel.entries += boxes * size * samples
    sketchBMZ = randomSZ.new_zeros(boxes, size, columns)
    arrays = (points.numpy(), rowsBM.numpy(), columnsBS.numpy(), randomSZ.numpy(), sketchBMZ.numpy())
    with one_blas_thread():
        _sketch_loop(CODES[kernel.name], kernel.length_scale, *arrays, get_num_threads())
    return sketchBMZ


@njit(parallel=True, cache=True)
def _sketch_loop(
    code: int,
    scale: float,
    points: np.ndarray,
    rowsBM: np.ndarray,
    columnsBS: np.ndarray,
    randomSZ: np.ndarray,
    sketchBMZ: np.ndarray,
    workers: int,
) -> None:
    boxes = len(rowsBM)
    for worker in prange(workers):
        mine = slice(worker * boxes // workers, (worker + 1) * boxes // workers)
        _sketch_boxes(code, scale, points, rowsBM[mine], columnsBS[mine], randomSZ, sketchBMZ[mine])


@njit(cache=True)
def _sketch_boxes(
    code: int,
    scale: float,
    points: np.ndarray,
    rowsBM: np.ndarray,
    columnsBS: np.ndarray,
    randomSZ: np.ndarray,
    sketchBMZ: np.ndarray,
) -> None:
    (B, M), S = rowsBM.shape, len(randomSZ)
    blockMS = np.empty((M, SAMPLES_AT_ONCE), dtype=randomSZ.dtype)
    for b in range(B):
        for at in range(0, S, SAMPLES_AT_ONCE):
            end = min(at + SAMPLES_AT_ONCE, S)
            _evaluate(code, scale, points, rowsBM[b], columnsBS[b, at:end], blockMS[:, : end - at])
            gemm(False, False, 1.0, blockMS[:, : end - at], randomSZ[at:end], 1.0, sketchBMZ[b])


def interpolate(
    sketchBMZ: Tensor, rank: int, tolerance: float, largest: Callable[[int], int] = int
) -> tuple[Tensor, Tensor]:
    """See `executor.Executor`."""
    boxes, size, _ = sketchBMZ.shape
    orderBM = torch.arange(size).repeat(boxes, 1)
    triangleBRM = sketchBMZ.new_zeros(boxes, rank, size)
    pivotBR = sketchBMZ.new_zeros(boxes, rank)
    _pivot_loop(sketchBMZ.numpy(), orderBM.numpy(), triangleBRM.numpy(), pivotBR.numpy())
    kept = largest(max(1, int((pivotBR > tolerance * pivotBR[:, :1]).sum(dim=1).max())))
    interpolationBCR = sketchBMZ.new_empty(boxes, size - kept, kept)
    with one_blas_thread():
        _interpolate_loop(triangleBRM.numpy(), interpolationBCR.numpy())
    return orderBM, interpolationBCR


@njit(parallel=True, cache=True)
def _pivot_loop(sketchBMZ: np.ndarray, orderBM: np.ndarray, triangleBRM: np.ndarray, pivotBR: np.ndarray) -> None:
    for b in prange(len(sketchBMZ)):
        _pivot(sketchBMZ[b], orderBM[b], triangleBRM[b], pivotBR[b])


@njit(cache=True)
def _pivot(rowsMZ: np.ndarray, orderM: np.ndarray, triangleRM: np.ndarray, pivotR: np.ndarray) -> None:
    """Modified Gram-Schmidt on the rows, the longest that is left first."""
    squared = np.empty(len(rowsMZ), dtype=rowsMZ.dtype)
    for m in range(len(rowsMZ)):
        squared[m] = _dot(rowsMZ[m], rowsMZ[m])
    for k in range(len(pivotR)):
        at = k + int(squared[k:].argmax())
        _exchange(k, at, rowsMZ, orderM, triangleRM, squared)
        pivotR[k] = math.sqrt(squared[k])
        triangleRM[k, k] = pivotR[k] if pivotR[k] > 0 else 1.0  # nothing is left: this row interpolates no other
        rowsMZ[k] /= triangleRM[k, k]
        for m in range(k + 1, len(rowsMZ)):
            triangleRM[k, m] = _dot(rowsMZ[k], rowsMZ[m])
            squared[m] = _take_off(triangleRM[k, m], rowsMZ[k], rowsMZ[m])


@njit(cache=True)
def _exchange(
    k: int, at: int, rowsMZ: np.ndarray, orderM: np.ndarray, triangleRM: np.ndarray, squared: np.ndarray
) -> None:
    orderM[k], orderM[at] = orderM[at], orderM[k]
    squared[k], squared[at] = squared[at], squared[k]
    for z in range(rowsMZ.shape[1]):
        rowsMZ[k, z], rowsMZ[at, z] = rowsMZ[at, z], rowsMZ[k, z]
    for r in range(k):
        triangleRM[r, k], triangleRM[r, at] = triangleRM[r, at], triangleRM[r, k]


@njit(cache=True, fastmath={"reassoc", "contract"})
def _dot(x: np.ndarray, y: np.ndarray) -> float:
    total = x.dtype.type(0)
    for z in range(len(x)):
        total += x[z] * y[z]
    return total


@njit(cache=True, fastmath={"reassoc", "contract"})
def _take_off(factor: float, x: np.ndarray, y: np.ndarray) -> float:
    """Subtract ``factor x`` from y; return what is left of its squared length."""
    total = x.dtype.type(0)
    for z in range(len(x)):
        y[z] -= factor * x[z]
        total += y[z] * y[z]
    return total


@njit(parallel=True, cache=True)
def _interpolate_loop(triangleBRM: np.ndarray, interpolationBCR: np.ndarray) -> None:
    for b in prange(len(interpolationBCR)):
        _interpolate(triangleBRM[b], interpolationBCR[b])


@njit(cache=True)
def _interpolate(triangleRM: np.ndarray, interpolationCR: np.ndarray) -> None:
    C, R = interpolationCR.shape
    for c in range(C):
        for r in range(R):
            interpolationCR[c, r] = triangleRM[r, R + c]
    # T = (R_1^-1 R_2)^T solves T R_1^T = R_2^T
    solve_triangular(False, False, True, False, triangleRM[:R, :R], interpolationCR)


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
    with one_blas_thread():
        _multiply_loop(a.numpy(), b.numpy(), i, j, transpose_a, transpose_b, out.numpy())
    return out


@njit(parallel=True, cache=True)
def _multiply_loop(
    a: np.ndarray,
    b: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    transpose_a: bool,
    transpose_b: bool,
    out: np.ndarray,
) -> None:
    for p in prange(len(out)):
        gemm(transpose_a, transpose_b, 1.0, a[left[p]], b[right[p]], 0.0, out[p])


def factorize(aBCC: Tensor, method: Method) -> Factors:
    """See `executor.Executor`."""
    pivots = torch.empty(aBCC.shape[:2], dtype=torch.int32)
    info = torch.empty(len(aBCC), dtype=torch.int32)
    with one_blas_thread():
        _factorize_loop(aBCC.numpy(), pivots.numpy(), method == "lu", info.numpy())
    return Factors(aBCC, pivots if method == "lu" else None, info)


@njit(parallel=True, cache=True)
def _factorize_loop(aBCC: np.ndarray, pivotsBC: np.ndarray, with_pivots: bool, info: np.ndarray) -> None:
    for b in prange(len(aBCC)):
        info[b] = _factorize(aBCC[b], pivotsBC[b], with_pivots)


@njit(cache=True)
def _factorize(aCC: np.ndarray, pivotsC: np.ndarray, with_pivots: bool) -> int:
    failed = lu(aCC, pivotsC) if with_pivots else cholesky(aCC)
    for c in range(len(aCC)):
        if failed == 0 and not np.isfinite(aCC[c, c]):  # LAPACK goes on with a NaN
            failed = c + 1
    return failed


def solve(factors: Factors, bBCK: Tensor) -> Tensor:
    """See `executor.Executor`."""
    x = bBCK.clone(memory_format=torch.contiguous_format)
    pivots = torch.empty(0, 0, dtype=torch.int32) if factors.pivots is None else factors.pivots
    with one_blas_thread():
        _solve_loop(factors.triangles.numpy(), pivots.numpy(), x.numpy())
    return x


@njit(parallel=True, cache=True)
def _solve_loop(trianglesBCC: np.ndarray, pivotsBC: np.ndarray, xBCK: np.ndarray) -> None:
    for b in prange(len(xBCK)):
        if len(pivotsBC):  # the factors of the transpose, which is the same matrix
            _exchange_rows(pivotsBC[b], xBCK[b])
            solve_triangular(True, False, True, True, trianglesBCC[b], xBCK[b])
            solve_triangular(True, True, True, False, trianglesBCC[b], xBCK[b])
        else:
            solve_triangular(True, True, False, False, trianglesBCC[b], xBCK[b])
            solve_triangular(True, True, True, False, trianglesBCC[b], xBCK[b])


@njit(cache=True)
def _exchange_rows(pivotsC: np.ndarray, xCK: np.ndarray) -> None:
    for c in range(len(pivotsC)):
        at = pivotsC[c] - 1
        for k in range(xCK.shape[1]):
            xCK[c, k], xCK[at, k] = xCK[at, k], xCK[c, k]


def multiply_pairs(blocksPMM: Tensor, pairs: Tensor, xBMK: Tensor, own: int, part: Part = "both") -> Tensor:
    """See `executor.Executor`; the sums are in the order of the pairs, whatever the number of workers."""
    out, workers = torch.zeros_like(xBMK), get_num_threads()
    at_once = max(4 * workers, PRODUCT_BYTES // max(1, xBMK[0].nbytes))
    products = xBMK.new_empty(at_once, 2, *xBMK.shape[1:])
    blocks, numbers, x, y, sums = (array.numpy() for array in (blocksPMM, pairs, xBMK, products, out))
    with one_blas_thread():
        _multiply_pairs_loop(blocks, numbers, x, y, sums, own, SIDES[part], workers)
    return out


@njit(parallel=True, cache=True)
def _multiply_pairs_loop(
    blocksPMM: np.ndarray,
    pairs: np.ndarray,
    xBMK: np.ndarray,
    products: np.ndarray,
    out: np.ndarray,
    own: int,
    side: int,
    workers: int,
) -> None:
    M, at_once = xBMK.shape[1], len(products)
    for start in range(own, len(pairs), at_once):
        batch = pairs[start : start + at_once]
        for n in prange(len(batch)):
            _multiply_both(blocksPMM[start + n], xBMK[batch[n, 0]], xBMK[batch[n, 1]], side, products[n])
        for worker in prange(workers):
            _add_products(products, batch, side, worker * M // workers, (worker + 1) * M // workers, out)


@njit(cache=True)
def _multiply_both(blockMM: np.ndarray, xi: np.ndarray, xj: np.ndarray, side: int, products: np.ndarray) -> None:
    if xi.shape[1] == 1:
        x, y, straight, transposed = xi.ravel(), xj.ravel(), products[0].ravel(), products[1].ravel()
        transposed[:] = 0
        for m in range(len(blockMM)):
            straight[m] = _row_of_both(blockMM[m], x[m], y, transposed)
        return
    if side != UPPER_ONLY:
        gemm(False, False, 1.0, blockMM, xj, 0.0, products[0])
    if side != LOWER_ONLY:
        gemm(True, False, 1.0, blockMM, xi, 0.0, products[1])


@njit(cache=True, fastmath={"reassoc", "contract"})
def _row_of_both(row: np.ndarray, x: float, y: np.ndarray, transposed: np.ndarray) -> float:
    """Return ``row @ y`` and add ``row x`` to `transposed`: one pass over a matrix for both of its products."""
    total = row.dtype.type(0)
    for n in range(len(row)):
        total += row[n] * y[n]
        transposed[n] += row[n] * x
    return total


@njit(cache=True)
def _add_products(products: np.ndarray, pairs: np.ndarray, side: int, first: int, end: int, out: np.ndarray) -> None:
    """Add rows `first` to `end` of every product to those of its box."""
    for n in range(len(pairs)):
        i, j = pairs[n]
        for m in range(first, end):
            if side != UPPER_ONLY:
                _add_row(products[n, 0, m], out[i, m])
            if side != LOWER_ONLY and i != j:
                _add_row(products[n, 1, m], out[j, m])


@njit(cache=True)
def _add_row(row: np.ndarray, out: np.ndarray) -> None:
    for k in range(len(row)):
        out[k] += row[k]
