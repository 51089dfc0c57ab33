from dataclasses import fields

import pandas as pd
import pytest

from kinji.errors import KinjiError
from kinji.experiments.cases import Resnet50TableCase, Resnet50TuneCase
from kinji.experiments.context import Context, Progress
from kinji.experiments.resnet50_tune import HYPERPARAMETERS, grid, measure, rank_trials
from kinji.records.tables import NoRecords, load_table
from kinji.workflow.config import load_config

CONTEXT = Context("cpu", 1, Progress("test"))
ROW = ["optimizer", "batch"]


def tuning_cases() -> list[Resnet50TuneCase]:
    listed = load_config("smoke")["experiments"]["resnet50_tune"]
    return [Resnet50TuneCase(**{k: tuple(v) if isinstance(v, list) else v for k, v in case.items()}) for case in listed]


def table_cases() -> dict[tuple[str, int], Resnet50TableCase]:
    cases = [Resnet50TableCase(**case) for case in load_config("smoke")["experiments"]["resnet50_table"]]
    return {(case.optimizer, case.batch): case for case in cases}


def test_every_row_of_the_table_is_tuned_with_the_same_number_of_trials():
    assert {(case.optimizer, case.batch) for case in tuning_cases()} == set(table_cases())
    assert len({len(grid(case)) * len(case.splits) for case in tuning_cases()}) == 1


def test_the_table_runs_trials_of_its_grid_on_another_partition():
    for case in tuning_cases():
        row = table_cases()[case.optimizer, case.batch]
        assert any(all(getattr(t, h) == getattr(row, h) for h in HYPERPARAMETERS) for t in grid(case))
        shared = [f.name for f in fields(case) if hasattr(row, f.name) and f.name not in (*HYPERPARAMETERS, "seed")]
        assert all(getattr(case, name) == getattr(row, name) for name in shared)
        assert case.seed != row.seed


def test_the_table_runs_the_best_trials_of_the_committed_tuning():
    try:
        best = rank_trials(load_table("resnet50_tune", "smoke")).groupby(ROW).head(1)
    except NoRecords:
        pytest.skip("no tuning records are committed")
    for trial in best.to_dict("records"):
        row = table_cases()[trial["optimizer"], trial["batch"]]
        assert (row.lr, row.momentum) == (trial["lr"], trial["momentum"])
        assert row.damping is None or row.damping == trial["damping"]


def test_a_trial_stops_at_both_targets_and_counts_one_more_than_the_budget_for_a_miss():
    easy = {"batch": 1024, "epochs": 3, "momentum": (0.9,), "splits": (0,), "target_loss": 100.0}
    case = Resnet50TuneCase(optimizer="sgd", lr=(0.1, 0.2), target_accuracy=1.1, **easy)
    rows = list(measure(case, CONTEXT))
    assert [(row["lr"], row["epochs_to_accuracy"], row["epochs_to_loss"]) for row in rows] == [(0.1, 4, 1), (0.2, 4, 1)]
    quick = Resnet50TuneCase(optimizer="kfac", lr=(0.1,), damping=(0.1,), target_accuracy=0.0, **easy | {"epochs": 99})
    assert [(row["epochs_to_accuracy"], row["damping"]) for row in measure(quick, CONTEXT)] == [(1, 0.1)]


def test_a_trial_that_diverges_is_a_miss():
    case = Resnet50TuneCase(optimizer="sgd", batch=512, epochs=2, lr=(1e30,), momentum=(0.9,), splits=(0,))
    assert [(row["epochs_to_accuracy"], row["epochs_to_loss"]) for row in measure(case, CONTEXT)] == [(3, 3)]


def test_kfac_without_a_damping_is_refused():
    case = Resnet50TuneCase(optimizer="kfac", batch=512, epochs=2, lr=(0.1,), momentum=(0.9,))
    with pytest.raises(KinjiError, match="damping"):
        list(measure(case, CONTEXT))


def test_the_score_is_the_geometric_mean_over_splits_and_targets():
    trials = pd.DataFrame(
        [
            ("sgd", 64, 0.1, 0.9, 0, 2, 8),
            ("sgd", 64, 0.1, 0.9, 1, 4, 4),
            ("sgd", 64, 0.2, 0.9, 0, 3, 3),
            ("sgd", 64, 0.2, 0.9, 1, 3, 3),
            ("sgd", 128, 0.4, 0.9, 0, 1, 1),
        ],
        columns=[*ROW, "lr", "momentum", "split", "epochs_to_accuracy", "epochs_to_loss"],
    )
    ranked = rank_trials(trials)
    assert ranked["lr"].tolist() == [0.2, 0.1, 0.4]
    assert ranked["score"].tolist() == pytest.approx([3, 4, 1])
