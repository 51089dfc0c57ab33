"""Time, operations, memory and honest accuracy of H2-ULV and of LORAPO's block low-rank Cholesky."""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kinji.records import Estimate, growth_exponent
from kinji.records.metrics.h2_scaling import ablation, on_sphere, settled_sizes

METHODS = {"blr": ("block low-rank (LORAPO)", "s", "--"), "h2_ulv": ("H²-ULV, fixed rank", "o", "-")}
WAYS = METHODS | {
    "h2_ulv_decoupled": ("H²-ULV, decoupled lifts", "v", ":"),
    "h2_ulv_tolerance": ("H²-ULV, ranks by tolerance", "P", "--"),
    "h2_ulv_cg": ("H²-ULV + CG", "^", "-."),
}
COLOURS = dict(zip(WAYS, ["C1", "C0", "C4", "C3", "C2"], strict=True))
STRUCTURES = {
    "hss": ("HSS, theta = 0", "D", "--", "C5"),
    "h2": ("H²", "o", "-", "C5"),
    "h2_ulv_tolerance": ("H² with fill-ins", "P", "--", "C3"),
}
PARTS = ("factor", "parallel substitution", "sequential substitution")
ABLATION = {  # fill-ins and lift: label, marker, line, colour
    ("none", "orthonormal"): ("none", "D", "--", "C7"),
    ("2023", "orthonormal"): ("as published", "o", "-", "C0"),
    ("sc22", "decoupled"): ("scaled, decoupled lifts", "v", ":", "C4"),
}
FORMATS = {  # below the diagonal, above it
    "BLR: tiles, own bases": ("blr", "blr"),
    "BLR²: tiles, shared bases": ("blr2", "blr2"),
    "H below, HODLR above:\nown bases": ("h", "hodlr"),
    "H² below, HSS above:\nshared, nested bases": ("h2", "hss"),
}
PUBLISHED_NODES = 64


def draw(table: pd.DataFrame, reference: dict[str, pd.DataFrame]) -> Figure:
    """Return growth; errors on both diagonals and by fill-ins; ranks, times, workers; sweeps; blocks of the formats."""
    table = on_sphere(table)
    rows = ["time operations memory", "dominant natural fill_ins", "ranks whole workers"]
    wide = [[name for name in row.split() for _ in range(4)] for row in rows]
    sweeps = ["theta", "diagonals", "iterations", "graph"]
    blocks = table[table["quantity"] == "block"]
    last = [sweeps] if blocks.empty else [sweeps, FORMATS]
    narrow = [[name for name in row for _ in range(3)] for row in last]
    heights = [1, 1, 1] + [0.85] * len(last)
    figure, panels = plt.subplot_mosaic(wide + narrow, figsize=(9.6, 2.8 * sum(heights)), height_ratios=heights)
    results = table[table["quantity"] == "result"]
    times = table[table["quantity"] == "time"]
    _draw_growth(panels["time"], times, "factor_seconds", settled_sizes(table))
    _draw_published(panels["time"], reference["h2_lorapo_times"])
    panels["time"].set_ylim(bottom=panels["time"].get_ylim()[0] / 30)
    _draw_growth(panels["operations"], results, "factor_flops", settled_sizes(table))
    _draw_growth(panels["memory"], results, "factor_bytes", settled_sizes(table))
    panels["time"].set(title="Time to factorize, seconds")
    panels["operations"].set(title="Operations to factorize")
    panels["memory"].set(title="Bytes of the factors")
    for diagonal in ("dominant", "natural"):
        solved = table[table["quantity"].isin(["result", "tolerance"]) & (table["diagonal"] == diagonal)]
        _draw_if_any(panels[diagonal], solved, _draw_errors)
    panels["dominant"].set_ylabel("relative error of the solution")
    _draw_if_any(panels["ranks"], table[table["quantity"].isin(["rank", "tolerance"])], _draw_ranks)
    _draw_whole_time(panels["whole"], table)
    for name, (quantity, draw_panel) in PANELS.items():
        _draw_if_any(panels[name], table[table["quantity"] == quantity], draw_panel)
    for name in ("time", "operations", "memory", "dominant", "natural", "ranks", "whole"):
        _mark_sizes(panels[name], sorted(table["n"].unique()))
    if not blocks.empty:
        _draw_formats({title: panels[title] for title in FORMATS}, blocks)
    return figure


def _draw_if_any(axes: Axes, rows: pd.DataFrame, draw_panel: Callable[[Axes, pd.DataFrame], None]) -> None:
    if rows.empty:
        axes.set_axis_off()
    else:
        draw_panel(axes, rows)


