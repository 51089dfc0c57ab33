"""What decides the claims on training: time to a target, accuracy, and the arithmetic of the published table itself.

K-FAC and SGD are compared fold by fold: with one seed both train on the same images from the same weights. Intervals
are Student's t over the folds.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from kinji.records import Estimate, exact, load_reference

IMAGENET_IMAGES = 1_281_167
MISFIT_BATCH = 8192
FOLD = ["seed", "fold"]


def epoch_ratio_to_accuracy(table: pd.DataFrame) -> Estimate:
    """Return K-FAC's epochs over SGD's to the target accuracy, geometric mean over the batch sizes."""
    return _geometric_mean(log_epoch_ratios(table, "accuracy").groupby(FOLD).mean())


def epoch_ratio_to_loss(table: pd.DataFrame) -> Estimate:
    """Return K-FAC's epochs over SGD's to the target loss, geometric mean over the batch sizes."""
    return _geometric_mean(log_epoch_ratios(table, "loss").groupby(FOLD).mean())


def epoch_ratio_at_largest_batch(table: pd.DataFrame) -> Estimate:
    """Return K-FAC's epochs over SGD's to the target accuracy at the largest batch."""
    return _geometric_mean(log_epoch_ratios(table, "accuracy")[table["batch"].max()])


def ratio_growth_to_accuracy(table: pd.DataFrame) -> Estimate:
    """Return p of (K-FAC's epochs over SGD's to the target accuracy) ~ batch^p; negative if the gap grows."""
    return _growth(table, "accuracy")


def ratio_growth_to_loss(table: pd.DataFrame) -> Estimate:
    """Return p of (K-FAC's epochs over SGD's to the target loss) ~ batch^p; negative if the gap grows."""
    return _growth(table, "loss")


def accuracy_difference_points(table: pd.DataFrame) -> Estimate:
    """Return K-FAC's final test accuracy less SGD's in points, each fold averaged over its batch sizes."""
    rows = table[table["quantity"] == "accuracy"]
    percent = 100 * rows["test_correct"] / rows["test_images"]
    sides = rows.assign(percent=percent).pivot(index=[*FOLD, "batch"], columns="optimizer", values="percent")
    return mean_estimate((sides["kfac"] - sides["sgd"]).dropna().groupby(FOLD).mean())


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


def log_epoch_ratios(table: pd.DataFrame, target: str) -> pd.Series:
    """Return log(K-FAC's epochs / SGD's) to a target by (batch, seed, fold).

    Where SGD never arrived its budget is taken, which flatters it; where K-FAC never arrived the ratio is infinite.
    """
    rows = table[(table["quantity"] == "target") & (table["target"] == target)]
    arrived = rows["reached"].astype(bool) | (rows["optimizer"] == "sgd")
    epochs = rows.assign(epochs=rows["epochs_to_target"].where(arrived, np.inf))
    sides = epochs.pivot(index=["batch", *FOLD], columns="optimizer", values="epochs")
    return (sides["kfac"] / sides["sgd"]).dropna().map(math.log)


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


def _published_misfits() -> pd.Series:
    rows = load_reference()["resnet50_table"].set_index("batch")
    return (rows["iterations"] - IMAGENET_IMAGES / rows.index * rows["epochs"]).abs()
