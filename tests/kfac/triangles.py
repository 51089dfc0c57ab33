"""Symmetric matrices, of which the optimizer keeps the lower triangle."""

import torch
from torch import Tensor


def whole(lower: Tensor) -> Tensor:
    """Return the symmetric matrices (..., n, n) of lower triangles."""
    return lower.tril() + lower.tril(-1).mT


def lower_alone(symmetric: Tensor) -> Tensor:
    """Return symmetric matrices with something above the diagonals that must not be read."""
    return symmetric.where(torch.ones_like(symmetric).tril().bool(), torch.nan)
