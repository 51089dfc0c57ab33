"""Triangular factors of batches, and solutions with them.

Dimension letters: as in `executor`.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from kinji.hmatrix.compiled.products import add_multiple, dot
from kinji.hmatrix.executor import Factors, Method
from kinji.hmatrix.lapack import cholesky, lu, one_blas_thread, solve_triangular


@one_blas_thread()
def factorize(aBCC: Tensor, method: Method) -> Factors:
    """See `executor.Executor`."""
    pivots = torch.empty(aBCC.shape[:2], dtype=torch.int32)
    info = torch.empty(len(aBCC), dtype=torch.int32)
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


@one_blas_thread()
def solve(factors: Factors, bBCK: Tensor) -> Tensor:
    """See `executor.Executor`."""
    x = bBCK.clone(memory_format=torch.contiguous_format)
    pivots = torch.empty(0, 0, dtype=torch.int32) if factors.pivots is None else factors.pivots
    if factors.pivots is None and x.shape[2] == 1:
        _solve_vectors(factors.triangles.numpy(), x.numpy()[:, :, 0])
    else:
        _solve_loop(factors.triangles.numpy(), pivots.numpy(), x.numpy())
    return x


@njit(parallel=True, cache=True)
def _solve_vectors(trianglesBCC: np.ndarray, xBC: np.ndarray) -> None:
    """Do as `solve_triangular` with one column, for which it would copy the triangle."""
    for b in prange(len(xBC)):
        lower, x = trianglesBCC[b], xBC[b]
        for c in range(len(x)):
            x[c] = (x[c] - dot(lower[c, :c], x[:c])) / lower[c, c]
        for c in range(len(x) - 1, -1, -1):
            x[c] /= lower[c, c]
            add_multiple(-x[c], lower[c, :c], x[:c])


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
