"""Every layer has one owner, and the balanced rule earns its name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinji.kfac.ownership import assign_owners, inversion_flops, makespan

COSTS = st.lists(st.integers(1, 10**9), min_size=1, max_size=60)


@given(costs=COSTS, ranks=st.integers(1, 70), rule=st.sampled_from(["balanced", "contiguous"]))
def test_each_layer_has_one_owner_and_ranks_idle_only_when_layers_run_out(costs, ranks, rule):
    owners = assign_owners(costs, ranks, rule)
    assert len(owners) == len(costs)
    assert set(owners) <= set(range(ranks))
    assert len(set(owners)) == min(ranks, len(costs))


@given(costs=COSTS, ranks=st.integers(1, 20))
def test_balanced_is_within_four_thirds_of_the_bound(costs, ranks):
    longest = makespan(costs, assign_owners(costs, ranks, "balanced"))
    pair = sum(sorted(costs, reverse=True)[ranks - 1 : ranks + 1]) if len(costs) > ranks else 0
    bound = max(max(costs), sum(costs) / ranks, pair)
    assert longest <= 4 / 3 * bound + 1


def test_balanced_beats_contiguous_where_layers_grow_with_depth():
    costs = [inversion_flops(9 * width, width) for width in (64, 64, 128, 128, 256, 256, 512, 512)]
    longest = {rule: makespan(costs, assign_owners(costs, 4, rule)) for rule in ("balanced", "contiguous")}
    assert longest["balanced"] == max(costs) < longest["contiguous"]


def test_contiguous_gives_neighbours_to_one_rank():
    assert assign_owners([1] * 7, 3, "contiguous") == [0, 0, 0, 1, 1, 2, 2]


def test_unknown_rule_and_no_rank_are_refused():
    with pytest.raises(ValueError, match="balanced, contiguous"):
        assign_owners([1], 1, "random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one rank"):
        assign_owners([1], 0)
