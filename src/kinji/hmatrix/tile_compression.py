"""Low-rank tiles by the adaptive randomized range finder, from products with the tile alone.

Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53 (2011), algorithms 4.2 and 5.1; of
factorized sums as in Boukaram, Turkiyyah and Keyes, "H2OPUS-TLR", arXiv:2108.11932.

Dimension letters: M points of a tile, R rank, S samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kinji.hmatrix.tile_kernels import FlopCount, lower_times_orthonormal, multiply, orthonormal_rows, svd

OVERSAMPLING = 10
GROWTH = 1.5
STILL_VISIBLE = 6.0
"""While the last pivot of a sample is this many tolerances, projecting on it is not worth while."""

Rows = Callable[[Tensor], Tensor]
"""Product of rows ``(S, M)`` with a fixed matrix ``(M, M)``."""


@dataclass(frozen=True)
class LowRankTile:
    """``left @ right.T`` with orthonormal columns in ``left``; both have shape ``(M, R)``."""

    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class Accuracy:
    """Singular values below ``tolerance`` times the largest of a tile, or beyond ``max_rank``, are dropped."""

    tolerance: float
    max_rank: int


def compress(
    times_transpose: Rows, times: Rows, sketch: Tensor, samples: int, accuracy: Accuracy, flops: FlopCount
) -> LowRankTile:
    """Compress a matrix A that can be multiplied with rows, sampling until it shows more than the wanted rank.

    Parameters
    ----------
    times_transpose, times : callable
        ``rows @ A.T`` and ``rows @ A`` of rows ``(S, M)``.
    sketch : Tensor
        Random rows that are independent of A, at most ``(M, M)``; as many as there are may be taken.
    samples : int
        Rows to start with.
    accuracy : Accuracy
        What to drop.
    flops : FlopCount
        Gets the operations; those of the callables are theirs to count.

    Returns
    -------
    LowRankTile
        With the rank that the singular value decomposition has at this accuracy, or nearly.
    """
    drawn = sketch[:0]
    while True:
        drawn = torch.cat([drawn, times_transpose(sketch[len(drawn) : samples])])
        exhausted = len(drawn) == len(sketch)
        smallest = math.inf if exhausted else STILL_VISIBLE * accuracy.tolerance
        basis = orthonormal_rows(drawn, smallest, flops)
        if basis is not None:
            tile = truncate(basis, times(basis), accuracy, flops)
            rank = tile.left.shape[1]
            if exhausted or rank + OVERSAMPLING <= len(drawn) or rank == accuracy.max_rank:
                return tile
        samples = 1 + int(GROWTH * len(drawn))


def truncate(left_SM: Tensor, right_SM: Tensor, accuracy: Accuracy, flops: FlopCount) -> LowRankTile:
    """Drop the small singular values of ``left_SM.T @ right_SM``, where the rows of the left are orthonormal."""
    lower, basis_SM = lower_times_orthonormal(right_SM, flops)
    outer, singular_values, inner = svd(lower, flops)
    needed = int((singular_values > accuracy.tolerance * singular_values[0]).sum())
    rank = max(1, min(needed, accuracy.max_rank))
    left_RM = multiply(outer[:, :rank].mT, left_SM, flops)
    right_RM = multiply(singular_values[:rank, None] * inner[:rank], basis_SM, flops)
    return LowRankTile(left_RM.mT, right_RM.mT)
