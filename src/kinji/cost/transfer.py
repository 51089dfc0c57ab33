"""A measured step carried over: from one rank to several with measured collectives, or to another network.

Each part of the measured step is multiplied by what its operations or bytes grow by. The rates that cancel need not be
known; products, factorizations and solves are taken to run at one rate, as they nearly do on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping

from kinji.cost.collectives import Link, all_gather, all_reduce, reduce_scatter
from kinji.cost.counts import NetworkCounts
from kinji.cost.step import PARTS, Ownership, owners
from kinji.kfac.ownership import makespan


def transfer(
    measured: Mapping[str, float],
    source: NetworkCounts,
    target: NetworkCounts,
    ranks: int,
    link: Link,
    ownership: Ownership = "balanced",
) -> dict[str, float]:
    """Predict the parts of a step on some ranks from those measured on one.

    Parameters
    ----------
    measured
        Seconds of each part of a step on one rank; ``K-FAC`` is 0 for SGD.
    source, target
        Counts of the network measured and of the one to predict, on one rank.
    ranks
        To predict; each has the cores that the one measured had.
    link
        Measured between two ranks, see `fit_link`.
    ownership
        Who inverts what.

    Returns
    -------
    dict
        Seconds of each part.

    Raises
    ------
    ValueError
        A part is missing, or was measured as negative.
    """
    missing = [part for part in PARTS if not measured.get(part, -1.0) >= 0]
    if missing:
        raise ValueError(f"parts without a measured time: {', '.join(missing)}")
    second_order = measured["K-FAC"] > 0
    grown = {
        "forward": target.forward_flops / source.forward_flops,
        "backward": target.forward_flops / source.forward_flops,
        "normalization": target.normalization_bytes / source.normalization_bytes,
        "update": target.gradient_bytes / source.gradient_bytes,
        "K-FAC": _second_order_flops(target, ranks, ownership) / _second_order_flops(source, 1, ownership),
    }
    parts = {part: measured[part] * grown.get(part, 0.0) for part in PARTS}
    return parts | _communication(target, ranks, link, second_order)


def fit_link(size: float, passes: int, ranks: int, seconds: float) -> Link:
    """Return the link whose ring collectives take the measured seconds, its latency neglected.

    Parameters
    ----------
    size
        Bytes of the vector.
    passes
        2 of an all-reduce; 1 of a ReduceScatterV or AllGatherV.
    ranks
        On which it was measured; more than one.
    seconds
        Measured.
    """
    if ranks < 2 or seconds <= 0:
        raise ValueError(f"a link is measured between at least two ranks and takes time, not {ranks} and {seconds} s")
    return Link(0.0, passes * size * (ranks - 1) / ranks / seconds)


def _second_order_flops(counts: NetworkCounts, ranks: int, ownership: Ownership) -> float:
    owned = makespan([layer.owner_flops for layer in counts.layers], owners(counts, ranks, ownership))
    return counts.factor_flops + owned


def _communication(counts: NetworkCounts, ranks: int, link: Link, second_order: bool) -> dict[str, float]:
    gradients = counts.gradient_bytes
    if not second_order:
        return {"SGD communication": all_reduce(gradients, ranks, link), "K-FAC communication": 0.0}
    statistics = counts.input_statistic_bytes + counts.gradient_statistic_bytes("unit-wise")
    shared = reduce_scatter(gradients, ranks, link) + all_gather(gradients, ranks, link)
    return {"SGD communication": shared, "K-FAC communication": reduce_scatter(statistics, ranks, link)}
