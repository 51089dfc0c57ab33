"""Seconds and share of each part of a step, SGD beside K-FAC with fresh and with stale statistics."""

from __future__ import annotations

import pandas as pd

from kinji.records.metrics.step_breakdown import median_steps

PARTS = ("forward", "backward", "normalization", "SGD communication", "update", "K-FAC", "K-FAC communication")


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a part, then what no part explains and the whole step; of ResNet-50's median step of each kind."""
    seconds = median_steps(table).reindex(columns=[*PARTS, "unattributed", "whole step"]).T
    shares = 100 * seconds / seconds.loc["whole step"]
    columns = {}
    for kind in seconds.columns:
        columns[f"{kind} (s)"] = seconds[kind].map("{:.3f}".format)
        columns[f"{kind} (%)"] = shares[kind].map("{:.1f}".format)
    return pd.DataFrame(columns, index=seconds.index).rename_axis("part").reset_index()
