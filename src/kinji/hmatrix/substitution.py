"""Solution with the factors of an H2 matrix: the sequential block sweep, and one in which all boxes are
independent.

Within a level the complements couple by ``E_ij``, small and strictly lower triangular in the order of the
boxes. The sequential sweep of SC22 (arXiv:2208.10907) inverts ``I + E`` box after box; the parallel
substitution of arXiv:2502.02395 replaces the inverse by ``I - E``, which is as accurate as the factorization
itself, where second-order terms are dropped.

Dimension letters: B boxes of a level, P pairs, M places of a box, R rank, C = M - R complement, N points, K
right-hand sides.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor

from kinji.hmatrix.h2_ulv import FactorLevel, H2Factor

Substitution = Literal["parallel", "sequential"]


class _Invert(Protocol):
    def __call__(self, level: FactorLevel, cBCK: Tensor, *, transposed: bool) -> Tensor: ...


def solve(factor: H2Factor, bNK: Tensor, *, substitution: Substitution = "parallel") -> Tensor:
    """Solve for one or more right-hand sides in O(N).

    Parameters
    ----------
    factor : H2Factor
        The factors.
    bNK : Tensor
        Right-hand sides, shape ``(N, K)``, float64.
    substitution : {"parallel", "sequential"}
        All boxes of a level at once, or one after the other.

    Returns
    -------
    Tensor
        Solutions, shape ``(N, K)``. The map from ``b`` is symmetric, so it can precondition conjugate
        gradients.

    Raises
    ------
    ValueError
        If the right-hand side has the wrong shape or the substitution is unknown.
    """
    tree = factor.matrix.field.tree
    if bNK.ndim != 2 or len(bNK) != tree.size:
        raise ValueError(f"right-hand side has shape {tuple(bNK.shape)}: expected ({tree.size}, number of sides)")
    if substitution not in ("parallel", "sequential"):
        raise ValueError(f"unknown substitution {substitution!r}: choose parallel or sequential")
    invert = _invert_parallel if substitution == "parallel" else _invert_sequential
    complements = []
    xBMK = tree.scatter(bNK)
    for level in factor.levels:
        skeleton, complement = _forward(level, xBMK, invert)
        complements.append(complement)
        xBMK = skeleton.reshape(len(skeleton) // 2, -1, bNK.shape[1])
    xBMK = torch.cholesky_solve(xBMK.flatten(0, 1), factor.root).reshape(xBMK.shape)
    for level, complement in zip(reversed(factor.levels), reversed(complements), strict=True):
        xBMK = _backward(level, xBMK.reshape(len(complement), level.rank, -1), complement, invert)
    return tree.gather(xBMK)


def _forward(level: FactorLevel, xBMK: Tensor, invert: _Invert) -> tuple[Tensor, Tensor]:
    rank, boxes, (i, j) = level.rank, len(xBMK), level.pairs.T
    rotated = level.transform.mT @ xBMK
    complement = invert(level, rotated[:, rank:], transposed=False)
    skeleton = rotated[:, :rank].index_add(0, i, level.blocks[:, :rank, rank:] @ complement[j], alpha=-1)
    skeleton.index_add_(0, j[boxes:], level.blocks[boxes:, rank:, :rank].mT @ complement[i[boxes:]], alpha=-1)
    return skeleton, complement


def _backward(level: FactorLevel, skeleton: Tensor, complement: Tensor, invert: _Invert) -> Tensor:
    rank, boxes, (i, j) = level.rank, len(skeleton), level.pairs.T
    complement = complement.index_add(0, j, level.blocks[:, :rank, rank:].mT @ skeleton[i], alpha=-1)
    complement.index_add_(0, i[boxes:], level.blocks[boxes:, rank:, :rank] @ skeleton[j[boxes:]], alpha=-1)
    return level.transform @ torch.cat([skeleton, invert(level, complement, transposed=True)], dim=1)


def _invert_parallel(level: FactorLevel, cBCK: Tensor, *, transposed: bool) -> Tensor:
    rank, (i, j) = level.rank, level.pairs[len(cBCK) :].T
    coupling = level.blocks[len(cBCK) :, rank:, rank:]
    if transposed:
        return cBCK.index_add(0, j, coupling.mT @ cBCK[i], alpha=-1)
    return cBCK.index_add(0, i, coupling @ cBCK[j], alpha=-1)


def _invert_sequential(level: FactorLevel, cBCK: Tensor, *, transposed: bool) -> Tensor:
    rank, boxes, (i, j) = level.rank, len(cBCK), level.pairs.T
    result = cBCK.clone()
    for box in reversed(range(boxes)) if transposed else range(boxes):
        later = ((j == box) & (i > box)).nonzero().flatten()
        coupling = level.blocks[later, rank:, rank:]
        if transposed:
            result[box] -= (coupling.mT @ result[i[later]]).sum(dim=0)
        else:
            result[i[later]] -= coupling @ result[box]
    return result
