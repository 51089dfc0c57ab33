"""Whether infinities and NaNs come out where native DGEMM puts them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from kinji.experiments.cases import Int8DgemmCase
from kinji.experiments.context import Context
from kinji.experiments.int8_dgemm.operands import exponential
from kinji.experiments.int8_dgemm.sides import NARROW, Observation, moduli_side, slices_side

SPECIAL = (torch.nan, torch.inf, -torch.inf, 0.0)
SPECIAL_ENTRIES = 20


def compare_kinds(case: Int8DgemmCase, context: Context, device: torch.device) -> Iterator[Observation]:
    """Yield, for each scheme, the entries of another kind than native DGEMM's, of how many that are special."""
    a, b = exponential(min(case.n, NARROW), case.n, 1.0, case.seed, device)
    rng = np.random.default_rng([case.seed, case.n, len(SPECIAL)])
    for operand in (a, b):
        for value in SPECIAL:
            rows, columns = (torch.from_numpy(rng.integers(size, size=SPECIAL_ENTRIES // 4)) for size in operand.shape)
            operand[rows, columns] = value
    native = _kinds(a @ b)
    for side in context.progress.track((slices_side(9), moduli_side(15)), "infinities and NaNs"):
        different = int((_kinds(side.multiply(a, b)) != native).sum())
        special = int((native != 0).sum())
        observed: Observation = {"different_kinds": different, "special_entries": special}
        yield {"quantity": "non_finite", "method": side.method, "count": side.count, **observed}


def _kinds(product: torch.Tensor) -> torch.Tensor:
    return product.isnan() * 3 + product.isposinf() * 1 + product.isneginf() * 2
