"""Accuracy and time of Ozaki scheme I here, and the published rates of its kin on GPUs."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kinji.records.metrics.int8_dgemm import errors_by_slices, native_errors, time_ratios

MARKERS = "osD^vP"
MODELLED = ("-", "--", ":", "-.", (0, (1, 3)), (0, (5, 4)))
SMALL = {"textcoords": "offset points", "xytext": (3, 3), "fontsize": 7}
PUBLISHED = (("DGEMM", 0, "o"), ("scheme I", 9, "s"), ("scheme II", 15, "^"))


def draw(table: pd.DataFrame, reference: dict[str, pd.DataFrame]) -> Figure:
    """Return error against slices for each phi, time against slices, and published throughput and efficiency."""
    spreads = sorted(table["phi"].dropna().unique())
    figure = plt.figure(figsize=(8.2, 6.2))
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.05])
    panels = above.subplots(1, len(spreads), sharex=True, sharey=True, squeeze=False)[0]
    for axes, phi in zip(panels, spreads, strict=True):
        _draw_errors(axes, table, phi)
    panels[0].set_ylabel("error, max |C' − C| / (|A||B|),\nin units of 2⁻⁵³")
    panels[-1].legend(loc="upper right", title="measured")
    bits = " or ".join(f"{b:g}" for b in sorted(table["bits"].dropna().unique()))
    above.supxlabel(f"slices S of {bits} bits", fontsize=9)
    above.suptitle("Here: error of S slices beside that of native DGEMM (band: over all n)")
    time, rate, power = below.subplots(1, 3, width_ratios=[1.25, 1, 1])
    _draw_times(time, table)
    _draw_published(rate, reference["int8_dgemm_throughput"], "tera_per_second", "TFLOP/s")
    _draw_published(power, reference["int8_dgemm_efficiency"], "gflops_per_watt", "GFLOP/s per watt")
    rate.set_title("Published, GPUs: throughput")
    power.set_title("Published, GPUs: efficiency")
    power.legend(fontsize=7)
    return figure


def _draw_errors(axes: Axes, table: pd.DataFrame, phi: float) -> None:
    errors = errors_by_slices(table).xs(phi, level="phi")
    native = native_errors(table).xs(phi, level="phi")
    for (n, row), marker, colour in zip(errors.iterrows(), MARKERS, sns.color_palette(), strict=False):
        axes.semilogy(row.index, row, marker=marker, color=colour, lw=0.8, label=f"n = {n}")
    axes.axhspan(native.min(), native.max(), color="0.6", alpha=0.5, lw=0)
    axes.axhline(native.median(), color="0.15", ls="--", lw=1)
    axes.annotate("native DGEMM", (axes.get_xlim()[0], native.max()), **SMALL)
    axes.set_title(f"exponent spread φ = {phi:g}")
    axes.set_xticks(range(3, 13, 3))


def _draw_times(axes: Axes, table: pd.DataFrame) -> None:
    ratios = time_ratios(table)
    sizes = sorted(ratios["n"].unique())
    for n, marker, line, colour in zip(sizes, MARKERS, MODELLED, sns.color_palette(), strict=False):
        median = ratios[ratios["n"] == n].groupby("slices")["ratio"].median()
        axes.plot(median.index, median, marker=marker, color=colour, ls="none", label=f"n = {n}")
        model = _operation_count(table, n, median.index.to_numpy())
        axes.plot(median.index, model, color=colour, ls=line, lw=1)
    axes.axhline(1, color="0.15", ls="--", lw=1)
    axes.annotate("native DGEMM", (3, 1), **SMALL)
    axes.set(yscale="log", xlabel="slices S", ylabel="time over native DGEMM's")
    axes.set_title("Here: time, measured and modelled")
    axes.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes.set_xticks(range(3, 13, 3))
    axes.plot([], [], color="0.3", lw=1, label="S(S+1)/2 INT8 products")
    axes.set_ylim(bottom=0.12)
    axes.legend(loc="lower right", fontsize=7)


def _operation_count(table: pd.DataFrame, n: int, slices: np.ndarray) -> np.ndarray:
    times = table[(table["quantity"] == "time") & (table["n"] == n)]
    medians = times.groupby("method")["call_seconds"].median()
    return slices * (slices + 1) / 2 * medians["int8_product"] / min(medians.get("torch"), medians.get("numpy", np.inf))


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
