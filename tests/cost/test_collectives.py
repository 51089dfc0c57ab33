"""Collectives against textbook formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinji.cost.collectives import Link, all_gather, all_reduce, hierarchical_reduce_scatter, reduce_scatter
from kinji.cost.fabrics import FABRICS, find_fabric

LINK = Link(latency=2e-6, bandwidth=10e9)
RANKS = st.integers(1, 4096)
SIZES = st.floats(0, 1e9)


@given(RANKS, SIZES)
def test_a_ring_sends_one_share_to_each_neighbour(ranks, size):
    by_messages = sum(LINK.latency + size / ranks / LINK.bandwidth for _ in range(ranks - 1))
    assert reduce_scatter(size, ranks, LINK) == pytest.approx(by_messages, rel=1e-9, abs=1e-15)


@given(st.integers(0, 12), SIZES)
def test_halving_sends_half_of_what_is_left_each_time(power, size):
    by_messages = sum(LINK.latency + size / 2 ** (k + 1) / LINK.bandwidth for k in range(power))
    assert reduce_scatter(size, 2**power, LINK, "halving") == pytest.approx(by_messages, rel=1e-9, abs=1e-15)


@given(RANKS, SIZES, st.sampled_from(["ring", "halving"]))
def test_an_all_reduce_is_its_two_halves(ranks, size, algorithm):
    halves = reduce_scatter(size, ranks, LINK, algorithm) + all_gather(size, ranks, LINK, algorithm)
    assert all_reduce(size, ranks, LINK, algorithm) == halves
    assert (halves == 0) == (ranks == 1)


def test_large_vectors_cost_their_bytes_whatever_the_number_of_ranks():
    free = Link(0.0, 1e9)
    assert reduce_scatter(1e9, 1024, free) == pytest.approx(1.0, rel=1e-3)
    assert all_reduce(1e9, 1024, free) == pytest.approx(2.0, rel=1e-3)


def test_a_hierarchy_by_hand():
    inside, between = Link(1e-6, 50e9), Link(5e-6, 25e9)
    seconds = hierarchical_reduce_scatter(1e8, 16, 4, inside, between, "halving")
    assert seconds == pytest.approx(3 * 1e-6 + 0.75 * 1e8 / 50e9 + 2 * 5e-6 + 0.75 * 1e8 / 25e9)
    alone = hierarchical_reduce_scatter(1e8, 3, 4, inside, between, "ring")
    assert alone == reduce_scatter(1e8, 3, inside)


@given(st.integers(1, 2000), st.integers(0, 2000), st.sampled_from(sorted(FABRICS)))
def test_more_gpus_never_make_a_collective_faster(gpus, more, name):
    fabric = find_fabric(name)
    assert fabric.reduce_scatter(1e8, gpus + more) >= fabric.reduce_scatter(1e8, gpus) - 1e-15


def test_what_a_fabric_attains():
    attained = find_fabric("abci").attained(0.5, 1e-4)
    assert attained.between == Link(1e-4, 12.5e9) and attained.inside.bandwidth == 25e9
    assert all(math.isfinite(fabric.inside.bandwidth) and fabric.source for fabric in FABRICS.values())


@pytest.mark.parametrize("ranks", [0, -4])
def test_fewer_than_one_rank_is_refused(ranks):
    with pytest.raises(ValueError, match="at least one rank"):
        reduce_scatter(1.0, ranks, LINK)
    with pytest.raises(ValueError, match="at least one rank"):
        find_fabric("abci").reduce_scatter(1.0, ranks)


def test_an_unknown_fabric_is_named():
    with pytest.raises(ValueError, match=r"no fabric 'abcy'. Did you mean 'abci'"):
        find_fabric("abcy")
