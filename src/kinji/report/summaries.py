"""Write the published table of an experiment, as CSV and as booktabs LaTeX."""

from __future__ import annotations

import importlib
from pathlib import Path

import pandas as pd

from kinji.errors import KinjiError
from kinji.experiments.cases import EXPERIMENTS
from kinji.records import layout, load_table
from kinji.records.tables import failures, record_paths


def write_summary(name: str, scale: str, machine: str | None = None) -> list[Path]:
    """Write results/<scale>/tables/<name>.csv and .tex from the records that exist."""
    if name not in EXPERIMENTS:
        raise KinjiError(f"no experiment {name!r}. Known: {', '.join(EXPERIMENTS)}.")
    summary = _summarize_or_say_why(name, scale, machine)
    stem = layout.results(scale) / "tables" / name
    stem.parent.mkdir(parents=True, exist_ok=True)
    summary.to_csv(stem.with_suffix(".csv"), index=False)
    latex = summary.style.hide(axis="index").format(escape="latex", na_rep="--").to_latex(hrules=True)
    stem.with_suffix(".tex").write_text(latex)
    return [stem.with_suffix(".csv"), stem.with_suffix(".tex")]


def _summarize_or_say_why(name: str, scale: str, machine: str | None) -> pd.DataFrame:
    failed = failures(record_paths(name, scale, machine))
    errors = pd.DataFrame({"failed case": failed.keys(), "error": failed.values()})
    summarize = importlib.import_module(f"kinji.records.summaries.{name}").summarize
    table = load_table(name, scale, machine)
    if failed and table.empty:
        return errors
    try:
        summary: pd.DataFrame = summarize(table)
    except Exception:
        if not failed:
            raise
        return errors
    return summary
