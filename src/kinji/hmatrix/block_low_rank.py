"""Tile low-rank Cholesky factorization, the algorithm of LORAPO.

Right-looking tile Cholesky on dense tiles near the diagonal and low-rank tiles ``U V^T`` elsewhere, each
compressed to a fixed accuracy under a largest rank, and recompressed by QR and SVD after each update: Cao et
al., "Extreme-scale task-based Cholesky factorization toward climate and weather prediction applications",
PASC20 (doi:10.1145/3394277.3401846).

Ranks differ from tile to tile, so a tile is a task, as there; tasks run one after the other on BLAS calls of
their own.

Dimension letters: N points, T tiles in a row, M points of a tile, R rank, S sketch columns, K right-hand
sides.
"""

import math
from dataclasses import dataclass, field

import torch
from numpy.linalg import LinAlgError
from torch import Tensor

from kinji.hmatrix.cluster_tree import ClusterTree, build_tree
from kinji.hmatrix.kernels import Kernel

FIRST_SKETCH = 64
OVERSAMPLING = 10


@dataclass
class FlopCount:
    """Floating-point operations by the textbook counts (Golub and Van Loan, 4th ed., secs. 4.2, 5.2 and 8.6)."""

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


@dataclass(frozen=True)
class LowRankTile:
    """``left @ right.T`` with orthonormal columns in ``left``; both have shape ``(M, R)``."""

    left: Tensor
    right: Tensor


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
    tolerance : float
        Singular values below ``tolerance`` times the largest of the tile are dropped.
    max_rank : int
        Cap of all ranks.
    flops : FlopCount
        Work spent on this object so far.
    """

    tree: ClusterTree
    tiles: dict[tuple[int, int], Tile]
    tolerance: float
    max_rank: int
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
        Seed of the range finder.

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
    matrix = BlockLowRankMatrix(tree, {}, tolerance, max_rank)
    generator = torch.Generator().manual_seed(seed)
    xTM3 = tree.points[tree.members]
    for j in range(matrix.width):
        matrix.tiles[j, j] = kernel.self_block(xTM3[j])
        for i in range(j + 1, matrix.width):
            dense = kernel(xTM3[i], xTM3[j])
            matrix.tiles[i, j] = dense if i - j < band else _compress(matrix, dense, generator)
    return matrix


def _compress(matrix: BlockLowRankMatrix, dense: Tensor, generator: torch.Generator) -> LowRankTile:
    """Compress by the randomized range finder, doubling the basis until it holds more than the wanted rank."""
    size = len(dense)
    basis, projected = dense[:, :0], dense[:, :0]
    while True:
        columns = min(max(FIRST_SKETCH, basis.shape[1]), size - basis.shape[1])
        sketch = dense @ torch.randn(size, columns, generator=generator, dtype=dense.dtype).to(dense.device)
        # one QR of old and new columns: where the sketch nearly lies in the basis, projecting first leaves only noise
        new = torch.linalg.qr(torch.cat([basis, sketch], dim=1))[0][:, basis.shape[1] :]
        matrix.flops.qr(size, basis.shape[1] + columns)
        basis, projected = torch.cat([basis, new], dim=1), torch.cat([projected, dense.mT @ new], dim=1)
        matrix.flops.product(size, columns, 2 * size)
        tile = _truncate(matrix, basis, projected)
        rank = tile.left.shape[1]
        if basis.shape[1] == size or rank == matrix.max_rank or rank + OVERSAMPLING <= basis.shape[1]:
            return tile


def _orthogonalize_against(matrix: BlockLowRankMatrix, basis: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``Q, C, R`` of ``columns = basis @ C + Q @ R`` with orthonormal ``[basis, Q]``."""
    overlap = basis.mT @ columns
    rest = columns - basis @ overlap
    correction = basis.mT @ rest  # the second pass counts where the columns nearly lie in the basis
    new, triangular = torch.linalg.qr(rest - basis @ correction)
    matrix.flops.product(*columns.shape, 4 * basis.shape[1])
    matrix.flops.qr(*columns.shape)
    return new, overlap + correction, triangular


def _truncate(matrix: BlockLowRankMatrix, left: Tensor, right: Tensor) -> LowRankTile:
    """Drop the small singular values of ``left @ right.T``, where the columns of ``left`` are orthonormal."""
    size, columns = right.shape
    basis, triangular = torch.linalg.qr(right)
    outer, singular_values, inner = torch.linalg.svd(triangular)
    matrix.flops.qr(size, columns)
    matrix.flops.svd(columns)
    needed = int((singular_values > matrix.tolerance * singular_values[0]).sum())
    rank = max(1, min(needed, matrix.max_rank))
    matrix.flops.product(size, rank, 2 * columns)
    return LowRankTile(left @ inner[:rank].mT, basis @ (outer[:, :rank] * singular_values[:rank]))


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
    for k in range(matrix.width):
        _factorize_diagonal(matrix, k)
        for i in range(k + 1, matrix.width):
            _solve_panel(matrix, i, k)
        for j in range(k + 1, matrix.width):
            for i in range(j, matrix.width):
                _update(matrix, i, j, k)


