"""Solution with the factors of an H2 matrix: the sequential block sweep, and one in which all boxes are independent.

Within a level the complements couple by ``C_i^T A_ij C_j``, small beside the ``D_i = C_i^T A_ii C_i``. The sequential
sweep of SC22 (arXiv:2208.10907) inverts ``I + D^-1 L``, L the couplings with i > j, box after box; the parallel
substitution of arXiv:2502.02395 replaces the inverse by ``I - D^-1 L``, which is as accurate as the factorization
itself, where second-order terms are dropped. To the same order, what the complements of its neighbours pass on to a
skeleton may be taken before L is: then one product with the near blocks, which are most of what there is to read,
serves both. "diagonal" leaves L away.

Forward, with right-hand sides r of the complements, a way of substitution gives ``c`` and what is passed on, ``A C c``;
backward it is the transposed map.

Dimension letters: B boxes of a level, P pairs, M places of a box, R rank, C = M - R complement, N points, K right-hand
sides.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kinji.hmatrix.executor import Executor, cores_for_loops
from kinji.hmatrix.h2_ulv import FactorLevel, H2Factor

Substitution = Literal["parallel", "sequential", "diagonal"]


class _Way(NamedTuple):
    """How complements of distinct boxes couple, with their own blocks D inverted already.

    Attributes
    ----------
    forward : callable
        From ``D^-1 r`` to the complements, and what the neighbours of a box pass on to its places.
    backward : callable
        From the complements and ``U s``, s of the skeletons, to the solution's complements.
    """

    forward: Callable[[Executor, FactorLevel, Tensor], tuple[Tensor, Tensor]]
    backward: Callable[[Executor, FactorLevel, Tensor, Tensor], Tensor]


@cores_for_loops()
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
    if bNK.ndim != 2 or len(bNK) != own.size or bNK.numel() == 0:
        raise ValueError(
            f"right-hand side has shape {tuple(bNK.shape)}: expected ({own.size}, number of sides), at least one"
        )
    if substitution not in _WAYS:
        raise ValueError(f"unknown substitution {substitution!r}: choose one of {', '.join(_WAYS)}")
    if substitution == "sequential" and field.shares.ranks.size > 1:
        raise ValueError("substitution = 'sequential': one box waits for another, so on several ranks choose parallel")
    way = _WAYS[substitution]
    shares = [field.shares.levels[level] for level in factor.matrix.levels]
    complements = []
    xBMK = own.scatter(bNK.to(factor.root.triangles.dtype))
    for share, level in zip(shares, factor.levels, strict=True):
        skeleton, complement = _forward(share.near.routines(field.on), level, xBMK, way)
        complements.append(complement)
        xBMK = share.merge(skeleton)
    xBMK = field.on.solve(factor.root, xBMK.reshape(1, -1, bNK.shape[1])).reshape(xBMK.shape)
    for share, level, complement in zip(shares[::-1], factor.levels[::-1], complements[::-1], strict=True):
        xBMK = _backward(share.near.routines(field.on), level, share.split(xBMK), complement, way)
    return own.gather(xBMK).to(bNK.dtype)


def _forward(on: Executor, level: FactorLevel, xBMK: Tensor, way: _Way) -> tuple[Tensor, Tensor]:
    """Eliminate the complements from the right-hand side; return what is left to the skeletons, and the complements."""
    complement, passed_on = way.forward(on, level, on.solve(level.complements, _restrict(on, level, xBMK)))
    if not level.decoupled:
        passed_on += on.multiply(level.blocks[: len(xBMK)], _prolong(on, level, complement))
    xBMK = xBMK - passed_on
    skeleton, _ = level.basis.ordered(xBMK)
    return skeleton - on.multiply(level.lift, _restrict(on, level, xBMK), transpose_a=True), complement


def _backward(on: Executor, level: FactorLevel, skeletonBRK: Tensor, complement: Tensor, way: _Way) -> Tensor:
    """Return the solution on the places of the boxes from that on their skeletons."""
    xBMK = _prolong(on, level, -on.multiply(level.lift, skeletonBRK), skeletonBRK)
    if not level.decoupled:
        complement = complement - _respond(on, level, on.multiply(level.blocks[: len(xBMK)], xBMK))
    return xBMK + _prolong(on, level, way.backward(on, level, complement, xBMK))


def _restrict(on: Executor, level: FactorLevel, xBMK: Tensor) -> Tensor:
    """Return ``C^T x``, shape ``(B, C, K)``."""
    skeleton, complement = level.basis.ordered(xBMK)
    return complement - on.multiply(level.basis.interpolation, skeleton)


def _prolong(on: Executor, level: FactorLevel, cBCK: Tensor, skeletonBRK: Tensor | float = 0.0) -> Tensor:
    """Return ``C c + E s``, shape ``(B, M, K)``."""
    interpolated = on.multiply(level.basis.interpolation, cBCK, transpose_a=True)
    return level.basis.placed(skeletonBRK - interpolated, cBCK)


def _respond(on: Executor, level: FactorLevel, xBMK: Tensor) -> Tensor:
    """Return ``D^-1 C^T x``, shape ``(B, C, K)``."""
    return on.solve(level.complements, _restrict(on, level, xBMK))


def _couple(on: Executor, level: FactorLevel, xBMK: Tensor, yBMK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of ``A_ij x_j`` over j < i and of ``A_ji^T y_j`` over j > i, shape ``(B, M, K)``."""
    lower, upper = torch.zeros_like(xBMK), torch.zeros_like(xBMK)
    on.multiply_pairs(level.blocks, level.near, xBMK, yBMK, lower, upper, len(xBMK))
    return lower, upper


