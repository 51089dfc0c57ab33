"""One training step of SGD or K-FAC split into the seven published parts, from counts, rates and a fabric.

Stages as in Osawa et al., "Scalable and practical natural gradient", arXiv 2002.06015: the factors A travel while the
backward pass runs, everything else one after the other; owners invert and precondition their layers, and the busiest
of them is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from kinji.cost.counts import (
    BYTES,
    NORMALIZATION_BACKWARD_PASSES,
    NORMALIZATION_PASSES,
    UPDATE_PASSES,
    LayerCounts,
    NetworkCounts,
)
from kinji.cost.fabrics import Fabric
from kinji.kfac.ownership import assign_owners, makespan

Ownership = Literal["balanced", "contiguous", "released"]
Fisher = Literal["empirical", "sampled"]
BatchNorm = Literal["unit-wise", "full"]

PARTS = ("forward", "backward", "normalization", "SGD communication", "update", "K-FAC", "K-FAC communication")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device does in a second.

    Attributes
    ----------
    pass_flops
        Operations of the forward and backward pass.
    product_flops
        Operations of the products that form factors and precondition.
    inverse_flops
        Operations of inverting a large symmetric matrix.
    half_size
        Order of a matrix that is inverted at half that rate (Hockney's n_1/2).
    matrix_seconds
        Not operations but seconds: overhead of inverting one matrix.
    memory_bytes
        Bytes read or written.
    """

    pass_flops: float
    product_flops: float
    inverse_flops: float
    half_size: float
    matrix_seconds: float
    memory_bytes: float

    def inversion_seconds(self, n: int) -> float:
        """Return the seconds of inverting a symmetric (n, n) matrix: Cholesky, then the identity solved for."""
        return self.matrix_seconds + 7 / 3 * n**2 * (n + self.half_size) / self.inverse_flops


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a step is made.

    Attributes
    ----------
    optimizer
        ``SGD`` leaves the last two parts out, and what follows here without a meaning.
    fisher
        ``empirical``: from the gradients at hand. ``sampled``: of one sampled label, by another backward pass.
    batch_norm
        ``unit-wise``: a 2 x 2 block per channel. ``full``: one matrix per normalization.
    refreshed
        Share of the statistics that an average step forms, sends and inverts.
    ownership
        As `kinji.kfac.ownership.assign_owners`, or ``released``: contiguous among the layers sorted by name, as in the
        code released with Osawa et al. 2019 (github.com/tyohei/chainerkfac, optimizers/kfac.py).
    """

    optimizer: Literal["SGD", "K-FAC"] = "K-FAC"
    fisher: Fisher = "empirical"
    batch_norm: BatchNorm = "unit-wise"
    refreshed: float = 1.0
    ownership: Ownership = "released"

    def __post_init__(self) -> None:
        options: dict[str, tuple[str, ...]] = {"fisher": get_args(Fisher), "batch_norm": get_args(BatchNorm)}
        options |= {"optimizer": ("SGD", "K-FAC"), "ownership": get_args(Ownership)}
        for name, known in options.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        if not 0 <= self.refreshed <= 1:
            raise ValueError(f"refreshed={self.refreshed}: must be a share from 0 to 1")


@dataclass(frozen=True)
class Step:
    """Seconds of a step by part, which add up to it, and those of communication hidden behind the backward pass."""

    parts: dict[str, float]
    hidden_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of the step."""
        return sum(self.parts.values())

    @property
    def second_order_share(self) -> float:
        """Share of the step that SGD does not have."""
        return (self.parts["K-FAC"] + self.parts["K-FAC communication"]) / self.seconds


