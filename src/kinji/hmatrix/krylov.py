"""Preconditioned conjugate gradients: how a factorization of limited accuracy still gives an accurate solution."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from numpy.linalg import LinAlgError
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class IterativeSolution:
    """Solutions ``(N, K)``, the iterations they took, and whether all relative residuals reached the tolerance."""

    x: Tensor
    iterations: int
    converged: bool


def conjugate_gradients(
    matvec: Operator,
    b: Tensor,
    *,
    precondition: Operator,
    tolerance: float,
    max_iterations: int = 200,
    total: Operator = lambda sumK: sumK,
) -> IterativeSolution:
    """Solve ``A x = b`` for a symmetric positive definite ``A``, each right-hand side on its own but all at once.

    Parameters
    ----------
    matvec : callable
        ``x -> A x``.
    b : Tensor
        Right-hand sides, shape ``(N, K)``.
    precondition : callable
        ``r -> M^-1 r`` with a symmetric positive definite ``M``.
    tolerance : float
        Wanted residual relative to each ``b``, in the 2-norm of the recursion.
    max_iterations : int
        Products with ``A`` to spend at most.
    total : callable
        Makes sums over all rows of those over the rows that are here (`distributed.Shares.total`).

    Returns
    -------
    IterativeSolution
        The last iterate, also when it did not converge.

    Raises
    ------
    numpy.linalg.LinAlgError
        If ``A`` or ``M`` turns out not to be positive definite.

    References
    ----------
    Saad, *Iterative Methods for Sparse Linear Systems* (2003), algorithm 9.1.
    """

    def inner(u: Tensor, v: Tensor) -> Tensor:
        return total((u * v).sum(dim=0))

    x, residual = torch.zeros_like(b), b.clone()
    target = tolerance * inner(b, b).sqrt()
    preconditioned = precondition(residual)
    direction, energy = preconditioned, _positive(inner(residual, preconditioned), "the preconditioner")
    for iteration in range(max_iterations):
        left = inner(residual, residual).sqrt() > target
        if not left.any():
            return IterativeSolution(x, iteration, True)
        product = matvec(direction)
        step = torch.where(left, energy / _positive(inner(direction, product), "the matrix"), 0.0)
        x = x + step * direction
        residual = residual - step * product
        preconditioned = precondition(residual)
        previous, energy = energy, _positive(inner(residual, preconditioned), "the preconditioner")
        direction = preconditioned + torch.where(left, energy / previous, 0.0) * direction
    converged = bool((inner(residual, residual).sqrt() <= target).all())
    return IterativeSolution(x, max_iterations, converged)


def _positive(products: Tensor, what: str) -> Tensor:
    if not (products >= 0.0).all():
        raise LinAlgError(f"{what} is not positive definite: raise its rank or the diagonal of the kernel")
    return products


def extreme_eigenvalues(matvec: Operator, start: Tensor, *, steps: int = 40) -> tuple[float, float]:
    """Estimate the smallest and the largest eigenvalue of a symmetric operator by the Lanczos method.

    Parameters
    ----------
    matvec : callable
        ``x -> A x``.
    start : Tensor
        Start vector with components along both ends of the spectrum, shape ``(N, 1)``.
    steps : int
        Products with ``A`` to spend at most; every basis vector is kept and orthogonalized against.

    Returns
    -------
    tuple of float
        Extreme Ritz values, which lie inside the spectrum: their ratio bounds the condition number from
        below.

    References
    ----------
    Golub and Van Loan, *Matrix Computations*, 4th ed., sec. 10.1.
    """
    basis = start / torch.linalg.vector_norm(start)
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    while len(diagonal) < min(steps, len(start)):
        image = matvec(basis[:, -1:])
        diagonal.append((basis[:, -1:] * image).sum())
        for _ in range(2):
            image = image - basis @ (basis.mT @ image)
        off_diagonal.append(torch.linalg.vector_norm(image))
        if float(off_diagonal[-1]) <= 1e-14 * float(diagonal[0].abs()):
            break
        basis = torch.cat([basis, image / off_diagonal[-1]], dim=1)
    ends = torch.stack(off_diagonal[: len(diagonal) - 1]) if len(diagonal) > 1 else start[:0, 0]
    tridiagonal = torch.diag(torch.stack(diagonal)) + torch.diag(ends, 1) + torch.diag(ends, -1)
    ritz = torch.linalg.eigvalsh(tridiagonal)
    return float(ritz[0]), float(ritz[-1])