def _forward_parallel(on: Executor, level: FactorLevel, cBCK: Tensor) -> tuple[Tensor, Tensor]:
    zBMK = _prolong(on, level, cBCK)
    lower, upper = _couple(on, level, zBMK, zBMK)
    return cBCK - _respond(on, level, lower), lower + upper


def _backward_parallel(on: Executor, level: FactorLevel, cBCK: Tensor, xBMK: Tensor) -> Tensor:
    lower, upper = _couple(on, level, xBMK, xBMK + _prolong(on, level, cBCK))
    return cBCK - _respond(on, level, lower + upper)


def _forward_diagonal(on: Executor, level: FactorLevel, cBCK: Tensor) -> tuple[Tensor, Tensor]:
    zBMK = _prolong(on, level, cBCK)
    lower, upper = _couple(on, level, zBMK, zBMK)
    return cBCK, lower + upper


def _backward_diagonal(on: Executor, level: FactorLevel, cBCK: Tensor, xBMK: Tensor) -> Tensor:
    lower, upper = _couple(on, level, xBMK, xBMK)
    return cBCK - _respond(on, level, lower + upper)


def _forward_sequential(on: Executor, level: FactorLevel, cBCK: Tensor) -> tuple[Tensor, Tensor]:
    return _forward_diagonal(on, level, _sweep(on, level, cBCK, transposed=False))


def _backward_sequential(on: Executor, level: FactorLevel, cBCK: Tensor, xBMK: Tensor) -> Tensor:
    return _sweep(on, level, _backward_diagonal(on, level, cBCK, xBMK), transposed=True)


def _sweep(on: Executor, level: FactorLevel, cBCK: Tensor, *, transposed: bool) -> Tensor:
    result, zBMK = torch.empty_like(cBCK), cBCK.new_zeros(*level.basis.order.shape, cBCK.shape[2])
    own, other = level.near[len(cBCK) :].flip(1).T if transposed else level.near[len(cBCK) :].T
    coupling = level.blocks[len(cBCK) :].mT if transposed else level.blocks[len(cBCK) :]
    for box in reversed(range(len(cBCK))) if transposed else range(len(cBCK)):
        one, at, before = _one_box(level, box), slice(box, box + 1), (own == box).nonzero().flatten()
        coupled = (coupling[before] @ zBMK[other[before]]).sum(dim=0, keepdim=True)
        result[at] = cBCK[at] - _respond(on, one, coupled)
        zBMK[at] = _prolong(on, one, result[at])
    return result


def _one_box(level: FactorLevel, box: int) -> FactorLevel:
    at = slice(box, box + 1)
    basis = type(level.basis)(level.basis.places[at], level.basis.order[at], level.basis.interpolation[at])
    triangles, pivots, info = level.complements
    complements = type(level.complements)(triangles[at], None if pivots is None else pivots[at], info[at])
    return FactorLevel(basis, complements, level.lift[at], level.decoupled, level.blocks[:0], level.near[:0])


_WAYS = {
    "parallel": _Way(_forward_parallel, _backward_parallel),
    "sequential": _Way(_forward_sequential, _backward_sequential),
    "diagonal": _Way(_forward_diagonal, _backward_diagonal),
}
