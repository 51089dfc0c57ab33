"""ULV factorization of an H2 matrix in which every box of a level is independent.

Ma, Deshmukh, Yokota, SC22 (arXiv:2208.10907). Because a box's basis spans the fill-ins of its neighbours, the
complement of the basis couples to nothing but the box itself up to the tolerance of the basis: each box
eliminates its complement with its own diagonal block, passes one Schur complement to its own skeleton, and no
other block is updated.

Here the complement is whitened: with ``Uc_i^T A_ii Uc_i = L_i L_i^T`` the box works in
``P_i = [Uo_i, Uc_i L_i^-T]``, where the eliminated diagonal block is the identity and all triangular solves with
near blocks have become products.

Dimension letters: B boxes of a level, P near pairs, M places of a box, R rank, C = M - R complement, K
right-hand sides.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kinji.hmatrix.admissibility import Pairs
from kinji.hmatrix.basis import BasisLevel, check_positive_definite
from kinji.hmatrix.h2_matrix import H2Matrix
from kinji.hmatrix.kernels import batches


@dataclass(frozen=True)
class FactorLevel:
    """Factors of one level.

    Attributes
    ----------
    transform : Tensor
        ``P_i``: skeleton basis beside the whitened complement, shape ``(B, M, M)``.
    blocks : Tensor
        ``P_i^T A_ij P_j`` of the near pairs, shape ``(P, M, M)``, without the skeleton-skeleton part, which
        moved on.
    pairs : Tensor
        Near pairs, those of a box with itself first, shape ``(P, 2)``.
    rank : int
        Columns of the skeleton basis, R.
    """

    transform: Tensor
    blocks: Tensor
    pairs: Tensor
    rank: int

    @property
    def flops(self) -> float:
        """Floating-point operations of bases, elimination, near blocks and Schur complements of the level."""
        boxes, size, _ = self.transform.shape
        rank, complement = self.rank, size - self.rank
        orthogonalize = 4.0 * (size**2 * rank - size * rank**2 + rank**3 / 3.0)
        eliminate = 2.0 * size * complement * (size + complement) + complement**3 / 3.0 + size * complement**2
        return boxes * (orthogonalize + eliminate + 2.0 * rank**2 * complement) + len(self.pairs) * 4.0 * size**3


@dataclass(frozen=True)
class H2Factor:
    """Factorization of an H2 matrix: one `FactorLevel` per level, leaves first, and the Cholesky factor of
    the root.

    Attributes
    ----------
    matrix : H2Matrix
        What was factorized.
    levels : list of FactorLevel
        Leaves first.
    root : Tensor
        Lower triangular factor of what is left.
    """

    matrix: H2Matrix
    levels: list[FactorLevel]
    root: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return self.root.nbytes + sum(level.transform.nbytes + level.blocks.nbytes for level in self.levels)

    @property
    def flops(self) -> float:
        """Floating-point operations of the factorization, from the shapes of its arrays."""
        return len(self.root) ** 3 / 3.0 + sum(level.flops for level in self.levels)


def factorize(matrix: H2Matrix) -> H2Factor:
    """Factorize level by level from the leaves, merging skeleton blocks into the next level's near blocks.

    Parameters
    ----------
    matrix : H2Matrix
        Compressed with fill-ins; without them the error does not fall with the rank.

    Returns
    -------
    H2Factor
        The factors.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a diagonal block, of a box or of the root, is not positive definite.
    """
    pairs, blocks = matrix.field.pairs, matrix.field.blocks
    levels, weights = [], None
    for level, basis in matrix.levels.items():
        near, far = pairs[level].near, pairs[level].far
        orthogonal, weights = orthogonalize(basis, weights)
        near_pairs = torch.from_numpy(near).to(blocks.device)
        transform = eliminate_complements(blocks[: len(orthogonal)], orthogonal, basis.rank, level=level)
        factor = FactorLevel(transform, transform_blocks(blocks, transform, near_pairs), near_pairs, basis.rank)
        couplings = weights[far[:, 0]] @ matrix.couplings[level] @ weights[far[:, 1]].mT
        skeleton_blocks = torch.cat([_schur_complements(factor), couplings])
        blocks = merge_blocks(skeleton_blocks, np.concatenate([near, far]), pairs[level - 1].near)
        levels.append(factor)
    return H2Factor(matrix, levels, _factorize_root(blocks, pairs[-1 - len(levels)].near))


def orthogonalize(basis: BasisLevel, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Orthonormalize the bases of a level and complete them.

    Parameters
    ----------
    basis : BasisLevel
        Interpolations of the level.
    weights : Tensor or None
        Triangular weights of the children, shape ``(2 B, R', R')``; None at the leaves.

    Returns
    -------
    orthogonal : Tensor
        ``[Uo_i, Uc_i]``, shape ``(B, M, M)``.
    weights : Tensor
        ``R_i`` with ``Uo_i R_i`` the nested basis, shape ``(B, R, R)``.
    """
    nested = basis.interpolation if weights is None else _block_diagonal(weights) @ basis.interpolation
    orthogonal, triangular = torch.linalg.qr(nested, mode="complete")
    return orthogonal, triangular[:, : basis.rank]


