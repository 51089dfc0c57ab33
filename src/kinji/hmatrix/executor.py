"""Which batched routines run the level-wise algorithms: compiled loops over LAPACK on a CPU, torch on a GPU.

`compiled` and `eager` are two modules with these functions; the mathematics stands once, in terms of them. `eager`
runs on a CPU as well, which is how it is tested where there is no GPU.

Dimension letters: B boxes, P pairs, M and Q places, S far samples, Z sketch columns, R rank, C complement, K
right-hand sides.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinji.hmatrix.kernels import Kernel
from kinji.hmatrix.lapack import one_blas_thread

Method = Literal["cholesky", "lu"]
Numbers = NDArray[np.int64]


class Factors(NamedTuple):
    """Triangular factors of a batch, as the executor that made them stores them.

    Attributes
    ----------
    triangles : Tensor
        Shape ``(B, C, C)``.
    pivots : Tensor or None
        Row exchanges of an LU factorization, shape ``(B, C)``; None for a Cholesky factorization.
    info : Tensor
        First pivot that failed, from 1, per box; 0 where there is none.
    """

    triangles: Tensor
    pivots: Tensor | None
    info: Tensor

    def log_determinant(self) -> float:
        """Return the logarithm of the product of the determinants' absolute values."""
        diagonal = self.triangles.diagonal(dim1=1, dim2=2).abs().double().log().sum()
        return float(diagonal) * (2.0 if self.pivots is None else 1.0)


class Executor(Protocol):
    """Batched routines. All tensors are on one device; matrices are float32 or float64, indices int64."""

    def kernel_blocks(self, kernel: Kernel, points: Tensor, rowsPM: Tensor, columnsPQ: Tensor, out: Tensor) -> None:
        """Write ``K(x_i, x_j)``, shape ``(P, M, Q)``; a place with itself gets infinity or what the kernel has at 0."""

    def sketch(self, kernel: Kernel, points: Tensor, rowsBM: Tensor, columnsBS: Tensor, randomSZ: Tensor) -> Tensor:
        """Return ``K(x_i, x_s) @ random``, shape ``(B, M, Z)``, without storing the blocks."""

    def interpolate(
        self, sketchBMZ: Tensor, rank: int, tolerance: float, largest: Callable[[int], int] = int
    ) -> tuple[Tensor, Tensor]:
        """Return an order of the rows, ``(B, M)``, and ``T``, ``(B, M - R, R)``.

        In that order the rows from R on are about ``T`` times the first R: QR with row pivoting; R, at most ``rank``,
        leaves no box a pivot above ``tolerance`` times its first. The sketch is overwritten. ``largest`` gives the
        largest R of all ranks from that of this one.
        """

    def multiply(
        self,
        a: Tensor,
        b: Tensor,
        *,
        left: Tensor | None = None,
        right: Tensor | None = None,
        transpose_a: bool = False,
        transpose_b: bool = False,
    ) -> Tensor:
        """Return ``op(a[left[p]]) @ op(b[right[p]])`` for every p; without indices, ``a[p]`` and ``b[p]``."""

    def subtract_product(
        self, c: Tensor, a: Tensor, b: Tensor, *, transpose_a: bool = False, transpose_b: bool = False
    ) -> None:
        """Subtract ``op(a[p]) @ op(b[p])`` from ``c[p]`` for every p."""

    def take(self, blocksBMM: Tensor, rowsBI: Tensor, columnsBJ: Tensor) -> Tensor:
        """Return the rows and columns of every block, shape ``(B, I, J)``."""

    def lifts(self, interpolationBCR: Tensor, liftBCR: Tensor, orderBM: Tensor) -> Tensor:
        """Return ``E - C N`` with ``C = [-T^T; I]``, its rows in the order of the places, shape ``(B, M, R)``.

        T is the interpolation and N the lift; ``E`` and ``C`` have the rows of the skeleton first.
        """

    def project(self, blocksPMM: Tensor, pairs: Tensor, basesBMR: Tensor) -> Tensor:
        """Return ``bases_i^T A_ij bases_j`` for every pair (i, j), shape ``(P, R, R)``."""

    def put_blocks(self, out: Tensor, at: tuple[Numbers, Numbers, Numbers], blocksPRR: Tensor) -> None:
        """Write block p to ``out[n[p], r[p], :, c[p]]``, with n, r and c from ``at``; out is ``(B, 2, R, 2, R)``."""

    def factorize(self, aBCC: Tensor, method: Method) -> Factors:
        """Factorize symmetric matrices; the input is overwritten."""

    def solve(self, factors: Factors, bBCK: Tensor) -> Tensor:
        """Return the solutions, shape ``(B, C, K)``."""

    def multiply_pairs(
        self, blocksPMM: Tensor, pairs: Tensor, xBMK: Tensor, yBMK: Tensor, lower: Tensor, upper: Tensor, own: int
    ) -> None:
        """Add ``A_ij x_j`` to ``lower_i`` and, if i and j differ, ``A_ij^T y_i`` to ``upper_j``.

        Over the pairs (i, j) from number ``own`` on. The sums may be one tensor; boxes beyond their end get none.
        """


def executor(device: torch.device) -> Executor:
    """Return the routines for a device: `compiled` on CPUs, `eager` elsewhere."""
    return cast(Executor, importlib.import_module(f"kinji.hmatrix.{'compiled' if device.type == 'cpu' else 'eager'}"))


@contextmanager
def cores_for_loops() -> Iterator[None]:
    """Leave the cores to numba's threads: torch and BLAS get one, the one that calls them.

    Numba's threads and torch's are of two OpenMP libraries. Those of each spin for some ms after a loop and keep those
    of the other from their cores; what is left to torch here is not worth a second thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with one_blas_thread():
            yield
    finally:
        torch.set_num_threads(threads)
