"""Parts of one step of SGD and of K-FAC in seconds and in shares, with the published seconds per step beside them."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kinji.records.metrics.step_breakdown import largest_case, part_shares, second_order_share
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
    figure, (seconds_ax, shares_ax, published_ax) = plt.subplots(1, 3, figsize=(11, 4.4), width_ratios=(1, 1.15, 1.5))
    seconds = largest_case(table, "part").pivot_table(
        index="optimizer", columns="part", values="part_seconds", aggfunc="median"
    )
    draw_stack(seconds_ax, seconds, "{:.2f} s", room=LEAST_LABELLED * seconds.sum(axis=1).max())
    draw_totals(seconds_ax, table, seconds.sum(axis=1))
    draw_stack(shares_ax, 100 * part_shares(table).groupby("optimizer").median(), "{:.0f} %", 100 * LEAST_LABELLED)
    draw_half(shares_ax, table)
    draw_published(published_ax, reference)
    case = largest_case(table, "part").iloc[0]
    seconds_ax.set(title=f"One step, {case.ranks} ranks", ylabel="seconds (median over ranks and repetitions)")
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


def draw_totals(ax: Axes, table: pd.DataFrame, sums: pd.Series) -> None:
    """Write the sum of the parts above each bar, and mark the whole step, timed apart."""
    steps = largest_case(table, "step")
    apart = steps[~steps["parts_timed"].astype(bool)].groupby("optimizer")["step_seconds"].median()
    for position, optimizer in enumerate(OPTIMIZERS):
        whole = {"marker": "D", "color": "black", "linestyle": "none", "markersize": 5, "zorder": 3}
        ax.plot(position + 0.33, apart[optimizer], label="whole step, timed apart" if position == 0 else None, **whole)
        ax.annotate(
            f"{sums[optimizer]:.2f} s",
            (position - 0.05, sums[optimizer]),
            (0, 3),
            textcoords="offset points",
            ha="center",
            weight="bold",
        )
    ax.margins(y=0.1)


def draw_half(ax: Axes, table: pd.DataFrame) -> None:
    """Mark the published half, and bracket what K-FAC adds."""
    share = second_order_share(table)
    ax.axhline(50, color="black", linestyle="--", linewidth=1)
    ax.text(
        0.5,
        51,
        "published:\nK-FAC adds\nabout half",
        ha="center",
        va="bottom",
        fontsize=7,
        linespacing=1.1,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )
    if share:
        start = 100 * (1 - share.value)
        ax.annotate("", (1.47, start), (1.47, 100), arrowprops={"arrowstyle": "<->", "color": "black"})
        ax.text(1.52, (start + 100) / 2, f"{100 * share.value:.0f} %\nadded", va="center", fontsize=8, weight="bold")
    ax.set(xlim=(-0.5, 1.95), ylim=(0, 103))


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
