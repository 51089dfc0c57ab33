"""Parts of one step of SGD and of K-FAC: measured here, modelled to 2,048 GPUs, and published seconds per step.

Published points are hollow, lines are modelled, filled points are measured here.
"""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kinji.records import Estimate
from kinji.records.metrics.step_breakdown import (
    LARGEST_PUBLISHED_GPUS,
    PLAIN,
    SAMPLED,
    largest_case,
    median_steps,
    model_error,
    modelled_minutes,
    modelled_steps,
    second_order_share,
    stale_steps,
)
from kinji.records.summaries.step_breakdown import PARTS

HATCHES = ("", "//", "xx", "..", "\\\\", "", "OO")
COLORS = (0, 9, 2, 8, 7, 3, 1)
VARIANTS = {  # Fisher, BatchNorm, stale: label, marker, line
    ("sampled", "full", False): ("sampled Fisher, full BatchNorm", "s", ":"),
    ("sampled", "unit-wise", False): ("sampled Fisher, unit-wise BatchNorm", "D", ":"),
    ("empirical", "full", False): ("empirical Fisher, full BatchNorm", "v", "--"),
    ("empirical", "unit-wise", False): ("empirical Fisher, unit-wise BatchNorm", "o", "--"),
    ("empirical", "unit-wise", True): ("the same, stale statistics", "*", "-"),
}
LEAST_LABELLED = 0.035  # a thinner slice has no room for its label


def draw(table: pd.DataFrame, reference: dict[str, pd.DataFrame]) -> Figure:
    """Draw the measured step, its shares against "about half", and the published scaling with the model's below."""
    modelled = not modelled_steps(table, "K-FAC", SAMPLED).empty
    figure = plt.figure(figsize=(11, 8.2 if modelled else 4.4))
    grid = figure.add_gridspec(1 + modelled, 6, width_ratios=(1, 1.3, 0.5, 0.5, 0.5, 0.5))
    seconds_ax, shares_ax = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    draw_measured(seconds_ax, shares_ax, table)
    published_ax = figure.add_subplot(grid[0, 2:])
    draw_published(published_ax, reference, lines=not modelled)
    if modelled:
        draw_predicted(published_ax, table)
        draw_modelled(figure.add_subplot(grid[1, :3]), table)
        draw_added(figure.add_subplot(grid[1, 3:]), table)
    handles, labels = seconds_ax.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower left", ncols=4, frameon=False)
    return figure


def draw_measured(seconds_ax: Axes, shares_ax: Axes, table: pd.DataFrame) -> None:
    """Draw the parts of the median step measured here, in seconds and in shares."""
    steps = median_steps(table)
    shares = 100 * steps.div(steps["whole step"], axis=0)
    draw_stack(seconds_ax, steps, "{:.2f} s", room=LEAST_LABELLED * steps["whole step"].max())
    draw_totals(seconds_ax, table, steps["whole step"])
    draw_stack(shares_ax, shares, "{:.0f} %", room=100 * LEAST_LABELLED)
    draw_half(shares_ax, table)
    case = largest_case(table, "part").iloc[0]
    seconds_ax.set(title=f"One step on {case.ranks} ranks, measured", ylabel="seconds of the median step")
    shares_ax.set(title=f"ResNet-50, {case.pixels:g} px, {case.batch_per_rank:g} images a rank", ylabel="share (%)")


