"""A measured step carried over: from one rank to several with measured collectives, or to another network.

Each stage of a measured step is multiplied by what its operations or bytes grow by, so its rate need not be known.
"""

from __future__ import annotations

from collections.abc import Mapping

from kinji.cost.counts import BYTES, LayerCounts, NetworkCounts
from kinji.cost.step import Ownership, owners

STAGES = {
    "forward": "forward",
    "backward": "backward",
    "normalization": "normalization",
    "AllReduce of gradients": "SGD communication",
    "ReduceScatterV of gradients": "SGD communication",
    "AllGatherV of weights": "SGD communication",
    "update": "update",
    "factors": "K-FAC",
    "sampled gradients": "K-FAC",
    "inverses": "K-FAC",
    "preconditioning": "K-FAC",
    "ReduceScatterV of input statistics": "K-FAC communication",
    "ReduceScatterV of other statistics": "K-FAC communication",
}
"""The stages that a step is measured in, and the published part that each belongs to."""
COLLECTIVES = tuple(stage for stage, part in STAGES.items() if part.endswith("communication"))


def stage_work(
    counts: NetworkCounts, owning_ranks: int, ownership: Ownership = "balanced", *, refreshed: bool = True
) -> dict[str, float]:
    """Return what each stage has to do on the busiest rank: operations, or bytes where bytes bound it.

    The end of the last ReduceScatterV also unpacks the statistics of inputs.

    Parameters
    ----------
    counts
        Of the network on one rank.
    owning_ranks
        How many share inverses and updates; 1 for SGD.
    ownership
        Who inverts what; unit-wise normalizations.
    refreshed
        Whether owners invert; they are chosen for such steps, and in others another one may be busiest.
    """
    shares = _shares(counts, owning_ranks, ownership)
    owned = max(shares, key=lambda share: sum(x.owner_flops if refreshed else x.precondition_flops for x in share))
    gradients, inputs = counts.gradient_bytes, counts.input_statistic_bytes
    return {
        "forward": counts.forward_flops,
        "backward": counts.forward_flops,
        "normalization": counts.normalization_bytes,
        "AllReduce of gradients": gradients,
        "ReduceScatterV of gradients": gradients,
        "AllGatherV of weights": gradients,
        "update": BYTES * sum(layer.parameters for layer in owned),
        "factors": counts.factor_flops,
        "sampled gradients": counts.forward_flops,
        "inverses": sum(layer.inputs**3 + layer.outputs**3 for layer in owned) / 3,
        "preconditioning": sum(layer.precondition_flops for layer in owned),
        "ReduceScatterV of input statistics": inputs,
        "ReduceScatterV of other statistics": inputs + counts.gradient_statistic_bytes("unit-wise"),
    }


def carry_over(
    measured: Mapping[str, float], source: Mapping[str, float], target: Mapping[str, float]
) -> dict[str, float]:
    """Predict the stages of one step from those measured of another.

    Parameters
    ----------
    measured
        Seconds of each stage; those that the step does not have are left out.
    source, target
        What `stage_work` says of the step measured and of the one to predict.

    Returns
    -------
    dict
        Seconds of each stage that was measured.

    Raises
    ------
    ValueError
        A measured time is negative or not a number.
    """
    wrong = [stage for stage, seconds in measured.items() if not seconds >= 0]
    if wrong:
        raise ValueError(f"stages without a measured time: {', '.join(wrong)}")
    return {stage: seconds * target[stage] / source[stage] for stage, seconds in measured.items()}


def _shares(counts: NetworkCounts, ranks: int, ownership: Ownership) -> list[list[LayerCounts]]:
    """Return the layers of each rank."""
    shares: list[list[LayerCounts]] = [[] for _ in range(ranks)]
    for layer, owner in zip(counts.layers, owners(counts, ranks, ownership), strict=True):
        shares[owner].append(layer)
    return shares
