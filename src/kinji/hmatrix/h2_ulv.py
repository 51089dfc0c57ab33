"""ULV factorization of an H2 matrix in which every box of a level is independent.

Ma, Deshmukh, Yokota, SC22 (arXiv:2208.10907). In the order skeleton, complement, a box's basis is ``[I; T]``; the
columns of ``C = [-T^T; I]`` are what it leaves out, so ``C^T`` takes every far block to zero. Because the basis spans
the fill-ins of the neighbours as well, ``C^T`` leaves little of the near blocks: each box eliminates its complement
with its own diagonal block only, passes one Schur complement to its own skeleton, and couplings of complements are
dropped from all other blocks.

What is left of a near block is ``U_i^T A_ij U_j``, where the lifts ``U = E - C N`` of the skeleton differ from its unit
vectors ``E`` by complements:

- "orthonormal": U is orthogonal to C, as published (there scaled to orthonormal columns, a congruence that changes no
  result);
- "decoupled": ``U^T A_ii C = 0``. Then the elimination of a box is applied to its near blocks too, and dropped is
  only what two complements share: the error is 1.5 to 4 times smaller.

Since ``C^T`` times the basis is zero, far blocks between lifts are the kernel between the skeletons. The near blocks
themselves stay as they are: the substitution applies ``C`` and ``U`` to vectors.

Dimension letters: B boxes of a level, P near pairs, M places of a box, R rank, C = M - R complement.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kinji.hmatrix.admissibility import Pairs
from kinji.hmatrix.basis import BasisLevel, check_factors
from kinji.hmatrix.executor import Executor, Factors, Method, cores_for_loops
from kinji.hmatrix.h2_matrix import H2Matrix

Lift = Literal["decoupled", "orthonormal"]


@dataclass(frozen=True)
class FactorLevel:
    """Factors of one level.

    Attributes
    ----------
    basis : BasisLevel
        Order and interpolation ``T`` of each box.
    complements : Factors
        Of ``C_i^T A_ii C_i``, shape ``(B, C, C)``.
    lift : Tensor
        ``N`` in ``U = E - C N``, shape ``(B, C, R)``.
    decoupled : bool
        Whether ``U_i^T A_ii C_i = 0``.
    blocks : Tensor
        Near blocks ``A_ij``, shape ``(P, M, M)``.
    near : Tensor
        Near pairs, those of a box with itself first, shape ``(P, 2)``.
    """

    basis: BasisLevel
    complements: Factors
    lift: Tensor
    decoupled: bool
    blocks: Tensor
    near: Tensor

    def lifts(self, on: Executor) -> Tensor:
        """Return ``U = E - C N`` of every box, shape ``(B, M, R)``."""
        return on.lifts(self.basis.interpolation, self.lift, self.basis.order)

    @property
    def flops(self) -> float:
        """Floating-point operations of the level: elimination of the boxes, and near blocks of the next level."""
        boxes, complement, rank = self.lift.shape
        size = rank + complement
        eliminate = 2.0 * complement * rank * (size + complement) + complement**3 / 3.0
        eliminate += 2.0 * complement**2 * rank + 2.0 * complement * rank**2 * (2 if self.decoupled else 3)
        return boxes * eliminate + (len(self.near) - boxes) * 2.0 * (size**2 * rank + size * rank**2)


@dataclass(frozen=True)
class H2Factor:
    """Factorization of an H2 matrix.

    Attributes
    ----------
    matrix : H2Matrix
        What was factorized.
    levels : list of FactorLevel
        Leaves first.
    root : Factors
        Of what is left, a batch of one.
    """

    matrix: H2Matrix
    levels: list[FactorLevel]
    root: Factors

    @property
    def nbytes(self) -> int:
        """Bytes of all that the substitution reads."""
        levels = ((x.complements.triangles, x.lift, x.basis.interpolation, x.blocks) for x in self.levels)
        return self.root.triangles.nbytes + sum(array.nbytes for arrays in levels for array in arrays)

    @property
    def flops(self) -> float:
        """Floating-point operations of the factorization, from the shapes of its arrays."""
        return self.root.triangles.shape[1] ** 3 / 3.0 + sum(level.flops for level in self.levels)

    @property
    def published_flops(self) -> float:
        """Operations by the formula of the published code, which transforms all of every near block, both halves."""
        return self.root.triangles.shape[1] ** 3 / 3.0 + sum(_published_flops(level) for level in self.levels)

    def logdet(self) -> float:
        """Return the logarithm of the determinant's absolute value."""
        shares, levels = self.matrix.field.shares.levels, zip(self.matrix.levels, self.levels, strict=True)
        tree, diagonal = self.matrix.field.tree, self.matrix.field.kernel.diagonal
        ghosts = (tree.members.numel() - tree.size) * math.log(abs(diagonal))
        return (
            self.root.log_determinant()
            - ghosts
            + sum(shares[level].total(factors.complements.log_determinant()) for level, factors in levels)
        )


