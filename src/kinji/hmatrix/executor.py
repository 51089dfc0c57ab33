"""Which batched routines run the level-wise algorithms: compiled loops over LAPACK on a CPU, torch on a GPU.

`compiled` and `eager` are two modules with these functions; the mathematics stands once, in terms of them. `eager`
runs on a CPU as well, which is how it is tested; on a GPU it has not yet run.

Dimension letters: B boxes, P pairs, M and Q places, S far samples, Z sketch columns, R rank, C complement, K
right-hand sides.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from kinji.hmatrix.kernels import Kernel

Method = Literal["cholesky", "lu"]


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

    def factorize(self, aBCC: Tensor, method: Method) -> Factors:
        """Factorize symmetric matrices; the input is overwritten."""

    def solve(self, factors: Factors, bBCK: Tensor) -> Tensor:
        """Return the solutions, shape ``(B, C, K)``."""

    def multiply_pairs(self, blocksPMM: Tensor, pairs: Tensor, xBMK: Tensor, own: int, part: Part = "both") -> Tensor:
        """Return ``y_i = sum A_ij x_j`` over the pairs (i, j) from number ``own`` on, ``A_ji = A_ij^T`` included.

        Pairs before the number of boxes are those of a box with itself and count once. ``part`` is "lower" or "upper"
        to take only A_ij or only A_ij^T, i > j.
        """


Part = Literal["both", "lower", "upper"]


def executor(device: torch.device) -> Executor:
    """Return the routines for a device: `compiled` on CPUs, `eager` elsewhere."""
    return cast(Executor, importlib.import_module(f"kinji.hmatrix.{'compiled' if device.type == 'cpu' else 'eager'}"))
