"""Symmetric matrices of which the lower triangle counts.

A symmetric statistic is formed, kept, sent and read in its lower triangle alone; above is whatever the memory held.

Dimension letters: n size of a matrix; ... groups of a convolution, if any.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

PANEL = 256
"""Rows of a panel: few for little above the diagonal, many for few calls."""


def panels(matrix: Any, symmetric: bool = True) -> list[Any]:
    """View what counts of a tensor or array: the lower triangle as panels of rows up to the diagonal, or all of it."""
    if not symmetric:
        return [matrix]
    stops = range(PANEL, matrix.shape[-1] + PANEL, PANEL)
    return [matrix[..., stop - PANEL : stop, :stop] for stop in stops]


def squared_norm_(part: Tensor, symmetric: bool = True) -> Tensor:
    """Write zeros above the diagonal and return the squared Frobenius norm (), of a panel with its mirror image.

    The sum is BLAS's, whose rounding stays small where that of `torch.norm` on a CPU reaches 1e-3.
    """
    if not symmetric:
        return _square(part)
    known = part.shape[-1] - part.shape[-2]
    part[..., known:].tril_()
    return 2 * _square(part) - _square(part.diagonal(known, -2, -1))


def _square(tensor: Tensor) -> Tensor:
    vector = tensor.flatten()
    return vector.dot(vector)
