"""The claims as one picture: what was published, what came out here, and the verdict."""

from __future__ import annotations

import textwrap
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from kinji.report.style import apply_style
from kinji.report.terminal import COLOURS

ROW_INCHES = 0.42
COLUMNS = {"claim": 0.01, "accepted": 0.53, "ours": 0.665, "verdict": 0.86}
INKS = {"green": "#0a7d3c", "cyan": "#0b6e99", "yellow": "#9a6700", "red": "#b3261e"}


def draw_claims(rows: pd.DataFrame) -> Figure:
    """Draw the claims that were decided, in the order of paper/claims.yaml; say how many await data."""
    apply_style()
    decided = rows[rows["verdict"] != "not run"].reset_index(drop=True)
    figure = Figure(figsize=(10, ROW_INCHES * (len(decided) + 2.5)))
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(len(decided) + 0.6, -1.2))
    axes.axis("off")
    for title, x in COLUMNS.items():
        axes.text(x, -0.8, title, weight="bold", va="center", fontsize=9)
    for y, row in decided.iterrows():
        _draw_row(figure, float(y), row)  # type: ignore[arg-type]
    waiting = (
        f"{len(rows) - len(decided)} more published claims are listed as not run: they need hardware or later work."
    )
    origin = " · ".join(" + ".join(sorted(decided[column].unique())) for column in ("scale", "machine"))
    axes.text(0.01, len(decided) + 0.2, f"{waiting}   scale {origin}", fontsize=7, color="0.35", va="center")
    return figure


def _draw_row(figure: Figure, y: float, row: pd.Series) -> None:
    axes = figure.axes[0]
    axes.axhline(y - 0.5, color="0.85", linewidth=0.6)
    ink = INKS[COLOURS[row["verdict"]]]
    axes.text(COLUMNS["claim"], y, textwrap.fill(row["claim"], 84), va="center", fontsize=7.5)
    axes.text(COLUMNS["accepted"], y, row["accept"], va="center", fontsize=7.5, color="0.35")
    axes.text(COLUMNS["ours"], y, f"{row['ours']} {row['interval']}", va="center", fontsize=7.5)
    box = FancyBboxPatch(
        (COLUMNS["verdict"], y - 0.28), 0.13, 0.56, boxstyle="round,pad=0,rounding_size=0.01", fc=ink, lw=0
    )
    axes.add_patch(box)
    style: dict[str, Any] = {"color": "white", "weight": "bold", "ha": "center", "va": "center", "fontsize": 7.5}
    axes.text(COLUMNS["verdict"] + 0.065, y, row["verdict"], **style)
