"""What decides the claims on H2-ULV: growth, independence, fill-ins, and accuracy on a problem that is not trivial.

Exponents of costs are fitted over the sizes at which the H2 matrix has more than one level: below, near blocks are
still becoming the constant share of a row that they are from there on.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kinji.records import Estimate, exact, growth_exponent, median_estimate

SETTLED_LEVELS = 2


def h2_flops_exponent(table: pd.DataFrame) -> Estimate:
    """Return p of (operations of the H2-ULV factorization) ~ N^p."""
    return _exponent(_results(table, "h2_ulv"), "factor_flops", table)


def blr_flops_exponent(table: pd.DataFrame) -> Estimate:
    """Return p of (operations of the block low-rank factorization) ~ N^p."""
    return _exponent(_results(table, "blr"), "factor_flops", table)


def h2_seconds_exponent(table: pd.DataFrame) -> Estimate:
    """Return p of (seconds of the H2-ULV factorization) ~ N^p, over every repetition."""
    return _exponent(_times(table, "h2_ulv"), "factor_seconds", table)


def blr_seconds_exponent(table: pd.DataFrame) -> Estimate:
    """Return p of (seconds of the block low-rank factorization) ~ N^p, over every repetition."""
    return _exponent(_times(table, "blr"), "factor_seconds", table)


def factor_speedup(table: pd.DataFrame) -> Estimate:
    """Return the seconds of the block low-rank factorization over H2-ULV's, run beside it, at the largest N."""
    times = table[(table["quantity"] == "time") & (table["n"] == table["n"].max())]
    sides = times.pivot_table(index=["diagonal", "repetition"], columns="method", values="factor_seconds")
    return median_estimate((sides["blr"] / sides["h2_ulv"]).dropna().to_numpy())


def total_speedup_at_equal_residual(table: pd.DataFrame) -> Estimate | None:
    """Return the whole time of the baseline over that of H2-ULV with iterations to its residual, at the largest N.

    Construction, factorization and solution, medians over repetitions, on the natural diagonal.
    """
    rows = table[(table["diagonal"] == "natural") & (table["n"] == table["n"].max())]
    iterative = rows[(rows["quantity"] == "result") & (rows["method"] == "h2_ulv_cg")]
    if not iterative["converged"].astype(bool).any():
        return None
    parts = rows[rows["quantity"] == "time"].groupby("method")[["construct_seconds", "factor_seconds", "solve_seconds"]]
    total = parts.median().sum(axis=1)
    return exact(total["blr"] / total["h2_ulv_cg"])


def entries_exponent_of_last_doubling(table: pd.DataFrame) -> Estimate:
    """Return p of (kernel entries evaluated for H2-ULV) ~ N^p between the two largest sizes."""
    return _local_exponent(_results(table, "h2_ulv").groupby("n")["kernel_entries"].max())


def bytes_exponent_of_last_doubling(table: pd.DataFrame) -> Estimate:
    """Return p of (bytes of the H2-ULV factors) ~ N^p between the two largest sizes."""
    return _local_exponent(_results(table, "h2_ulv").groupby("n")["factor_bytes"].max())


def share_of_identical_factors(table: pd.DataFrame) -> Estimate:
    """Return the share of matrices whose leaf factors are the same bits in a random order of the boxes."""
    rows = table[table["quantity"] == "independence"]
    return exact(rows["identical"].astype(bool).mean())


def critical_path_of_blr_over_h2(table: pd.DataFrame) -> Estimate:
    """Return the longest chain of tasks of tile Cholesky over that of H2-ULV, blocks of one size, at the largest N."""
    graphs = table[(table["quantity"] == "task_graph") & (table["n"] == table["n"].max())]
    depth = graphs.groupby("method")["depth"].max()
    return exact(depth["blr"] / depth["h2_ulv"])


def chain_growth(table: pd.DataFrame) -> Estimate:
    """Return what the last doubling of N adds to the longest chain of H2-ULV over what the one before added.

    1 is a chain that grows like log N; one that grows like N^p gives 2^p.
    """
    graphs = table[(table["quantity"] == "task_graph") & (table["method"] == "h2_ulv")]
    depth = graphs.groupby("n")["depth"].max().iloc[-3:]
    before, last = np.diff(depth) / np.diff(np.log2(depth.index.to_numpy(dtype=float)))
    return exact(float(last / before))


