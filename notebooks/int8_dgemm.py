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
# Ozaki scheme I cuts each FP64 operand into S slices of seven bits, multiplies slices on the INT8 unit without
# rounding, and adds the products in FP64. The claims: seven bits of accuracy per slice, native accuracy with about
# nine slices, one result whatever the threads and blocks, and a time that the count of INT8 products explains.
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
# is exact to twice FP64 precision, so an error far below one roundoff is seen too. Native DGEMM has `slices` 0.

# %%
accuracy = table[table.quantity == "accuracy"]
errors = accuracy.pivot_table(index=["n", "phi"], columns=["method", "slices"], values="error_roundoffs")
errors.style.format("{:.3g}")

# %%
ours, native = errors["scheme_one"], errors[["torch", "numpy"]].min(axis=1)
worst = (ours[9] / native)[errors.index.get_level_values("phi") <= 0.5].max()
show("int8-nine-slices", worst)

# %%
far_above = ours[ours.gt(8 * native, axis=0)]
show("int8-bits-per-slice", np.nanmedian(-np.diff(np.log2(far_above), axis=1)))

# %%
needed = ours.le(native, axis=0).idxmax(axis=1).unstack("phi")
show("int8-slices-grow-with-spread", (needed[needed.columns.max()] - needed[needed.columns.min()]).min())
needed

# %% [markdown]
# An error measured on samples must stay below the rigorous bound, which knows only the operands' exponents.

# %%
bounded = accuracy.dropna(subset=["bound_roundoffs"])
assert (bounded.error_roundoffs <= bounded.bound_roundoffs).all()
print(f"error over bound: {(bounded.error_roundoffs / bounded.bound_roundoffs).max():.3g} at most")

# %% [markdown]
# ## Bits
#
# One digest a row; two products share it only if they agree in every bit. Scheme I must show one digest per column
# block of one `slices`, and another for one slice fewer: a check that the digests can differ. Native DGEMM shows what
# it shows.

# %%
identity = table[table.quantity == "identity"]
identity[identity.n == identity.n.max()].pivot(index="variation", columns=["method", "slices"], values="digest")

# %%
scheme = identity[(identity.method == "scheme_one") & (identity.slices == 9)]
print("different products by n:", scheme.groupby("n").digest.nunique().to_dict(), verdicts["int8-bit-identity"].verdict)
print("eight slices give other bits:", set(scheme.digest).isdisjoint(identity[identity.slices == 8].digest))

# %% [markdown]
# ## Time
#
# Each repetition timed every side in turn: native DGEMM (two libraries), one INT8 product, scheme I for each S. Which
# BLAS kernel "native" is decides what a ratio means:

# %%
accuracy[["method", "blas_kernel"]].dropna().drop_duplicates()

# %%
times = table[table.quantity == "time"]
sides = times.pivot_table(index=["n", "repetition"], columns=["method", "slices"], values="call_seconds")
dgemm = sides[["torch", "numpy"]].min(axis=1)
largest = sides.index.get_level_values("n") == sides.index.get_level_values("n").max()
show("int8-slower-than-dgemm", (sides["scheme_one"][9] / dgemm)[largest].median())

# %%
medians = sides.groupby("n").median()
slices = medians["scheme_one"].columns
over_count = medians["scheme_one"].div(medians["int8_product"][0], axis=0) / (slices * (slices + 1) / 2)
over_count.style.format("{:.2f}").set_caption("time over that of S(S+1)/2 INT8 products")

# %% [markdown]
# ## Where it fails
#
# The published automatic rule looks at each operand alone. Here a few columns of A, 2^60 smaller than the rest, carry
# the product, because the others meet zeros in B: allowed to lose one bit per entry on average, it picks slices that
# return nothing of the product, while the bound says so beforehand.

# %%
rule = table[table.quantity == "automatic_rule"].dropna(axis=1, how="all")
rule[["n", "mean_lost_bits", "slices", "relative_error", "bound_relative"]]

# %%
show("int8-automatic-rule", rule[(rule.mean_lost_bits >= 1) & (rule.slices > 0)].relative_error.max())

# %% [markdown]
# ## The figure

# %%
show_figure("int8_dgemm", table)
