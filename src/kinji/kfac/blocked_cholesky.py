"""One damped factor on one thread of a CPU: inverted, or factored in blocks, with checks.

Left-looking: the panel of a block of columns is brought up to date by one product with all panels to its left. The
Cholesky factor ends up in the lower triangle; in the place of its diagonal blocks are their inverses.

Dimension letters: n size of a factor, r right-hand sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kinji.kfac import lapack
from kinji.kfac.lapack import Matrix
from kinji.kfac.triangle import panels

RESIDUAL = 1e-2
"""Largest relative residual of a solution in single precision."""
INVERTED = 512
"""Largest factor that is inverted."""
BLOCK = 192
"""Rows of a block of a larger one."""


def prepare(factor_nn: Matrix, shift: float, out_nn: Matrix) -> bool:
    """Write ``factor + shift I``, from its lower triangle, ready for `substitute` into ``out``; False if not good."""
    for place, panel in zip(panels(out_nn), panels(factor_nn), strict=True):
        np.copyto(place, panel)
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


def substitute(prepared_nn: Matrix, solution_nr: Matrix) -> None:
    """Replace right-hand sides by solutions."""
    blocks = _blocks(prepared_nn)
    for rows in blocks:
        known = slice(0, rows.start)
        lapack.subtract_product(solution_nr[rows], prepared_nn[rows, known], solution_nr[known].T)
        lapack.triangle_times(prepared_nn[rows, rows], solution_nr[rows])
    for rows in reversed(blocks):
        known = slice(rows.stop, None)
        lapack.subtract_product(solution_nr[rows], prepared_nn[known, rows].T, solution_nr[known].T)
        lapack.transposed_triangle_times(prepared_nn[rows, rows], solution_nr[rows])


def _solves(factor_nn: Matrix, shift: float, prepared_nn: Matrix) -> bool:
    """Whether the damped factor times the solution gives a vector back."""
    probe_n = np.cos(np.arange(len(factor_nn))).astype(factor_nn.dtype)
    if is_inverted(prepared_nn):
        solution_n = prepared_nn @ probe_n
    else:
        solution_n = probe_n.copy()
        substitute(prepared_nn, solution_n[:, None])
    residual_n = lapack.times_symmetric(factor_nn, solution_n) + shift * solution_n - probe_n
    return bool(np.linalg.norm(residual_n) <= RESIDUAL * np.linalg.norm(probe_n))


def _factor_panel(matrix_nn: Matrix, rows: slice) -> bool:
    """Turn a block of columns into one of the Cholesky factor, from those to its left."""
    diagonal, below = matrix_nn[rows, rows], matrix_nn[rows.stop :, rows]
    lapack.subtract_product(
        matrix_nn[rows.start :, rows], matrix_nn[rows.start :, : rows.start], matrix_nn[rows, : rows.start]
    )
    if not lapack.cholesky(diagonal):
        return False
    lapack.invert_triangle(diagonal)
    lapack.times_transposed_triangle(below, diagonal)
    return True


def _blocks(matrix_nn: Matrix) -> list[slice]:
    n = len(matrix_nn)
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
