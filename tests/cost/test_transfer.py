"""A measured step carried over to more ranks and to other networks, against measurements."""

import pandas as pd
import pytest

from kinji.cost import Rates, count
from kinji.cost.collectives import Link
from kinji.cost.step import PARTS, owners
from kinji.cost.transfer import fit_link, transfer
from kinji.cost.validation import calibrate
from kinji.kfac.ownership import makespan
from kinji.records import load_records, load_reference

FREE = Link(0.0, 1e30)
ONE_RANK = dict(zip(PARTS, (1.0, 2.0, 0.5, 0.0, 0.1, 8.0, 0.0), strict=True))
R50 = count("resnet50", 16, 64)


def test_the_same_step_is_left_as_it_is():
    assert transfer(ONE_RANK, R50, R50, 1, FREE) == pytest.approx(ONE_RANK)


def test_two_ranks_share_the_inverses_only():
    shared = transfer(ONE_RANK, R50, R50, 2, FREE)
    costs = [layer.owner_flops for layer in R50.layers]
    busiest = makespan(costs, owners(R50, 2, "balanced"))
    assert shared["K-FAC"] == pytest.approx(8 * (R50.factor_flops + busiest) / (R50.factor_flops + sum(costs)))
    assert {part: shared[part] for part in PARTS[:3]} == {part: ONE_RANK[part] for part in PARTS[:3]}


def test_sgd_sends_gradients_twice_and_k_fac_statistics_once():
    link = Link(0.0, 1e9)
    sgd = transfer(ONE_RANK | {"K-FAC": 0.0}, R50, R50, 2, link)
    assert sgd["SGD communication"] == pytest.approx(R50.gradient_bytes / 1e9) and sgd["K-FAC communication"] == 0
    statistics = transfer(ONE_RANK, R50, R50, 2, link)["K-FAC communication"]
    assert statistics == pytest.approx(308_186_828 / 2 / 1e9)  # bytes that the optimizer counted


def test_a_link_gives_back_what_it_was_measured_from():
    link = fit_link(1e8, passes=2, ranks=2, seconds=0.25)
    assert transfer(ONE_RANK | {"K-FAC": 0.0}, R50, R50, 2, link)["SGD communication"] == pytest.approx(
        0.25 * R50.gradient_bytes / 1e8
    )


def test_a_measured_step_within_a_fifth():
    """The statistics of the committed step on two ranks by the rate of its other collectives; all else was measured."""
    records = load_records("step_breakdown", "smoke")
    record = next(r for r in records if r.parameters["ranks"] == 2 and not r.error)
    rows = pd.DataFrame(record.observations)
    parts = rows[(rows["quantity"] == "part") & (rows["optimizer"] == "K-FAC")]
    measured = parts.groupby("part")["part_seconds"].median()
    net = count(record.parameters["network"], record.parameters["batch_per_rank"], record.parameters["pixels"])
    link = fit_link(net.gradient_bytes, 2, 2, measured["SGD communication"])
    travel = transfer(ONE_RANK, net, net, 2, link)
    predicted = measured.drop(["K-FAC communication"]).sum() + travel["K-FAC communication"]
    assert travel["SGD communication"] == pytest.approx(measured["SGD communication"])
    assert predicted == pytest.approx(measured.sum(), rel=0.2)


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


def test_what_was_not_measured_is_named():
    with pytest.raises(ValueError, match="K-FAC communication"):
        transfer(dict.fromkeys(PARTS[:-1], 1.0), R50, R50, 2, FREE)
    with pytest.raises(ValueError, match="forward"):
        transfer(ONE_RANK | {"forward": float("nan")}, R50, R50, 2, FREE)
    with pytest.raises(ValueError, match="at least two ranks"):
        fit_link(1e6, 1, 1, 1.0)