def _mark_sizes(axes: Axes, sizes: list[int]) -> None:
    axes.minorticks_off()
    axes.set_xticks(sizes, [f"{n:,}" if k % (1 + len(sizes) // 5) == 0 else "" for k, n in enumerate(sizes)])
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


def _draw_errors(axes: Axes, rows: pd.DataFrame) -> None:
    diagonal = rows["diagonal"].iloc[0]
    for method, (label, marker, line) in WAYS.items():
        own = rows[rows["method"] == method].sort_values("n")
        axes.loglog(own["n"], own["relative_error"], marker=marker, ls=line, color=COLOURS[method], lw=1, label=label)
    trivial = rows[rows["quantity"] == "result"].drop_duplicates("n").sort_values("n")
    axes.loglog(trivial["n"], trivial["diagonal_solve_relative_error"], "k:", marker="x", lw=1, label="b / diagonal")
    low, high = trivial["condition_number"].min(), trivial["condition_number"].max()
    condition = f"{low:.3f}" if high < 2 else f"{low:.0f} to {high:.0f}"
    axes.set_title(f"{diagonal.capitalize()} diagonal (condition {condition})")
    axes.set_ylim(1e-15, 1e6)
    axes.set_yticks([1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 1])
    if diagonal == "dominant":
        axes.legend(fontsize=7, loc="upper left")


def _draw_fill_ins(axes: Axes, rows: pd.DataFrame) -> None:
    for (fill_ins, lift), (label, marker, line, colour) in ABLATION.items():
        errors = ablation(rows, lift)[fill_ins]
        axes.semilogy(errors.index, errors, marker=marker, ls=line, color=colour, label=label)
    case = rows.iloc[0]
    axes.set(title=f"Fill-ins in the bases, N = {case['n']:,}, {case['diagonal']}", xlabel="rank")
    axes.legend(fontsize=7)


def _draw_ranks(axes: Axes, rows: pd.DataFrame) -> None:
    ranks = rows["rank_at_tolerance"].fillna(rows["rank_max"])
    for structure, (label, marker, line, colour) in STRUCTURES.items():
        own = rows.assign(rank=ranks)[(rows["method"] == structure) & (ranks > 0)].sort_values("n")
        if own["n"].nunique() > 2:
            label = f"{label}: {_power(growth_exponent(own['n'].tolist(), own['rank'].tolist()))}"
        axes.loglog(own["n"], own["rank"], marker=marker, ls=line, color=colour, label=label)
    axes.set(title="Greatest rank at 1e-6", ylim=(10, None))
    axes.legend(fontsize=7)


def _draw_whole_time(axes: Axes, table: pd.DataFrame) -> None:
    rows = table[(table["quantity"] == "time") & (table["diagonal"] == "natural")]
    for method in ("blr", "h2_ulv_cg"):
        label, marker, line = WAYS[method]
        own = rows[rows["method"] == method].groupby("n")
        seconds = own[["construct_seconds", "factor_seconds", "solve_seconds"]].median().sum(axis=1)
        axes.loglog(seconds.index, seconds, marker=marker, ls=line, color=COLOURS[method], label=label)
    axes.set(title="Kernel to solution, equal residual, s")
    axes.legend(fontsize=7)


def _draw_workers(axes: Axes, rows: pd.DataFrame) -> None:
    medians = rows.groupby(["part", "workers"])["part_seconds"].median().unstack()
    speed_up = medians.rdiv(medians[medians.columns.min()], axis=0).loc[list(PARTS)]
    for count, hatch in zip(speed_up.columns, ("", "//", "xx", "..", "\\\\"), strict=False):
        place = np.arange(len(PARTS)) + 0.35 * list(speed_up.columns).index(count)
        axes.bar(
            place,
            speed_up[count],
            0.3,
            hatch=hatch,
            color="C0",
            alpha=0.6,
            label=f"{int(count)} worker{'s' * (count > 1)}",
        )
    axes.set_xticks(np.arange(len(PARTS)) + 0.17, [part.replace(" ", "\n") for part in PARTS], fontsize=7)
    axes.set(title=f"Speed-up, N = {rows['n'].max():,}", ylim=(0, 1.3 * speed_up.max(axis=None)))
    axes.legend(fontsize=7, ncols=2)


def _draw_theta(axes: Axes, rows: pd.DataFrame) -> None:
    axes.semilogy(rows["swept_theta"], rows["relative_error"], "v:", color=COLOURS["h2_ulv_decoupled"])
    for theta, error, flops in rows[["swept_theta", "relative_error", "factor_flops"]].to_numpy():
        axes.annotate(f"{flops / 1e9:.1f}", (theta, error), (0, 6), textcoords="offset points", ha="center", fontsize=7)
    axes.set(title=f"Error (GFLOP) by theta, N = {rows['n'].iloc[0]:,}", xlabel="theta; 0 is HSS")
    axes.margins(0.12, 0.15)


def _draw_diagonals(axes: Axes, rows: pd.DataFrame) -> None:
    colour = COLOURS["h2_ulv_decoupled"]
    axes.loglog(rows["times_natural"], rows["relative_error"], "v:", color=colour, label="decoupled lifts")
    axes.loglog(rows["times_natural"], rows["diagonal_solve_relative_error"], "kx:", lw=1, label="b / diagonal")
    axes.set(title=f"Error by diagonal, N = {rows['n'].iloc[0]:,}", xlabel="natural diagonals")
    axes.legend(fontsize=7)


def _draw_iterations(axes: Axes, rows: pd.DataFrame) -> None:
    for diagonal, marker in (("natural", "^"), ("dominant", "s")):
        for precision, line in (("single", "-"), ("double", "--")):
            own = rows[(rows["diagonal"] == diagonal) & (rows["precision"] == precision)].groupby("n")
            counts = own["iterations"].max()
            colour = COLOURS["h2_ulv_cg"] if diagonal == "natural" else "C7"
            label = f"{diagonal}, {precision}"
            axes.semilogx(counts.index, counts, marker=marker, ls=line, color=colour, alpha=0.8, label=label)
    axes.set(title="Iterations, by precision", xlabel="N", ylim=(0, None))
    _mark_ends(axes, rows)
    axes.legend(fontsize=6.5)


def _draw_graphs(axes: Axes, rows: pd.DataFrame) -> None:
    for method in METHODS:
        for count, line in (("width", "--"), ("depth", "-")):
            own = rows[rows["method"] == method].groupby("n")[count].max()
            label = f"{'BLR' if method == 'blr' else 'H²-ULV'}, {count}"
            axes.loglog(own.index, own, marker=METHODS[method][1], ls=line, color=COLOURS[method], label=label)
    axes.set(title="Task graph: longest chain, width", xlabel="N")
    axes.set_ylim(top=axes.get_ylim()[1] * 30)
    _mark_ends(axes, rows)
    axes.legend(fontsize=6, ncols=2, columnspacing=0.8, handlelength=1.5)


def _mark_ends(axes: Axes, rows: pd.DataFrame) -> None:
    ends = sorted({rows["n"].min(), rows["n"].max()})
    axes.minorticks_off()
    axes.set_xticks(ends, [f"{n:,}" for n in ends])


def _draw_formats(panels: dict[str, Axes], blocks: pd.DataFrame) -> None:
    for title, axes in panels.items():
        axes.set(title=title, xlim=(0, 1), ylim=(1, 0), aspect="equal", xticks=[], yticks=[])
        axes.spines[["left", "bottom"]].set_visible(False)
    blocks = blocks[blocks["n"] == blocks["n"].min()]
    compressed = blocks.loc[blocks["block_rank"] > 0, "block_rank"]
    colours = ScalarMappable(LogNorm(compressed.min(), compressed.max()), "viridis_r")
    for title, axes in panels.items():
        for method, above in zip(FORMATS[title], (False, True), strict=True):
            for _, block in blocks[blocks["method"] == method].iterrows():
                _draw_block(axes, block, colours, above=above)
    label = f"rank at {blocks['tolerance'].iloc[0]:g}, N = {blocks['n'].iloc[0]:,}; grey: dense"
    ticks = [rank for rank in (5, 10, 20, 50, 100, 200, 500, 1000) if compressed.min() <= rank <= compressed.max()]
    place = {"location": "bottom", "shrink": 0.5, "aspect": 40}
    bar = axes.get_figure().colorbar(colours, ax=list(panels.values()), label=label, **place)
    bar.ax.minorticks_off()
    bar.set_ticks(ticks, labels=[str(rank) for rank in ticks])


def _draw_block(axes: Axes, block: pd.Series, colours: ScalarMappable, *, above: bool) -> None:
    side, rank = 0.5 ** block["level"], block["block_rank"]
    row, column = (block["column"], block["row"]) if above else (block["row"], block["column"])
    colour = colours.to_rgba(rank) if rank else "0.55"
    axes.add_patch(Rectangle((column * side, row * side), side, side, facecolor=colour, edgecolor="w", lw=0.4))
    if side >= 1 / 8:
        x, y = (column + 0.5) * side, (row + 0.5) * side
        axes.text(x, y, f"{rank:.0f}", ha="center", va="center", fontsize=6, color="w" if rank > 60 else "k")


PANELS: dict[str, tuple[str, Callable[[Axes, pd.DataFrame], None]]] = {
    "fill_ins": ("fill_ins", _draw_fill_ins),
    "workers": ("workers", _draw_workers),
    "theta": ("admissibility", _draw_theta),
    "diagonals": ("diagonal", _draw_diagonals),
    "iterations": ("preconditioner", _draw_iterations),
    "graph": ("task_graph", _draw_graphs),
}
"""What is drawn of each quantity, where it was measured."""
