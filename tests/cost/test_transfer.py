"""A measured step carried over to more ranks and to other networks, against measurements."""

import pytest

from kinji.cost import Rates, count
from kinji.cost.step import PARTS, owners
from kinji.cost.transfer import COLLECTIVES, STAGES, carry_over, stage_work
from kinji.cost.validation import calibrate
from kinji.kfac.ownership import makespan
from kinji.records import load_reference

R50, R18 = count("resnet50", 16, 64), count("resnet18", 16, 64)
SECOND = dict.fromkeys(STAGES, 1.0)


def test_every_part_has_a_stage_and_every_stage_has_work():
    assert set(STAGES.values()) == set(PARTS) and len(COLLECTIVES) == 5
    assert set(stage_work(R50, 1)) == set(STAGES) and min(stage_work(R18, 2).values()) > 0


def test_the_same_step_is_left_as_it_is():
    assert carry_over(SECOND, stage_work(R50, 1), stage_work(R50, 1)) == SECOND


def test_ranks_share_inverses_and_updates_only():
    shared = carry_over(SECOND, stage_work(R50, 1), stage_work(R50, 2))
    less = {"inverses", "preconditioning", "update"}
    assert {stage for stage, seconds in shared.items() if seconds < 1} == less
    assert {stage for stage, seconds in shared.items() if seconds == 1} == set(STAGES) - less
    costs = [layer.owner_flops for layer in R50.layers]
    busiest = makespan(costs, owners(R50, 2, "balanced"))
    work = stage_work(R50, 2)
    counted = work["inverses"] + work["preconditioning"]
    assert counted == pytest.approx(busiest, rel=1e-3)  # owners are chosen with the normalizations' parameters too


def test_the_busiest_rank_does_at_least_its_share():
    alone = stage_work(R50, 1)
    for ranks in (2, 4, 64):
        assert stage_work(R50, ranks)["inverses"] * ranks >= alone["inverses"] * 0.99
    assert stage_work(R50, 64)["inverses"] == stage_work(R50, 128)["inverses"]


def test_another_rank_may_be_busiest_when_nobody_inverts():
    for ranks in (2, 4):
        fresh, stale = (stage_work(R50, ranks, refreshed=refreshed)["preconditioning"] for refreshed in (True, False))
        assert fresh < stale < stage_work(R50, 1)["preconditioning"]


def test_another_network_is_scaled_by_its_own_counts():
    work = {network: stage_work(network, 1) for network in (R50, R18)}
    other = carry_over(SECOND, work[R50], work[R18])
    assert other["forward"] == R18.forward_flops / R50.forward_flops
    assert other["AllReduce of gradients"] == R18.gradient_bytes / R50.gradient_bytes
    assert set(carry_over({"forward": 1.0}, work[R50], work[R18])) == {"forward"}


def test_statistics_are_the_bytes_that_the_optimizer_counted():
    work = stage_work(R50, 2)
    assert work["ReduceScatterV of other statistics"] == 308_186_828 > work["ReduceScatterV of input statistics"]


BLOCKS = load_reference()["step_breakdown_bert_block"].set_index("network")


def test_bert_large_from_bert_base():
    """A held-out network: each published part within a tenth."""
    base, large = (count(name, 32, 128) for name in ("bert-base-block", "bert-large-block"))
    published = BLOCKS.loc[["bert-base-block", "bert-large-block"]]
    fitted = calibrate(*(load_reference()[name] for name in ("step_breakdown_variants", "resnet50_spngd"))).rates
    work = {
        "forward_ms": [net.forward_flops for net in (base, large)],
        "backward_ms": [net.forward_flops for net in (base, large)],
        "factors_ms": [net.factor_flops for net in (base, large)],
        "inverses_ms": [inversion_seconds(net, fitted) for net in (base, large)],
        "precondition_ms": [sum(layer.precondition_flops for layer in net.layers) for net in (base, large)],
    }
    for part, (small, big) in work.items():
        assert big / small * published[part].iloc[0] == pytest.approx(published[part].iloc[1], rel=0.1), part


@pytest.mark.parametrize("name", list(BLOCKS.index))
def test_inverses_of_a_bert_block_by_rates_fitted_to_resnet_50(name):
    fitted = calibrate(*(load_reference()[table] for table in ("step_breakdown_variants", "resnet50_spngd"))).rates
    seconds = inversion_seconds(count(name, 32, 128), fitted)
    assert 1e3 * seconds == pytest.approx(BLOCKS.loc[name, "inverses_ms"], rel=0.15)


def inversion_seconds(net, rates: Rates):
    layers = [layer for layer in net.layers if layer.inputs]
    return sum(rates.inversion_seconds(n) for layer in layers for n in (layer.inputs, layer.outputs))


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_what_was_not_measured_is_named(seconds):
    with pytest.raises(ValueError, match="forward"):
        carry_over(SECOND | {"forward": seconds}, stage_work(R50, 1), stage_work(R50, 2))
