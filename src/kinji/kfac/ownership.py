"""Stage 3: which rank inverts and updates which layer.

Every layer has one owner, so inversion is model-parallel. The longest job bounds the step, hence the balance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

OwnershipRule = Literal["balanced", "contiguous"]


def inversion_flops(inputs: int, outputs: int) -> int:
    """Operations of a Kronecker block: two Cholesky factorizations and their four triangular solves."""
    return (inputs**3 + outputs**3) // 3 + 2 * inputs * outputs * (inputs + outputs)


def assign_owners(costs: Sequence[float], ranks: int, rule: OwnershipRule = "balanced") -> list[int]:
    """Give each layer an owner.

    Parameters
    ----------
    costs
        Work of each layer, in any unit.
    ranks
        Number of processes; some own nothing if there are more of them than layers.
    rule
        ``balanced``: longest processing time first (Graham 1969), at most 4/3 of the best possible longest
        share. ``contiguous``: equally many neighbouring layers for each rank, as the code released with the
        CVPR 2019 paper.

    Returns
    -------
    list of int
        The owner of each layer.
    """
    if ranks < 1:
        raise ValueError(f"layers are shared among at least one rank, not {ranks}")
    rules: dict[OwnershipRule, Callable[[Sequence[float], int], list[int]]] = {
        "balanced": _longest_first,
        "contiguous": _contiguous,
    }
    if rule not in rules:
        raise ValueError(f"ownership is one of {', '.join(rules)}, not {rule!r}")
    return rules[rule](costs, ranks)


def makespan(costs: Sequence[float], owners: Sequence[int]) -> float:
    """Work of the busiest rank."""
    return float(np.bincount(owners, weights=costs).max())


def _longest_first(costs: Sequence[float], ranks: int) -> list[int]:
    owners, load = [0] * len(costs), np.zeros(ranks)
    for layer in sorted(range(len(costs)), key=lambda k: -costs[k]):
        owners[layer] = int(load.argmin())
        load[owners[layer]] += costs[layer]
    return owners


def _contiguous(costs: Sequence[float], ranks: int) -> list[int]:
    shares = np.array_split(np.arange(len(costs)), ranks)
    return [rank for rank, share in enumerate(shares) for _ in share]
