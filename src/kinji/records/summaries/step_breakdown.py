"""Seconds and share of each part of a step, SGD beside K-FAC."""

from __future__ import annotations

import pandas as pd

from kinji.records.metrics.step_breakdown import largest_case, timed_steps

PARTS = ("forward", "backward", "normalization", "SGD communication", "update", "K-FAC", "K-FAC communication")


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a part, then what no part explains and the whole step; medians over ranks and repetitions."""
    parts, steps = largest_case(table, "part"), timed_steps(table)
    columns = {}
    for optimizer in ("SGD", "K-FAC"):
        of_parts = parts[parts["optimizer"] == optimizer].groupby("part")["part_seconds"].median()
        of_step = steps[steps["optimizer"] == optimizer][["unattributed_seconds", "step_seconds"]].median()
        seconds = pd.concat([of_parts.reindex(PARTS), of_step.set_axis(["unattributed", "whole step"])])
        columns[f"{optimizer} (s)"] = seconds.map("{:.3f}".format)
        columns[f"{optimizer} (%)"] = (100 * seconds / seconds["whole step"]).map("{:.1f}".format)
    return pd.DataFrame(columns).rename_axis("part").reset_index()
