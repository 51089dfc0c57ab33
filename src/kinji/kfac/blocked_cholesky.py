"""One damped factor on one thread of a CPU: inverted, or factored in blocks, with checks.

Left-looking: the panel of a block of columns is brought up to date by one product with all panels to its left. The
Cholesky factor ends up in the lower triangle and, transposed, in the upper one, so that both substitutions go by rows;
in the place of its diagonal blocks are their inverses.

Dimension letters: n size of a factor, r right-hand sides; ... groups of a convolution, if any.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from kinji.kfac import lapack
from kinji.kfac.lapack import Matrix

RESIDUAL = 1e-2
"""Largest relative residual of a solution in single precision."""
INVERTED = 512
"""Largest factor that is inverted."""
BLOCK = 256
"""Rows of a block of a larger one."""


def prepare(factor_nn: Matrix, shift: float, out_nn: Matrix) -> bool:
    """Write ``factor + shift I`` made ready for `substitute` into ``out``; False if that did not go well."""
    np.copyto(out_nn, factor_nn)
    np.einsum("ii->i", out_nn)[:] += shift
    with np.errstate(all="ignore"):  # what is not finite does not solve
        return in_place(out_nn) and _solves(factor_nn, shift, out_nn)


def in_place(matrix_nn: Matrix) -> bool:
    """Prepare a damped matrix; False, and nothing of use, if it is not definite."""
    if not is_inverted(matrix_nn):
        return all(_factor_panel(matrix_nn, rows) for rows in _blocks(matrix_nn))
    if not lapack.cholesky(matrix_nn):
        return False
    lapack.invert_triangle(matrix_nn)
    lapack.square_triangle(matrix_nn)
    lapack.mirror(matrix_nn)
    return True


def is_inverted(prepared: Any) -> bool:
    """Whether what was prepared on a CPU is the inverse."""
    return bool(prepared.shape[-1] <= INVERTED)


def substitute(prepared: Any, solution_nr: Any, product: Callable[[Any, Any], Any]) -> None:
    """Replace right-hand sides (..., n, r) by solutions; arrays or tensors, as their product is given."""
    blocks = _blocks(prepared)
    for rows in blocks:
        known = slice(0, rows.start)
        right = solution_nr[..., rows, :] - product(prepared[..., rows, known], solution_nr[..., known, :])
        solution_nr[..., rows, :] = product(prepared[..., rows, rows], right)
    for rows in reversed(blocks):
        known = slice(rows.stop, None)
        right = solution_nr[..., rows, :] - product(prepared[..., rows, known], solution_nr[..., known, :])
        solution_nr[..., rows, :] = product(prepared[..., rows, rows].mT, right)


def _solves(factor_nn: Matrix, shift: float, prepared_nn: Matrix) -> bool:
    """Whether the damped factor times the solution gives a vector back."""
    probe_n = np.cos(np.arange(len(factor_nn))).astype(factor_nn.dtype)
    if is_inverted(prepared_nn):
        solution_n = prepared_nn @ probe_n
    else:
        solution_n = probe_n.copy()
        substitute(prepared_nn, solution_n[:, None], operator.matmul)
    residual_n = lapack.times_symmetric(factor_nn, solution_n) + shift * solution_n - probe_n
    return bool(np.linalg.norm(residual_n) <= RESIDUAL * np.linalg.norm(probe_n))


def _factor_panel(matrix_nn: Matrix, rows: slice) -> bool:
    """Turn a block of columns into one of the Cholesky factor, from those to its left, and mirror it."""
    diagonal, below = matrix_nn[rows, rows], matrix_nn[rows.stop :, rows]
    lapack.subtract_product(
        matrix_nn[rows.start :, rows], matrix_nn[rows.start :, : rows.start], matrix_nn[rows, : rows.start]
    )
    if not lapack.cholesky(diagonal):
        return False
    lapack.invert_triangle(diagonal)
    diagonal[:] = np.tril(diagonal)
    lapack.times_transposed_triangle(below, diagonal)
    lapack.transpose(below, matrix_nn[rows, rows.stop :])
    return True


def _blocks(matrix: Any) -> list[slice]:
    n = matrix.shape[-1]
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
