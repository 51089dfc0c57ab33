"""N ranks must do what one rank does, to rounding in double precision, and send what the method says and no more."""

from typing import Any

import pytest
import torch

from .distributed import SIZES, VARIANTS, network, on_gloo, train
from .ranks import run_on_ranks


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    """Results by the number of ranks, of each rank."""
    results = run_on_ranks(max(SIZES), tmp_path_factory.mktemp("ranks"), on_gloo)
    return {size: [of_rank[size] for of_rank in results[:size]] for size in SIZES}


@pytest.fixture(scope="module")
def alone():
    return [train(None, variant) for variant in VARIANTS]


@pytest.mark.parametrize("ranks", SIZES)
def test_ranks_equal_one_rank(ranks, on_ranks, alone):
    for results in on_ranks[ranks]:
        for variant, weights, reference in zip(VARIANTS, results["trained"], alone, strict=True):
            for one, other in zip(weights, reference, strict=True):
                assert (one - other).norm() <= 1e-10 * other.norm(), variant


def test_variants_are_not_all_the_same(alone):
    first = [weights[0] for weights in alone]
    assert len({tuple(weight.flatten().tolist()) for weight in first}) >= len(VARIANTS) - 1


@pytest.mark.parametrize("ranks", [4, 8])
def test_collectives_of_uneven_and_empty_shares(ranks, on_ranks):
    results = [of_rank["exchanged"] for of_rank in on_ranks[ranks]]
    mean = sum(10**rank for rank in range(ranks)) / ranks
    torch.testing.assert_close(results[0][0], mean * torch.tensor([1.0] * 6 + [2.0] + [3.0] * 4))
    assert all(len(results[rank][0]) == 0 for rank in (1, *range(3, ranks)))
    torch.testing.assert_close(results[2][0], torch.full((5,), 4 * mean))
    for _, gathered, carried in results:
        shapes = [[tensor.shape for tensor in tensors] for tensors in gathered]
        assert shapes == [[(2, 3), (), (4,)], [], [(5,)]] + [[]] * (ranks - 3)
        assert [tensor.flatten()[0].item() for tensor in gathered[0]] == [1, 2, 3]
        assert gathered[2][0][0] == 400
        assert carried == {"statistics": 4 * 16, "weights": 4 * 16}


def test_statistics_are_the_only_traffic_beyond_gradients_and_weights(on_ranks):
    parameters = sum(parameter.numel() for parameter in network().parameters())
    sizes = [10, 4, 65, 7, 8, 3, *[18, 2] * 2]  # factors of two convolutions, one with groups, and two linear layers
    triangles, squares = sum(n * (n + 1) // 2 for n in sizes), sum(n * n for n in sizes)
    pairs = 3 * (4 + 7)  # three numbers for each channel of the batch, each entry of the layer normalization
    for results in on_ranks[2]:
        packed, full, half, adaptive = results["carried"]
        assert packed["statistics"] == 4 * (triangles + pairs)
        assert full["statistics"] == 4 * (squares + pairs)
        assert half["statistics"] == 2 * (triangles + pairs)
        for carried in (packed, full, half):
            assert carried["weights"] == 4 * parameters
            assert carried["gradients"] == 4 * (parameters + 2 * 2)  # two fault counts for each owner
            assert set(carried) == {"statistics", "gradients", "weights"}
        assert adaptive["weights"] == 4 * (parameters + 10)  # and the interval of each statistic


def test_packed_over_full_is_n_plus_one_over_two_n(on_ranks):
    packed, full, *_ = on_ranks[2][0]["carried"]
    sizes = [10, 4, 65, 7, 8, 3, *[18, 2] * 2]
    saved = sum(n * n * (1 - (n + 1) / (2 * n)) for n in sizes)
    assert full["statistics"] - packed["statistics"] == pytest.approx(4 * saved)


def test_half_precision_statistics_stay_close(on_ranks):
    reference = train(None, {}, steps=5)
    for weights in (results["half"] for results in on_ranks[2]):
        for one, other in zip(weights, reference, strict=True):
            assert 0 < (one - other).norm() < 0.1 * other.norm()


def test_a_poisoned_rank_stops_all_ranks_before_any_weight_changes(on_ranks):
    (elsewhere, unchanged_0), (named, unchanged_1) = (results["poisoned"] for results in on_ranks[2])
    assert unchanged_0 and unchanged_1
    assert "another rank" in elsewhere and named.startswith("0 has a gradient that is not finite")


def test_an_owner_that_fails_leaves_no_rank_waiting(on_ranks):
    outcomes = [results["failing"] for results in on_ranks[2]]
    assert all(unchanged for _, unchanged in outcomes)
    messages = sorted(message for message, _ in outcomes)
    assert messages[0] == "no memory for the inverse" and "not finite and were not taken" in messages[1]


def test_a_layer_without_inverse_takes_the_first_order_rule_on_all_ranks(on_ranks):
    assert all(results["singular"] for results in on_ranks[2])


def test_each_rank_resumes_from_its_own_state_to_the_bit(on_ranks):
    assert all(results["resumed"] for results in on_ranks[2])


def test_statistics_of_inputs_travel_during_the_last_backward_pass(on_ranks):
    assert all(results["overlap"] == [False, True] for results in on_ranks[2])
