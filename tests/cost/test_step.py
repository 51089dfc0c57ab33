"""The modelled step: parts by hand, monotone in what should cost, ownership as in the optimizer."""

from dataclasses import replace

import pytest

from kinji.cost import Plan, Rates, count, find_fabric, predict
from kinji.cost.step import PARTS, owners
from kinji.cost.trust import doubts
from kinji.kfac.ownership import assign_owners, makespan

COUNTS = count("resnet50", 32, 224)
ABCI = find_fabric("abci")
RATES = Rates(
    pass_flops=6e12, product_flops=30e12, inverse_flops=16e12, half_size=4000, matrix_seconds=1e-3, memory_bytes=700e9
)


def step(gpus=1, rates=RATES, fabric=ABCI, **plan):
    return predict(COUNTS, Plan(**plan), gpus, fabric, rates)


def test_sgd_by_hand():
    sgd = step(optimizer="SGD")
    assert sgd.parts["forward"] == COUNTS.forward_flops / 6e12 and sgd.parts["backward"] == 2 * sgd.parts["forward"]
    assert sgd.parts["normalization"] == COUNTS.normalization_bytes / 700e9
    assert sgd.parts["SGD communication"] == sgd.parts["K-FAC"] == 0
    assert sgd.seconds == sum(sgd.parts.values()) and tuple(sgd.parts) == PARTS


def test_one_gpu_inverts_everything_and_sends_nothing():
    alone = step()
    layers = [layer for layer in COUNTS.layers if layer.inputs]
    inverses = sum(
        2e-3 + sum(7 / 3 * n**2 * (n + 4000) / 16e12 for n in (layer.inputs, layer.outputs)) for layer in layers
    )
    products = (COUNTS.factor_flops + sum(layer.precondition_flops for layer in layers)) / 30e12
    assert alone.parts["K-FAC"] == pytest.approx(inverses + products + COUNTS.patch_bytes / 700e9)
    assert alone.parts["K-FAC communication"] == 0


@pytest.mark.parametrize("ownership", ["balanced", "contiguous"])
@pytest.mark.parametrize("gpus", [1, 3, 64, 2048])
def test_owners_are_those_of_the_optimizer(ownership, gpus):
    costs = [layer.owner_flops for layer in COUNTS.layers]
    assert list(owners(COUNTS, gpus, ownership)) == assign_owners(costs, gpus, ownership)


def test_the_released_split_is_contiguous_by_name():
    split = owners(COUNTS, 32, "released")
    named = {layer.name: owner for layer, owner in zip(COUNTS.layers, split, strict=True)}
    assert named["bn1"] == named["conv1"] == named["fc"] == 0 and named["layer4.2.conv3"] == 31
    assert sorted(split) == sorted(assign_owners([1.0] * 107, 32, "contiguous"))


def test_inversion_gets_no_slower_with_gpus_and_stops_at_one_layer_each():
    seconds = [step(gpus).parts["K-FAC"] for gpus in (1, 2, 4, 8, 16, 32, 64, 128, 256, 2048)]
    assert seconds == sorted(seconds, reverse=True) and seconds[-3] == seconds[-1]
    balanced = step(16, ownership="balanced").parts["K-FAC"]
    assert balanced < seconds[4]


@pytest.mark.parametrize("rate", ["pass_flops", "product_flops", "inverse_flops", "memory_bytes"])
def test_a_faster_device_is_faster(rate):
    assert step(8, replace(RATES, **{rate: 2 * getattr(RATES, rate)})).seconds < step(8).seconds


def test_what_costs_more():
    for gpus in (1, 16, 1024):
        plain = step(gpus).seconds
        assert step(gpus, optimizer="SGD").seconds < step(gpus, refreshed=0.1).seconds < plain
        assert plain < step(gpus, fisher="sampled").seconds and plain < step(gpus, batch_norm="full").seconds
    sampled = step(fisher="sampled").parts["K-FAC"] - step().parts["K-FAC"]
    assert sampled == pytest.approx(step().parts["backward"] + 5 / 8 * step().parts["normalization"])


def test_a_slower_fabric_and_more_gpus_cost_communication():
    parts = [step(gpus).parts for gpus in (4, 64, 1024)]
    for part in ("SGD communication", "K-FAC communication"):
        assert parts[0][part] < parts[1][part] < parts[2][part]
        assert step(64, fabric=find_fabric("ethernet")).parts[part] > 10 * parts[1][part]


def test_the_backward_pass_hides_the_early_statistics():
    assert step(64).hidden_seconds == pytest.approx(ABCI.reduce_scatter(COUNTS.input_statistic_bytes, 64))
    slow = step(64, fabric=find_fabric("ethernet"))
    assert slow.hidden_seconds == slow.parts["backward"]


def test_nothing_refreshed_leaves_preconditioning():
    idle = step(64, refreshed=0.0)
    assert idle.parts["K-FAC communication"] == 0 and 0 < idle.parts["K-FAC"] < 0.01


def test_one_layers_load_bounds_every_owner():
    costs = [layer.owner_flops for layer in COUNTS.layers]
    assert makespan(costs, owners(COUNTS, 2048, "released")) == max(costs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": 0}, "at least one GPU"),
        ({"gpus": -3}, "at least one GPU"),
        ({"fisher": "exact"}, "fisher is one of"),
        ({"batch_norm": "none"}, "batch_norm is one of"),
        ({"optimizer": "Adam"}, "optimizer is one of"),
        ({"ownership": "mine"}, "ownership is one of"),
        ({"refreshed": 1.5}, "refreshed=1.5"),
        ({"refreshed": float("nan")}, "refreshed=nan"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        step(**options)


def test_what_lies_outside_the_range_of_trust_is_listed():
    assert doubts(COUNTS, 1024, ABCI) == []
    other = doubts(count("bert-base-block", 8, 128), 2048, find_fabric("ethernet"))
    assert len(other) == 5 and "2,048 GPUs" in other[3]
