"""Stage 3: damping and inversion of the Fisher blocks.

A Kronecker block is damped factor by factor (factored Tikhonov damping, Martens and Grosse 2015, as SP-NGD uses it).
With ``l`` the damping, its inverse is ``(G + sqrt(l) / pi I)^-1 (x) (A + pi sqrt(l) I)^-1``, where
``pi^2 = mean eigenvalue of A / mean eigenvalue of G``. The eigenvalue form is ``(G (x) A + l I)^-1`` without that
approximation, for several times the work.

Dimension letters: i inputs (with the bias's coordinate), o outputs, p pairs of scale and shift, n size of a factor;
... groups of a convolution, if any.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kinji.kfac.cholesky import solve
from kinji.kfac.products import times_transposed


def damping_shifts(a_ii: Tensor, g_oo: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Split the damping between the two factors of a block by the pi correction.

    Parameters
    ----------
    a_ii, g_oo
        The factors, each a matrix or, for a diagonal one, its diagonal.

    Returns
    -------
    tuple of tensors (...)
        What to add to the diagonals of ``A`` and of ``G``. A factor that vanishes (a layer that saw no
        signal) has no pi; there it is 1.
    """
    mean_a, mean_g = (_diagonal(factor).mean(-1) for factor in (a_ii, g_oo))
    pi = torch.where((mean_a > 0) & (mean_g > 0), (mean_a / mean_g).sqrt(), torch.ones_like(mean_a))
    return pi * damping**0.5, damping**0.5 / pi


def eigen_form(factor: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the eigenvectors (by columns) and the eigenvalues, not below zero, of a factor (..., n, n).

    Its lower triangle is read.

    Raises
    ------
    torch.linalg.LinAlgError
        The factor is not finite, or its eigenvalues do not converge.
    """
    if not factor.tril().isfinite().all():
        raise torch.linalg.LinAlgError(f"{name} is not finite")
    try:
        values, vectors = torch.linalg.eigh(factor)
    except torch.linalg.LinAlgError:
        values, vectors = (part.to(factor.dtype) for part in torch.linalg.eigh(factor.double()))
    return vectors, values.clamp_min(0)


def precondition(gradient_oi: Tensor, prepared_ii: Tensor, prepared_oo: Tensor) -> Tensor:
    """Apply ``(G (x) A)^-1`` to a gradient: ``G^-1 gradient A^-1``, from factors that `cholesky.prepare` made ready."""
    return solve(prepared_oo, solve(prepared_ii, gradient_oi.mT).mT)


def precondition_eigen(
    gradient_oi: Tensor, a: tuple[Tensor, Tensor], g: tuple[Tensor, Tensor], damping: Tensor
) -> Tensor:
    """Apply ``(G (x) A + damping I)^-1`` to a gradient, from the factors' eigenvectors and eigenvalues."""
    (vectors_ii, values_i), (vectors_oo, values_o) = a, g
    rotated_oi = times_transposed(vectors_oo.mT, times_transposed(vectors_ii.mT, gradient_oi))
    rotated_oi /= values_o[..., :, None] * values_i[..., None, :] + damping
    return times_transposed(vectors_oo, times_transposed(vectors_ii, rotated_oi))


def unit_wise_inverse(fisher_3p: Tensor, damping: float) -> Tensor:
    """Invert ``F + damping I`` for each 2 x 2 matrix in closed form.

    Parameters
    ----------
    fisher_3p : (3, p)
        Upper triangles, as `kinji.kfac.statistics.unit_wise_fisher` forms them.

    Returns
    -------
    (3, p)
        Upper triangles of the inverses; not finite for a matrix that is singular (only without damping) or not finite.
    """
    scale_p, cross_p, shift_p = fisher_3p
    # a Gram matrix's determinant is not negative, but its rounding may be
    gram_p = (scale_p * shift_p - cross_p * cross_p).clamp_min(0)
    determinant_p = gram_p + damping * (scale_p + shift_p) + damping * damping
    return torch.stack([shift_p + damping, -cross_p, scale_p + damping]) / determinant_p


def precondition_unit_wise(scale_p: Tensor, shift_p: Tensor, inverse_3p: Tensor) -> tuple[Tensor, Tensor]:
    """Apply each 2 x 2 inverse to the gradients of its scale and shift."""
    first_p, cross_p, last_p = inverse_3p
    return first_p * scale_p + cross_p * shift_p, cross_p * scale_p + last_p * shift_p


def _diagonal(factor: Tensor) -> Tensor:
    return factor if factor.ndim == 1 else factor.diagonal(dim1=-2, dim2=-1)
