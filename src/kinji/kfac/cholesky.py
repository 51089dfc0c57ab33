"""Damped factors of the Fisher blocks made ready to be solved with.

A small factor is inverted, and on a CUDA device any. A larger one keeps its Cholesky factor in blocks, with the
diagonal blocks inverted, so that factoring (``n^3 / 3`` operations) and both substitutions (those of one product with
an inverse) are nearly all matrix products, which run several times faster than LAPACK's triangular solves; the inverse,
another ``2 n^3 / 3`` operations, is never formed. On a CPU `kinji.kfac.blocked_cholesky` does so.

Dimension letters: n size of a factor, r right-hand sides; ... groups of a convolution, if any.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from kinji.kfac import blocked_cholesky
from kinji.kfac.blocked_cholesky import RESIDUAL, is_inverted, substitute
from kinji.kfac.products import times_transposed

ATTEMPTS = 24
"""Times ten to this power: how far the damping of an indefinite factor is raised before giving up."""


def prepare(factor: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    """Make ``factor + shift I`` ready for `solve`.

    Parameters
    ----------
    factor : (..., n, n)
        Symmetric positive semi-definite; the lower triangle is read.
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
    if factor.is_cuda:
        definite = _invert(_damp(out.copy_(factor), shift))
        return definite & _inverts(factor, shift, out)
    triples = zip(_matrices(factor), shift.flatten().tolist(), _matrices(out), strict=True)
    return torch.tensor(all(blocked_cholesky.prepare(*triple) for triple in triples))


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
    for attempt in range(ATTEMPTS if factor.tril().isfinite().all() else 0):
        double = _damp(factor.to(torch.float64, copy=True), shift)
        if _in_place(double) and out.copy_(double).tril().isfinite().all():
            if attempt:
                warnings.warn(f"{name} is indefinite; its damping was raised to {shift.max().item():.3g}", stacklevel=2)
            return
        shift = 10 * torch.maximum(shift, least)
    raise torch.linalg.LinAlgError(f"{name} is not finite or not positive semi-definite; no damping mends it")


def solve(prepared: Tensor, right_nr: Tensor) -> Tensor:
    """Apply the inverse of a prepared factor to right-hand sides (..., n, r)."""
    if prepared.is_cuda or is_inverted(prepared):
        return times_transposed(prepared, right_nr.mT)
    solution_nr = right_nr.clone(memory_format=torch.contiguous_format)
    for one, of_one in zip(_matrices(prepared), _matrices(solution_nr), strict=True):
        substitute(one, of_one)
    return solution_nr


def telling(prepared: Tensor) -> Tensor:
    """Return a prepared factor without what its memory holds above the diagonal of a triangle."""
    return prepared if prepared.is_cuda or is_inverted(prepared) else prepared.tril()


def _matrices(stack: Tensor) -> list[blocked_cholesky.Matrix]:
    """View the matrices of a CPU as NumPy's arrays."""
    return list(stack.view(-1, *stack.shape[-2:]).numpy())


def _damp(matrix: Tensor, shift: Tensor) -> Tensor:
    matrix.diagonal(dim1=-2, dim2=-1).add_(shift[..., None])
    return matrix


def _in_place(matrix: Tensor) -> bool:
    """Prepare a damped matrix; False, and nothing of use, if it is not definite."""
    if matrix.is_cuda:
        return bool(_invert(matrix))
    return all(blocked_cholesky.in_place(one) for one in _matrices(matrix))


def _invert(matrix: Tensor) -> Tensor:
    """Invert on a CUDA device, and return whether the matrix was definite."""
    lower, failed = torch.linalg.cholesky_ex(matrix)
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand_as(lower)
    inverted = torch.linalg.solve_triangular(lower, identity, upper=False)
    matrix.copy_(times_transposed(inverted.mT, inverted.mT))
    return (failed == 0).all()


def _inverts(factor: Tensor, shift: Tensor, inverse: Tensor) -> Tensor:
    """Whether the damped factor times what the inverse makes of a vector gives the vector back."""
    probe_n1 = torch.arange(factor.shape[-1], dtype=factor.dtype, device=factor.device).cos()[:, None]
    solution_n1 = solve(inverse, probe_n1.expand(*factor.shape[:-1], 1))
    product_n1 = factor.tril() @ solution_n1 + factor.tril(-1).mT @ solution_n1
    residual_n1 = product_n1 + shift[..., None, None] * solution_n1 - probe_n1
    return (residual_n1.norm(dim=(-2, -1)) <= RESIDUAL * probe_n1.norm()).all()
