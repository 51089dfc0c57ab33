"""Stage 2: damping and inversion of the Fisher blocks.

A Kronecker block is damped factor by factor (factored Tikhonov damping, Martens and Grosse 2015, as SP-NGD
uses it). With ``l`` the damping, its inverse is ``(G + sqrt(l) / pi I)^-1 (x) (A + pi sqrt(l) I)^-1``, where
``pi^2 = mean eigenvalue of A / mean eigenvalue of G``.

No inverse is formed: the Cholesky factors are kept and applied by two triangular solves, which cost the
operations of the product with an inverse. That leaves ``n^3 / 3`` operations of the ``n^3`` that factoring
and inverting take, and is the more accurate of the two.

Dimension letters: i inputs (with the bias's coordinate), o outputs, c channels, b factors of one size, n that
size.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

ATTEMPTS = 24
"""Times ten to this power: how far the damping of an indefinite factor is raised before giving up."""


def damping_shifts(a_ii: Tensor, g_oo: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Split the damping between the two factors of a block by the pi correction.

    Returns
    -------
    tuple of 0-dimensional tensors
        What to add to the diagonals of ``A`` and of ``G``. A factor that vanishes (a layer that saw no
        signal) has no pi; there it is 1.
    """
    mean_a, mean_g = a_ii.diagonal().mean(), g_oo.diagonal().mean()
    pi = torch.where((mean_a > 0) & (mean_g > 0), (mean_a / mean_g).sqrt(), torch.ones_like(mean_a))
    return pi * damping**0.5, damping**0.5 / pi


def damped_cholesky(factor: Tensor, shift: Tensor, name: str, out: Tensor) -> Tensor:
    """Factor ``factor + shift I = L L^T`` in place of ``out``.

    Parameters
    ----------
    factor : (n, n)
        Symmetric positive semi-definite; only the upper triangle is read.
    shift : ()
        Its damping.
    name
        What to call it in a message.
    out : (n, n)
        Where to put ``L``; best stored by columns, as LAPACK wants it.

    Returns
    -------
    (n, n)
        ``out``. A factor that rounding has made indefinite is given ten times more damping until it is not, with a
        warning.

    Raises
    ------
    numpy.linalg.LinAlgError
        The factor is not finite, or stays indefinite.
    """
    if _factored(factor, shift, out):
        return out
    shift = torch.maximum(shift, torch.finfo(factor.dtype).eps * factor.diagonal().abs().mean())
    for _ in range(ATTEMPTS if factor.isfinite().all() else 0):
        shift = 10 * shift
        if _factored(factor, shift, out):
            warnings.warn(f"{name} is indefinite; its damping was raised to {shift.item():.3g}", stacklevel=2)
            return out
    raise np.linalg.LinAlgError(f"{name} is not finite or not positive semi-definite; no damping mends it")


def precondition(gradient_oi: Tensor, lower_ii: Tensor, lower_oo: Tensor) -> Tensor:
    """Apply ``(G (x) A)^-1`` to a gradient: ``G^-1 gradient A^-1``, from the two lower Cholesky factors."""
    right_oi = torch.cholesky_solve(gradient_oi.T, lower_ii).T
    return torch.cholesky_solve(right_oi, lower_oo)


def unit_wise_inverse(fisher_3c: Tensor, damping: float, name: str) -> Tensor:
    """Invert ``F + damping I`` for each channel's 2 x 2 matrix in closed form.

    Parameters
    ----------
    fisher_3c : (3, c)
        Upper triangles, as `kinji.kfac.statistics.unit_wise_fisher` forms them.

    Returns
    -------
    (3, c)
        Upper triangles of the inverses.

    Raises
    ------
    numpy.linalg.LinAlgError
        A channel's matrix is singular (only without damping) or not finite.
    """
    scale_c, cross_c, shift_c = fisher_3c
    # a Gram matrix's determinant is not negative, but its rounding may be
    gram_c = (scale_c * shift_c - cross_c * cross_c).clamp_min(0)
    determinant_c = gram_c + damping * (scale_c + shift_c) + damping * damping
    inverse_3c = torch.stack([shift_c + damping, -cross_c, scale_c + damping]) / determinant_c
    if not inverse_3c.isfinite().all():
        raise np.linalg.LinAlgError(f"{name}: a channel's 2 x 2 matrix has no inverse; damping is {damping}")
    return inverse_3c


def precondition_unit_wise(scale_c: Tensor, shift_c: Tensor, inverse_3c: Tensor) -> tuple[Tensor, Tensor]:
    """Apply each channel's 2 x 2 inverse to the gradients of its scale and shift."""
    first_c, cross_c, last_c = inverse_3c
    return first_c * scale_c + cross_c * shift_c, cross_c * scale_c + last_c * shift_c


def _factored(factor: Tensor, shift: Tensor, out: Tensor) -> bool:
    """Put the Cholesky factor of the damped matrix into ``out`` and tell whether there is one."""
    out.copy_(factor.T).diagonal().add_(shift)  # both stored by columns: the upper triangle lands in the lower
    failed = torch.empty((), dtype=torch.int32, device=out.device)
    torch.linalg.cholesky_ex(out, out=(out, failed))
    return not failed.item()
