"""What decides the claims on FP64 products from INT8 units: accuracy, bits, time and use of both Ozaki schemes.

Errors are the worst of the sampled entries, in units of 2^-53 |A| |B|, for each n and phi (the spread of exponents);
native DGEMM is the better of the BLAS libraries measured. Times are compared within one repetition.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kinji.records.estimates import Estimate, exact, median_estimate

NATIVE = ("torch", "numpy")
SCHEMES = ("scheme_one", "scheme_two")
DGEMM_SLICES, DGEMM_MODULI = 9, 15
MODERATE_PHI = 0.5
GUARANTEED_PHI = 2.0
FAR_ABOVE_NATIVE = 8.0  # errors this far above native's are truncation, not rounding
LARGE_N = 2048
REORDERED = ("reference", "one thread", "row blocks", "column blocks", "summation order")
UNORDERED = REORDERED[:-1]
TRANSFORMED = ("reference", "transposed", "scaled by powers of two", "padded")
CASE = ["n", "phi"]
REPETITION = ["n", "repetition"]


def bits_gained_per_slice(table: pd.DataFrame) -> Estimate | None:
    """Return the median of log2(error at S slices / error at S + 1), where truncation dominates."""
    return _bits_gained(table, "scheme_one")


def bits_gained_per_modulus(table: pd.DataFrame) -> Estimate | None:
    """Return the median of log2(error at N moduli / error at N + 1), where truncation dominates."""
    return _bits_gained(table, "scheme_two")


def nine_slices_over_dgemm(table: pd.DataFrame) -> Estimate | None:
    """Return the worst ratio of the error at nine slices to native DGEMM's, over all n and phi up to 0.5."""
    return _error_over_dgemm(table, "scheme_one", DGEMM_SLICES)


def fifteen_moduli_over_dgemm(table: pd.DataFrame) -> Estimate | None:
    """Return the worst ratio of the error at fifteen moduli to native DGEMM's, over all n and phi up to 0.5."""
    return _error_over_dgemm(table, "scheme_two", DGEMM_MODULI)


def slices_added_by_spread(table: pd.DataFrame) -> Estimate | None:
    """Return how many more slices the widest phi needs than the narrowest for native accuracy, the least over n."""
    needed = count_needed(table, "scheme_one").unstack("phi").dropna(axis=1, how="all")
    if needed.shape[1] < 2:
        return None
    return exact((needed[needed.columns.max()] - needed[needed.columns.min()]).min())


def broken_guarantees(table: pd.DataFrame) -> Estimate | None:
    """Return how many products to a given accuracy err by more than was proved, or prove more than was asked."""
    rows = table[table["quantity"] == "guarantee"]
    kept = rows[rows["refused"].eq(False)]
    broken = (kept["error_roundoffs"] > kept["bound_roundoffs"]) | (kept["bound_roundoffs"] > kept["asked_roundoffs"])
    return exact(broken.sum()) if len(kept) else None


def refused_to_dgemm(table: pd.DataFrame) -> Estimate | None:
    """Return how many products to DGEMM's own bound are refused for phi up to 2."""
    rows = table[(table["quantity"] == "guarantee") & table["asked"].eq("dgemm") & (table["phi"] <= GUARANTEED_PHI)]
    return exact(rows["refused"].eq(True).sum()) if len(rows) else None


def missed_on_adversarial(table: pd.DataFrame) -> Estimate | None:
    """Return how many products to DGEMM's own bound miss it on operands made to fool; a refusal is no miss."""
    rows = table[(table["quantity"] == "adversarial") & (table["chosen_by"] == "bound")]
    return exact((rows["refused"].eq(False) & (rows["error_roundoffs"] > rows["n"])).sum()) if len(rows) else None


def automatic_rule_error(table: pd.DataFrame) -> Estimate | None:
    """Return the largest relative error where the published rule, allowing a mean loss of a bit, picks slices."""
    rows = _careless_choices(table)
    return exact(rows["relative_error"].max()) if len(rows) else None


def bound_on_automatic_rule(table: pd.DataFrame) -> Estimate | None:
    """Return the least ratio of the truncation bound to the product itself for those choices; above 1 it refuses."""
    rows = _careless_choices(table)
    return exact(rows["bound_relative"].min()) if len(rows) else None


def reordered_products(table: pd.DataFrame) -> Estimate | None:
    """Return how many different results threads, blocks and summation orders give: the most over n; 1 is identity."""
    return _most_digests(table, SCHEMES, REORDERED)


