"""Dense operations on tiles, counted, with matrices as rows: OpenBLAS (NumPy's and SciPy's) on the CPU, torch on a GPU.

torch's MKL runs at 55 % of OpenBLAS's rate on AMD's processors.

Dimension letters: M points of a tile, P and Q rows, R rank.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from scipy.linalg import lapack
from torch import Tensor

from kinji.hmatrix.lapack import cholesky as cholesky_in_place
from kinji.hmatrix.lapack import gemm, solve_triangular

LEAST_SINE = 1e-3
"""Cholesky LQ loses orthogonality like eps / sine^2, where a row leans this much on those before it."""
TRIANGLE = 32
"""Largest triangle that is inverted, for as many rows: OpenBLAS solves with one at 16 % of its rate of products."""


@dataclass
class FlopCount:
    """Floating-point operations by the textbook counts (Golub and Van Loan, 4th ed., secs. 3.2, 4.2, 5.2 and 8.6)."""

    total: float = 0.0

    def product(self, *sizes: int) -> None:
        """Count ``(m, k) @ (k, n)``, given m, n and k in any order."""
        self.total += 2.0 * math.prod(sizes)

    def cholesky(self, n: int) -> None:
        """Count a Cholesky factorization."""
        self.total += n**3 / 3.0

    def triangular_solve(self, n: int, sides: int) -> None:
        """Count a triangular solve."""
        self.total += float(n) * n * sides

    def qr(self, m: int, n: int) -> None:
        """Count a thin QR factorization with explicit Q."""
        self.total += 4.0 * m * n * n - 4.0 * n**3 / 3.0

    def svd(self, n: int) -> None:
        """Count an SVD of a square matrix with both sets of vectors."""
        self.total += 21.0 * n**3


def multiply(a: Tensor, b: Tensor, flops: FlopCount) -> Tensor:
    """Return ``a @ b`` of two matrices."""
    flops.product(*a.shape, b.shape[1])
    return a @ b if a.is_cuda else torch.from_numpy(a.numpy() @ b.numpy())


def multiply_blocks(
    blocks: Tensor,
    first: NDArray[np.int64],
    sizes: NDArray[np.int64],
    columns: Tensor,
    flops: FlopCount,
    *,
    transpose: bool = False,
) -> Tensor:
    """Return ``D @ columns`` or ``D.T @ columns`` of a block diagonal ``D``.

    Parameters
    ----------
    blocks : Tensor
        Vector in which block k stands row by row from place ``first[k]`` on.
    first, sizes : ndarray
        Places, shape ``(K,)``, and rows and columns of the blocks, shape ``(K, 2)``.
    columns : Tensor
        Matrix with as many rows as D, or its transpose, has columns; row-major.
    flops : FlopCount
        Gets the operations.
    transpose : bool
        Which of the two.
    """
    height = int(sizes[:, 1 if transpose else 0].sum())
    flops.total += 2.0 * float((sizes[:, 0] * sizes[:, 1]).sum()) * columns.shape[1]
    if columns.is_cuda:
        parts = columns.split(sizes[:, 0 if transpose else 1].tolist())
        each = (blocks[at : at + m * n].view(m, n) for at, (m, n) in zip(first, sizes, strict=True))
        return torch.cat([(b.mT if transpose else b) @ part for b, part in zip(each, parts, strict=True)])
    out = columns.new_empty(height, columns.shape[1])
    _multiply_blocks(blocks.numpy(), first, sizes, columns.numpy(), transpose, out.numpy())
    return out


@njit(cache=True)
def _multiply_blocks(
    blocks: np.ndarray, first: np.ndarray, sizes: np.ndarray, columns: np.ndarray, transpose: bool, out: np.ndarray
) -> None:
    start = end = 0
    for k in range(len(first)):
        m, n = sizes[k]
        block = blocks[first[k] : first[k] + m * n].reshape((m, n))
        taken, given = (m, n) if transpose else (n, m)
        gemm(transpose, False, 1.0, block, columns[start : start + taken], 0.0, out[end : end + given])
        start, end = start + taken, end + given


def gram(rows: Tensor, flops: FlopCount) -> Tensor:
    """Return ``rows @ rows.T``, of which half is computed."""
    flops.total += float(len(rows)) ** 2 * rows.shape[1]
    return rows @ rows.mT if rows.is_cuda else torch.from_numpy(rows.numpy() @ rows.numpy().T)


def cholesky(a: Tensor, flops: FlopCount) -> tuple[Tensor, int]:
    """Factorize ``(M, M)``, of which the lower triangle is read and may be overwritten.

    Returns
    -------
    tuple of Tensor and int
        Lower triangle, and the first pivot, from 1, that is not positive; 0 if none.
    """
    flops.cholesky(len(a))
    if a.is_cuda:
        factor, info = torch.linalg.cholesky_ex(a)
        return factor, int(info)
    a = a.contiguous()
    failed = _cholesky(a.numpy())
    return a.tril_(), failed


@njit(cache=True)
def _cholesky(a: np.ndarray) -> int:
    return cholesky_in_place(a)


def solve_lower(factor: Tensor, rows: Tensor, flops: FlopCount) -> Tensor:
    """Return ``rows @ factor^-T`` of ``(P, M)`` rows and an ``(M, M)`` lower triangle."""
    return _solve(factor, rows, flops, transpose=True)


def solve_upper(factor: Tensor, rows: Tensor, flops: FlopCount) -> Tensor:
    """Return ``rows @ factor^-1`` of ``(P, M)`` rows and an ``(M, M)`` lower triangle."""
    return _solve(factor, rows, flops, transpose=False)


def _solve(factor: Tensor, rows: Tensor, flops: FlopCount, *, transpose: bool) -> Tensor:
    flops.triangular_solve(len(factor), len(rows))
    if rows.is_cuda:
        triangle = factor.mT if transpose else factor
        return torch.linalg.solve_triangular(triangle, rows, upper=transpose, left=False)
    solved = rows.clone(memory_format=torch.contiguous_format)
    _solve_in_place(factor.contiguous().numpy(), solved.numpy(), transpose)
    return solved


@njit(cache=True)
def _solve_in_place(factor: np.ndarray, rows: np.ndarray, transpose: bool) -> None:
    if len(rows) < TRIANGLE:
        solve_triangular(False, True, transpose, False, factor, rows)
    elif transpose:
        _solve_from_left(factor, rows)
    else:
        _solve_from_right(factor, rows)


@njit(cache=True)
def _solve_from_left(factor: np.ndarray, rows: np.ndarray) -> None:
    """Solve triangle by triangle; the last 1, 2, 4, ... that are done are taken off as many to come, in one product."""
    n = len(factor)
    for k in range(1, -(-n // TRIANGLE) + 1):
        stop, some = min(k * TRIANGLE, n), (k & -k) * TRIANGLE
        _times_inverse(factor, rows, k * TRIANGLE - TRIANGLE, stop, True)
        done, coming = slice(k * TRIANGLE - some, stop), slice(stop, min(stop + some, n))
        gemm(False, True, -1.0, rows[:, done], factor[coming, done], 1.0, rows[:, coming])


@njit(cache=True)
def _solve_from_right(factor: np.ndarray, rows: np.ndarray) -> None:
    n = len(factor)
    for k in range(1, -(-n // TRIANGLE) + 1):
        start, some = max(n - k * TRIANGLE, 0), (k & -k) * TRIANGLE
        _times_inverse(factor, rows, start, n - k * TRIANGLE + TRIANGLE, False)
        done, coming = slice(start, n - k * TRIANGLE + some), slice(max(start - some, 0), start)
        gemm(False, False, -1.0, rows[:, done], factor[done, coming], 1.0, rows[:, coming])


@njit(cache=True)
def _times_inverse(factor: np.ndarray, rows: np.ndarray, start: int, stop: int, transpose: bool) -> None:
    here, inverse = rows[:, start:stop], np.eye(stop - start, dtype=factor.dtype)
    solve_triangular(True, True, False, False, factor[start:stop, start:stop], inverse)
    gemm(False, transpose, 1.0, here.copy(), inverse, 0.0, here)


def orthonormal_rows(sample: Tensor, smallest: float, flops: FlopCount) -> Tensor | None:
    """Return orthonormal rows that span those of ``sample``, shape ``(P, M)``, P <= M.

    Cholesky LQ after LU with partial pivoting, whose lower factor is well conditioned even where the sample is
    dependent: Terao, Ozaki and Ogita, "LU-Cholesky QR algorithms for thin QR decomposition", Parallel Computing 92
    (2020).

    Returns
    -------
    Tensor or None
        None if the last pivot is above ``smallest`` times the largest: the sample misses a part of that size.
    """
    count, columns = sample.shape
    if sample.is_cuda:
        flops.qr(columns, count)
        q, r = torch.linalg.qr(sample.mT)
        return q.mT if _reaches(r.diagonal(), smallest) else None
    flops.total += columns * count**2 - count**3 / 3.0
    factors, exchanges, _ = lapack.dgetrf(sample.numpy().T)
    if not _reaches(torch.from_numpy(factors).diagonal(), smallest):
        return None
    rows = torch.from_numpy(factors.T).triu_(1)
    rows.fill_diagonal_(1.0)
    lapack.dlaswp(rows.numpy().T, exchanges, inc=-1, overwrite_a=1)
    return lower_times_orthonormal(rows, flops)[1]


def _reaches(pivots: Tensor, smallest: float) -> bool:
    return not bool(pivots[-1].abs() > smallest * pivots.abs().max())  # no part is missed where all are zero


def lower_times_orthonormal(rows: Tensor, flops: FlopCount) -> tuple[Tensor, Tensor]:
    """Factorize ``(P, M)`` rows, P <= M, as ``L @ Q`` with lower triangular ``L`` and orthonormal rows in ``Q``.

    Cholesky LQ of the rows scaled to unit length, which graded rows do not harm; Householder's where rows of unit
    length are nearly dependent.
    """
    count, columns = rows.shape
    products = gram(rows, flops)
    length = products.diagonal().sqrt()
    factor, info = torch.linalg.cholesky_ex(products / length[:, None] / length)
    if int(info) or not bool((factor.diagonal() > LEAST_SINE).all()):
        flops.qr(columns, count)
        q, r = torch.linalg.qr(rows.mT)
        return r.mT, q.mT
    flops.cholesky(count)
    identity = torch.eye(count, dtype=rows.dtype, device=rows.device)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    flops.total += count**3 / 3.0
    return length[:, None] * factor, multiply(inverse / length, rows, flops)


def svd(a: Tensor, flops: FlopCount) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``U, s, V^T`` of a square matrix."""
    flops.svd(len(a))
    if a.is_cuda:
        return torch.linalg.svd(a)
    u, s, vt = np.linalg.svd(a.numpy())
    return torch.from_numpy(u), torch.from_numpy(s), torch.from_numpy(vt)
