"""Seconds of a collective by the latency-bandwidth model: ``messages * latency + bytes / bandwidth``.

Ring and recursive halving: Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH",
2005. A ReduceScatterV of n bytes leaves each rank its part of them; an AllGatherV is the same the other way round, and
an all-reduce is one after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["ring", "halving"]


@dataclass(frozen=True)
class Link:
    """What one message costs.

    Attributes
    ----------
    latency
        Seconds of an empty message.
    bandwidth
        Bytes a second in one direction.
    """

    latency: float
    bandwidth: float


def reduce_scatter(size: float, ranks: int, link: Link, algorithm: Algorithm = "ring") -> float:
    """Return the seconds in which ranks sum vectors of some bytes, each keeping its part.

    Parameters
    ----------
    size
        Bytes of each rank's vector.
    ranks
        Number of ranks; one has nothing to do.
    link
        Between any two of them.
    algorithm
        ``ring``: ranks - 1 messages one after the other. ``halving``: log2(ranks) of them. Equally many bytes.
    """
    if ranks < 1:
        raise ValueError(f"a collective is shared by at least one rank, not {ranks}")
    messages = ranks - 1 if algorithm == "ring" else math.ceil(math.log2(ranks))
    return messages * link.latency + size * (ranks - 1) / ranks / link.bandwidth


def all_gather(size: float, ranks: int, link: Link, algorithm: Algorithm = "ring") -> float:
    """Return the seconds in which every rank gets the whole vector of some bytes, of which each has a part."""
    return reduce_scatter(size, ranks, link, algorithm)


def all_reduce(size: float, ranks: int, link: Link, algorithm: Algorithm = "ring") -> float:
    """Return the seconds in which every rank gets the sum of all vectors: a reduce-scatter, then an all-gather."""
    return reduce_scatter(size, ranks, link, algorithm) + all_gather(size, ranks, link, algorithm)


def hierarchical_reduce_scatter(
    size: float, ranks: int, ranks_per_node: int, inside: Link, between: Link, algorithm: Algorithm
) -> float:
    """Return the seconds of a reduce-scatter that first sums inside each node, then between nodes.

    Parameters
    ----------
    size
        Bytes of each rank's vector.
    ranks, ranks_per_node
        Nodes are full but for the last.
    inside
        Between two ranks of a node; a ring.
    between
        Of a whole node: its ranks share the bandwidth, each for its part of the vector.
    algorithm
        Between nodes.
    """
    if ranks < 1:
        raise ValueError(f"a collective is shared by at least one rank, not {ranks}")
    nodes = -(-ranks // ranks_per_node)
    in_node = reduce_scatter(size, min(ranks, ranks_per_node), inside)
    return in_node + reduce_scatter(size, nodes, between, algorithm)
