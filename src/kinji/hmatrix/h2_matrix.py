"""H2 matrix of a kernel: dense near blocks at the leaves, far blocks in shared nested bases at every level.

Dimension letters: B boxes of a level, P pairs, M places of a box, R rank, N points, K right-hand sides.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kinji.hmatrix.admissibility import LevelPairs, Pairs, find_pairs, sample_far_fields
from kinji.hmatrix.basis import BasisLevel, build_level, near_blocks
from kinji.hmatrix.cluster_tree import ClusterTree, build_tree
from kinji.hmatrix.kernels import Kernel


@dataclass(frozen=True)
class NearField:
    """Tree, block structure and dense leaf blocks: what every compression of one matrix shares.

    Attributes
    ----------
    kernel : Kernel
        Entry evaluator.
    tree : ClusterTree
        The boxes.
    pairs : list of LevelPairs
        Block structure, root first.
    blocks : Tensor
        Near blocks of the leaf level, in the order of ``pairs[-1].near``, shape ``(P, M, M)``.
    """

    kernel: Kernel
    tree: ClusterTree
    pairs: list[LevelPairs]
    blocks: Tensor


@dataclass(frozen=True)
class H2Matrix:
    """Kernel matrix with O(N) stored numbers.

    Attributes
    ----------
    field : NearField
        Tree, block structure and dense leaf blocks.
    levels : dict of int to BasisLevel
        Bases of the levels that have a far field, or a coarser level that has one.
    couplings : dict of int to Tensor
        Per such level: kernel between the skeletons of the far pairs, shape ``(P, R, R)``.
    """

    field: NearField
    levels: dict[int, BasisLevel]
    couplings: dict[int, Tensor]

    def matvec(self, xNK: Tensor) -> Tensor:
        """Multiply with vectors ``(N, K)`` in O(N): up the tree, across the far pairs, down the tree."""
        leaf_x = self.field.tree.scatter(xNK)
        upward = _ascend(self.levels, leaf_x)
        downward = {
            level: _multiply_pairs(self.couplings[level], self.field.pairs[level].far, upward[level])
            for level in self.levels
        }
        product = _multiply_pairs(self.field.blocks, self.field.pairs[-1].near, leaf_x)
        if self.levels:
            product += _descend(self.levels, downward)
        return self.field.tree.gather(product)

    @property
    def nbytes(self) -> int:
        """Bytes of the near blocks, the interpolations and the couplings."""
        far = (level.interpolation.nbytes for level in self.levels.values())
        return self.field.blocks.nbytes + sum(far) + sum(block.nbytes for block in self.couplings.values())


def build_near_field(kernel: Kernel, points: Tensor, *, theta: float = 2.0, leaf_size: int = 256) -> NearField:
    """Build the tree and the block structure, and evaluate the dense leaf blocks.

    Parameters
    ----------
    kernel : Kernel
        Entry evaluator.
    points : Tensor
        Distinct finite points, shape ``(N, 3)``, float64.
    theta : float
        Admissibility constant (`admissibility.find_pairs`).
    leaf_size : int
        Least number of points of a leaf.

    Returns
    -------
    NearField
        The part of the matrix that is kept dense.

    Raises
    ------
    TypeError, ValueError
        If the points or a parameter are unusable.
    """
    tree = build_tree(points, leaf_size=leaf_size)
    pairs = find_pairs(tree, theta=theta)
    return NearField(kernel, tree, pairs, near_blocks(kernel, tree, tree.members, pairs[-1].near))


def compress(
    field: NearField,
    *,
    rank: int = 100,
    tolerance: float = 1e-10,
    samples: int = 2000,
    fill_ins: bool = True,
    seed: int = 0,
) -> H2Matrix:
    """Choose nested bases, leaves first, and evaluate the couplings.

    Parameters
    ----------
    field : NearField
        Tree, block structure and dense leaf blocks.
    rank : int
        Largest rank of any level.
    tolerance : float
        Relative size of the singular values that are dropped.
    samples : int
        Far-field samples per box.
    fill_ins : bool
        Span the fill-ins of the ULV factorization too. Without them the same rank represents the far field
        better, which is what an operator that is only multiplied with wants.
    seed : int
        Seed of the sketches.

    Returns
    -------
    H2Matrix
        The compressed matrix.

    Raises
    ------
    ValueError
        If the rank or the number of samples is below 1.
    numpy.linalg.LinAlgError
        If a diagonal block is not positive definite while fill-ins are asked for.
    """
    if rank < 1 or samples < 1:
        raise ValueError(f"rank = {rank}, samples = {samples}: both must be at least 1")
    kernel, tree, pairs = field.kernel, field.tree, field.pairs
    generator = torch.Generator().manual_seed(seed)
    levels: dict[int, BasisLevel] = {}
    couplings: dict[int, Tensor] = {}
    far_samples = sample_far_fields(tree, pairs, samples=samples)
    places, blocks = tree.members, field.blocks
    for level in sorted(far_samples, reverse=True):
        near, far = pairs[level].near, pairs[level].far
        if fill_ins and level < tree.depth:
            blocks = near_blocks(kernel, tree, places, near)
        levels[level] = build_level(
            kernel,
            tree,
            places,
            near,
            far_samples[level],
            level=level,
            rank=rank,
            tolerance=tolerance,
            fill_in_blocks=blocks if fill_ins else None,
            generator=generator,
        )
        skeletons = tree.points[levels[level].skeleton]
        couplings[level] = kernel(skeletons[far[:, 0]], skeletons[far[:, 1]])
        places = levels[level].skeleton.reshape(len(places) // 2, -1)
    return H2Matrix(field, levels, couplings)


def _ascend(levels: dict[int, BasisLevel], leaf_x: Tensor) -> dict[int, Tensor]:
    upward, xBMK = {}, leaf_x
    for level, basis in levels.items():
        upward[level] = basis.interpolation.mT @ xBMK
        xBMK = upward[level].reshape(len(upward[level]) // 2, -1, leaf_x.shape[2])
    return upward


def _descend(levels: dict[int, BasisLevel], downward: dict[int, Tensor]) -> Tensor:
    inherited = torch.zeros(())
    for level in sorted(levels):
        skeleton_y = downward[level] + inherited
        yBMK = levels[level].interpolation @ skeleton_y
        if level + 1 in levels:
            inherited = yBMK.reshape(2 * len(yBMK), -1, yBMK.shape[2])
    return yBMK


def _multiply_pairs(blocks: Tensor, pairs: Pairs, xBMK: Tensor) -> Tensor:
    i, j = torch.from_numpy(pairs).to(blocks.device).T
    own = int((i == j).sum())
    product = torch.zeros_like(xBMK).index_add_(0, i, blocks @ xBMK[j])
    return product.index_add_(0, j[own:], blocks[own:].mT @ xBMK[i[own:]])
