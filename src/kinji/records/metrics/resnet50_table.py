"""What decides the claims on training: time to a target, accuracy, ablations, arithmetic of the published table itself.

Two runs are compared fold by fold: with one seed both train on the same images from the same weights. Intervals are
Student's t over the folds. What compares optimizers or batch sizes looks at plain cases only, those whose options are
the published ones, and at one task, that of the most batch sizes; an ablation changes one option of K-FAC and is
compared with the plain case of its task and batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from kinji.records import Estimate, exact, load_reference

IMAGENET_IMAGES = 1_281_167
MISFIT_BATCH = 8192
TASK: dict[str, Any] = {"images": "digits", "pixels": 32, "network": "small"}
FOLD = [*TASK, "seed", "fold"]
PLAIN = {
    "fisher": "empirical",
    "batch_norm": "unit-wise",
    "statistics": "fresh",
    "rescaling": "none",
    "momentum_rule": "published",
}


def epoch_ratio_to_accuracy(table: pd.DataFrame) -> Estimate:
    """Return K-FAC's epochs over SGD's to the target accuracy, geometric mean over the batch sizes."""
    return _geometric_mean(log_epoch_ratios(table, "accuracy").groupby(FOLD).mean())


def epoch_ratio_to_loss(table: pd.DataFrame) -> Estimate:
    """Return K-FAC's epochs over SGD's to the target loss, geometric mean over the batch sizes."""
    return _geometric_mean(log_epoch_ratios(table, "loss").groupby(FOLD).mean())


def epoch_ratio_at_largest_batch(table: pd.DataFrame) -> Estimate:
    """Return K-FAC's epochs over SGD's to the target accuracy at the largest batch."""
    return _geometric_mean(log_epoch_ratios(table, "accuracy")[main_task(table)["batch"].max()])


def ratio_growth_to_accuracy(table: pd.DataFrame) -> Estimate:
    """Return p of (K-FAC's epochs over SGD's to the target accuracy) ~ batch^p; negative if the gap grows."""
    return _growth(table, "accuracy")


def ratio_growth_to_loss(table: pd.DataFrame) -> Estimate:
    """Return p of (K-FAC's epochs over SGD's to the target loss) ~ batch^p; negative if the gap grows."""
    return _growth(table, "loss")


def accuracy_difference_points(table: pd.DataFrame) -> Estimate:
    """Return K-FAC's final test accuracy less SGD's in points, each fold averaged over its batch sizes."""
    rows = main_task(table)
    return mean_estimate((percent(rows, "kfac") - percent(rows, "sgd")).dropna().groupby(FOLD).mean())


def growth_at_small_batches(table: pd.DataFrame) -> Estimate:
    """Return K-FAC's epochs to the target loss at the largest of the smaller half of the batches, over the smallest."""
    batches = sorted(epochs_to(main_task(table), "loss", "kfac").index.unique("batch"))
    return _growth_between(table, batches[0], batches[(len(batches) - 1) // 2])


def growth_at_largest_batch(table: pd.DataFrame) -> Estimate:
    """Return K-FAC's epochs to the target loss at the largest batch over those at the smallest."""
    batches = epochs_to(main_task(table), "loss", "kfac").index.unique("batch")
    return _growth_between(table, batches.min(), batches.max())


def empirical_over_sampled_epochs(table: pd.DataFrame) -> Estimate:
    """Return epochs to the target loss with the empirical Fisher matrix over those with the sampled one."""
    return _geometric_mean(-log_epochs_of_ablation(table, "fisher", "sampled").groupby(FOLD).mean())


def empirical_points(table: pd.DataFrame) -> Estimate:
    """Return the test accuracy with the empirical Fisher matrix less that with the sampled one, in points."""
    return mean_estimate(-points_of_ablation(table, "fisher", "sampled").groupby(FOLD).mean())


def unit_wise_points(table: pd.DataFrame) -> Estimate:
    """Return the test accuracy with unit-wise BatchNorm blocks less that with full ones, in points."""
    return mean_estimate(-points_of_ablation(table, "batch_norm", "full").groupby(FOLD).mean())


def stale_loss_points(table: pd.DataFrame) -> Estimate:
    """Return by how many points of test accuracy adaptive statistics are worse than fresh ones."""
    return mean_estimate(-points_of_ablation(table, "statistics", "adaptive").groupby(FOLD).mean())


def statistics_left(table: pd.DataFrame) -> Estimate:
    """Return the share of the bytes of statistics that adaptive intervals leave."""
    rows = with_options(table)
    adaptive = (rows["statistics"] == "adaptive") | (rows["preset"].notna() & (rows["optimizer"] == "kfac"))
    rows = rows[(rows["quantity"] == "statistics") & adaptive]
    return mean_estimate((rows["formed_bytes"] / rows["every_step_bytes"]).groupby([rows[f] for f in FOLD]).mean())


def rescaling_points(table: pd.DataFrame) -> Estimate:
    """Return the test accuracy with weights rescaled after each step less that without, in points."""
    return mean_estimate(points_of_ablation(table, "rescaling", "published").groupby(FOLD).mean())


def published_momentum_points(table: pd.DataFrame) -> Estimate:
    """Return the test accuracy with the paper's momentum less that with the released code's, in points."""
    return mean_estimate(-points_of_ablation(table, "momentum_rule", "released").groupby(FOLD).mean())


def misfit_of_fitting_rows(table: pd.DataFrame) -> Estimate:
    """Return the largest |printed iterations - images / batch * epochs| of the published table, but for one row."""
    misfits = _published_misfits()
    return exact(misfits.drop(MISFIT_BATCH).max())


def misfit_of_row_8192(table: pd.DataFrame) -> Estimate:
    """Return |printed iterations - images / batch * epochs| of the published row at batch 8,192."""
    return exact(_published_misfits()[MISFIT_BATCH])


def disagreement_at_131072(table: pd.DataFrame) -> Estimate:
    """Return by how many iterations the tables of 2019 and 2020 differ at batch 131,072."""
    printed = [load_reference()[name].set_index("batch")["iterations"] for name in ("resnet50_table", "resnet50_spngd")]
    return exact(abs(printed[0][131072] - printed[1][131072]))


def misfit_of_minutes(table: pd.DataFrame) -> Estimate:
    """Return the largest relative difference of printed minutes and iterations times seconds per iteration."""
    rows = load_reference()["resnet50_spngd"].dropna(subset="minutes")
    minutes = rows["iterations"] * rows["seconds_per_iteration"] / 60
    return exact((minutes / rows["minutes"] - 1).abs().max())


def with_options(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with a column for each option; where it has none, the plain one is meant."""
    options = TASK | PLAIN
    columns = {name: table[name].fillna(value) if name in table else value for name, value in options.items()}
    return table.assign(**columns | ({} if "preset" in table else {"preset": None}))


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of cases without an ablation."""
    rows = with_options(table)
    return rows[(rows[list(PLAIN)] == pd.Series(PLAIN)).all(axis=1)]


def main_task(table: pd.DataFrame) -> pd.DataFrame:
    """Return the plain rows of the task with the most batch sizes."""
    rows = plain(table)
    batches = rows.groupby([*TASK])["batch"].nunique()
    return rows[(rows[[*TASK]] == pd.Series(batches.idxmax(), index=[*TASK])).all(axis=1)]


def ablated(table: pd.DataFrame, option: str, value: str) -> pd.DataFrame:
    """Return the rows of K-FAC with one option changed, and no other."""
    rows = with_options(table)
    rows = rows[rows[option] == value]
    return plain(rows.assign(**{option: PLAIN[option]}))


def points_of_ablation(table: pd.DataFrame, option: str, value: str) -> pd.Series:
    """Return what changing an option adds to the test accuracy, in points, by batch and fold."""
    changed, usual = percent(ablated(table, option, value), "kfac"), percent(plain(table), "kfac")
    return (changed - usual).dropna()


def log_epochs_of_ablation(table: pd.DataFrame, option: str, value: str) -> pd.Series:
    """Return log(epochs to the target loss with an option changed / with none), by batch and fold."""
    changed, usual = (epochs_to(rows, "loss", "kfac") for rows in (ablated(table, option, value), plain(table)))
    return (changed / usual).dropna().map(math.log)


def percent(rows: pd.DataFrame, optimizer: str) -> pd.Series:
    """Return the test accuracy of an optimizer in percent, by batch and fold."""
    rows = rows[(rows["quantity"] == "accuracy") & (rows["optimizer"] == optimizer)]
    return (100 * rows["test_correct"] / rows["test_images"]).set_axis(pd.MultiIndex.from_frame(rows[["batch", *FOLD]]))


def epochs_to(rows: pd.DataFrame, target: str, optimizer: str) -> pd.Series:
    """Return an optimizer's epochs to a target by batch and fold, infinite where it never arrived."""
    rows = rows[(rows["quantity"] == "target") & (rows["target"] == target) & (rows["optimizer"] == optimizer)]
    epochs = rows["epochs_to_target"].where(rows["reached"].astype(bool), np.inf)
    return epochs.set_axis(pd.MultiIndex.from_frame(rows[["batch", *FOLD]]))


def log_epoch_ratios(table: pd.DataFrame, target: str) -> pd.Series:
    """Return log(K-FAC's epochs / SGD's) to a target by batch and fold.

    Where SGD never arrived its budget is taken, which flatters it; where K-FAC never arrived the ratio is infinite.
    """
    rows = main_task(table)
    budget = rows.assign(reached=True)
    return (epochs_to(rows, target, "kfac") / epochs_to(budget, target, "sgd")).dropna().map(math.log)


def mean_estimate(values: pd.Series) -> Estimate:
    """Return the mean with its 95 % t interval; two values at least."""
    if len(values) < 2:
        raise ValueError(f"an interval needs two folds, got {len(values)}")
    if np.isinf(values).any():
        return exact(math.inf)
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Estimate(mean, mean - half, mean + half)


def _geometric_mean(logarithms: pd.Series) -> Estimate:
    mean = mean_estimate(logarithms)
    return Estimate(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high))


def _growth(table: pd.DataFrame, target: str) -> Estimate:
    by_batch = log_epoch_ratios(table, target).unstack("batch").dropna()
    if by_batch.shape[1] < 3:
        raise ValueError(f"a growth needs three batch sizes, got {by_batch.shape[1]}")
    if np.isinf(by_batch.to_numpy()).any():
        return exact(math.inf)
    slopes = np.polyfit(np.log(by_batch.columns.to_numpy(dtype=float)), by_batch.to_numpy().T, deg=1)[0]
    return mean_estimate(pd.Series(slopes))


def _growth_between(table: pd.DataFrame, small: int, large: int) -> Estimate:
    if small == large:
        raise ValueError(f"a growth needs two batch sizes, got {small} alone")
    epochs = epochs_to(main_task(table), "loss", "kfac")
    return _geometric_mean((epochs[large] / epochs[small]).dropna().map(math.log))


def _published_misfits() -> pd.Series:
    rows = load_reference()["resnet50_table"].set_index("batch")
    return (rows["iterations"] - IMAGENET_IMAGES / rows.index * rows["epochs"]).abs()
