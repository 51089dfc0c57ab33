import json
import pickle
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import distributed, nn

from kinji.cost.step import PARTS
from kinji.cost.transfer import STAGES
from kinji.errors import KinjiError
from kinji.experiments.cases import StepBreakdownCase
from kinji.experiments.context import Context, Progress
from kinji.experiments.step_breakdown import measure, ranks, trials
from kinji.experiments.step_breakdown.model import GPUS
from kinji.experiments.step_breakdown.prediction import predictions
from kinji.experiments.step_breakdown.stopwatch import HostClock, Stopwatch

CONTEXT = Context("cpu", 1, Progress("test"))
CASE = StepBreakdownCase(
    ranks=1, pixels=16, batch_per_rank=4, repetitions=2, fishers=("empirical", "sampled"), batch_norms=("full",)
)
KEYS = ["optimizer", "fisher", "refreshed", "repetition"]


def small_network(name, size, device):
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 14 * 14, 1000)).to(device), (3, 16, 16)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """A process group of one rank inside this process."""
    store = tmp_path_factory.mktemp("store") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    return tmp_path_factory.mktemp("trace") / "trace.json"


@pytest.fixture(scope="module")
def table(one_rank, trace):
    """Observations of one rank, on a network that takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "build", small_network)
        rows = pd.DataFrame(ranks.observe(replace(CASE, trace=str(trace)), CONTEXT))
    return rows.fillna({"fisher": "", "refreshed": 1.0})


def of(table, **values):
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def test_every_refreshing_step_of_kfac_has_the_seven_parts_and_sgd_five(table):
    parts = of(table, quantity="part").groupby(KEYS)["part"].apply(set)
    fresh = parts.xs(("K-FAC", 1.0), level=("optimizer", "refreshed"))
    assert len(fresh) == 2 * 2 and (fresh == set(PARTS)).all()
    assert len(parts) == 2 * 2 * 2 + 2 and (parts["SGD"] == set(PARTS[:5]) - {"SGD communication"}).all()
    assert set(STAGES.values()) == set(PARTS)


def test_stages_and_the_unattributed_rest_are_the_whole_step(table):
    parts = of(table, quantity="part").groupby(KEYS)["part_seconds"].sum()
    steps = of(table, quantity="step", parts_timed=True).set_index(KEYS)
    difference = parts + steps["unattributed_seconds"] - steps["step_seconds"]
    assert len(difference) == 10 and difference.abs().max() < 1e-12
    assert (steps["unattributed_seconds"] >= 0).all()
    assert (steps["host_seconds"] >= steps["step_seconds"]).all()


def test_a_stale_step_forms_and_inverts_nothing(table):
    stages = of(table, quantity="part", optimizer="K-FAC").groupby(["fisher", "refreshed"])["stage"].apply(set)
    assert "factors" not in stages["empirical", 0.0] and "factors" in stages["empirical", 1.0]
    assert "sampled gradients" in stages["sampled", 1.0] and "sampled gradients" not in stages["empirical", 1.0]
    assert "preconditioning" in stages["sampled", 0.0]


def test_a_step_is_also_timed_with_nothing_inside_being_timed(table):
    apart = of(table, quantity="step", parts_timed=False)
    assert len(apart) == 10 and apart["unattributed_seconds"].isna().all()


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


def test_a_trace_names_the_steps(table, trace):
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"SGD", "K-FAC empirical full 1.0", "K-FAC sampled full 1.0", "aten::conv2d"} <= names


@pytest.mark.parametrize("network", ["bert-base-block", "resnet18"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_each_network_in_each_precision_changes_the_weights(one_rank, network, precision):
    case = replace(CASE, network=network, precision=precision, pixels=32, tokens=2, batch_per_rank=4)
    trial = trials.SGDTrial(case, Stopwatch(HostClock()), "cpu")
    before = [parameter.clone() for parameter in trial.model.parameters()]
    trial.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, trial.model.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed) and all(p.isfinite().all() for p in trial.model.parameters())


def observed(run, seconds):
    """One repetition on each of two ranks: steps of SGD and of K-FAC of which every stage takes the same time."""
    for rank, (optimizer, refreshed) in ((r, k) for r in (0, 1) for k in (("SGD", None), ("K-FAC", 1.0))):
        for stage, part in STAGES.items():
            quantity = "calibration part" if run else "part"
            row = {"quantity": quantity, "run": run, "optimizer": optimizer, "refreshed": refreshed, "rank": rank}
            variant = {"fisher": "empirical", "batch_norm": "unit-wise"} if optimizer == "K-FAC" else {}
            yield row | variant | {"repetition": 0, "stage": stage, "part": part, "part_seconds": seconds}


def test_what_is_predicted_uses_no_measurement_of_it():
    case = replace(CASE, ranks=2, predicted=("resnet50", "resnet18"), batch_norms=("unit-wise",))
    rows = [*observed("alone", 1.0), *observed("collectives", 1.0), {"quantity": "equality", "rank": 0}]
    held = [*observed(None, 7.0), *observed("resnet18", 7.0)]
    others = [row | {"part_seconds": 9.0} for row in held]
    first, second = (pd.DataFrame(predictions(case, rows + measured)) for measured in (held, others))
    assert first["modelled_seconds"].tolist() == second["modelled_seconds"].tolist()
    assert (first["measured_seconds"] * 9 == second["measured_seconds"] * 7).all()
    forward = first[(first["part"] == "forward") & (first["optimizer"] == "SGD")].set_index("predicted_network")
    assert forward.loc["resnet50", "modelled_seconds"] == 1.0 > forward.loc["resnet18", "modelled_seconds"]
    assert forward.loc["resnet50", "measured_seconds"] == 7.0
    assert list(predictions(replace(case, predicted=()), rows)) == []


def test_ranks_are_started_with_whatever_a_case_runs_with(monkeypatch):
    monkeypatch.setattr(ranks.multiprocessing, "spawn", lambda rank, given, nprocs: pickle.dumps((rank, given)))
    with pytest.raises(FileNotFoundError):  # as no rank has run
        next(measure(CASE, replace(CONTEXT, out_of_time=lambda: True)))


@pytest.mark.parametrize(
    ("changed", "device", "message"),
    [
        ({"ranks": 2}, "cuda", "2 ranks need as many GPUs, this machine has 1"),
        ({"precision": "tf32"}, "cpu", "tf32 is a mode of CUDA"),
        ({"trace": "no/such/trace.json"}, "cpu", "there is no folder no/such"),
    ],
)
def test_what_the_machine_has_not_is_refused(monkeypatch, changed, device, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(KinjiError, match=message):
        next(measure(replace(CASE, **changed), replace(CONTEXT, device=device)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_stages_on_a_gpu_add_up_and_events_agree_with_the_host(precision):
    case = StepBreakdownCase(network="resnet18", ranks=1, pixels=64, batch_per_rank=32, precision=precision)
    rows = pd.DataFrame(measure(case, replace(CONTEXT, device="cuda")))
    steps = of(rows, quantity="step")
    assert (steps["step_seconds"] / steps["host_seconds"]).between(0.8, 1.001).all()
    timed = steps[steps["parts_timed"].astype(bool)]
    assert (timed["unattributed_seconds"].abs() < 0.03 * timed["step_seconds"]).all()
    factors = of(rows, quantity="part", stage="factors")["part_seconds"]
    assert factors.min() > 0.01 * of(rows, quantity="step", refreshed=1.0)["step_seconds"].min()
    assert of(rows, quantity="memory")["peak_device_bytes"].min() > 1e8
