from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import distributed, nn

from kinji.errors import KinjiError
from kinji.experiments import step_breakdown
from kinji.experiments.cases import StepBreakdownCase
from kinji.experiments.context import Context, Progress
from kinji.experiments.step_breakdown import GPUS, PARTS, measure

CONTEXT = Context("cpu", 1, Progress("test"))
CASE = StepBreakdownCase(ranks=1, pixels=16, batch_per_rank=4, repetitions=2)


def small_network(name, weights):
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 14 * 14, 1000))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Observations of one rank inside this process, on a network that takes no time."""
    store = tmp_path_factory.mktemp("store") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_breakdown.torchvision.models, "get_model", small_network)
        yield pd.DataFrame(step_breakdown._observe(CASE, CONTEXT))
    torch.set_num_threads(threads)
    distributed.destroy_process_group()


def of(table, **values):
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def test_every_repetition_has_the_seven_parts_of_both_optimizers(table):
    parts = of(table, quantity="part")
    assert (parts.groupby(["optimizer", "repetition"])["part"].apply(set) == set(PARTS)).all()
    assert len(parts) == 2 * 2 * len(PARTS)


def test_parts_and_the_unattributed_rest_are_the_whole_step(table):
    keys = ["optimizer", "repetition"]
    parts = of(table, quantity="part").groupby(keys)["part_seconds"].sum()
    steps = of(table, quantity="step", parts_timed=True).set_index(keys)
    difference = parts + steps["unattributed_seconds"] - steps["step_seconds"]
    assert len(difference) == 4 and difference.abs().max() < 1e-12
    assert (steps["unattributed_seconds"] >= 0).all()


def test_sgd_has_no_second_order_part_and_kfac_has(table):
    seconds = of(table, quantity="part").pivot_table(index="optimizer", columns="part", values="part_seconds")
    assert (seconds.loc["SGD", ["K-FAC", "K-FAC communication"]] == 0).all()
    assert (seconds.loc["K-FAC"] > 0).all()
    assert (seconds.loc["SGD", list(PARTS[:5])] > 0).all()


def test_a_step_is_also_timed_with_nothing_inside_being_timed(table):
    apart = of(table, quantity="step", parts_timed=False)
    assert len(apart) == 4 and apart["unattributed_seconds"].isna().all()


def test_facts_that_no_clock_decides(table):
    factors = of(table, quantity="factor").set_index(["layer", "factor"])["size"]
    assert factors.to_dict() == {
        ("0", "A"): 27,
        ("0", "G"): 8,
        ("1", "unit-wise"): 2,
        ("4", "A"): 1569,
        ("4", "G"): 1000,
    }
    sgd = of(table, quantity="traffic", optimizer="SGD").iloc[0]
    assert sgd["passes"] * sgd["vector_bytes"] == 2 * 4 * (8 * 27 + 2 * 8 + 1569 * 1000)
    owners = of(table, quantity="ownership", rule="balanced").set_index("owning_ranks")["busiest_flops"]
    assert list(owners.index) == list(GPUS) and owners.is_monotonic_decreasing
    assert of(table, quantity="equality")["relative_difference"].tolist() == [0.0]


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(KinjiError, match="2 ranks need as many GPUs, this machine has 1"):
        next(measure(replace(CASE, ranks=2), replace(CONTEXT, device="cuda")))
