"""Machines a step can be modelled on: their nodes and what links them, as data with sources."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from kinji.cost.collectives import Algorithm, Link, hierarchical_reduce_scatter


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """Nodes of some GPUs and the links inside and between them.

    Attributes
    ----------
    name
        As asked for.
    gpus_per_node
        Ranks that share a node.
    inside
        Between two GPUs of a node.
    between
        Of a whole node to the others.
    algorithm
        Of the collectives between nodes.
    source
        Where the numbers are from.
    """

    name: str
    gpus_per_node: int
    inside: Link
    between: Link
    algorithm: Algorithm
    source: str

    def attained(self, efficiency: float, latency: float) -> Fabric:
        """Return the fabric at the share of its bandwidth that collectives attain, and with their own latency."""
        return replace(
            self,
            inside=Link(self.inside.latency, efficiency * self.inside.bandwidth),
            between=Link(latency, efficiency * self.between.bandwidth),
        )

    def reduce_scatter(self, size: float, gpus: int) -> float:
        """Return the seconds of a ReduceScatterV, or of an AllGatherV, of vectors of some bytes."""
        return hierarchical_reduce_scatter(size, gpus, self.gpus_per_node, self.inside, self.between, self.algorithm)


FABRICS = {
    fabric.name: fabric
    for fabric in (
        Fabric(
            name="abci",
            gpus_per_node=4,
            inside=Link(latency=10e-6, bandwidth=50e9),
            between=Link(latency=10e-6, bandwidth=25e9),
            algorithm="halving",
            source="ABCI user guide, system overview, compute node (V): four V100 and two InfiniBand EDR ports of "
            "100 Gbit/s a node; V100: six NVLinks of 25 GB/s, two to each of the three others. Trees between nodes: "
            "NCCL 2.4. Latency: assumed, then fitted.",
        ),
        Fabric(
            name="ethernet",
            gpus_per_node=1,
            inside=Link(latency=10e-6, bandwidth=1.25e9),
            between=Link(latency=50e-6, bandwidth=1.25e9),
            algorithm="ring",
            source="10 Gbit/s (IEEE 802.3ae), one GPU a node; the latency is assumed.",
        ),
    )
}


def find_fabric(name: str) -> Fabric:
    """Return a fabric by name; raise ValueError naming those there are."""
    if name not in FABRICS:
        nearest = difflib.get_close_matches(name, FABRICS, n=1, cutoff=0.0)[0]
        raise ValueError(f"no fabric {name!r}. Did you mean {nearest!r}? Known: {', '.join(FABRICS)}.")
    return FABRICS[name]
