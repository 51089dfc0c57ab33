"""Parts of one step: measured here, modelled to 2,048 GPUs, published.

Filled points are measured here, hollow ones published, lines and diamonds modelled.
"""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kinji.records import Estimate
from kinji.records.metrics.step_breakdown import (
    KINDS,
    LARGEST_PUBLISHED_GPUS,
    PLAIN,
    SAMPLED,
    hidden_exchange_share,
    largest_case,
    median_steps,
    model_error,
    modelled_minutes,
    modelled_steps,
    own_steps,
    second_order_share,
    stale_steps,
    unattributed_share,
)
from kinji.records.summaries.step_breakdown import PARTS

HATCHES = ("", "//", "xx", "..", "\\\\", "", "OO")
COLORS = (0, 9, 2, 8, 7, 3, 1)
VARIANTS = {  # Fisher, BatchNorm, stale: label, marker, line
    ("sampled", "full", False): ("sampled, full", "s", ":"),
    ("sampled", "unit-wise", False): ("sampled, unit-wise", "D", ":"),
    ("empirical", "full", False): ("empirical, full", "v", "--"),
    ("empirical", "unit-wise", False): ("empirical, unit-wise", "o", "--"),
    ("empirical", "unit-wise", True): ("the same, stale statistics", "*", "-"),
}
STACKED_GPUS = (1, 4, 16, 64, 256, 1024, 2048)
LEAST_LABELLED = 4.5  # a thinner slice, in percent, has no room for its label
NETWORKS = {"resnet50": "ResNet-50", "resnet18": "ResNet-18", "bert-base-block": "BERT block"}


def draw(table: pd.DataFrame, reference: dict[str, pd.DataFrame]) -> Figure:
    """Draw the measured beside the modelled parts; below, seconds and overhead over GPUs, and own steps predicted."""
    figure = plt.figure(figsize=(11, 8.6))
    above, below = figure.add_gridspec(2, 1, height_ratios=(1.05, 1))
    measured, modelled = (figure.add_subplot(place) for place in above.subgridspec(1, 2, width_ratios=(1, 1.75)))
    scaling, added, own = (figure.add_subplot(p) for p in below.subgridspec(1, 3, width_ratios=(1.5, 1.1, 0.8)))
    draw_measured(measured, table)
    draw_modelled(modelled, table)
    draw_scaling(scaling, table, reference)
    draw_added(added, table)
    draw_own(own, table)
    handles, labels = measured.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(PARTS), frameon=False)
    return figure


