"""Time, operations, memory and honest accuracy of H2-ULV and of LORAPO's block low-rank Cholesky."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kinji.records import Estimate, growth_exponent
from kinji.records.metrics.h2_scaling import ablation, settled_sizes

METHODS = {"blr": ("block low-rank (LORAPO)", "s", "--"), "h2_ulv": ("H²-ULV, fixed rank", "o", "-")}
WAYS = METHODS | {"h2_ulv_cg": ("H²-ULV + CG", "^", "-.")}
COLOURS = dict(zip(WAYS, ["C1", "C0", "C2"], strict=True))
PUBLISHED_NODES = 64


def draw(table: pd.DataFrame, reference: dict[str, pd.DataFrame]) -> Figure:
    """Return growth above; below, the error on both diagonals beside that of b/diag, and the effect of fill-ins."""
    figure, panels = plt.subplots(2, 3, figsize=(8.6, 5.6))
    (time, operations, memory), (dominant, natural, fill_ins) = panels
    results = table[table["quantity"] == "result"]
    _draw_growth(time, table[table["quantity"] == "time"], "factor_seconds", settled_sizes(table))
    _draw_published(time, reference["h2_lorapo_times"])
    time.set_ylim(bottom=time.get_ylim()[0] / 30)
    _draw_growth(operations, results, "factor_flops", settled_sizes(table))
    _draw_growth(memory, results, "factor_bytes", settled_sizes(table))
    time.set(title="Time to factorize, seconds")
    operations.set(title="Operations to factorize")
    memory.set(title="Bytes of the factors")
    for axes, diagonal in ((dominant, "dominant"), (natural, "natural")):
        _draw_errors(axes, results[results["diagonal"] == diagonal], diagonal)
    dominant.set_ylabel("relative error of the solution")
    _draw_fill_ins(fill_ins, table)
    for axes in (*panels[0], dominant, natural):
        _mark_sizes(axes, sorted(table["n"].unique()))
    return figure


def _mark_sizes(axes: Axes, sizes: list[int]) -> None:
    axes.minorticks_off()
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.set_xlabel("N")


def _draw_growth(axes: Axes, rows: pd.DataFrame, column: str, sizes: list[int]) -> None:
    for method, (label, marker, line) in METHODS.items():
        own = rows[rows["method"] == method]
        settled = own[own["n"].isin(sizes)]
        axes.loglog(own["n"], own[column], marker, color=COLOURS[method], ms=4, alpha=0.7)
        if settled["n"].nunique() > 2:
            exponent = growth_exponent(settled["n"].tolist(), settled[column].tolist())
            _draw_power(axes, settled["n"], settled[column], exponent, COLOURS[method], line)
            label = f"{label}: {_power(exponent)}"
        axes.plot([], [], marker=marker, ls=line, color=COLOURS[method], label=label)
    axes.set_ylim(top=axes.get_ylim()[1] * 4)
    axes.legend(fontsize=6.5, loc="upper left")


def _draw_power(axes: Axes, n: pd.Series, cost: pd.Series, exponent: Estimate, colour: str, line: str) -> None:
    scale = np.exp(np.mean(np.log(cost) - exponent.value * np.log(n)))
    ends = np.array([n.min(), n.max()], dtype=float)
    axes.plot(ends, scale * ends**exponent.value, line, color=colour, lw=1.2)


def _power(exponent: Estimate) -> str:
    return f"$N^{{{exponent.value:.2f}\\,\\pm\\,{exponent.high - exponent.value:.2f}}}$"


def _draw_published(axes: Axes, runs: pd.DataFrame) -> None:
    runs = runs[runs["nodes"] == PUBLISHED_NODES]
    inset = axes.inset_axes((0.6, 0.1, 0.38, 0.27))
    inset.loglog(runs["n"], runs["factor_seconds"], "s", mfc="none", mec=COLOURS["blr"], ms=3)
    exponent = growth_exponent(runs["n"].tolist(), runs["factor_seconds"].tolist())
    inset.set_title(f"published, {PUBLISHED_NODES} nodes\nLORAPO: {_power(exponent)}", fontsize=6.5, pad=2)
    inset.minorticks_off()
    inset.set_xticks([1e6, 7.56e6], ["1 M", "7.6 M"], fontsize=6)
    inset.set_yticks([1e3, 1e4], ["$10^3$", "$10^4$"], fontsize=6)


def _draw_errors(axes: Axes, rows: pd.DataFrame, diagonal: str) -> None:
    for method, (label, marker, line) in WAYS.items():
        own = rows[rows["method"] == method].sort_values("n")
        axes.loglog(own["n"], own["relative_error"], marker=marker, ls=line, color=COLOURS[method], lw=1, label=label)
    trivial = rows.drop_duplicates("n").sort_values("n")
    axes.loglog(trivial["n"], trivial["diagonal_solve_relative_error"], "k:", marker="x", lw=1, label="b / diagonal")
    low, high = trivial["condition_number"].min(), trivial["condition_number"].max()
    condition = f"{low:.3f}" if high < 2 else f"{low:.0f} to {high:.0f}"
    axes.set_title(f"{diagonal.capitalize()} diagonal (condition {condition})")
    axes.set_ylim(1e-14, 30)
    if diagonal == "natural":
        axes.legend(fontsize=7, loc="lower left")


def _draw_fill_ins(axes: Axes, table: pd.DataFrame) -> None:
    errors = ablation(table)
    for with_them, label, marker, line in ((True, "with", "o", "-"), (False, "without", "D", "--")):
        colour = COLOURS["h2_ulv"] if with_them else sns.color_palette()[7]
        axes.semilogy(errors.index, errors[with_them], marker=marker, ls=line, color=colour, label=f"{label} fill-ins")
    case = table[table["quantity"] == "fill_ins"].iloc[0]
    axes.set(title=f"Fill-ins in the bases, N = {case['n']:,}, {case['diagonal']}", xlabel="rank")
    axes.legend(fontsize=7)
