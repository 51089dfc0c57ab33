import numpy as np
import pandas as pd
import pytest

from kinji.records import judge, load_claims, load_reference
from kinji.records.metrics import resnet50_table as metrics
from tests.records.claim_tables.resnet50_table import FASTER, ablation, accuracies, times

ANY_TABLE = pd.DataFrame({"scale": ["smoke"], "machine": ["test-machine"], "record": ["a"]})
CLAIMS = {claim.id: claim for claim in load_claims()}


def test_the_ratio_at_the_largest_batch_is_a_geometric_mean_over_folds():
    estimate = metrics.epoch_ratio_at_largest_batch(times("accuracy", FASTER))
    assert estimate.value == pytest.approx((8 / 16) ** 0.8 * (9 / 16) ** 0.2)
    assert estimate.low < estimate.value < estimate.high


def test_the_ratio_is_a_geometric_mean_over_folds_and_batch_sizes():
    estimate = metrics.epoch_ratio_to_accuracy(times("accuracy", FASTER))
    four_folds, one_fold = (4 / 4 * 6 / 8 * 8 / 16) ** (1 / 3), (5 / 4 * 7 / 8 * 9 / 16) ** (1 / 3)
    assert estimate.value == pytest.approx(four_folds**0.8 * one_fold**0.2)
    half_width = 2.7764451 * 0.2 * np.log(one_fold / four_folds)  # t of four degrees of freedom
    assert np.log(estimate.high / estimate.value) == pytest.approx(half_width)


def test_an_sgd_run_that_never_arrives_counts_with_its_budget_and_a_kfac_run_with_infinity():
    late = times("loss", FASTER)
    late["reached"] = late["optimizer"] == "kfac"
    pd.testing.assert_series_equal(
        metrics.log_epoch_ratios(late, "loss"), metrics.log_epoch_ratios(times("loss", FASTER), "loss")
    )
    late["reached"] = (late["optimizer"] == "sgd") | (late["fold"] > 0)
    assert metrics.epoch_ratio_to_loss(late).value == np.inf


def test_the_growth_is_the_exponent_in_the_batch_size():
    halving = {"sgd": (16, 16, 16), "kfac": (32, 16, 8)}  # by 4 in the batch, by 1/2 in the ratio
    exact = times("loss", halving).assign(
        epochs_to_target=lambda t: t["epochs_to_target"] - (t["epochs_to_target"] % 2)
    )
    estimate = metrics.ratio_growth_to_loss(exact)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((-0.5, -0.5, -0.5))


def test_the_accuracy_difference_is_in_points():
    estimate = metrics.accuracy_difference_points(accuracies(sgd=350, kfac=353))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx([100 * 3 / 360] * 3)


@pytest.mark.parametrize("folds", [0, 1])
def test_one_fold_has_no_interval(folds):
    table = times("loss", FASTER)
    with pytest.raises((ValueError, KeyError)):
        metrics.epoch_ratio_to_loss(table[table["fold"] < folds])


def test_two_batch_sizes_have_no_growth():
    table = times("loss", FASTER)
    with pytest.raises(ValueError, match="three batch sizes"):
        metrics.ratio_growth_to_loss(table[table["batch"] > 64])


def test_one_batch_size_has_no_growth_of_epochs():
    table = times("loss", FASTER)
    for growth in (metrics.growth_at_small_batches, metrics.growth_at_largest_batch):
        with pytest.raises(ValueError, match="two batch sizes"):
            growth(table[table["batch"] == 64])


def test_batch_sizes_are_compared_on_one_task_and_options_on_every():
    table = times("loss", FASTER)
    other = table[table["batch"] == 64].assign(network="resnet20", batch=2048, epochs_to_target=100)
    for metric in (metrics.epoch_ratio_to_loss, metrics.ratio_growth_to_loss, metrics.growth_at_largest_batch):
        assert metric(pd.concat([table, other])) == metric(table)
    digits = ablation("fisher", "sampled", correct=354)
    images = ablation("fisher", "sampled", correct=346).assign(network="resnet20")
    assert metrics.empirical_points(pd.concat([digits, images])).value == pytest.approx(100 * 4 / 360)


@pytest.mark.parametrize(
    ("claim", "table", "row", "column", "good", "bad"),
    [
        ("table-iterations-follow-from-epochs", "resnet50_table", 0, "iterations", 10948, 10950),
        ("table-row-8192-follows-from-epochs", "resnet50_table", 1, "iterations", 5474, 5434),
        ("table-iterations-at-131072", "resnet50_spngd", 5, "iterations", 978, 873),
        ("table-minutes-follow-from-steps", "resnet50_spngd", 3, "minutes", 5.5, 10.0),
    ],
)
def test_claims_on_printed_numbers_follow_the_printed_numbers(monkeypatch, claim, table, row, column, good, bad):
    for value, verdict in ((good, "reproduced"), (bad, "not reproduced")):
        reference = load_reference()
        reference[table].loc[row, column] = value
        monkeypatch.setattr(metrics, "load_reference", lambda given=reference: given)
        assert judge(CLAIMS[claim], ANY_TABLE).verdict == verdict