def admissibility_gain(table: pd.DataFrame) -> Estimate:
    """Return the error with all distinct boxes far (HSS) over that with the theta of the case, at one rank."""
    rows = table[table["quantity"] == "admissibility"]
    weak, own = (rows.loc[rows["swept_theta"] == theta, "relative_error"] for theta in (0.0, rows["theta"]))
    return exact(weak.iloc[0] / own.iloc[0])


def diagonal_gain(table: pd.DataFrame) -> Estimate:
    """Return the error on the lightest diagonal tried over that on the heaviest, at one rank."""
    rows = table[table["quantity"] == "diagonal"].sort_values("times_natural")
    return exact(rows["relative_error"].iloc[0] / rows["relative_error"].iloc[-1])


def parallel_over_sequential_error(table: pd.DataFrame) -> Estimate:
    """Return the largest ratio of the error of the parallel substitution to that of the sequential one."""
    errors = _errors(table)
    return exact((errors["h2_ulv"] / errors["h2_ulv_sequential"]).max())


def fill_in_gain(table: pd.DataFrame) -> Estimate:
    """Return the error without fill-ins over the error with them, as published, at the largest rank tried."""
    errors = ablation(table, "orthonormal")
    return exact((errors["none"] / errors["2023"]).iloc[-1])


def floor_without_fill_ins(table: pd.DataFrame) -> Estimate:
    """Return the error without fill-ins at the largest rank over the error at half of it; 1 is a floor."""
    errors = ablation(table, "orthonormal")["none"]
    return exact(errors.iloc[-1] / errors[errors.index <= errors.index.max() / 2].iloc[-1])


def decoupling_gain(table: pd.DataFrame) -> Estimate:
    """Return the published variant's error over that of scaled fill-ins and decoupled lifts, at the largest rank."""
    return exact(ablation(table, "orthonormal")["2023"].iloc[-1] / ablation(table, "decoupled")["sc22"].iloc[-1])


def accurate_seconds_exponent(table: pd.DataFrame) -> Estimate:
    """Return p of (seconds from kernel to a solution by iterations) ~ N^p on the natural diagonal."""
    rows = _times(table, "h2_ulv_cg")
    rows = rows[(rows["diagonal"] == "natural") & rows["n"].isin(settled_sizes(table))]
    seconds = rows[["construct_seconds", "factor_seconds", "solve_seconds"]].sum(axis=1)
    return growth_exponent(rows["n"].tolist(), seconds.tolist())


def extra_iterations_in_single(table: pd.DataFrame) -> Estimate:
    """Return the most iterations that factors in single precision take beyond those in double."""
    rows = table[table["quantity"] == "preconditioner"]
    counts = rows.pivot_table(index=["n", "diagonal"], columns="precision", values="iterations")
    return exact((counts["single"] - counts["double"]).max())


def hss_rank_exponent(table: pd.DataFrame) -> Estimate:
    """Return p of (rank of HSS at one accuracy of the far field) ~ N^p."""
    return _rank_exponent(table, "hss")


def h2_rank_exponent(table: pd.DataFrame) -> Estimate:
    """Return p of (rank of H2 at one accuracy of the far field) ~ N^p."""
    return _rank_exponent(table, "h2")


def factor_efficiency(table: pd.DataFrame) -> Estimate:
    """Return the speed-up of the factorization on the most workers over their number, at the largest N."""
    return _efficiency(table, "factor")


def parallel_substitution_efficiency(table: pd.DataFrame) -> Estimate:
    """Return the speed-up of the parallel substitution on the most workers over their number, at the largest N."""
    return _efficiency(table, "parallel substitution")


def sequential_substitution_efficiency(table: pd.DataFrame) -> Estimate:
    """Return the speed-up of the sequential substitution on the most workers over their number, at the largest N."""
    return _efficiency(table, "sequential substitution")


def trivial_error(table: pd.DataFrame) -> Estimate:
    """Return the largest relative error of ``b / diagonal`` on the published, dominant diagonal."""
    rows = _results(table, "h2_ulv")
    return exact(rows.loc[rows["diagonal"] == "dominant", "diagonal_solve_relative_error"].max())


