"""Substitution with the tile low-rank Cholesky factor of `block_low_rank`: wide products, one pair for each tile row.

Dimension letters: as in `block_low_rank`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kinji.hmatrix.block_low_rank import BlockLowRankMatrix, diagonal_tile, ranks_at
from kinji.hmatrix.tile_kernels import FlopCount, multiply, solve_lower, solve_upper


def solve_tiles(matrix: BlockLowRankMatrix, bNK: Tensor) -> Tensor:
    """Solve with the Cholesky factor.

    Parameters
    ----------
    matrix : BlockLowRankMatrix
        After `factorize_tiles`.
    bNK : Tensor
        Right-hand sides, shape ``(N, K)``, float64.

    Returns
    -------
    Tensor
        Solutions, shape ``(N, K)``.

    Raises
    ------
    ValueError
        If the right-hand side has the wrong shape.
    """
    if bNK.ndim != 2 or len(bNK) != matrix.tree.size:
        raise ValueError(
            f"right-hand side has shape {tuple(bNK.shape)}: expected ({matrix.tree.size}, number of sides)"
        )
    flops, middle = FlopCount(), dict[tuple[int, int], Tensor]()
    xTKM = matrix.tree.scatter(bNK).mT.contiguous()
    for k in range(matrix.width):
        before, below = [(k, j) for j in range(k)], [(i, k) for i in range(k + 1, matrix.width)]
        xTKM[k] -= _passed_on(middle, before, matrix.row_lefts[k], flops)
        xTKM[k] = solve_lower(diagonal_tile(matrix, k), xTKM[k], flops)
        products = multiply(xTKM[k], matrix.column_rights[k].mT, flops)
        middle.update(zip(below, products.split(ranks_at(matrix, below), dim=1), strict=True))
    for k in reversed(range(matrix.width)):
        before, below = [(k, j) for j in range(k)], [(i, k) for i in range(k + 1, matrix.width)]
        xTKM[k] -= _passed_on(middle, below, matrix.column_rights[k], flops)
        xTKM[k] = solve_upper(diagonal_tile(matrix, k), xTKM[k], flops)
        products = multiply(xTKM[k], matrix.row_lefts[k].mT, flops)
        middle.update(zip(before, products.split(ranks_at(matrix, before), dim=1), strict=True))
    return matrix.tree.gather(xTKM.mT)


def _passed_on(
    middle: dict[tuple[int, int], Tensor], places: Sequence[tuple[int, int]], stackedRM: Tensor, flops: FlopCount
) -> Tensor | float:
    """Return the sum over tiles of what came through their other factor, in ``middle``, times ``stackedRM``."""
    return multiply(torch.cat([middle.pop(place) for place in places], dim=1), stackedRM, flops) if places else 0.0