def draw_measured(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the shares of the median step of each kind measured here, and its seconds."""
    steps = median_steps(table)
    if steps.empty:  # no ResNet-50
        ax.set_axis_off()
        return
    shares = 100 * steps.div(steps["whole step"], axis=0)
    stack(ax, shares, range(len(shares)), 0.8)
    for position, kind in enumerate(shares.index):
        label_slices(ax, position, shares.loc[kind])
        ax.text(position, 101, f"{steps.loc[kind, 'whole step']:.2f} s", ha="center", weight="bold")
    ax.set_xticks(range(len(shares)), [kind.replace(", ", ",\n") for kind in shares.index])
    case = largest_case(table, "part").iloc[0]
    title = f"Measured: ResNet-50 on {case.ranks} ranks, {case.pixels:g} px, {case.batch_per_rank:g} images each"
    ax.set(title=title, ylabel="share of the step, each part on its own (%)", ylim=(0, 107))
    ax.set_xlabel(_completeness(table), fontsize=7.5)


def label_slices(ax: Axes, position: int, shares: pd.Series) -> None:
    """Write its percentage into each slice that has room."""
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    top = shares[list(PARTS)].cumsum()
    for part in PARTS:
        if shares[part] > LEAST_LABELLED:
            middle = top[part] - shares[part] / 2
            ax.text(position, middle, f"{shares[part]:.0f} %", ha="center", va="center", fontsize=7, bbox=box)


def stack(ax: Axes, heights: pd.DataFrame, places: range | list[float], width: float) -> None:
    """Stack the parts (columns) of each step (rows), second-order ones on top."""
    bottom = pd.Series(0.0, heights.index)
    for part, color, hatch in zip(PARTS, COLORS, HATCHES, strict=True):
        face = {"color": sns.color_palette()[color], "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
        ax.bar(places, heights[part], width, bottom, label=part, **face)
        bottom += heights[part]
    ax.grid(visible=False, axis="x")


def draw_modelled(ax: Axes, table: pd.DataFrame) -> None:
    """Stack the modelled seconds on some numbers of GPUs: SGD, K-FAC as first published, and in its cheapest form."""
    if modelled_steps(table, "K-FAC", SAMPLED).empty:
        ax.set_axis_off()
        return
    for column, (name, optimizer, plan) in enumerate(
        (("S", "SGD", {}), ("K", "K-FAC", SAMPLED), ("E", "K-FAC", PLAIN))
    ):
        steps = modelled_steps(table, optimizer, plan).loc[list(STACKED_GPUS)]
        places = [position + 0.28 * (column - 1) for position in range(len(steps))]
        stack(ax, steps, places, 0.25)
        for place, seconds in zip(places, steps.sum(axis=1), strict=True):
            ax.text(place, seconds + 0.005, name, ha="center", fontsize=7.5, weight="bold")
    ax.set_xticks(range(len(STACKED_GPUS)), [f"{gpus:,}" for gpus in STACKED_GPUS])
    note = "S: SGD\nK: K-FAC, sampled Fisher, full BatchNorm\nE: K-FAC, empirical Fisher, unit-wise BatchNorm"
    ax.text(0.98, 0.97, note, transform=ax.transAxes, ha="right", va="top", fontsize=8)
    title = "Modelled: ResNet-50 on ABCI's V100 GPUs, 224 px, 32 images each"
    ax.set(title=title, xlabel="GPUs", ylabel="seconds per step")


def draw_scaling(ax: Axes, table: pd.DataFrame, reference: dict[str, pd.DataFrame]) -> None:
    """Draw published seconds per step over GPUs, those held out filled with grey, and the model as lines."""
    first = reference["step_breakdown_first_version"]
    hollow = {"markerfacecolor": "none", "markersize": 5, "markeredgewidth": 0.9, "linestyle": "none"}
    ax.plot(first["gpus"], first["seconds_per_step"], "^", color="0.5", label="first version (CVPR 2019)", **hollow)
    steps = table[table["quantity"] == "predicted step"]
    steps = steps[steps["between_nodes"] == "halving"] if len(steps) else steps
    published = reference["step_breakdown_variants"].groupby(["fisher", "batch_norm", "stale"])
    for color, (variant, (label, marker, line)) in enumerate(VARIANTS.items()):
        rows, paint = published.get_group(variant), sns.color_palette()[color]
        ax.plot(rows["gpus"], rows["seconds_per_step"], marker, color=paint, label=label, **hollow)
        if len(steps):
            chosen = (steps[["fisher", "batch_norm", "stale"]] == list(variant)).all(axis=1)
            modelled = steps[chosen].sort_values("gpus")
            ax.plot(modelled["gpus"], modelled["modelled_seconds"], line, color=paint, linewidth=1.2)
    ax.axvspan(2**5.5, 2**11.5, color="0.93", zorder=0)
    error = model_error(table)
    if error:
        ax.text(2**5.6, 0.03, f"held out: median error {error.value:.1%}", fontsize=7.5)
        ax.text(2**5.4, 0.03, "fitted", fontsize=7.5, ha="right")
    count_gpus(ax)
    ax.set(title="Seconds per step: published (points), modelled (lines)", ylabel="seconds per step", ylim=(0, 1.3))
    legend = {"title": "Fisher matrix, BatchNorm", "title_fontsize": 7, "fontsize": 7}
    ax.legend(loc="upper right", ncols=2, columnspacing=0.8, handletextpad=0.3, **legend)


def draw_added(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the share of the step that K-FAC adds over the number of GPUs, beside the published half."""
    for color, label, line, plan in ((0, "sampled, full", ":", SAMPLED), (3, "empirical, unit-wise", "--", PLAIN)):
        steps = modelled_steps(table, "K-FAC", plan)
        if len(steps):
            added = 100 * (steps["K-FAC"] + steps["K-FAC communication"]) / steps.sum(axis=1)
            ax.plot(added.index, added, line, color=sns.color_palette()[color], label=f"modelled: {label}")
            last = added.loc[LARGEST_PUBLISHED_GPUS]
            ax.annotate(f"{last:.0f} %", (LARGEST_PUBLISHED_GPUS, last), (0, 3), textcoords="offset points", ha="right")
    stale, sgd = stale_steps(table), modelled_steps(table, "SGD", {})
    if len(stale):
        added = 100 * (1 - sgd.sum(axis=1).reindex(stale.index) / stale)
        ax.plot(stale.index, added, "-", color=sns.color_palette()[4], label="modelled: the same, stale")
    here = second_order_share(table)
    if here:
        case = largest_case(table, "part").iloc[0]
        label = f"measured here, {case['pixels']} px"
        ax.plot(case["ranks"], 100 * here.value, "o", color="black", label=label)
    ax.axhspan(40, 60, color="0.9", zorder=0)
    ax.text(1, 50, "published:\nabout half", fontsize=8, va="center")
    count_gpus(ax)
    ax.set(title="What K-FAC adds to a step", ylabel="share of K-FAC's step (%)", ylim=(0, 119))
    ax.legend(loc="upper right", fontsize=7)
    ax.text(0.02, 0.02, _minutes(modelled_minutes(table)), transform=ax.transAxes, fontsize=7.5, va="bottom")


def draw_own(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the measured seconds of steps on several ranks beside those predicted from one rank."""
    steps = own_steps(table)
    ax.set_title("Own steps, predicted from\none rank of ResNet-50")
    if steps.empty:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center")
        return
    medians = steps.groupby(["predicted_network", "kind"]).median()
    order = [(network, kind) for network in NETWORKS for kind in KINDS if (network, kind) in medians.index]
    for place, key in enumerate(order):
        measured, modelled = medians.loc[key, ["measured_seconds", "modelled_seconds"]]
        label = ("measured", "predicted") if place == 0 else (None, None)
        hollow = {"color": sns.color_palette()[0], "markerfacecolor": "none", "markersize": 8}
        ax.plot(measured, -place, "o", color="black", label=label[0])
        ax.plot(modelled, -place, "D", label=label[1], **hollow)
        error = f"{100 * (modelled / measured - 1):+.0f} %"
        ax.annotate(error, (measured, -place), (0, 7), textcoords="offset points", ha="center", fontsize=7.5)
    ax.set_yticks([-place for place in range(len(order))], [f"{NETWORKS[n]}\n{kind}" for n, kind in order])
    ax.set_xscale("log")
    ax.margins(x=0.25)
    ax.set(xlabel="seconds per step", ylim=(0.4 - len(order), 0.9))
    ax.legend(loc="upper left", fontsize=7, ncols=2, handletextpad=0.2, columnspacing=0.8)


def count_gpus(ax: Axes) -> None:
    """Let the horizontal axis count GPUs in powers of two."""
    ax.set_xscale("log", base=2)
    ax.set_xlim(2**-0.5, 2**0.5 * LARGEST_PUBLISHED_GPUS)
    ax.set_xticks([4**k for k in range(6)], [f"{4**k:,}" for k in range(6)])
    ax.set_xlabel("GPUs")


def _completeness(table: pd.DataFrame) -> str:
    rest, hidden = unattributed_share(table), hidden_exchange_share(table)
    lines = [f"at most {rest.value:.2%} of a step unattributed"] if rest else []
    if hidden:
        lines.append(f"in a whole step {hidden.value:.0%} of the input statistics' way hides behind backward")
    return "\n".join(lines)


def _minutes(modelled: Estimate | None) -> str:
    if modelled is None:
        return ""
    return (
        f"1,760 stale steps on\n1,024 GPUs: {modelled.value:.1f} minutes\n"
        f"modelled ({modelled.low:.1f} to {modelled.high:.1f}),\n5.5 published"
    )
