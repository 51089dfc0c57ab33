"""Solution with the factors of an H2 matrix: the sequential block sweep, and one in which all boxes are independent.

Within a level the complements couple by ``C_i^T A_ij C_j``, small beside the ``D_i = C_i^T A_ii C_i``. The sequential
sweep of SC22 (arXiv:2208.10907) inverts ``I + D^-1 L``, L the couplings with i > j, box after box; the parallel
substitution of arXiv:2502.02395 replaces the inverse by ``I - D^-1 L``, which is as accurate as the factorization
itself, where second-order terms are dropped. "diagonal" leaves L away, too: half the memory to read, for iterations.

Dimension letters: B boxes of a level, P pairs, M places of a box, R rank, C = M - R complement, N points, K right-hand
sides.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor

from kinji.hmatrix.executor import Executor, Part
from kinji.hmatrix.h2_ulv import FactorLevel, H2Factor

Substitution = Literal["parallel", "sequential", "diagonal"]


class _Invert(Protocol):
    def __call__(self, on: Executor, level: FactorLevel, cBCK: Tensor, *, transposed: bool) -> Tensor: ...


def solve(factor: H2Factor, bNK: Tensor, *, substitution: Substitution = "parallel") -> Tensor:
    """Solve for one or more right-hand sides in O(N).

    Parameters
    ----------
    factor : H2Factor
        The factors.
    bNK : Tensor
        Right-hand sides, shape ``(N, K)``; converted to the precision of the factors and back.
    substitution : {"parallel", "sequential", "diagonal"}
        All boxes of a level at once, one after the other, or at once and uncoupled.

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
    field, own = factor.matrix.field, factor.matrix.field.shares.own
    if bNK.ndim != 2 or len(bNK) != own.size:
        raise ValueError(f"right-hand side has shape {tuple(bNK.shape)}: expected ({own.size}, number of sides)")
    if substitution not in _INVERSES:
        raise ValueError(f"unknown substitution {substitution!r}: choose one of {', '.join(_INVERSES)}")
    if substitution == "sequential" and field.shares.ranks.size > 1:
        raise ValueError("substitution = 'sequential': one box waits for another, so on several ranks choose parallel")
    invert = _INVERSES[substitution]
    shares = [field.shares.levels[level] for level in factor.matrix.levels]
    complements = []
    xBMK = own.scatter(bNK.to(factor.root.triangles.dtype))
    for share, level in zip(shares, factor.levels, strict=True):
        skeleton, complement = _forward(share.near.routines(field.on), level, xBMK, invert)
        complements.append(complement)
        xBMK = share.merge(skeleton)
    xBMK = field.on.solve(factor.root, xBMK.reshape(1, -1, bNK.shape[1])).reshape(xBMK.shape)
    for share, level, complement in zip(shares[::-1], factor.levels[::-1], complements[::-1], strict=True):
        xBMK = _backward(share.near.routines(field.on), level, share.split(xBMK), complement, invert)
    return own.gather(xBMK).to(bNK.dtype)


def _forward(on: Executor, level: FactorLevel, xBMK: Tensor, invert: _Invert) -> tuple[Tensor, Tensor]:
    """Eliminate the complements from the right-hand side; return what is left to the skeletons, and the complements."""
    complement = invert(on, level, on.solve(level.complements, _restrict(on, level, xBMK)), transposed=False)
    xBMK = xBMK - _couple(on, level, _prolong(on, level, complement))
    skeleton, _ = level.basis.ordered(xBMK)
    return skeleton - on.multiply(level.lift, _restrict(on, level, xBMK), transpose_a=True), complement


def _backward(on: Executor, level: FactorLevel, skeletonBRK: Tensor, complement: Tensor, invert: _Invert) -> Tensor:
    """Return the solution on the places of the boxes from that on their skeletons."""
    xBMK = _prolong(on, level, -on.multiply(level.lift, skeletonBRK), skeletonBRK)
    coupled = _restrict(on, level, _couple(on, level, xBMK))
    complement = complement - on.solve(level.complements, coupled)
    return xBMK + _prolong(on, level, invert(on, level, complement, transposed=True))


def _restrict(on: Executor, level: FactorLevel, xBMK: Tensor) -> Tensor:
    """Return ``C^T x``, shape ``(B, C, K)``."""
    skeleton, complement = level.basis.ordered(xBMK)
    return complement - on.multiply(level.basis.interpolation, skeleton)


def _prolong(on: Executor, level: FactorLevel, cBCK: Tensor, skeletonBRK: Tensor | float = 0.0) -> Tensor:
    """Return ``C c + E s``, shape ``(B, M, K)``."""
    interpolated = on.multiply(level.basis.interpolation, cBCK, transpose_a=True)
    return level.basis.placed(skeletonBRK - interpolated, cBCK)


def _couple(on: Executor, level: FactorLevel, zBMK: Tensor) -> Tensor:
    """Return the product with the near blocks between distinct boxes, and their own where lifts do not cancel it."""
    return on.multiply_pairs(level.blocks, level.near, zBMK, len(zBMK) if level.decoupled else 0)


def _invert_diagonal(on: Executor, level: FactorLevel, cBCK: Tensor, *, transposed: bool) -> Tensor:
    return cBCK


def _invert_parallel(on: Executor, level: FactorLevel, cBCK: Tensor, *, transposed: bool) -> Tensor:
    part: Part = "upper" if transposed else "lower"
    zBMK = _prolong(on, level, cBCK)
    coupled = on.multiply_pairs(level.blocks, level.near, zBMK, len(zBMK), part)
    return cBCK - on.solve(level.complements, _restrict(on, level, coupled))


def _invert_sequential(on: Executor, level: FactorLevel, cBCK: Tensor, *, transposed: bool) -> Tensor:
    result, zBMK = torch.empty_like(cBCK), cBCK.new_zeros(*level.basis.order.shape, cBCK.shape[2])
    own, other = level.near[len(cBCK) :].flip(1).T if transposed else level.near[len(cBCK) :].T
    coupling = level.blocks[len(cBCK) :].mT if transposed else level.blocks[len(cBCK) :]
    for box in reversed(range(len(cBCK))) if transposed else range(len(cBCK)):
        one, at, before = _one_box(level, box), slice(box, box + 1), (own == box).nonzero().flatten()
        coupled = (coupling[before] @ zBMK[other[before]]).sum(dim=0, keepdim=True)
        result[at] = cBCK[at] - on.solve(one.complements, _restrict(on, one, coupled))
        zBMK[at] = _prolong(on, one, result[at])
    return result


def _one_box(level: FactorLevel, box: int) -> FactorLevel:
    at = slice(box, box + 1)
    basis = type(level.basis)(level.basis.places[at], level.basis.order[at], level.basis.interpolation[at])
    triangles, pivots, info = level.complements
    complements = type(level.complements)(triangles[at], None if pivots is None else pivots[at], info[at])
    return FactorLevel(basis, complements, level.lift[at], level.decoupled, level.blocks[:0], level.near[:0])


_INVERSES: dict[str, _Invert] = {
    "parallel": _invert_parallel,
    "sequential": _invert_sequential,
    "diagonal": _invert_diagonal,
}
