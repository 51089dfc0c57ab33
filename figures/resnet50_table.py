"""Time to the targets and final accuracy of K-FAC beside first-order optimizers; the published table; ablations.

Ablations change one option of K-FAC; what it does to accuracy, epochs and bytes is drawn against the plain case.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kinji.records import load_reference
from kinji.records.metrics.resnet50_table import (
    FOLD,
    ablated,
    log_epoch_ratios,
    log_epochs_of_ablation,
    main_task,
    mean_estimate,
    points_of_ablation,
    statistics_left,
)
from kinji.records.summaries.resnet50_table import accuracy_interval

OPTIMIZERS = {  # label, color of the palette, marker, line, shift along the logarithmic axis
    "sgd": ("SGD, tuned", 0, "s", "--", 2**-0.08),
    "kfac": ("K-FAC, tuned", 1, "o", "-", 2**0.08),
    "lars": ("LARS", 2, "v", ":", 2**-0.16),
    "rmsprop-sgd": ("RMSprop into SGD", 3, "D", ":", 2**0.16),
    "adam": ("Adam", 4, "P", ":", 2**-0.24),
    "adamw": ("AdamW", 5, "X", ":", 2**0.24),
}
ABLATIONS = {  # option, value: what is changed
    ("fisher", "sampled"): "sampled Fisher",
    ("batch_norm", "full"): "full BatchNorm",
    ("statistics", "adaptive"): "stale",
    ("rescaling", "published"): "rescaled",
    ("rescaling", "released"): "rescaled, released",
    ("momentum_rule", "released"): "released momentum",
}


def draw(table: pd.DataFrame, reference: dict[str, pd.DataFrame]) -> Figure:
    """Draw what several batch sizes tell, beside the published table, and what changed options do, if any were."""
    changes = [change for change in ABLATIONS if not ablated(table, *change).empty]
    one = main_task(table)
    upper = 0 if changes and one["batch"].nunique() == 1 else 2
    rows = upper + bool(changes)
    figure, axes = plt.subplots(rows, 3, figsize=(10.5, 2.8 * rows), squeeze=False)
    if upper:
        draw_batches(axes[:2], one, reference)
    if changes:
        draw_ablations(axes[-1], table, changes)
    return figure


def draw_batches(axes: np.ndarray, table: pd.DataFrame, reference: dict[str, pd.DataFrame]) -> None:
    """Draw epochs and iterations to both targets, the final accuracy, and the published table."""
    percent, loss = 100 * table["target_accuracy"].max(), table["target_loss"].max()
    names = {"accuracy": f"{percent:g} % validation accuracy", "loss": f"a validation loss of {loss:g}"}
    for row, (target, name) in zip(axes, names.items(), strict=True):
        for ax, unit in zip(row, ("epochs", "iterations"), strict=False):
            draw_times(ax, table, target, unit)
            ax.set(title=f"{unit.capitalize()} to {name}", ylabel=unit)
        write_ratios(row[0], table, target)
    draw_accuracy(axes[0, 2], table)
    draw_published(axes[1, 2], reference)
    axes[0, 0].legend(loc="upper left")


def draw_ablations(axes: np.ndarray, table: pd.DataFrame, changes: list[tuple[str, str]]) -> None:
    """Draw what each changed option adds to accuracy and epochs, and the bytes that staleness leaves."""
    points = {ABLATIONS[change]: mean_of_folds(points_of_ablation(table, *change)) for change in changes}
    draw_changes(axes[0], points, "points of test accuracy added", 0.0)
    epochs = {ABLATIONS[change]: mean_of_folds(log_epochs_of_ablation(table, *change)) for change in changes}
    draw_changes(axes[1], {name: np.exp(one) for name, one in epochs.items()}, "epochs to the loss over the plain", 1.0)
    axes[1].set_yticklabels([])
    batches = sorted(pd.concat([ablated(table, *change) for change in changes])["batch"].unique())
    axes[0].set_title("K-FAC with one option changed, batch " + ", ".join(f"{batch:,}" for batch in batches))
    draw_traffic(axes[2], table, measured=("statistics", "adaptive") in changes)


def mean_of_folds(changes: pd.Series) -> np.ndarray:
    """Return mean and 95 % interval over the folds, each averaged over its batch sizes."""
    estimate = mean_estimate(changes.groupby(FOLD).mean())
    return np.array([estimate.value, estimate.low, estimate.high])


def draw_changes(ax: Axes, changes: dict[str, np.ndarray], label: str, neutral: float) -> None:
    """Draw one interval a line, first on top."""
    value, low, high = np.stack(list(changes.values())).T
    lines = np.arange(len(changes))[::-1]
    style = {"fmt": "o", "color": sns.color_palette()[1], "capsize": 2}
    ax.errorbar(value, lines, xerr=[value - low, high - value], **style)
    ax.axvline(neutral, color="0.4", linewidth=0.8)
    ax.set_yticks(lines, list(changes))
    ax.set(xlabel=label, ylim=(-0.6, len(changes) - 0.4))


def draw_traffic(ax: Axes, table: pd.DataFrame, measured: bool) -> None:
    """Draw the share of the bytes of statistics that staleness leaves, beside the published shares."""
    printed = load_reference()["resnet50_spngd"].dropna(subset=["statistics_left_percent"])
    names = [f"{batch // 1024}K" for batch in printed["batch"]]
    ax.bar(names, printed["statistics_left_percent"], color="white", edgecolor="0.2", label="published")
    if measured:
        ours = statistics_left(table)
        error = [[100 * (ours.value - ours.low)], [100 * (ours.high - ours.value)]]
        ax.bar(["here"], [100 * ours.value], yerr=error, color=sns.color_palette()[1], capsize=2, label="measured")
    ax.axhline(50, color="0.4", linestyle="--", linewidth=0.8)
    ax.set(title="Bytes of statistics that staleness leaves", ylabel="% of every step's", ylim=(0, 100), xlabel="batch")
    ax.legend(loc="upper left")


def draw_times(ax: Axes, table: pd.DataFrame, target: str, unit: str) -> None:
    """Draw every fold, their geometric means and 95 % intervals; a fold that missed the target is a triangle."""
    rows = table[(table["quantity"] == "target") & (table["target"] == target)]
    for optimizer, (_, color, marker, _, shift) in OPTIMIZERS.items():
        runs = rows[rows["optimizer"] == optimizer]
        if runs.empty:
            continue
        style = {"color": sns.color_palette()[color], "linestyle": "none", "markersize": 4, "alpha": 0.35}
        for reached, fold_marker in ((True, marker), (False, "^")):
            seen = runs[runs["reached"].astype(bool) == reached]
            ax.plot(seen["batch"] * shift, seen[f"{unit}_to_target"], marker=fold_marker, **style)
        means = np.log(runs[f"{unit}_to_target"]).groupby(runs["batch"]).apply(mean_estimate)
        draw_estimates(ax, means.map(lambda e: np.exp([e.value, e.low, e.high])), optimizer)
    batch_axis(ax, table["batch"])
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter("{x:g}")


def draw_accuracy(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the final accuracy over all tested images with its Wilson interval."""
    rows = table[table["quantity"] == "accuracy"]
    counts = rows.groupby(["optimizer", "batch"])[["test_correct", "test_images"]].sum().astype(int)
    for optimizer, sums in counts.groupby("optimizer"):
        intervals = {
            batch: np.array([100 * correct / images, *accuracy_interval(correct, images)])
            for (_, batch), correct, images in sums.itertuples()
        }
        draw_estimates(ax, pd.Series(intervals), str(optimizer))
    batch_axis(ax, table["batch"])
    images = int(counts["test_images"].max())
    ax.set(title=f"Final test accuracy ({images:,} images)", ylabel="accuracy (%), 95 % interval")


