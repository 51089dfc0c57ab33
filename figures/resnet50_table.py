"""Time to the targets and final accuracy of K-FAC beside SGD, with the published table in a panel of its own."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kinji.records.metrics.resnet50_table import log_epoch_ratios, mean_estimate
from kinji.records.summaries.resnet50_table import accuracy_interval

OPTIMIZERS = {  # label, color of the palette, marker, line, shift along the logarithmic axis
    "sgd": ("SGD, tuned", 0, "s", "--", 2**-0.08),
    "kfac": ("K-FAC, tuned", 1, "o", "-", 2**0.08),
}


def draw(table: pd.DataFrame, reference: dict[str, pd.DataFrame]) -> Figure:
    """Draw epochs and iterations to both targets, the final accuracy, and the published table."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.6))
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
    return figure


def draw_times(ax: Axes, table: pd.DataFrame, target: str, unit: str) -> None:
    """Draw every fold, their geometric means and 95 % intervals; a fold that missed the target is a triangle."""
    rows = table[(table["quantity"] == "target") & (table["target"] == target)]
    for optimizer, (_, color, marker, _, shift) in OPTIMIZERS.items():
        runs = rows[rows["optimizer"] == optimizer]
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
    ax.set(title="Published: ResNet-50, ImageNet, 75 % (labels: iterations)", ylabel="epochs", ylim=(0, 125))
    ax.legend(loc="upper left")


def batch_axis(ax: Axes, batches: pd.Series) -> None:
    """Label a logarithmic axis by the batch sizes themselves."""
    sizes = np.unique(batches)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:,}" if size < 1e4 else f"{size // 1024}K" for size in sizes])
    ax.set(xlabel="batch size", xlim=(sizes[0] / 1.6, sizes[-1] * 1.6))
