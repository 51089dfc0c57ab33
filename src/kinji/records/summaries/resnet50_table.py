"""The table in its published shape: batch, epochs, iterations, accuracy, with K-FAC beside SGD."""

from __future__ import annotations

import pandas as pd
from scipy import stats


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each batch and optimizer.

    Epochs and iterations are medians over the folds of the time to the target accuracy and to the target loss; ``>``
    marks a median that is the budget. Accuracy is over all tested images, with the half-width of its 95 % interval.
    """
    rows = [
        {"batch": batch, "optimizer": optimizer} | _times(runs, "accuracy") | _times(runs, "loss") | _accuracy(runs)
        for (batch, optimizer), runs in table.groupby(["batch", "optimizer"], sort=True)
    ]
    return pd.DataFrame(rows)


def accuracy_interval(correct: int, images: int) -> tuple[float, float]:
    """Return the Wilson 95 % interval of an accuracy, in percent."""
    interval = stats.binomtest(correct, images).proportion_ci(method="wilson")
    return 100 * interval.low, 100 * interval.high


def _times(runs: pd.DataFrame, target: str) -> dict[str, str]:
    rows = runs[(runs["quantity"] == "target") & (runs["target"] == target)]
    reached = rows["reached"].astype(bool).mean() > 0.5
    return {
        f"{unit} to {target}": f"{'' if reached else '>'}{rows[f'{unit}_to_target'].median():g}"
        for unit in ("epochs", "iterations")
    }


def _accuracy(runs: pd.DataFrame) -> dict[str, str]:
    rows = runs[runs["quantity"] == "accuracy"]
    correct, images = int(rows["test_correct"].sum()), int(rows["test_images"].sum())
    low, high = accuracy_interval(correct, images)
    return {"test accuracy (%)": f"{100 * correct / images:.2f} ± {(high - low) / 2:.2f}"}
