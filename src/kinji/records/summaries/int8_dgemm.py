"""Counts, accuracy and time of both Ozaki schemes for each n and phi, beside native DGEMM."""

from __future__ import annotations

import pandas as pd

from kinji.records.metrics.int8_dgemm import (
    DGEMM_MODULI,
    DGEMM_SLICES,
    count_needed,
    errors_by_count,
    native_errors,
    time_ratios,
)


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each n and phi: errors in units of 2^-53, counts for DGEMM's accuracy, time over DGEMM's."""
    one = errors_by_count(table, "scheme_one").reindex(columns=[DGEMM_SLICES])
    two = errors_by_count(table, "scheme_two").reindex(columns=[DGEMM_MODULI])
    columns = {
        "DGEMM error (u)": native_errors(table).round(2),
        f"error at {DGEMM_SLICES} slices (u)": one[DGEMM_SLICES].round(2),
        f"error at {DGEMM_MODULI} moduli (u)": two[DGEMM_MODULI].round(2),
        "slices for DGEMM accuracy": count_needed(table, "scheme_one").astype("Int64"),
        "moduli for DGEMM accuracy": count_needed(table, "scheme_two").astype("Int64"),
    }
    summary = pd.DataFrame(columns).reset_index()
    for name, method, count in (("slices", "scheme_one", DGEMM_SLICES), ("moduli", "scheme_two", DGEMM_MODULI)):
        time = f"time of {count} {name} over DGEMM"
        summary[time] = summary["n"].map(_median_ratios(table, method, count)).round(1)
    return summary


def _median_ratios(table: pd.DataFrame, method: str, count: int) -> pd.Series:
    ratios = time_ratios(table)
    return ratios[(ratios["method"] == method) & (ratios["count"] == count)].groupby("n")["ratio"].median()
