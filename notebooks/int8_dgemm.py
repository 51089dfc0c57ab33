# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # FP64 products from INT8 units: check it yourself
#
# Ozaki scheme I cuts each FP64 operand into S slices of seven bits and multiplies slices, S(S+1)/2 products; scheme II
# multiplies residues, one product for each of N moduli. Both multiply on the INT8 unit without rounding. The claims:
# seven bits of accuracy per slice and nearly four per modulus, native accuracy with nine slices or fifteen moduli, one
# result whatever the threads and blocks, a time that the count of products explains, and an accuracy to ask for.
#
# Below, each verdict is taken from the raw observations by hand, then compared with the one in the claims table.

# %%
import numpy as np

from kinji.records import judge, load_claims, load_table
from kinji.report.figures import show_figure

table = load_table("int8_dgemm")
verdicts = {c.id: judge(c, table) for c in load_claims() if c.experiment == "int8_dgemm"}
table.groupby(["n", "quantity"]).size().unstack(fill_value=0)


# %%
def show(claim_id, by_hand):
    """Print our own number beside the judge's."""
    verdict = verdicts[claim_id]
    judged = verdict.ours.value if verdict.ours else None
    print(f"{verdict.claim.statement}\n  by hand {by_hand:.4g}, judge {judged:.4g}: {verdict.verdict}")
    assert np.isclose(by_hand, judged)


# %% [markdown]
# ## Accuracy
#
# `error_roundoffs` is the largest |C' - C| / (|A| |B|) over 400 sampled entries, in units of 2^-53. The reference C
# is exact to twice FP64 precision, so an error far below one roundoff is seen too. Native DGEMM has `count` 0.

# %%
accuracy = table[table.quantity == "accuracy"].astype({"count": int})
errors = accuracy.pivot_table(index=["n", "phi"], columns=["method", "count"], values="error_roundoffs")
errors.T.style.format("{:.3g}")

# %%
one, two, native = errors["scheme_one"], errors["scheme_two"], errors[["torch", "numpy"]].min(axis=1)
moderate = errors.index.get_level_values("phi") <= 0.5
show("int8-nine-slices", (one[9] / native)[moderate].max())
show("int8-scheme-two-accuracy", (two[15] / native)[moderate].max())

# %%
far_above = one[one.gt(8 * native, axis=0)]
show("int8-bits-per-slice", np.nanmedian(-np.diff(np.log2(far_above), axis=1)))

# %%
needed = one.le(native, axis=0).idxmax(axis=1).where(one.le(native, axis=0).any(axis=1)).unstack("phi")
show("int8-slices-grow-with-spread", (needed[needed.columns.max()] - needed[needed.columns.min()]).min())
needed

# %% [markdown]
# An error measured on samples must stay below the rigorous bound, which knows norms of rows and columns only.

# %%
bounded = accuracy.dropna(subset=["bound_roundoffs"])
assert (bounded.error_roundoffs <= bounded.bound_roundoffs).all()
print(f"error over bound: {(bounded.error_roundoffs / bounded.bound_roundoffs).max():.3g} at most")

# %% [markdown]
# ## An accuracy as an argument
#
# `matmul(a, b, error=...)` picks scheme and count, proves a bound, or refuses. "dgemm" asks for native's own bound, n.

# %%
guarantee = table[table.quantity == "guarantee"].dropna(axis=1, how="all")
kept = guarantee[~guarantee.refused.astype(bool)]
broken = (kept.error_roundoffs > kept.bound_roundoffs) | (kept.bound_roundoffs > kept.asked_roundoffs)
show("int8-guarantee-kept", broken.sum())
guarantee[["n", "phi", "asked", "refused", "method", "count", "bound_roundoffs", "error_roundoffs"]]

# %% [markdown]
# ## Bits
#
# One digest a row; two products share it only if they agree in every bit. A scheme must show one digest per column
# of one `count`, and another for one slice or modulus fewer: a check that the digests can differ. Native DGEMM shows
# what it shows.

# %%
identity = table[table.quantity == "identity"].astype({"count": int})
identity[identity.n == identity.n.max()].pivot(index="variation", columns=["method", "count"], values="digest")

# %%
for method, count in (("scheme_one", 9), ("scheme_two", 15)):
    rows = identity[identity.method == method].set_index("count")
    print(method, "different products by n:", rows.loc[count].groupby("n").digest.nunique().to_dict())
    print("  one fewer gives other bits:", set(rows.digest[count]).isdisjoint(rows.digest[count - 1]))
print(verdicts["int8-bit-identity"].verdict)

# %% [markdown]
# ## Time
#
# Each repetition timed every side in turn: native DGEMM (two libraries), one INT8 product, both schemes. Which
# BLAS kernel "native" is decides what a ratio means:

# %%
accuracy[["method", "blas_kernel"]].dropna().drop_duplicates()

# %%
times = table[table.quantity == "time"].astype({"count": int})
sides = times.pivot_table(index=["n", "repetition"], columns=["method", "count"], values="call_seconds")
dgemm = sides[["torch", "numpy"]].min(axis=1)
largest = sides.index.get_level_values("n") == sides.index.get_level_values("n").max()
show("int8-slower-than-dgemm", (sides["scheme_one"][9] / dgemm)[largest].median())
show("int8-scheme-two-speed", (sides["scheme_two"][15] / dgemm)[largest].median())

# %%
medians = sides.groupby("n").median()
over_one = medians["scheme_one"].div(medians["int8_product"][0], axis=0) / [
    s * (s + 1) / 2 for s in medians["scheme_one"]
]
over_two = medians["scheme_two"].div(medians["int8_product"][0], axis=0) / list(medians["scheme_two"])
over_one.join(over_two, lsuffix=" slices", rsuffix=" moduli").style.format("{:.2f}").set_caption(
    "time over that of the INT8 products alone"
)

# %% [markdown]
# ## Where it fails
#
# The published automatic rule looks at each operand alone. Here a few columns of A, 2^60 smaller than the rest, carry
# the product, because the others meet zeros in B: allowed to lose one bit per entry on average, it picks slices that
# return nothing of the product, while the bound says so beforehand, and a product to a given accuracy is refused.

# %%
adversarial = table[table.quantity == "adversarial"].dropna(axis=1, how="all")
adversarial[["n", "input", "chosen_by", "mean_lost_bits", "method", "count", "refused", "relative_error"]]

# %%
rule = adversarial[
    (adversarial.chosen_by == "published rule") & (adversarial.mean_lost_bits >= 1) & (adversarial["count"] > 0)
]
show("int8-automatic-rule", rule.relative_error.max())

# %% [markdown]
# ## In a factorization
#
# Panels are FP64, trailing updates by each product: which condition numbers does it survive?

# %%
factors = table[table.quantity == "factorization"].astype({"count": int})
factors.pivot(index=["matrix", "target_condition"], columns=["method", "count"], values="backward_error").style.format(
    "{:.1e}", na_rep="broke down"
)

# %%
int8 = factors[(factors.method == "int8") & (factors.factorization == "cholesky") & ~factors.broke_down.astype(bool)]
show("int8-plain-breaks-down", int8.condition.max())

# %% [markdown]
# ## The figure

# %%
show_figure("int8_dgemm", table)
