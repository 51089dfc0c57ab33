"""Entries of the kernel, stored or multiplied with at once.

Dimension letters: as in `executor`.
"""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, njit, prange
from torch import Tensor

from kinji.hmatrix.kernels import Kernel
from kinji.hmatrix.lapack import gemm, one_blas_thread
from kinji.hmatrix.profiles import CODES, evaluate, squared_distances

SAMPLES_AT_ONCE = 256


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


@one_blas_thread()
def sketch(kernel: Kernel, points: Tensor, rowsBM: Tensor, columnsBS: Tensor, randomSZ: Tensor) -> Tensor:
    """See `executor.Executor`."""
    (boxes, size), (samples, columns) = rowsBM.shape, randomSZ.shape
    kernel.entries += boxes * size * samples
    sketchBMZ = randomSZ.new_zeros(boxes, size, columns)
    arrays = (points.numpy(), rowsBM.numpy(), columnsBS.numpy(), randomSZ.numpy(), sketchBMZ.numpy())
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
