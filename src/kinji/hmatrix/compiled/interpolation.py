"""Row interpolation by QR with row pivoting, a box on each worker.

Dimension letters: as in `executor`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from kinji.hmatrix.compiled.products import dot
from kinji.hmatrix.lapack import one_blas_thread, solve_triangular


@one_blas_thread()
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
        squared[m] = dot(rowsMZ[m], rowsMZ[m])
    for k in range(len(pivotR)):
        at = k + int(squared[k:].argmax())
        _exchange(k, at, rowsMZ, orderM, triangleRM, squared)
        pivotR[k] = math.sqrt(squared[k])
        triangleRM[k, k] = pivotR[k] if pivotR[k] > 0 else 1.0  # nothing is left: this row interpolates no other
        rowsMZ[k] /= triangleRM[k, k]
        for m in range(k + 1, len(rowsMZ)):
            triangleRM[k, m] = dot(rowsMZ[k], rowsMZ[m])
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
