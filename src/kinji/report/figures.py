"""Draw a figure from a tidy table with the script that stands beside it, figures/<experiment>.py."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from kinji.errors import KinjiError
from kinji.records import layout, load_reference, load_table
from kinji.records.tables import failures, record_paths
from kinji.report.style import apply_style


def draw_figure(name: str, scale: str, machine: str | None = None) -> list[Path]:
    """Write figures/<scale>/<name>.pdf and .png from the records that exist; see `kinji.records.load_table`."""
    figure = _draw_or_say_why(name, scale, machine)
    stem = layout.repository() / "figures" / scale / name
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(stem.with_suffix(".pdf"), metadata={"CreationDate": None})
    figure.savefig(stem.with_suffix(".png"))
    return [stem.with_suffix(".pdf"), stem.with_suffix(".png")]


def _draw_or_say_why(name: str, scale: str, machine: str | None) -> Figure:
    draw, table = _script(name), load_table(name, scale, machine)
    failed = failures(record_paths(name, scale, machine))
    try:
        return make_figure(draw, table)
    except Exception as error:
        if not failed:
            raise
        reason = repr(error)
    note = Figure(figsize=(7, 2))
    lines = [f"{name} cannot be drawn ({reason}): of its cases, these failed."] + [
        f"{case}: {why}" for case, why in failed.items()
    ]
    note.text(0.02, 0.5, "\n".join(lines), va="center", wrap=True, fontsize=8)
    return note


def show_figure(name: str, table: pd.DataFrame) -> Figure:
    """Return the figure `name` of `table`, for a notebook."""
    return make_figure(_script(name), table)


def make_figure(draw: Callable[..., Figure], table: pd.DataFrame) -> Figure:
    """Return the figure `draw` makes of `table`, stamped with the scale and the machine it was measured on."""
    if table.empty:
        raise KinjiError("the table has no observation, so there is nothing to draw. Run the experiment's cases first.")
    apply_style()
    figure = draw(table, load_reference())
    origin = " · ".join(" + ".join(sorted(table[column].unique())) for column in ("scale", "machine"))
    figure.text(
        1,
        0,
        f"scale {origin}",
        ha="right",
        va="top",
        fontsize=6.5,
        color="0.35",
        transform=figure.transFigure,
    )
    return figure


def _script(name: str) -> Callable[..., Figure]:
    folder = layout.repository() / "figures"
    known = sorted(path.stem for path in folder.glob("*.py"))
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise KinjiError(f"no figure {name!r}. Did you mean {nearest[0]!r}? Known: {', '.join(known)}.")
    spec = importlib.util.spec_from_file_location(f"figures.{name}", folder / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    draw: Callable[..., Figure] = module.draw
    return draw
