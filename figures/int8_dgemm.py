"""FP64 products on INT8 units: accuracy of both Ozaki schemes, rates here and published, use in factorizations."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kinji.records.metrics.int8_dgemm import NATIVE, count_needed, errors_by_count, factorization_errors, native_errors

MARKERS = "osD^vP"
LINES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (5, 4)))
SMALL = {"textcoords": "offset points", "fontsize": 7}
PUBLISHED = (("DGEMM", 0, "o"), ("scheme I", 9, "s"), ("scheme II", 15, "^"))
MEASURED = ("torch", "scheme_one", "scheme_two")  # the same on a GPU here
TIMED = (
    (("native",), "native DGEMM", "o"),
    (("scheme_two", 14), "scheme II, 14 moduli", "v"),
    (("scheme_two", 15), "scheme II, 15 moduli", "^"),
    (("matmul", 0), "matmul(error='dgemm')", "P"),
    (("scheme_one", 9), "scheme I, 9 slices", "s"),
)
CEILINGS = ((15, "--", "INT8 rate / 15"), (45, ":", "INT8 rate / 45"))
FACTORIZED = (
    (("int8", 0), "plain INT8", "X"),
    (("fp32", 0), "FP32", "D"),
    (("scheme_two", 8), "scheme II, 8 moduli", "v"),
    (("native", 0), "native FP64", "o"),
    (("scheme_two", 15), "scheme II, 15 moduli", "^"),
    (("scheme_one", 9), "scheme I, 9 slices", "s"),
)
FAMILIES = (
    ("spectrum", "Cholesky, geometric spectrum"),
    ("gaussian", "Cholesky, Gaussian kernel"),
    ("general", "LU, geometric spectrum"),
)


def draw(table: pd.DataFrame, reference: dict[str, pd.DataFrame]) -> Figure:
    """Return error against slices and moduli, rates here and published, and backward error against condition."""
    figure = plt.figure(figsize=(8.6, 8.6))
    above, middle, below = figure.subfigures(3, 1)
    one, two, asked = above.subplots(1, 3, width_ratios=[1, 1, 1])
    _draw_errors(one, table, "scheme_one", "scheme I: slices S")
    _draw_errors(two, table, "scheme_two", "scheme II: moduli N")
    one.set_ylabel("max |C' − C| / (|A||B|), units of 2⁻⁵³")
    one.legend(title="spread φ", fontsize=7, title_fontsize=7)
    _draw_guarantee(asked, table)
    here, rate, power = middle.subplots(1, 3, width_ratios=[1.25, 1, 1])
    _draw_rates(here, table)
    _draw_published(rate, reference["int8_dgemm_throughput"], "tera_per_second", "TFLOP/s")
    _draw_published(power, reference["int8_dgemm_efficiency"], "gflops_per_watt", "GFLOP/s per watt")
    _draw_measured(rate, table[table["quantity"] == "time"], "call_seconds", 1e-12)
    _draw_measured(power, table[table["quantity"] == "energy"], "call_joules", 1e-9)
    rate.set_title("GPUs, published: throughput")
    power.set_title("GPUs, published: efficiency")
    power.legend(fontsize=6)
    panels = below.subplots(1, len(FAMILIES), sharey=True)
    for axes, (matrix, title) in zip(panels, FAMILIES, strict=True):
        _draw_factorizations(axes, table, matrix, title)
    panels[0].set_ylabel("backward error, Frobenius norm")
    panels[-1].legend(fontsize=6, ncols=2, loc="center", bbox_to_anchor=(0.5, 0.32))
    return figure


def _draw_errors(axes: Axes, table: pd.DataFrame, method: str, label: str) -> None:
    largest = _best_covered(table)
    errors, native = errors_by_count(table, method).loc[largest], native_errors(table).loc[largest]
    needed = count_needed(table, method).loc[largest]
    styles = zip(errors.iterrows(), MARKERS, sns.color_palette(), strict=False)
    for (phi, row), marker, colour in styles:
        axes.semilogy(row.index, row, marker=marker, ms=4, color=colour, lw=0.8, label=f"{phi:g}")
        if np.isfinite(needed[phi]):
            axes.semilogy(needed[phi], row[needed[phi]], marker="o", ms=9, mfc="none", mec="0.15", mew=0.9, ls="none")
    axes.axhspan(native.min(), native.max(), color="0.6", alpha=0.45, lw=0)
    axes.annotate("native DGEMM", (errors.columns.min(), native.max()), xytext=(0, 3), **SMALL)
    axes.set(xlabel=label, title=f"Error, n = {largest} (ring: native's reached)")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _best_covered(table: pd.DataFrame) -> int:
    """Return the largest n among those with the most spreads."""
    spreads = table[table["quantity"] == "accuracy"].groupby("n")["phi"].nunique()
    return int(spreads[spreads == spreads.max()].index.max())


def _draw_guarantee(axes: Axes, table: pd.DataFrame) -> None:
    largest = _best_covered(table)
    rows = table[(table["quantity"] == "guarantee") & (table["n"] == largest)]
    for (asked, group), colour in zip(rows.groupby("asked_roundoffs", sort=False), sns.color_palette(), strict=False):
        name = f"{asked:g}" + (" (n: DGEMM's own)" if asked == largest else "")
        axes.axhline(asked, color=colour, lw=1, ls="--", label=f"asked: {name}")
        axes.plot(group["phi"], group["bound_roundoffs"], marker="v", ls="none", color=colour, label="proved")
        axes.plot(group["phi"], group["error_roundoffs"], marker="o", ls="none", ms=4, color=colour, label="seen")
        for _, row in group[group["refused"].eq(True)].iterrows():
            axes.annotate("refused", (row["phi"], asked), xytext=(-14, 3), color=colour, **SMALL)
        for _, row in group[group["refused"].eq(False)].iterrows():
            axes.annotate(
                f"{row['count']:g}", (row["phi"], row["bound_roundoffs"]), xytext=(5, -2), color=colour, **SMALL
            )
    axes.set(yscale="log", xlabel="spread of exponents φ", title=f"matmul to an error asked, n = {largest}")
    axes.legend(fontsize=6, ncols=2, loc="lower center", columnspacing=0.8, handletextpad=0.3)
    axes.set_ylim(bottom=axes.get_ylim()[0] / 12)
    axes.margins(x=0.12)


def _draw_rates(axes: Axes, table: pd.DataFrame) -> None:
    times = table[table["quantity"] == "time"]
    seconds = times.groupby(["n", "method", "count"])["call_seconds"].median().unstack(["method", "count"])
    giga = 2e-9 * seconds.index.to_numpy(dtype=float) ** 3
    native = seconds[[side for side in seconds if side[0] in NATIVE]].min(axis=1)
    for (side, name, marker), colour in zip(TIMED, sns.color_palette(), strict=False):
        column = native if side == ("native",) else seconds.get(side)
        if column is not None:
            axes.plot(seconds.index, giga / column, marker=marker, color=colour, ls="none", label=name)
    for products, line, name in CEILINGS:
        axes.plot(seconds.index, giga / seconds["int8_product", 0] / products, color="0.4", lw=1, ls=line, label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="n",
        ylabel="GFLOP/s of the FP64 product",
        title="Here, with the ceiling by products",
    )
    axes.set_xticks(seconds.index, [f"{n:g}" for n in seconds.index])
    axes.minorticks_off()
    axes.set_ylim(bottom=axes.get_ylim()[0] / 12)
    axes.legend(fontsize=6, ncols=2, loc="lower center", columnspacing=0.8, handletextpad=0.3)


def _draw_published(axes: Axes, published: pd.DataFrame, column: str, label: str) -> None:
    chosen = published[published["method"].isin([method for method, _, _ in PUBLISHED])]
    complete = chosen.groupby("gpu")["method"].nunique().eq(len(PUBLISHED))
    gpus = [gpu for gpu in chosen["gpu"].unique() if complete[gpu]]
    for (method, terms, marker), colour in zip(PUBLISHED, sns.color_palette()[3:], strict=False):
        rows = chosen[(chosen["method"] == method) & (chosen["terms"] == terms)].set_index("gpu").loc[gpus]
        name = method if not terms else f"{method}, {terms} {'slices' if method == 'scheme I' else 'moduli'}"
        axes.plot(gpus, rows[column], marker=marker, mfc="none", mew=1.4, ms=7, color=colour, ls="none", label=name)
    axes.set(yscale="log", ylabel=label)
    axes.tick_params(axis="x", labelrotation=25)
    axes.margins(x=0.15)


def _draw_measured(axes: Axes, rows: pd.DataFrame, cost: str, unit: float) -> None:
    """Add what a GPU did here at the largest n, filled: operations over the median cost."""
    if rows.empty or rows["method"].eq("numpy").any():  # which is timed on CPUs alone
        return
    rows = rows[rows["n"] == rows["n"].max()]
    medians = rows.groupby(["method", "count"])[cost].median()
    for method, (_, terms, marker), colour in zip(MEASURED, PUBLISHED, sns.color_palette()[3:], strict=False):
        if (method, terms) in medians:
            done = unit * 2 * rows["n"].iloc[0] ** 3 / medians[method, terms]
            label = "filled: measured here" if method == MEASURED[-1] else None
            axes.plot([rows["machine"].iloc[0]], [done], marker=marker, ms=7, color=colour, ls="none", label=label)


def _draw_factorizations(axes: Axes, table: pd.DataFrame, matrix: str, title: str) -> None:
    rows = table[table["quantity"] == "factorization"]
    axes.set(xscale="log", yscale="log", xlabel="condition number", title=title)
    if matrix not in set(rows.get("matrix", ())):
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center")
        return
    errors = factorization_errors(table).xs(matrix, level="matrix").droplevel("n")
    for (side, name, marker), colour in zip(FACTORIZED, sns.color_palette(), strict=False):
        if side in errors:
            hollow = "none" if side[0] in ("scheme_one", "native") else colour
            axes.plot(errors.index, errors[side], marker=marker, ms=5, mfc=hollow, color=colour, lw=0.8, label=name)
            broken = errors[side][errors[side].isna()]
            axes.plot(broken.index, np.full(len(broken), 3.0), marker="x", ms=4, color=colour, ls="none")
    if errors.isna().any(axis=None):
        axes.annotate("× broke down", (errors.index.min(), 3.0), xytext=(-4, 6), **SMALL)
