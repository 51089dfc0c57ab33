"""What decides the claims on FP64 products from INT8 units: accuracy, bits and time of Ozaki scheme I beside DGEMM.

Errors are the worst of the sampled entries, in units of 2^-53 |A| |B|, for each n and phi (the spread of exponents);
native DGEMM is the better of the BLAS libraries measured. Times are compared within one repetition.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kinji.records.estimates import Estimate, exact, median_estimate

NATIVE = ("torch", "numpy")
DGEMM_SLICES = 9
MODERATE_PHI = 0.5
FAR_ABOVE_NATIVE = 8.0  # errors this far above native's are truncation, not rounding
LARGE_N = 2048
REORDERED = ("reference", "one thread", "row blocks", "column blocks", "summation order")
UNORDERED = REORDERED[:-1]
TRANSFORMED = ("reference", "transposed", "scaled by powers of two", "padded")
CASE = ["n", "phi"]
REPETITION = ["n", "repetition"]


def bits_gained_per_slice(table: pd.DataFrame) -> Estimate | None:
    """Return the median of log2(error at S slices / error at S + 1), where truncation dominates."""
    errors = errors_by_slices(table)
    truncated = errors[errors.gt(FAR_ABOVE_NATIVE * native_errors(table), axis=0)]
    gains = -np.diff(np.log2(truncated.to_numpy()), axis=1)
    gains = gains[np.isfinite(gains)]
    return median_estimate(gains.tolist()) if gains.size else None


def nine_slices_over_dgemm(table: pd.DataFrame) -> Estimate | None:
    """Return the worst ratio of the error at nine slices to native DGEMM's, over all n and phi up to 0.5."""
    ratio = (errors_by_slices(table)[DGEMM_SLICES] / native_errors(table)).dropna()
    moderate = ratio[ratio.index.get_level_values("phi") <= MODERATE_PHI]
    return exact(moderate.max()) if len(moderate) else None


def slices_added_by_spread(table: pd.DataFrame) -> Estimate | None:
    """Return how many more slices the widest phi needs than the narrowest for native accuracy, the least over n."""
    needed = slices_needed(table).unstack("phi")
    if needed.shape[1] < 2:
        return None
    return exact((needed[needed.columns.max()] - needed[needed.columns.min()]).min())


def reordered_products(table: pd.DataFrame) -> Estimate | None:
    """Return how many different results threads, blocks and summation orders give: the most over n; 1 is identity."""
    return _most_digests(table, ("scheme_one",), REORDERED)


def transformed_products(table: pd.DataFrame) -> Estimate | None:
    """Return how many different results transposing, scaling by powers of two and padding give: the most over n."""
    return _most_digests(table, ("scheme_one",), TRANSFORMED)


def native_products(table: pd.DataFrame) -> Estimate | None:
    """Return how many different results threads and blocks give in native DGEMM: the most over n and libraries."""
    return _most_digests(table, NATIVE, UNORDERED)


def changed_by_grouping(table: pd.DataFrame) -> Estimate | None:
    """Return for how many n and phi the grouped products differ in a bit from the pair-by-pair ones."""
    rows = table[(table["quantity"] == "accuracy") & (table["slices"] == DGEMM_SLICES)]
    digests = rows.pivot(index=CASE, columns="method", values="digest").dropna(subset=["scheme_one_ungrouped"])
    return exact((digests["scheme_one"] != digests["scheme_one_ungrouped"]).sum()) if len(digests) else None


def time_over_operation_count(table: pd.DataFrame) -> Estimate | None:
    """Return the median of scheme I's time over S(S+1)/2 INT8 products' time, for S >= 8 and n >= 2048."""
    times = table[(table["quantity"] == "time") & (table["n"] >= LARGE_N)]
    product = times[times["method"] == "int8_product"].set_index(REPETITION)["call_seconds"]
    ours = times[(times["method"] == "scheme_one") & (times["slices"] >= DGEMM_SLICES - 1)].set_index(REPETITION)
    ratios = ours["call_seconds"] / (ours["slices"] * (ours["slices"] + 1) / 2 * product.reindex(ours.index))
    return median_estimate(ratios.to_list()) if len(ratios) else None


def time_over_dgemm(table: pd.DataFrame) -> Estimate | None:
    """Return the median time of scheme I with nine slices over the faster native DGEMM's, at the largest n."""
    ratios = time_ratios(table)
    largest = ratios[(ratios["n"] == ratios["n"].max()) & (ratios["slices"] == DGEMM_SLICES)]
    return median_estimate(largest["ratio"].to_list()) if len(largest) else None


def automatic_rule_error(table: pd.DataFrame) -> Estimate | None:
    """Return the largest relative error where the published rule, allowing a mean loss of a bit, picks slices."""
    rows = _careless_choices(table)
    return exact(rows["relative_error"].max()) if len(rows) else None


def bound_on_automatic_rule(table: pd.DataFrame) -> Estimate | None:
    """Return the least ratio of the truncation bound to the product itself for those choices; above 1 it refuses."""
    rows = _careless_choices(table)
    return exact(rows["bound_relative"].min()) if len(rows) else None


def bits_multiplied_exactly(table: pd.DataFrame) -> Estimate | None:
    """Return the bits of a slice that the INT8 unit's self-test allowed."""
    bits = table["bits"].dropna()
    return exact(bits.min()) if len(bits) else None


def errors_by_slices(table: pd.DataFrame) -> pd.DataFrame:
    """Return the error of scheme I, one row for each n and phi, one column for each number of slices."""
    rows = table[(table["quantity"] == "accuracy") & (table["method"] == "scheme_one")]
    return rows.pivot(index=CASE, columns="slices", values="error_roundoffs")


def native_errors(table: pd.DataFrame) -> pd.Series:
    """Return native DGEMM's error for each n and phi, the better of the libraries."""
    rows = table[(table["quantity"] == "accuracy") & table["method"].isin(NATIVE)]
    return rows.groupby(CASE)["error_roundoffs"].min()


def slices_needed(table: pd.DataFrame) -> pd.Series:
    """Return the least number of slices as accurate as native DGEMM for each n and phi; NaN if none measured is."""
    enough = errors_by_slices(table).le(native_errors(table), axis=0)
    return enough.idxmax(axis=1).where(enough.any(axis=1))


def time_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Return the time of scheme I over the faster native DGEMM's in each repetition, as column `ratio`."""
    times = table[table["quantity"] == "time"]
    native = times[times["method"].isin(NATIVE)].groupby(REPETITION)["call_seconds"].min().rename("native")
    ours = times[times["method"] == "scheme_one"].join(native, on=REPETITION)
    return ours.assign(ratio=ours["call_seconds"] / ours["native"])


def _most_digests(table: pd.DataFrame, methods: tuple[str, ...], variations: tuple[str, ...]) -> Estimate | None:
    rows = table[table["quantity"] == "identity"]
    rows = rows[rows["method"].isin(methods) & rows["variation"].isin(variations)]
    counts = rows.groupby(["n", "method", "slices"])["digest"].nunique()
    return exact(counts.max()) if len(counts) else None


def _careless_choices(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["quantity"] == "automatic_rule") & (table["mean_lost_bits"] >= 1) & (table["slices"] > 0)]