def _block_diagonal(weights: Tensor) -> Tensor:
    boxes, rank, _ = weights.shape
    pairs = weights.new_zeros(boxes // 2, 2, rank, 2, rank)
    for child in (0, 1):
        pairs[:, child, :, child] = weights[child::2]
    return pairs.reshape(boxes // 2, 2 * rank, 2 * rank)


def eliminate_complements(diagonal: Tensor, orthogonal: Tensor, rank: int, *, level: int) -> Tensor:
    """Factorize the complement block of every box, each from its own data only.

    Parameters
    ----------
    diagonal : Tensor
        Diagonal blocks ``A_ii``, shape ``(B, M, M)``.
    orthogonal : Tensor
        ``[Uo_i, Uc_i]``, shape ``(B, M, M)``.
    rank : int
        Columns of ``Uo``.
    level : int
        Level of the boxes, for messages.

    Returns
    -------
    Tensor
        ``P_i = [Uo_i, Uc_i L_i^-T]`` with ``L_i L_i^T = Uc_i^T A_ii Uc_i``, shape ``(B, M, M)``.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a complement block is not positive definite.
    """
    complement = orthogonal[:, :, rank:]
    factors, info = torch.linalg.cholesky_ex(complement.mT @ (diagonal @ complement))
    check_positive_definite(info, f"level {level}")
    whitened = torch.linalg.solve_triangular(factors.mT, complement, upper=True, left=False)
    return torch.cat([orthogonal[:, :, :rank], whitened], dim=2)


def transform_blocks(blocks: Tensor, transform: Tensor, pairs: Tensor) -> Tensor:
    """Compute ``P_i^T A_ij P_j`` of all near pairs, shape ``(P, M, M)``."""
    transformed = torch.empty_like(blocks)
    for batch in batches(len(pairs), 4 * blocks[0].nbytes, blocks.device):
        i, j = pairs[batch].T
        torch.bmm(transform[i].mT, blocks[batch] @ transform[j], out=transformed[batch])
    return transformed


def _schur_complements(factor: FactorLevel) -> Tensor:
    rank = factor.rank
    skeleton = factor.blocks[:, :rank, :rank].clone()
    boxes = len(factor.transform)
    coupling = factor.blocks[:boxes, :rank, rank:]
    skeleton[:boxes] -= coupling @ coupling.mT
    return skeleton


def merge_blocks(blocks: Tensor, children: Pairs, parents: Pairs) -> Tensor:
    """Assemble the near blocks of a level from the blocks of its children.

    Parameters
    ----------
    blocks : Tensor
        Skeleton blocks of the children, near and far, shape ``(P', R, R)``.
    children : ndarray
        Pairs (i, j), i >= j, of the children, shape ``(P', 2)``; their parents are exactly ``parents``.
    parents : ndarray
        Near pairs of the parents, shape ``(P, 2)``.

    Returns
    -------
    Tensor
        Shape ``(P, 2 R, 2 R)``.
    """
    rank, boxes = blocks.shape[1], int(parents.max()) + 1
    keys = parents @ [boxes, 1]
    order = np.argsort(keys)
    i, j = children.T
    slot = order[np.searchsorted(keys[order], (children // 2) @ [boxes, 1])]
    merged = blocks.new_empty(len(parents), 2, rank, 2, rank)
    merged[slot, i % 2, :, j % 2] = blocks
    mirrored = (i // 2 == j // 2) & (i != j)
    merged[slot[mirrored], j[mirrored] % 2, :, i[mirrored] % 2] = blocks[torch.from_numpy(mirrored)].mT
    return merged.reshape(len(parents), 2 * rank, 2 * rank)


def _factorize_root(blocks: Tensor, near: Pairs) -> Tensor:
    boxes, size = int(near.max()) + 1, blocks.shape[1]
    dense = blocks.new_zeros(boxes, size, boxes, size)
    dense[near[:, 0], :, near[:, 1]] = blocks
    factor, info = torch.linalg.cholesky_ex(dense.reshape(boxes * size, boxes * size))
    check_positive_definite(info[None], "root")
    return factor