def transformed_products(table: pd.DataFrame) -> Estimate | None:
    """Return how many different results transposing, scaling by powers of two and padding give: the most over n."""
    return _most_digests(table, SCHEMES, TRANSFORMED)


def native_products(table: pd.DataFrame) -> Estimate | None:
    """Return how many different results threads and blocks give in native DGEMM: the most over n and libraries."""
    return _most_digests(table, NATIVE, UNORDERED)


def changed_by_grouping(table: pd.DataFrame) -> Estimate | None:
    """Return for how many n and phi the grouped products differ in a bit from the pair-by-pair ones."""
    rows = table[(table["quantity"] == "accuracy") & (table["count"] == DGEMM_SLICES)]
    rows = rows[rows["method"].isin(["scheme_one", "scheme_one_ungrouped"])]
    digests = rows.pivot(index=CASE, columns="method", values="digest")
    if "scheme_one_ungrouped" not in digests:
        return None
    return exact((digests["scheme_one"] != digests["scheme_one_ungrouped"]).sum())


def non_finite_differences(table: pd.DataFrame) -> Estimate | None:
    """Return how many entries are finite, NaN or infinite where native DGEMM's are of another kind."""
    rows = table[table["quantity"] == "non_finite"]
    return exact(rows["different_kinds"].sum()) if len(rows) and rows["special_entries"].min() > 0 else None


def time_over_operation_count(table: pd.DataFrame) -> Estimate | None:
    """Return the median of scheme I's time over S(S+1)/2 INT8 products' time, for S >= 8 and n >= 2048."""
    ratios = time_over_products(table)
    return _median(ratios[(ratios["method"] == "scheme_one") & (ratios["count"] >= DGEMM_SLICES - 1)])


def moduli_over_operation_count(table: pd.DataFrame) -> Estimate | None:
    """Return the median of scheme II's time over N INT8 products' time, for N >= 14 and n >= 2048."""
    ratios = time_over_products(table)
    return _median(ratios[(ratios["method"] == "scheme_two") & (ratios["count"] >= DGEMM_MODULI - 1)])


def time_over_dgemm(table: pd.DataFrame) -> Estimate | None:
    """Return the median time of scheme I with nine slices over the faster native DGEMM's, at the largest n."""
    return _time_at_largest(table, "scheme_one", DGEMM_SLICES)


def moduli_over_dgemm(table: pd.DataFrame) -> Estimate | None:
    """Return the median time of scheme II with fifteen moduli over the faster native DGEMM's, at the largest n."""
    return _time_at_largest(table, "scheme_two", DGEMM_MODULI)


def schemes_compared(table: pd.DataFrame) -> Estimate | None:
    """Return the median time of scheme I with nine slices over scheme II's with fifteen moduli, at the largest n."""
    times = table[table["quantity"] == "time"]
    times = times[times["n"] == times["n"].max()].pivot(
        index="repetition", columns=["method", "count"], values="call_seconds"
    )
    wanted = ("scheme_one", DGEMM_SLICES), ("scheme_two", DGEMM_MODULI)
    return median_estimate((times[wanted[0]] / times[wanted[1]]).to_list()) if set(wanted) <= set(times) else None


def int8_breaks_down(table: pd.DataFrame) -> Estimate | None:
    """Return the largest condition of a matrix whose Cholesky factorization survives plain INT8 updates."""
    rows = table[table["quantity"] == "factorization"]
    if rows.empty:
        return None
    rows = rows[(rows["method"] == "int8") & (rows["factorization"] == "cholesky") & rows["broke_down"].eq(False)]
    return exact(rows["condition"].max()) if len(rows) else None


def emulated_over_native_factors(table: pd.DataFrame) -> Estimate | None:
    """Return the worst backward error with nine slices or fifteen moduli over native's; infinite if one breaks down."""
    if not table["quantity"].eq("factorization").any():
        return None
    by_method = factorization_errors(table)
    wanted = [("native", 0), ("scheme_one", DGEMM_SLICES), ("scheme_two", DGEMM_MODULI)]
    if not set(wanted) <= set(by_method):
        return None
    native, *ours = (by_method[side].fillna(np.inf) for side in wanted)
    return exact(max((side / native).max() for side in ours))


def unit_is_exact(table: pd.DataFrame) -> Estimate | None:
    """Return 1 if the INT8 unit passed the self-test in every case."""
    exactness = table["int8_is_exact"].dropna()
    return exact(float(exactness.astype(bool).all())) if len(exactness) else None


