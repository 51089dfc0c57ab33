"""The table in its published shape: batch, epochs, iterations, accuracy, with K-FAC beside SGD, and ablations."""

from __future__ import annotations

from collections.abc import Hashable

import pandas as pd
from scipy import stats

from kinji.records.metrics.resnet50_table import PLAIN, TASK, with_options


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each batch, optimizer and ablation, and each task if there are several.

    Epochs and iterations are medians over the folds of the time to the target accuracy and to the target loss; ``>``
    marks a median that is the budget. Accuracy is over all tested images, with the half-width of its 95 % interval.
    The last column is the share of the bytes of statistics that were formed.
    """
    kinds = with_options(table).groupby([*TASK, "batch", "optimizer", *PLAIN], sort=True)
    rows = [
        {"task": f"{network}, {images}, {pixels} px", "batch": batch, "optimizer": optimizer}
        | {"changed": _changed(dict(zip(PLAIN, options, strict=True)))}
        | _times(runs, "accuracy")
        | _times(runs, "loss")
        | _accuracy(runs)
        | _statistics(runs)
        for (images, pixels, network, batch, optimizer, *options), runs in kinds
    ]
    order = {"task": True, "batch": True, "optimizer": False, "changed": True}
    summary = pd.DataFrame(rows).sort_values([*order], ascending=[*order.values()])
    return summary if summary["task"].nunique() > 1 else summary.drop(columns="task")


def _changed(options: dict[str, Hashable]) -> str:
    changed = {name: value for name, value in options.items() if value != PLAIN[name]}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in changed.items())


def _statistics(runs: pd.DataFrame) -> dict[str, str]:
    rows = runs[runs["quantity"] == "statistics"]
    if rows.empty:
        return {"statistics left (%)": ""}
    return {"statistics left (%)": f"{100 * rows['formed_bytes'].sum() / rows['every_step_bytes'].sum():.0f}"}


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
