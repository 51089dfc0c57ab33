"""Slices, accuracy and time of Ozaki scheme I for each n and phi, beside native DGEMM."""

from __future__ import annotations

import pandas as pd

from kinji.records.metrics.int8_dgemm import (
    DGEMM_SLICES,
    errors_by_slices,
    native_errors,
    slices_needed,
    time_ratios,
)


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each n and phi: errors in units of 2^-53, slices for DGEMM's accuracy, time over DGEMM's."""
    ratios = time_ratios(table)
    nine = ratios[ratios["slices"] == DGEMM_SLICES].groupby("n")["ratio"].median()
    columns = {
        "DGEMM error (u)": native_errors(table).round(2),
        "error at 9 slices (u)": errors_by_slices(table)[DGEMM_SLICES].round(2),
        "slices for DGEMM accuracy": slices_needed(table).astype("Int64"),
    }
    summary = pd.DataFrame(columns).reset_index()
    return summary.assign(**{"time of 9 slices over DGEMM": summary["n"].map(nine).round(1)})
