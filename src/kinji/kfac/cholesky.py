"""Damped factors of the Fisher blocks made ready to be solved with.

A small factor is inverted, and on a CUDA device any. A larger one keeps its Cholesky factor in blocks, with the
diagonal blocks inverted, so that factoring (``n^3 / 3`` operations) and both substitutions (those of one product with
an inverse) are nearly all matrix products, which run several times faster than LAPACK's triangular solves; the inverse,
another ``2 n^3 / 3`` operations, is never formed.

Dimension letters: n size of a factor, r right-hand sides; ... groups of a convolution, if any.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from kinji.kfac.products import times_transposed

ATTEMPTS = 24
"""Times ten to this power: how far the damping of an indefinite factor is raised before giving up."""
RESIDUAL = 1e-2
"""Largest relative residual of a solution in single precision."""
INVERTED = 512
"""Largest factor that is inverted."""
BLOCK = 256
"""Rows of a block of a larger one."""


def prepare(factor: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    """Make ``factor + shift I`` ready for `solve`.

    Parameters
    ----------
    factor : (..., n, n)
        Symmetric positive semi-definite.
    shift : (...)
        Its damping.
    out : (..., n, n)
        Memory of the result.

    Returns
    -------
    ()
        Whether that went well, left on the device, as a host that waits for each factor keeps a GPU idle; `mend` it
        if not.
    """
    definite = _in_place(_damp(out.copy_(factor), shift))
    return definite & _solves(factor, shift, out)


def mend(factor: Tensor, shift: Tensor, name: str, out: Tensor) -> None:
    """Do what `prepare` could not, in double precision.

    A factor that rounding has made indefinite is given ten times the damping until it is not, with a warning that
    calls it by ``name``. Other parameters are those of `prepare`.

    Raises
    ------
    torch.linalg.LinAlgError
        The factor stays indefinite, or is not finite.
    """
    least = torch.finfo(factor.dtype).eps * factor.diagonal(dim1=-2, dim2=-1).abs().mean(-1)
    for attempt in range(ATTEMPTS if factor.isfinite().all() else 0):
        double = _damp(factor.to(torch.float64, copy=True), shift)
        definite = _in_place(double)
        if definite and out.copy_(double).isfinite().all():
            if attempt:
                warnings.warn(f"{name} is indefinite; its damping was raised to {shift.max().item():.3g}", stacklevel=2)
            return
        shift = 10 * torch.maximum(shift, least)
    raise torch.linalg.LinAlgError(f"{name} is not finite or not positive semi-definite; no damping mends it")


def solve(prepared: Tensor, right_nr: Tensor) -> Tensor:
    """Apply the inverse of a prepared factor to right-hand sides (..., n, r)."""
    if _is_inverted(prepared):
        return times_transposed(prepared, right_nr.mT)
    solution_nr = right_nr.clone(memory_format=torch.contiguous_format)
    blocks = _blocks(prepared)
    for rows in blocks:
        _substitute(prepared, solution_nr, rows, slice(0, rows.start), lower=True)
    for rows in reversed(blocks):
        _substitute(prepared, solution_nr, rows, slice(rows.stop, None), lower=False)
    return solution_nr


def _is_inverted(matrix: Tensor) -> bool:
    return matrix.is_cuda or matrix.shape[-1] <= INVERTED


def _damp(matrix: Tensor, shift: Tensor) -> Tensor:
    matrix.diagonal(dim1=-2, dim2=-1).add_(shift[..., None])
    return matrix


def _solves(factor: Tensor, shift: Tensor, prepared: Tensor) -> Tensor:
    """Whether the damped factor times the solution gives a vector back."""
    probe_n1 = torch.arange(factor.shape[-1], dtype=factor.dtype, device=factor.device).cos()[:, None]
    solution_n1 = solve(prepared, probe_n1.expand(*factor.shape[:-1], 1))
    residual_n1 = factor @ solution_n1 + shift[..., None, None] * solution_n1 - probe_n1
    return (residual_n1.norm(dim=(-2, -1)) <= RESIDUAL * probe_n1.norm()).all()


def _in_place(matrix: Tensor) -> Tensor:
    """Prepare a positive definite matrix; False, and nothing of use, if it is not definite."""
    if not _is_inverted(matrix):
        return torch.stack([_factor_column(matrix, rows) for rows in _blocks(matrix)]).all()
    inverted, definite = _inverse_of_factor(matrix)
    matrix.copy_(times_transposed(inverted.mT, inverted.mT))
    return definite


def _inverse_of_factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverse of the Cholesky factor, and whether there is one."""
    lower, failed = torch.linalg.cholesky_ex(matrix)
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand_as(lower)
    return torch.linalg.solve_triangular(lower, identity, upper=False), (failed == 0).all()


def _factor_column(matrix: Tensor, rows: slice) -> Tensor:
    """Turn a column of blocks into one of the Cholesky factor, mirrored, from those to its left."""
    below, left = slice(rows.stop, None), slice(0, rows.start)
    done = matrix[..., rows, left]
    matrix[..., rows.start :, rows] -= times_transposed(matrix[..., rows.start :, left], done)
    inverted, definite = _inverse_of_factor(matrix[..., rows, rows])
    matrix[..., rows, rows] = inverted
    matrix[..., below, rows] = times_transposed(matrix[..., below, rows], inverted)
    matrix[..., rows, below] = matrix[..., below, rows].mT
    return definite


def _substitute(prepared: Tensor, solution_nr: Tensor, rows: slice, known: slice, *, lower: bool) -> None:
    """Solve for the rows of one block, given the rows that are known."""
    diagonal = prepared[..., rows, rows] if lower else prepared[..., rows, rows].mT
    right = solution_nr[..., rows, :] - times_transposed(prepared[..., rows, known], solution_nr[..., known, :].mT)
    solution_nr[..., rows, :] = times_transposed(diagonal, right.mT)


def _blocks(matrix: Tensor) -> list[slice]:
    n = matrix.shape[-1]
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