def errors_by_count(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return the error of a scheme, one row for each n and phi, one column for each number of slices or moduli."""
    rows = table[(table["quantity"] == "accuracy") & (table["method"] == method)]
    return rows.pivot(index=CASE, columns="count", values="error_roundoffs")


def native_errors(table: pd.DataFrame) -> pd.Series:
    """Return native DGEMM's error for each n and phi, the better of the libraries."""
    rows = table[(table["quantity"] == "accuracy") & table["method"].isin(NATIVE)]
    return rows.groupby(CASE)["error_roundoffs"].min()


def count_needed(table: pd.DataFrame, method: str) -> pd.Series:
    """Return the least count as accurate as native DGEMM for each n and phi; NaN if none measured is."""
    enough = errors_by_count(table, method).le(native_errors(table), axis=0)
    return enough.idxmax(axis=1).where(enough.any(axis=1))


def time_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Return the time of each emulated product over the faster native DGEMM's in each repetition, as column `ratio`."""
    times = table[table["quantity"] == "time"]
    native = times[times["method"].isin(NATIVE)].groupby(REPETITION)["call_seconds"].min().rename("native")
    ours = times[times["method"].isin([*SCHEMES, "matmul"])].join(native, on=REPETITION)
    return ours.assign(ratio=ours["call_seconds"] / ours["native"])


def time_over_products(table: pd.DataFrame) -> pd.DataFrame:
    """Return the time of each scheme over its INT8 products', n >= 2048, in each repetition, as column `ratio`."""
    times = table[(table["quantity"] == "time") & (table["n"] >= LARGE_N)]
    product = times[times["method"] == "int8_product"].set_index(REPETITION)["call_seconds"].rename("product")
    ours = times[times["method"].isin(SCHEMES)].join(product, on=REPETITION)
    return ours.assign(ratio=ours["call_seconds"] / (products_of(ours["method"], ours["count"]) * ours["product"]))


def products_of(method: pd.Series, count: pd.Series) -> pd.Series:
    """Return the INT8 products that each scheme takes: S(S+1)/2, or N."""
    return count.where(method == "scheme_two", count * (count + 1) / 2)


def factorization_errors(table: pd.DataFrame) -> pd.DataFrame:
    """Return the backward error of each matrix (rows) by product and count (columns), NaN if it broke down."""
    rows = table[table["quantity"] == "factorization"]
    return rows.pivot(index=["n", "matrix", "target_condition"], columns=["method", "count"], values="backward_error")


def _bits_gained(table: pd.DataFrame, method: str) -> Estimate | None:
    errors = errors_by_count(table, method)
    truncated = errors[errors.gt(FAR_ABOVE_NATIVE * native_errors(table), axis=0)]
    steps = np.diff(truncated.columns.to_numpy(dtype=float))
    gains = -np.diff(np.log2(truncated.to_numpy()), axis=1) / steps
    gains = gains[np.isfinite(gains)]
    return median_estimate(gains.tolist()) if gains.size else None


def _error_over_dgemm(table: pd.DataFrame, method: str, count: int) -> Estimate | None:
    errors = errors_by_count(table, method)
    if count not in errors:
        return None
    ratio = (errors[count] / native_errors(table)).dropna()
    moderate = ratio[ratio.index.get_level_values("phi") <= MODERATE_PHI]
    return exact(moderate.max()) if len(moderate) else None


def _most_digests(table: pd.DataFrame, methods: tuple[str, ...], variations: tuple[str, ...]) -> Estimate | None:
    rows = table[table["quantity"] == "identity"]
    rows = rows[rows["method"].isin(methods) & rows["variation"].isin(variations)]
    counts = rows.groupby(["n", "method", "count"])["digest"].nunique()
    return exact(counts.max()) if len(counts) else None


def _careless_choices(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[(table["quantity"] == "adversarial") & (table["chosen_by"] == "published rule")]
    return rows[(rows["mean_lost_bits"] >= 1) & (rows["count"] > 0)]


def _time_at_largest(table: pd.DataFrame, method: str, count: int) -> Estimate | None:
    ratios = time_ratios(table)
    ratios = ratios[ratios["n"] == ratios["n"].max()]
    return _median(ratios[(ratios["method"] == method) & (ratios["count"] == count)])


def _median(rows: pd.DataFrame) -> Estimate | None:
    return median_estimate(rows["ratio"].to_list()) if len(rows) else None