def _published_flops(level: FactorLevel) -> float:
    # n, r, s: size, complement and rank in the published code (profile.hxx)
    boxes, r, s = level.lift.shape
    n, ordered_pairs = r + s, 2 * len(level.near) - boxes
    return 4.0 * n**3 * ordered_pairs + boxes * (2.0 * n * r * (n + r) + r**3 / 3.0 + n * r**2 + 2.0 * s**2 * r)


@cores_for_loops()
def factorize(matrix: H2Matrix, *, lift: Lift = "decoupled", method: Method = "cholesky") -> H2Factor:
    """Factorize level by level from the leaves, merging skeleton blocks into the next level's near blocks.

    Parameters
    ----------
    matrix : H2Matrix
        Compressed with fill-ins; without them the error does not fall with the rank.
    lift : {"decoupled", "orthonormal"}
        How the skeleton's columns are completed; the published code has the latter.
    method : {"cholesky", "lu"}
        Factorization of the diagonal blocks; LU for matrices that are not definite.

    Returns
    -------
    H2Factor
        The factors.

    Raises
    ------
    ValueError
        If the lift or the method is unknown.
    numpy.linalg.LinAlgError
        If a diagonal block, of a box or of the root, is not positive definite, or singular.
    """
    if lift not in ("decoupled", "orthonormal") or method not in ("cholesky", "lu"):
        raise ValueError(f"lift = {lift!r}, method = {method!r}: decoupled or orthonormal, cholesky or lu")
    field, on = matrix.field, matrix.field.on
    levels: list[FactorLevel] = []
    blocks, metric = field.blocks, None
    for level, basis in matrix.levels.items():
        share = field.shares.levels[level]
        together = share.near.routines(on)
        complements, response, schur = eliminate_complements(together, blocks, basis, method, level=level)
        if lift == "orthonormal":
            response, own_metric = orthogonal_lift(on, basis, metric)
            metric = share.gather(own_metric)
        levels.append(FactorLevel(basis, complements, response, lift == "decoupled", blocks, share.near.local))
        lifted = lifted_blocks(on, levels[-1], share.near.extend(levels[-1].lifts(on)))
        children = share.child_blocks(schur, lifted, matrix.couplings[level])
        blocks = merge_blocks(on, children, field.shares.levels[level - 1].near.pairs)
    root = on.factorize(_dense(blocks, field.pairs[-1 - len(levels)].near)[None], method)
    check_factors(root.info, "root")
    return H2Factor(matrix, levels, root)


def eliminate_complements(
    on: Executor, blocks: Tensor, basis: BasisLevel, method: Method, *, level: int
) -> tuple[Factors, Tensor, Tensor]:
    """Eliminate the complement of every box, each from its own diagonal block only.

    Parameters
    ----------
    on : Executor
        Batched routines.
    blocks : Tensor
        Near blocks, of which the first B are the diagonal ones, shape ``(P, M, M)``.
    basis : BasisLevel
        Order and interpolation.
    method : {"cholesky", "lu"}
        Factorization of the complements.
    level : int
        Level of the boxes, for messages.

    Returns
    -------
    complements : Factors
        Of ``C^T A C``, shape ``(B, C, C)``.
    response : Tensor
        ``(C^T A C)^-1 C^T A E``, shape ``(B, C, R)``.
    schur : Tensor
        Schur complements to the skeletons, shape ``(B, R, R)``.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a complement block is not positive definite, or singular.
    """
    own, cross, schur = _split_diagonal(on, blocks, basis)
    complements = on.factorize(own, method)
    check_factors(complements.info, f"level {level}")
    response = on.solve(complements, cross)
    on.subtract_product(schur, cross, response, transpose_a=True)
    return complements, response, schur