def natural_error_exponent(table: pd.DataFrame) -> Estimate:
    """Return p of (relative error of H2-ULV at fixed rank on the natural diagonal) ~ N^p."""
    rows = _results(table, "h2_ulv")
    rows = rows[rows["diagonal"] == "natural"]
    return growth_exponent(rows["n"].tolist(), rows["relative_error"].tolist())


def tolerance_error_exponent(table: pd.DataFrame) -> Estimate:
    """Return p of (relative error of H2-ULV with ranks chosen by one tolerance) ~ N^p."""
    rows = _at_tolerance(table)
    return growth_exponent(rows["n"].tolist(), rows["relative_error"].tolist())


def tolerance_flops_exponent(table: pd.DataFrame) -> Estimate:
    """Return p of (operations of the H2-ULV factorization with ranks chosen by one tolerance) ~ N^p."""
    return _exponent(_at_tolerance(table), "factor_flops", table)


def iterative_residual_over_blr(table: pd.DataFrame) -> Estimate:
    """Return the largest ratio, on the natural diagonal, of the residual after the iterations to the baseline's."""
    rows = table[(table["quantity"] == "result") & (table["diagonal"] == "natural")]
    sides = rows.pivot_table(index="n", columns="method", values="relative_residual")
    return exact((sides["h2_ulv_cg"] / sides["blr"]).max())


def most_iterations(table: pd.DataFrame) -> Estimate:
    """Return the most iterations of conjugate gradients, preconditioned by H2-ULV, on the natural diagonal."""
    rows = _results(table, "h2_ulv_cg")
    rows = rows[rows["diagonal"] == "natural"]
    return exact(rows["iterations"].where(rows["converged"].astype(bool), np.inf).max())


def settled_sizes(table: pd.DataFrame) -> list[int]:
    """Return the sizes at which the H2 matrix has more than one level."""
    rows = _results(table, "h2_ulv")
    return sorted(rows.loc[rows["levels"] >= SETTLED_LEVELS, "n"].unique())


def ablation(table: pd.DataFrame, lift: str) -> pd.DataFrame:
    """Return relative errors by rank (rows, ascending) and kind of fill-ins (columns) with one kind of lift."""
    rows = table[(table["quantity"] == "fill_ins") & (table["lift"] == lift)]
    return rows.pivot_table(index="basis_rank", columns="fill_ins", values="relative_error")


def on_sphere(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of points on a sphere: other surfaces at one N are no part of a growth with N."""
    return table[table["geometry"] == "sphere"] if "geometry" in table else table


def _results(table: pd.DataFrame, method: str) -> pd.DataFrame:
    rows = on_sphere(table)
    return rows[(rows["quantity"] == "result") & (rows["method"] == method)]


def _times(table: pd.DataFrame, method: str) -> pd.DataFrame:
    rows = on_sphere(table)
    return rows[(rows["quantity"] == "time") & (rows["method"] == method)]


def _errors(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[table["quantity"] == "result"]
    return rows.pivot_table(index=["n", "diagonal"], columns="method", values="relative_error")


def _rank_exponent(table: pd.DataFrame, structure: str) -> Estimate:
    rows = table[(table["quantity"] == "rank") & (table["method"] == structure)]
    rows = rows[(rows["rank_at_tolerance"] > 0) & (rows["rank_tolerance"] == rows["rank_tolerance"].min())]
    return growth_exponent(rows["n"].tolist(), rows["rank_at_tolerance"].tolist())


def _at_tolerance(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[table["quantity"] == "tolerance"]
    return rows[rows["rank_tolerance"] == rows["rank_tolerance"].min()]


def _efficiency(table: pd.DataFrame, part: str) -> Estimate:
    rows = table[(table["quantity"] == "workers") & (table["part"] == part)]
    sides = rows[rows["n"] == rows["n"].max()].pivot_table(index="repetition", columns="workers", values="part_seconds")
    few, many = min(sides), max(sides)
    return median_estimate((sides[few] * few / (sides[many] * many)).to_numpy())


def _exponent(rows: pd.DataFrame, column: str, table: pd.DataFrame) -> Estimate:
    rows = rows[rows["n"].isin(settled_sizes(table))]
    return growth_exponent(rows["n"].tolist(), rows[column].tolist())


def _local_exponent(costs: pd.Series[float]) -> Estimate:
    (small, low), (large, high) = list(costs.sort_index().items())[-2:]
    return exact(float(np.log(high / low) / np.log(float(large) / float(small))))  # type: ignore[arg-type]