def predict(counts: NetworkCounts, plan: Plan, gpus: int, fabric: Fabric, rates: Rates) -> Step:
    """Model one step on some GPUs.

    Parameters
    ----------
    counts
        Operations and bytes on one GPU.
    plan
        How the step is made.
    gpus
        Number of ranks, which all get as many examples.
    fabric
        As attained by the collectives, see `Fabric.attained`.
    rates
        Of one GPU.
    """
    if gpus < 1:
        raise ValueError(f"a step runs on at least one GPU, not {gpus}")
    forward = counts.forward_flops / rates.pass_flops
    parts = dict.fromkeys(PARTS, 0.0) | {
        "forward": forward,
        "backward": 2 * forward,
        "normalization": counts.normalization_bytes / rates.memory_bytes,
        "SGD communication": 2 * fabric.reduce_scatter(counts.gradient_bytes, gpus),
        "update": UPDATE_PASSES * counts.gradient_bytes / rates.memory_bytes,
    }
    if plan.optimizer == "SGD":
        return Step(parts, 0.0)
    parts["K-FAC"] = _statistics_seconds(counts, plan, rates, parts) + _busiest_owner(counts, plan, gpus, rates)
    exposed, hidden = _statistics_travel(counts, plan, gpus, fabric, rates, parts["backward"])
    parts["K-FAC communication"] = plan.refreshed * exposed
    return Step(parts, plan.refreshed * hidden)


def _statistics_seconds(counts: NetworkCounts, plan: Plan, rates: Rates, parts: dict[str, float]) -> float:
    """Form the factors; a sampled Fisher matrix differentiates once more."""
    formed = counts.factor_flops / rates.product_flops + counts.patch_bytes / rates.memory_bytes
    again = NORMALIZATION_BACKWARD_PASSES / NORMALIZATION_PASSES * parts["normalization"] + parts["backward"]
    return plan.refreshed * formed + (again if plan.fisher == "sampled" else 0.0)


def _statistics_travel(
    counts: NetworkCounts, plan: Plan, gpus: int, fabric: Fabric, rates: Rates, backward: float
) -> tuple[float, float]:
    """Pack and reduce; return what is seen of it and what the backward pass hides."""
    if gpus == 1:
        return 0.0, 0.0
    early, late = counts.input_statistic_bytes, counts.gradient_statistic_bytes(plan.batch_norm)
    travel = fabric.reduce_scatter(early, gpus)
    hidden = min(travel, backward)
    packing = 4 * (early + late) / rates.memory_bytes  # the square matrix read and the triangle written, there and back
    return packing + travel - hidden + fabric.reduce_scatter(late, gpus), hidden


def _busiest_owner(counts: NetworkCounts, plan: Plan, gpus: int, rates: Rates) -> float:
    """Invert and precondition the layers of the rank that has most to do."""
    seconds = [_owned_seconds(layer, plan, rates) for layer in counts.layers]
    return makespan(seconds, owners(counts, gpus, plan.ownership))


def _owned_seconds(layer: LayerCounts, plan: Plan, rates: Rates) -> float:
    if layer.inputs:
        inverted = sum(rates.inversion_seconds(n) for n in (layer.inputs, layer.outputs))
        return plan.refreshed * inverted + layer.precondition_flops / rates.product_flops
    if layer.channels and plan.batch_norm == "full":
        n = 2 * layer.channels
        return plan.refreshed * rates.inversion_seconds(n) + BYTES * n**2 / rates.memory_bytes
    return 0.0


@lru_cache(maxsize=256)
def owners(counts: NetworkCounts, gpus: int, ownership: Ownership) -> tuple[int, ...]:
    """Return the owner of each layer, by the assignment that `kinji.kfac` uses."""
    costs = [layer.owner_flops for layer in counts.layers]
    if ownership != "released":
        return tuple(assign_owners(costs, gpus, ownership))
    by_name = sorted(range(len(costs)), key=lambda k: _released_name(counts.layers[k].name))
    owners_by_name = assign_owners([costs[k] for k in by_name], gpus, "contiguous")
    found = np.empty(len(costs), dtype=int)
    found[by_name] = owners_by_name
    return tuple(found.tolist())


def _released_name(name: str) -> str:
    """Name a layer as the released network does: the shortcut's layers are the fourth of their block."""
    return name.replace("downsample.0", "conv4").replace("downsample.1", "bn4")