def draw_stack(ax: Axes, heights: pd.DataFrame, label: str, room: float) -> None:
    """Stack the parts, second-order ones on top, and write into each slice that has room."""
    for position, kind in enumerate(heights.index):
        bottom = 0.0
        for part, color, hatch in zip(PARTS, COLORS, HATCHES, strict=True):
            height = heights.loc[kind, part]
            face = {"color": sns.color_palette()[color], "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
            ax.bar(position, height, 0.8, bottom, label=part if position == 0 else None, **face)
            if height > room:
                text = {"ha": "center", "va": "center", "fontsize": 7}
                box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
                ax.text(position, bottom + height / 2, label.format(height), **text, bbox=box)
            bottom += height
    ax.set_xticks(range(len(heights)), heights.index)
    ax.grid(visible=False, axis="x")


def draw_totals(ax: Axes, table: pd.DataFrame, totals: pd.Series) -> None:
    """Write each step's seconds above its bar, and mark the step that was timed as a whole."""
    steps = largest_case(table, "step")
    apart = steps[~steps["parts_timed"].astype(bool)].groupby("kind")["step_seconds"].median()
    label = "whole step, timed apart"
    for position, kind in enumerate(totals.index):
        ax.plot(position + 0.47, apart[kind], marker="<", color="black", linestyle="none", label=label)
        label = ""
        text = {"textcoords": "offset points", "ha": "center", "weight": "bold"}
        ax.annotate(f"{totals[kind]:.2f} s", (position, totals[kind]), (0, 3), **text)
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


def draw_published(ax: Axes, reference: dict[str, pd.DataFrame], lines: bool) -> None:
    """Draw the published seconds per step over the number of GPUs; joined by lines where no model does it."""
    first = reference["step_breakdown_first_version"]
    hollow = {"markerfacecolor": "none", "markersize": 5, "linewidth": 0.8}
    joined = "-." if lines else "none"
    label = "first version (CVPR 2019)"
    ax.plot(first["gpus"], first["seconds_per_step"], "^", linestyle=joined, color="0.4", label=label, **hollow)
    variants = reference["step_breakdown_variants"].groupby(["fisher", "batch_norm", "stale"])
    for color, (variant, (label, marker, line)) in enumerate(VARIANTS.items()):
        rows = variants.get_group(variant)
        style = {"marker": marker, "linestyle": line if lines else "none", "color": sns.color_palette()[color]} | hollow
        ax.plot(rows["gpus"], rows["seconds_per_step"], label=label, **style)
    count_gpus(ax)
    ax.set(title="K-FAC on V100 GPUs, 224 px, 32 images a GPU", ylabel="seconds per step", ylim=(0, 1.25))
    ax.legend(loc="upper right", fontsize=7, title="published (hollow)", title_fontsize=7)


def draw_predicted(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the modelled seconds of each published variant as lines, and where the fit ended."""
    steps = table[(table["quantity"] == "predicted step") & (table["between_nodes"] == "halving")]
    for color, (variant, (_, _, line)) in enumerate(VARIANTS.items()):
        chosen = (steps[["fisher", "batch_norm", "stale"]] == list(variant)).all(axis=1)
        rows = steps[chosen].sort_values("gpus")
        ax.plot(rows["gpus"], rows["modelled_seconds"], line, color=sns.color_palette()[color], linewidth=1.3)
    ax.axvspan(2**5.5, 2**11.5, color="0.93", zorder=0)
    error = model_error(table)
    if error:
        ax.text(2**5.6, 0.035, f"held out: median error {error.value:.1%}", fontsize=7.5, va="bottom")
    ax.text(2**5.4, 0.035, "fitted", fontsize=7.5, ha="right", va="bottom")
    ax.set_title("K-FAC on V100 GPUs, 224 px, 32 images a GPU: published, and the model (lines)")


def draw_modelled(ax: Axes, table: pd.DataFrame) -> None:
    """Stack the modelled parts over the number of GPUs, SGD to the left of K-FAC."""
    for optimizer, plan, shift in (("SGD", {}, -0.21), ("K-FAC", SAMPLED, 0.21)):
        steps = modelled_steps(table, optimizer, plan)
        places = [position + shift for position in range(len(steps))]
        bottom = pd.Series(0.0, steps.index)
        for part, color, hatch in zip(PARTS, COLORS, HATCHES, strict=True):
            face = {"color": sns.color_palette()[color], "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
            ax.bar(places, steps[part], 0.38, bottom, **face)
            bottom += steps[part]
        ax.set_xticks(range(len(steps)), [f"{gpus:g}" for gpus in steps.index])
    ax.grid(visible=False, axis="x")
    title = "Modelled parts on ABCI: SGD (left), K-FAC (right; sampled Fisher, full BatchNorm)"
    ax.set(title=title, xlabel="GPUs", ylabel="seconds per step")


def draw_added(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the share of the step that K-FAC adds over the number of GPUs, beside the published half."""
    for color, label, line, plan in ((0, "sampled, full", ":", SAMPLED), (3, "empirical, unit-wise", "--", PLAIN)):
        steps = modelled_steps(table, "K-FAC", plan)
        added = 100 * (steps["K-FAC"] + steps["K-FAC communication"]) / steps.sum(axis=1)
        ax.plot(added.index, added, line, color=sns.color_palette()[color], label=f"modelled: {label}")
    stale, sgd = stale_steps(table), modelled_steps(table, "SGD", {}).sum(axis=1)
    added = 100 * (1 - sgd.reindex(stale.index) / stale)
    ax.plot(stale.index, added, "-", color=sns.color_palette()[4], label="modelled: the same, stale statistics")
    here = second_order_share(table)
    if here:
        ranks = largest_case(table, "part")["ranks"].iloc[0]
        ax.plot(ranks, 100 * here.value, "o", color="black", label="measured here (CPU, 64 px)")
    ax.axhspan(40, 60, color="0.9", zorder=0)
    ax.text(1, 50, "published:\nabout half", fontsize=8, va="center")
    count_gpus(ax)
    ax.set(title="What K-FAC adds to a step", ylabel="share of K-FAC's step (%)", ylim=(0, 100))
    ax.legend(loc="upper right", fontsize=7)
    ax.text(0.02, 0.1, _minutes(modelled_minutes(table)), transform=ax.transAxes, fontsize=7.5, va="bottom")


def count_gpus(ax: Axes) -> None:
    """Let the horizontal axis count GPUs in powers of two."""
    ax.set_xscale("log", base=2)
    ax.set_xlim(2**-0.5, 2**0.5 * LARGEST_PUBLISHED_GPUS)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("GPUs")


def _minutes(modelled: Estimate | None) -> str:
    if modelled is None:
        return ""
    return (
        f"1,760 stale steps on 1,024 GPUs:\n{modelled.value:.1f} minutes modelled\n"
        f"({modelled.low:.1f} to {modelled.high:.1f}); 5.5 published"
    )