def _split_diagonal(on: Executor, blocks: Tensor, basis: BasisLevel) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``C^T A C``, ``C^T A E`` and ``E^T A E`` of the diagonal blocks."""
    (boxes, _, rank), T = basis.interpolation.shape, basis.interpolation
    skeleton, complement = basis.order[:, :rank], basis.order[:, rank:]
    own, cross, kept = (
        on.take(blocks[:boxes], rows, columns)
        for rows, columns in ((complement, complement), (complement, skeleton), (skeleton, skeleton))
    )
    on.subtract_product(own, T, cross, transpose_b=True)
    on.subtract_product(cross, T, kept)
    on.subtract_product(own, cross, T, transpose_b=True)
    return own, cross, kept


def orthogonal_lift(on: Executor, basis: BasisLevel, metric: Tensor | None) -> tuple[Tensor, Tensor]:
    """Complete the skeleton's columns orthogonally to the complement's.

    Parameters
    ----------
    on : Executor
        Batched routines.
    basis : BasisLevel
        Order and interpolation.
    metric : Tensor or None
        ``U^T U`` of the children, shape ``(2 B, R', R')``, in which the places of a box are measured; None at the
        leaves.

    Returns
    -------
    lift : Tensor
        ``N`` in ``U = E - C N``, shape ``(B, C, R)``.
    metric : Tensor
        ``U^T U``, shape ``(B, R, R)``.
    """
    boxes, size = basis.order.shape
    if metric is None:
        inner = torch.eye(size, dtype=basis.interpolation.dtype, device=basis.order.device).repeat(boxes, 1, 1)
    else:
        inner = _block_diagonal(metric)
    _, lift, schur = eliminate_complements(on, inner, basis, "cholesky", level=0)
    return lift, schur


def _block_diagonal(blocks: Tensor) -> Tensor:
    boxes, rank, _ = blocks.shape
    pairs = blocks.new_zeros(boxes // 2, 2, rank, 2, rank)
    for child in (0, 1):
        pairs[:, child, :, child] = blocks[child::2]
    return pairs.reshape(boxes // 2, 2 * rank, 2 * rank)


def lifted_blocks(on: Executor, level: FactorLevel, lifts: Tensor | None = None) -> Tensor:
    """Compute ``U_i^T A_ij U_j`` of the near pairs of distinct boxes, shape ``(P - B, R, R)``.

    ``lifts`` are those of all boxes that the pairs number, by default of the boxes of the level.
    """
    boxes, lifts = len(level.lift), level.lifts(on) if lifts is None else lifts
    return on.project(level.blocks[boxes:], level.near[boxes:], lifts)


def merge_blocks(on: Executor, children: list[tuple[Tensor, Pairs]], parents: Pairs) -> Tensor:
    """Assemble the near blocks of a level from the blocks of its children.

    Parameters
    ----------
    on : Executor
        Batched routines.
    children : list of (Tensor, ndarray)
        Skeleton blocks of the children, shape ``(P', R, R)``, and their pairs (i, j), i >= j, shape ``(P', 2)``; the
        parents of all of them are exactly ``parents``.
    parents : ndarray
        Near pairs of the parents, shape ``(P, 2)``.

    Returns
    -------
    Tensor
        Shape ``(P, 2 R, 2 R)``.
    """
    rank, boxes = children[0][0].shape[1], int(parents.max()) + 1
    keys = parents @ [boxes, 1]
    order = np.argsort(keys)
    merged = children[0][0].new_empty(len(parents), 2, rank, 2, rank)
    for blocks, pairs in children:
        i, j = pairs.T
        slot = order[np.searchsorted(keys[order], (pairs // 2) @ [boxes, 1])]
        on.put_blocks(merged, (slot, i % 2, j % 2), blocks)
        mirrored = (i // 2 == j // 2) & (i != j)
        if mirrored.any():
            at = slot[mirrored], j[mirrored] % 2, i[mirrored] % 2
            on.put_blocks(merged, at, blocks[torch.from_numpy(mirrored)].mT)
    return merged.view(len(parents), 2 * rank, 2 * rank)


def _dense(blocks: Tensor, near: Pairs) -> Tensor:
    boxes, size = int(near.max()) + 1, blocks.shape[1]
    dense = blocks.new_zeros(boxes, size, boxes, size)
    dense[near[:, 0], :, near[:, 1]] = blocks
    dense = dense.reshape(boxes * size, boxes * size)
    return torch.tril(dense) + torch.tril(dense, -1).mT
