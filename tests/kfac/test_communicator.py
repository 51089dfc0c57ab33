"""N ranks must do what one rank does, to rounding in double precision, and send what the method says and no more."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from ..training import distributed as training
from .distributed import SIZES, STALENESS, STEPS, VARIANTS, network, on_gloo, train
from .ranks import MPIEXEC, run_on_ranks, run_under_mpi
from .transformer import learn

LAUNCH = {
    "gloo": lambda folder: run_on_ranks(max(SIZES), folder, on_gloo),
    "mpi": lambda folder: run_under_mpi(max(SIZES), folder, "tests.kfac.distributed"),
}


@pytest.fixture(scope="module", params=["gloo", "mpi"])
def on_ranks(request, once) -> dict[int, list[dict[str, Any]]]:
    """Results by the number of ranks, of each rank."""
    if request.param == "mpi" and (MPIEXEC is None or find_spec("mpi4py") is None):
        pytest.skip("the mpi extra, or its mpiexec, is not installed")
    results = once(f"kfac on {request.param}", LAUNCH[request.param])
    return {size: [of_rank[size] for of_rank in results[:size]] for size in SIZES}


@pytest.fixture(scope="module")
def alone():
    return [train(None, **variant) for variant in VARIANTS]


@pytest.mark.parametrize("ranks", SIZES)
def test_ranks_equal_one_rank(ranks, on_ranks, alone):
    """Weights and running statistics after 20 steps, for all of staleness, packing, ownership, batch normalization."""
    for results in on_ranks[ranks]:
        for variant, tensors, reference in zip(VARIANTS, results["trained"], alone, strict=True):
            for one, other in zip(tensors, reference, strict=True):
                assert (one - other).norm() <= 1e-10 * other.norm(), variant


def test_a_block_of_bert_learns_on_two_ranks_what_it_learns_on_one(on_ranks):
    """With tied embeddings, which follow the first-order rule."""
    reference, losses = learn(STEPS, dtype=torch.float64)
    of_ranks = [of_rank["transformer"] for of_rank in on_ranks[2]]
    for weights, _ in of_ranks:
        assert all((one - w).norm() <= 1e-10 * w.norm() for one, w in zip(weights, reference, strict=True))
    assert [sum(pair) / 2 for pair in zip(*(of_rank[1] for of_rank in of_ranks), strict=True)] == pytest.approx(losses)
    assert losses[-1] < losses[0] / 2


def test_only_ways_to_share_are_the_same_for_one_rank(alone):
    first = [tuple(tensors[0].flatten().tolist()) for tensors in alone]
    shared = [set(first[4 * k : 4 * k + 4]) for k in range(2 * len(STALENESS))]
    assert all(len(of_staleness) == 1 for of_staleness in shared)
    assert len(set(first)) == len(VARIANTS) - 3 * 2 * len(STALENESS)


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
    sizes = [
        10,
        4,
        *[18, 2] * 2,
        17,
        3,
    ]  # factors of two convolutions, one of them with groups, and of the linear layer
    triangles, squares = sum(n * (n + 1) // 2 for n in sizes), sum(n * n for n in sizes)
    pairs = 3 * (4 + 16)  # three numbers for each channel of the batch, each entry of the layer normalization
    for results in on_ranks[2]:
        packed, full, half, adaptive = results["carried"]
        assert packed["statistics"] == 4 * (triangles + pairs)
        assert full["statistics"] == 4 * (squares + pairs)
        assert half["statistics"] == 2 * (triangles + pairs)
        for carried in (packed, full, half):
            assert carried["weights"] == 4 * parameters
            assert carried["gradients"] == 4 * (parameters + 2 * 2)  # two fault counts for each owner
            assert set(carried) == {"statistics", "gradients", "weights"}
        assert adaptive["weights"] == 4 * (parameters + 8)  # and the interval of each statistic


def test_packed_over_full_is_n_plus_one_over_two_n(on_ranks):
    packed, full, *_ = on_ranks[2][0]["carried"]
    sizes = [10, 4, *[18, 2] * 2, 17, 3]
    saved = sum(n * n * (1 - (n + 1) / (2 * n)) for n in sizes)
    assert full["statistics"] - packed["statistics"] == pytest.approx(4 * saved)


def test_half_precision_statistics_stay_close(on_ranks):
    reference = train(None, steps=5)
    for tensors in (results["half"] for results in on_ranks[2]):
        assert not torch.equal(tensors[0], reference[0])
        assert all((one - other).norm() <= 0.1 * other.norm() for one, other in zip(tensors, reference, strict=True))


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


@pytest.mark.parametrize("on_ranks", ["mpi"], indirect=True)
@pytest.mark.parametrize("ranks", training.SIZES)
def test_the_training_loop_has_the_losses_of_one_process(ranks, on_ranks):
    """Over gloo, and of more variants, in tests/training/test_ranks.py."""
    for variant, options in enumerate(training.VARIANTS[:2]):
        reference = pytest.approx(training.losses(None, **options), rel=1e-10, abs=0)
        assert all(of_rank["losses"][variant] == reference for of_rank in on_ranks[ranks]), options