def _factorize_diagonal(matrix: BlockLowRankMatrix, k: int) -> None:
    factor, info = torch.linalg.cholesky_ex(_dense(matrix, k))
    matrix.flops.cholesky(len(factor))
    if int(info):
        raise LinAlgError(
            f"tile ({k}, {k}) is not positive definite (pivot {int(info)}): "
            "lower the tolerance, raise the maximum rank or the diagonal of the kernel"
        )
    matrix.tiles[k, k] = factor


def _dense(matrix: BlockLowRankMatrix, k: int) -> Tensor:
    tile = matrix.tiles[k, k]
    assert isinstance(tile, Tensor)
    return tile


def _solve_panel(matrix: BlockLowRankMatrix, i: int, k: int) -> None:
    tile, factor = matrix.tiles[i, k], _dense(matrix, k)
    rows = tile.right if isinstance(tile, LowRankTile) else tile.mT
    solved = torch.linalg.solve_triangular(factor, rows, upper=False)
    matrix.flops.triangular_solve(*rows.shape)
    matrix.tiles[i, k] = LowRankTile(tile.left, solved) if isinstance(tile, LowRankTile) else solved.mT


def _update(matrix: BlockLowRankMatrix, i: int, j: int, k: int) -> None:
    left, right = _multiply(matrix, matrix.tiles[i, k], matrix.tiles[j, k])
    tile = matrix.tiles[i, j]
    if isinstance(tile, LowRankTile):
        matrix.tiles[i, j] = _recompress(matrix, tile, left, -right)
    else:
        tile.addmm_(left, right.mT, alpha=-1.0)
        matrix.flops.product(len(left), len(right), left.shape[1])


def _multiply(matrix: BlockLowRankMatrix, a: Tile, b: Tile) -> tuple[Tensor, Tensor]:
    """Return the factors ``X, Y`` of ``a @ b.T = X @ Y.T``."""
    if isinstance(a, LowRankTile) and isinstance(b, LowRankTile):
        core = a.right.mT @ b.right
        matrix.flops.product(*core.shape, len(a.right))
        matrix.flops.product(len(b.left), *core.shape)
        return a.left, b.left @ core.mT
    if isinstance(a, LowRankTile):
        assert isinstance(b, Tensor)
        matrix.flops.product(*b.shape, a.right.shape[1])
        return a.left, b @ a.right
    if isinstance(b, LowRankTile):
        matrix.flops.product(*a.shape, b.right.shape[1])
        return a @ b.right, b.left
    return a, b


def _recompress(matrix: BlockLowRankMatrix, tile: LowRankTile, left: Tensor, right: Tensor) -> LowRankTile:
    """Add ``left @ right.T`` to a tile, orthogonalizing ``left`` against its basis, and truncate by QR and SVD."""
    basis, overlap, triangular = _orthogonalize_against(matrix, tile.left, left)
    rows = torch.cat([tile.right + right @ overlap.mT, right @ triangular.mT], dim=1)
    matrix.flops.product(*rows.shape, left.shape[1])
    return _truncate(matrix, torch.cat([tile.left, basis], dim=1), rows)


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
    xTMK = matrix.tree.scatter(bNK)
    for k in range(matrix.width):
        xTMK[k] = torch.linalg.solve_triangular(_dense(matrix, k), xTMK[k], upper=False)
        for i in range(k + 1, matrix.width):
            xTMK[i] -= _apply(matrix.tiles[i, k], xTMK[k], transposed=False)
    for k in reversed(range(matrix.width)):
        for i in range(k + 1, matrix.width):
            xTMK[k] -= _apply(matrix.tiles[i, k], xTMK[i], transposed=True)
        xTMK[k] = torch.linalg.solve_triangular(_dense(matrix, k).mT, xTMK[k], upper=True)
    return matrix.tree.gather(xTMK)


def _apply(tile: Tile, x: Tensor, *, transposed: bool) -> Tensor:
    if isinstance(tile, Tensor):
        return (tile.mT if transposed else tile) @ x
    into, out = (tile.left, tile.right) if transposed else (tile.right, tile.left)
    return out @ (into.mT @ x)