def draw_estimates(ax: Axes, estimates: pd.Series, optimizer: str) -> None:
    """Draw values with asymmetric intervals over batch sizes."""
    label, color, marker, line, shift = OPTIMIZERS[optimizer]
    value, low, high = np.stack(estimates.to_list()).T
    ax.errorbar(
        estimates.index.to_numpy() * shift,
        value,
        yerr=[value - low, high - value],
        label=label,
        color=sns.color_palette()[color],
        marker=marker,
        linestyle=line,
        capsize=2,
    )


def write_ratios(ax: Axes, table: pd.DataFrame, target: str) -> None:
    """Write K-FAC's share of SGD's epochs under each batch size."""
    ratios = np.exp(log_epoch_ratios(table, target).groupby("batch").mean())
    low, high = ax.get_ylim()
    ax.set_ylim(low / 2.2, high)
    for batch, ratio in ratios.items():
        ax.text(batch, low / 2, f"×{ratio:.2f}", ha="center", fontsize=8, weight="bold")
    ax.text(0.02, 0.16, "K-FAC's share of SGD's epochs:", transform=ax.transAxes, fontsize=7)


def draw_published(ax: Axes, reference: dict[str, pd.DataFrame]) -> None:
    """Draw the published table: ImageNet, each point with its iterations."""
    kfac = reference["resnet50_table"]
    ax.plot(kfac["batch"], kfac["epochs"], "o-", color="0.2", markerfacecolor="white", label="K-FAC, published")
    sgd = reference["resnet50_sgd_epochs"]["epochs"].iloc[0]
    ax.axhline(sgd, color="0.2", linestyle="--", label=f"SGD, published: {sgd} epochs")
    for batch, epochs, iterations in kfac[["batch", "epochs", "iterations"]].itertuples(index=False):
        ax.annotate(f"{iterations:,}", (batch, epochs), (-4, 6), textcoords="offset points", ha="center", fontsize=7)
    batch_axis(ax, kfac["batch"])
    ax.set(title="Published, ImageNet (labels: iterations)", ylabel="epochs", ylim=(0, 125))
    ax.legend(loc="upper left")


def batch_axis(ax: Axes, batches: pd.Series) -> None:
    """Label a logarithmic axis by the batch sizes themselves."""
    sizes = np.unique(batches)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:,}" if size < 1e4 else f"{size // 1024}K" for size in sizes])
    ax.set(xlabel="batch size", xlim=(sizes[0] / 1.6, sizes[-1] * 1.6))
