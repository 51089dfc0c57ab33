"""Parts of one step of SGD and of K-FAC in seconds and in shares, with the published seconds per step beside them."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kinji.records.metrics.step_breakdown import largest_case, median_steps, second_order_share
from kinji.records.summaries.step_breakdown import PARTS

HATCHES = ("", "//", "xx", "..", "\\\\", "", "OO")
COLORS = (0, 9, 2, 8, 7, 3, 1)
OPTIMIZERS = ("SGD", "K-FAC")
VARIANTS = {  # Fisher, BatchNorm, stale: label, marker, line
    ("sampled", "full", False): ("sampled Fisher, full BatchNorm", "s", ":"),
    ("sampled", "unit-wise", False): ("sampled Fisher, unit-wise BatchNorm", "D", ":"),
    ("empirical", "full", False): ("empirical Fisher, full BatchNorm", "v", "--"),
    ("empirical", "unit-wise", False): ("empirical Fisher, unit-wise BatchNorm", "o", "--"),
    ("empirical", "unit-wise", True): ("the same, stale statistics", "*", "-"),
}
LEAST_LABELLED = 0.035  # a thinner slice has no room for its label


def draw(table: pd.DataFrame, reference: dict[str, pd.DataFrame]) -> Figure:
    """Draw the measured step, its shares against "about half", and the published scaling."""
    figure, (seconds_ax, shares_ax, published_ax) = plt.subplots(1, 3, figsize=(11, 4.4), width_ratios=(1, 1.3, 1.5))
    steps = median_steps(table)
    shares = 100 * steps.div(steps["whole step"], axis=0)
    draw_stack(seconds_ax, steps, "{:.2f} s", room=LEAST_LABELLED * steps["whole step"].max())
    draw_totals(seconds_ax, table, steps["whole step"])
    draw_stack(shares_ax, shares, "{:.0f} %", room=100 * LEAST_LABELLED)
    draw_half(shares_ax, table)
    draw_published(published_ax, reference)
    case = largest_case(table, "part").iloc[0]
    seconds_ax.set(title=f"One step on {case.ranks} ranks", ylabel="seconds of the median step")
    shares_ax.set(title=f"ResNet-50, {case.pixels:g} px, {case.batch_per_rank:g} images a rank", ylabel="share (%)")
    handles, labels = seconds_ax.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower left", ncols=4, frameon=False)
    return figure


def draw_stack(ax: Axes, heights: pd.DataFrame, label: str, room: float) -> None:
    """Stack the parts, second-order ones on top, and write into each slice that has room."""
    for position, optimizer in enumerate(OPTIMIZERS):
        bottom = 0.0
        for part, color, hatch in zip(PARTS, COLORS, HATCHES, strict=True):
            height = heights.loc[optimizer, part]
            face = {"color": sns.color_palette()[color], "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
            ax.bar(position, height, 0.8, bottom, label=part if position == 0 else None, **face)
            if height > room:
                text = {"ha": "center", "va": "center", "fontsize": 7}
                box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
                ax.text(position, bottom + height / 2, label.format(height), **text, bbox=box)
            bottom += height
    ax.set_xticks(range(len(OPTIMIZERS)), OPTIMIZERS)
    ax.grid(visible=False, axis="x")


def draw_totals(ax: Axes, table: pd.DataFrame, totals: pd.Series) -> None:
    """Write each step's seconds above its bar, and mark the step that was timed as a whole."""
    steps = largest_case(table, "step")
    apart = steps[~steps["parts_timed"].astype(bool)].groupby("optimizer")["step_seconds"].median()
    label = "whole step, timed apart"
    for position, optimizer in enumerate(OPTIMIZERS):
        ax.plot(position + 0.47, apart[optimizer], marker="<", color="black", linestyle="none", label=label)
        label = ""
        text = {"textcoords": "offset points", "ha": "center", "weight": "bold"}
        ax.annotate(f"{totals[optimizer]:.2f} s", (position, totals[optimizer]), (0, 3), **text)
    ax.set_xlim(-0.5, 1.6)
    ax.margins(y=0.1)


def draw_half(ax: Axes, table: pd.DataFrame) -> None:
    """Mark the published half, and bracket what K-FAC adds."""
    share = second_order_share(table)
    if share:
        start = 100 * (1 - share.value)
        ax.annotate("", (1.47, start), (1.47, 100), arrowprops={"arrowstyle": "<->", "color": "black"})
        measured = f"measured:\nK-FAC adds\n{100 * share.value:.0f} %"
        ax.text(1.52, (start + 100) / 2 + 6, measured, va="center", fontsize=8, weight="bold")
    ax.plot((0.55, 2.1), (50, 50), color="black", linestyle="--", linewidth=1)
    ax.text(1.52, 49, "published:\nabout half", va="top", fontsize=8)
    ax.set(xlim=(-0.5, 2.1), ylim=(0, 103))


def draw_published(ax: Axes, reference: dict[str, pd.DataFrame]) -> None:
    """Draw the published seconds per step over the number of GPUs."""
    first = reference["step_breakdown_first_version"]
    hollow = {"markerfacecolor": "none", "markersize": 5, "linewidth": 0.8}
    ax.plot(first["gpus"], first["seconds_per_step"], "^-.", color="0.4", label="first version (CVPR 2019)", **hollow)
    variants = reference["step_breakdown_variants"].groupby(["fisher", "batch_norm", "stale"])
    for color, (variant, (label, marker, line)) in enumerate(VARIANTS.items()):
        rows = variants.get_group(variant)
        style = {"marker": marker, "linestyle": line, "color": sns.color_palette()[color]} | hollow
        ax.plot(rows["gpus"], rows["seconds_per_step"], label=label, **style)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(title="Published: K-FAC on V100 GPUs, 224 px, 32 images a GPU", xlabel="GPUs", ylabel="seconds per step")
    ax.set_ylim(0, 1.25)
    ax.legend(loc="upper right", fontsize=7, title="published (hollow)", title_fontsize=7)
