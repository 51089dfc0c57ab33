"""Both solvers for each N and diagonal: times, work, memory, and errors beside what makes them easy or hard."""

from __future__ import annotations

import pandas as pd

KEYS = ["diagonal", "n", "method"]
SECONDS = ["construct_seconds", "factor_seconds", "solve_seconds"]


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each diagonal, N and way to solve; times are medians over the repetitions."""
    sequential = table["method"].str.endswith("_sequential", na=False)
    results = table[(table["quantity"] == "result") & ~sequential].set_index(KEYS)
    times = table[table["quantity"] == "time"].groupby(KEYS)[SECONDS].median()
    columns = {
        "condition": results["condition_number"].round(3),
        "error of b/diag": results["diagonal_solve_relative_error"].map("{:.1e}".format),
        "construct (s)": times["construct_seconds"].round(2),
        "factor (s)": times["factor_seconds"].round(2),
        "solve (s)": times["solve_seconds"].round(3),
        "GFLOP to factorize": (results["factor_flops"] / 1e9).round(1),
        "factors (MB)": (results["factor_bytes"] / 1e6).round(1),
        "largest rank": results["rank_max"].astype(int),
        "iterations": results["iterations"].astype("Int64"),
        "residual": results["relative_residual"].map("{:.1e}".format),
        "error": results["relative_error"].map("{:.1e}".format),
    }
    return pd.DataFrame(columns).sort_index().reset_index()
