"""Tile low-rank Cholesky factorization, the algorithm of LORAPO.

Dense tiles near the diagonal and low-rank tiles ``U V^T`` elsewhere, each of a fixed accuracy under a largest rank:
Cao et al., "Extreme-scale task-based Cholesky factorization toward climate and weather prediction applications",
PASC20 (doi:10.1145/3394277.3401846).

LORAPO recompresses a tile after each of its updates. Here the updates of a tile are left as the products they are
until its column is next, applied to random vectors together, and recompressed once, which takes fewer operations,
most of them in matrix products: Boukaram, Turkiyyah and Keyes, "H2OPUS-TLR", arXiv:2108.11932. Tasks
and their order are the same; they run one after the other on BLAS calls of their own.

Dimension letters: N points, T tiles in a row, M points of a tile, R rank, S samples, K right-hand sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.linalg import LinAlgError
from torch import Tensor

from kinji.hmatrix.cluster_tree import ClusterTree, build_tree
from kinji.hmatrix.executor import executor
from kinji.hmatrix.kernels import Kernel
from kinji.hmatrix.tile_compression import OVERSAMPLING, Accuracy, LowRankTile, compress
from kinji.hmatrix.tile_kernels import (
    FlopCount,
    cholesky,
    gram,
    multiply,
    multiply_blocks,
    solve_lower,
)

FIRST_SAMPLES = 32
SPARE_SAMPLES = 6
DIAGONAL_BLOCK = 256

Tile = Tensor | LowRankTile


@dataclass(frozen=True)
class BlockLowRankMatrix:
    """Lower triangle of a symmetric matrix in tiles; after `factorize_tiles`, of its Cholesky factor.

    Attributes
    ----------
    tree : ClusterTree
        Its leaves are the tiles.
    tiles : dict
        ``(i, j)``, i >= j, to a dense tile ``(M, M)`` or a low-rank tile.
    accuracy : Accuracy
        Of each low-rank tile.
    sketch : Tensor
        Random rows of all compressions, ``(S, M)``: they need only be independent of the matrix.
    row_lefts, column_rights : list of Tensor
        Of the factor, and what its low-rank tiles are parts of: per row i, the ``U_ij^T`` of all j < i one below the
        other; per column j, the ``V_ij^T`` of all i > j. A dense tile counts as ``U = L``, ``V = 1``.
    flops : FlopCount
        Work spent on this object so far.
    """

    tree: ClusterTree
    tiles: dict[tuple[int, int], Tile]
    accuracy: Accuracy
    sketch: Tensor
    row_lefts: list[Tensor] = field(default_factory=list)
    column_rights: list[Tensor] = field(default_factory=list)
    flops: FlopCount = field(default_factory=FlopCount)

    @property
    def width(self) -> int:
        """Number of tiles in a row, T."""
        return len(self.tree.members)

    @property
    def ranks(self) -> list[int]:
        """Ranks of the low-rank tiles."""
        return [tile.left.shape[1] for tile in self.tiles.values() if isinstance(tile, LowRankTile)]

    @property
    def nbytes(self) -> int:
        """Bytes of all tiles."""
        return sum(
            tile.left.nbytes + tile.right.nbytes if isinstance(tile, LowRankTile) else tile.nbytes
            for tile in self.tiles.values()
        )


def compress_tiles(
    kernel: Kernel,
    points: Tensor,
    *,
    tile_size: int,
    tolerance: float,
    max_rank: int,
    band: int = 1,
    seed: int = 0,
) -> BlockLowRankMatrix:
    """Evaluate the kernel tile by tile and compress all tiles outside a band of ``band`` tiles.

    Parameters
    ----------
    kernel : Kernel
        Entry evaluator.
    points : Tensor
        Distinct finite points, shape ``(N, 3)``, float64.
    tile_size : int
        Tiles have this to nearly twice this many points, in the order of a `ClusterTree`.
    tolerance : float
        Relative accuracy of a tile, in the 2-norm; not negative.
    max_rank : int
        Cap of all ranks, at least 1; what exceeds it is lost.
    band : int
        Tiles with ``|i - j| < band`` stay dense; at least 1.
    seed : int
        Seed of the random vectors that tiles are compressed by.

    Returns
    -------
    BlockLowRankMatrix
        No more than one dense tile outside the band exists at any time.

    Raises
    ------
    TypeError, ValueError
        If the points or a parameter are unusable.
    """
    if tolerance < 0.0 or max_rank < 1 or band < 1:
        raise ValueError(
            f"tolerance = {tolerance}, max_rank = {max_rank}, band = {band}: at least 0, 1 and 1 are needed"
        )
    tree = build_tree(points, leaf_size=tile_size)
    size = tree.members.shape[1]
    rows = min(size, max_rank + 2 * OVERSAMPLING)
    sketch = torch.randn(rows, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    matrix = BlockLowRankMatrix(tree, {}, Accuracy(tolerance, max_rank), sketch.to(points.device))
    for j in range(matrix.width):
        matrix.tiles[j, j] = _evaluate(kernel, tree, j, j)
        for i in range(j + 1, matrix.width):
            dense = _evaluate(kernel, tree, i, j)
            matrix.tiles[i, j] = dense if i - j < band else _compress_dense(matrix, dense)
    return matrix


def _evaluate(kernel: Kernel, tree: ClusterTree, i: int, j: int) -> Tensor:
    """Evaluate a tile whole, as LORAPO does: what random vectors make of it misses nothing, however local."""
    rows, columns = tree.members[i, None], tree.members[j, None]
    tile = tree.points.new_empty(1, rows.shape[1], columns.shape[1])
    executor(tree.points.device).kernel_blocks(kernel, tree.points, rows, columns, tile)
    if i == j:
        tile[0].fill_diagonal_(kernel.diagonal)
    return tile[0]


def _compress_dense(matrix: BlockLowRankMatrix, dense: Tensor) -> LowRankTile:
    def times(rowsSM: Tensor) -> Tensor:
        return multiply(rowsSM, dense, matrix.flops)

    def times_transpose(rowsSM: Tensor) -> Tensor:
        return multiply(rowsSM, dense.mT, matrix.flops)

    return compress(times_transpose, times, matrix.sketch, FIRST_SAMPLES, matrix.accuracy, matrix.flops)


def factorize_tiles(matrix: BlockLowRankMatrix) -> None:
    """Replace the tiles by those of the Cholesky factor, in place.

    Parameters
    ----------
    matrix : BlockLowRankMatrix
        The compressed matrix.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a diagonal tile is not positive definite when its turn comes.
    """
    updates = PendingUpdates(matrix)
    for j in range(matrix.width):
        for i in range(j, matrix.width):
            _subtract_updates(matrix, updates, i, j)
        _factorize_diagonal(matrix, j)
        _solve_panel(matrix, j)
        updates.append(j)


class PendingUpdates:
    """Updates ``sum_k L_ik L_jk^T = sum_k U_ik (V_ik^T V_jk) U_jk^T`` of tiles whose turn has not come.

    Kept are, per tile row i, the ``U_ik^T`` of all columns k so far, one below the other; per column k, the cores
    ``V_ik^T V_jk`` of all i, j > k; and of these, once more, those of the column whose turn it is.
    """

    def __init__(self, matrix: BlockLowRankMatrix) -> None:
        self._matrix = matrix
        self._lefts = [matrix.sketch[:0]] * matrix.width
        self._cores: list[Tensor] = []
        self._ranks = np.zeros((matrix.width, matrix.width), dtype=np.int64)
        self._starts = np.zeros_like(self._ranks)  # of tile (i, k) in the core of k

    def append(self, k: int) -> None:
        """Take up the tiles of column k of the factor, and turn to the next one."""
        matrix, below = self._matrix, range(k + 1, self._matrix.width)
        rights = [matrix.sketch[:0]]
        for i in below:
            leftRM, rightRM = _factors(matrix.tiles[i, k])
            self._lefts[i] = torch.cat([self._lefts[i], leftRM])
            rights.append(rightRM)
        self._ranks[k + 1 :, k] = [len(rightRM) for rightRM in rights[1:]]
        self._starts[k + 1 :, k] = self._ranks[k + 1 :, k].cumsum() - self._ranks[k + 1 :, k]
        matrix.row_lefts.append(_hold(matrix, [(k, j) for j in range(k)], left=self._lefts[k]))
        matrix.column_rights.append(_hold(matrix, [(i, k) for i in below], right=torch.cat(rights)))
        self._lefts[k] = self._lefts[k][:0]
        self._cores.append(gram(matrix.column_rights[k], matrix.flops))
        self._turn_to(k + 1)

    def _turn_to(self, j: int) -> None:
        if j == self._matrix.width:
            return
        ranks, starts = self._ranks[j, :j], self._starts[j, :j]
        parts = [
            core[start:, start : start + rank].flatten()
            for core, start, rank in zip(self._cores, starts, ranks, strict=True)
        ]
        self._column = torch.cat(parts)
        self._column_starts = np.cumsum([0, *(len(part) for part in parts[:-1])])

    def times(self, rowsSM: Tensor, i: int, j: int, *, transpose: bool = False) -> Tensor:
        """Return ``rows @ sum_k L_ik L_jk^T``, or those of the transpose, for the column j whose turn it is."""
        flops, (before, after) = self._matrix.flops, (j, i) if transpose else (i, j)
        middle = multiply(self._lefts[before], rowsSM.mT, flops)
        middle = self._through_cores(middle, i, j, transpose=not transpose)
        return multiply(middle.mT, self._lefts[after], flops)

    def subtract_from(self, dense: Tensor, i: int, j: int) -> None:
        """Subtract ``sum_k L_ik L_jk^T`` from a tile, from its lower triangle if i = j."""
        middle = self._through_cores(self._lefts[i], i, j, transpose=True)
        for start in range(0, len(dense), DIAGONAL_BLOCK):
            rows = slice(start, start + DIAGONAL_BLOCK)
            columns = slice(0, start + DIAGONAL_BLOCK if i == j else None)
            dense[rows, columns] -= multiply(middle[:, rows].mT, self._lefts[j][:, columns], self._matrix.flops)

    def _through_cores(self, columns: Tensor, i: int, j: int, *, transpose: bool) -> Tensor:
        """Multiply with the block diagonal of ``V_ik^T V_jk``, k < j, or its transpose."""
        sizes = self._ranks[[i, j], :j].T
        first = self._column_starts + (self._starts[i, :j] - self._starts[j, :j]) * sizes[:, 1]
        return multiply_blocks(self._column, first, sizes, columns, self._matrix.flops, transpose=transpose)


def _factors(tile: Tile) -> tuple[Tensor, Tensor]:
    """Return the rows ``U^T, V^T`` of a tile ``U V^T``."""
    if isinstance(tile, LowRankTile):
        return tile.left.mT, tile.right.mT
    return tile.mT, torch.eye(len(tile), dtype=tile.dtype, device=tile.device)


def ranks_at(matrix: BlockLowRankMatrix, places: Sequence[tuple[int, int]]) -> list[int]:
    """Return the ranks of tiles; of a dense one, its size."""
    tiles = [matrix.tiles[place] for place in places]
    return [tile.left.shape[1] if isinstance(tile, LowRankTile) else len(tile) for tile in tiles]


def _hold(matrix: BlockLowRankMatrix, places: Sequence[tuple[int, int]], **stacked: Tensor) -> Tensor:
    """Make the left or right factors of low-rank tiles parts of one array, which has them already."""
    ((side, rows),) = stacked.items()
    for place, part in zip(places, rows.split(ranks_at(matrix, places)), strict=True):
        tile = matrix.tiles[place]
        if isinstance(tile, LowRankTile):
            matrix.tiles[place] = replace(tile, **{side: part.mT})
    return rows


def _subtract_updates(matrix: BlockLowRankMatrix, updates: PendingUpdates, i: int, j: int) -> None:
    tile = matrix.tiles[i, j]
    if j == 0:
        return
    if not isinstance(tile, LowRankTile):
        updates.subtract_from(tile, i, j)
        return
    left, right = tile.left, tile.right

    def times(rowsSM: Tensor) -> Tensor:
        own = multiply(multiply(rowsSM, left, matrix.flops), right.mT, matrix.flops)
        return own - updates.times(rowsSM, i, j)

    def times_transpose(rowsSM: Tensor) -> Tensor:
        own = multiply(multiply(rowsSM, right, matrix.flops), left.mT, matrix.flops)
        return own - updates.times(rowsSM, i, j, transpose=True)

    samples = left.shape[1] + OVERSAMPLING + SPARE_SAMPLES
    matrix.tiles[i, j] = compress(times_transpose, times, matrix.sketch, samples, matrix.accuracy, matrix.flops)


def _factorize_diagonal(matrix: BlockLowRankMatrix, k: int) -> None:
    factor, failed = cholesky(diagonal_tile(matrix, k), matrix.flops)
    if failed:
        raise LinAlgError(
            f"tile ({k}, {k}) is not positive definite (pivot {failed}): "
            "lower the tolerance, raise the maximum rank or the diagonal of the kernel"
        )
    matrix.tiles[k, k] = factor


def diagonal_tile(matrix: BlockLowRankMatrix, k: int) -> Tensor:
    """Return tile ``(k, k)``, which is dense."""
    tile = matrix.tiles[k, k]
    assert isinstance(tile, Tensor)
    return tile


def _solve_panel(matrix: BlockLowRankMatrix, k: int) -> None:
    """Multiply the tiles below the diagonal by ``L_kk^-T``, all at a time."""
    below = [matrix.tiles[i, k] for i in range(k + 1, matrix.width)]
    rows = [tile.right.mT if isinstance(tile, LowRankTile) else tile for tile in below]
    stacked = torch.cat([matrix.sketch[:0], *rows])
    solved = solve_lower(diagonal_tile(matrix, k), stacked, matrix.flops).split([len(part) for part in rows])
    for i, (tile, part) in enumerate(zip(below, solved, strict=True), start=k + 1):
        matrix.tiles[i, k] = LowRankTile(tile.left, part.mT) if isinstance(tile, LowRankTile) else part
