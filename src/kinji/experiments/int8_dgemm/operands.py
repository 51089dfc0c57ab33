"""Operands that are hard in different ways.

Dimension letters: M rows of A, K inner dimension, N columns of B.
"""

from __future__ import annotations

import numpy as np
import torch

CARRIERS = 24 / 1024  # part of the inner dimension that carries the product of `hidden_small`
SPREAD_BITS = 60


def exponential(m: int, k: int, phi: float, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (m x k) and B (k x m) of entries (U - 1/2) exp(phi N(0, 1)), U uniform on [0, 1).

    Ootomo, Ozaki and Yokota, IJHPCA 38(4), 2024, section 4: phi sets the spread of the exponents.
    """
    rng = np.random.default_rng([seed, k, round(1000 * phi)])
    a, b = ((rng.random(shape) - 0.5) * np.exp(phi * rng.standard_normal(shape)) for shape in ((m, k), (k, m)))
    return torch.from_numpy(a).to(device), torch.from_numpy(b).to(device)


def hidden_small(m: int, k: int, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return operands whose product hangs on a few columns of A, 2^60 smaller than those that meet zeros in B."""
    rng = np.random.default_rng([seed, k])
    a, b = rng.uniform(1, 2, (m, k)), rng.uniform(1, 2, (k, m))
    carriers = max(1, round(CARRIERS * k))
    a[:, :carriers] *= 2.0**-SPREAD_BITS
    b[carriers:] = 0
    return torch.from_numpy(a).to(device), torch.from_numpy(b).to(device)


def inversely_scaled(m: int, k: int, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A D and D^-1 B, D of powers of two up to 2^60 either way: the product of two harmless operands."""
    a, b = exponential(m, k, 0.5, seed, device)
    exponents = np.random.default_rng([seed, k, SPREAD_BITS]).integers(-SPREAD_BITS, SPREAD_BITS + 1, k)
    d = torch.from_numpy(2.0**exponents).to(device)
    return a * d, b / d[:, None]


ADVERSARIAL = {"hidden_small": hidden_small, "inversely_scaled": inversely_scaled}
