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
# # Is H²-ULV linear, are its boxes independent, and how accurate is it really?
#
# The matrix of `1/r` between N points on a sphere is factorized by a block low-rank Cholesky (the algorithm of LORAPO)
# and by H²-ULV. The published comparison puts a heavy diagonal on it. Here the natural diagonal stands beside it, and
# every error is taken against the true kernel, never against a compressed one.

# %%
import numpy as np

from kinji.records import judge, load_claims, load_table
from kinji.records.summaries.h2_scaling import summarize
from kinji.report.figures import show_figure

table = load_table("h2_scaling")
claims = {claim.id: claim for claim in load_claims()}
summarize(table)

# %% [markdown]
# ## Is the published problem hard?
# Divide the right-hand side by the diagonal, and do nothing else.

# %%
results = table[table["quantity"] == "result"]
results.groupby("diagonal")[["condition_number", "diagonal_solve_relative_error"]].agg(["min", "max"])

# %%
trivial = results.loc[results["diagonal"] == "dominant", "diagonal_solve_relative_error"].max()
verdict = judge(claims["h2-published-problem-is-trivial"], table)
assert np.isclose(trivial, verdict.ours.value)
print(f"b / diagonal is right to {trivial:.1e} on the published diagonal: {verdict.verdict}")

# %% [markdown]
# ## Growth
# Operations are counted, so they carry no noise of a machine. Sizes with one level only are left out: there the near
# blocks are not yet a constant share of a row.

# %%
ours = results[results["method"] == "h2_ulv"]
sizes = sorted(ours.loc[ours["levels"] > 1, "n"].unique())
for method, name in (("h2_ulv", "h2-factor-is-linear"), ("blr", "h2-blr-is-quadratic")):
    rows = results[(results["method"] == method) & results["n"].isin(sizes)]
    verdict = judge(claims[name], table)
    if len(sizes) > 2:
        flops = rows.groupby("n")["factor_flops"].median()
        slope = np.polyfit(np.log(flops.index), np.log(flops), 1)[0]
        assert np.isclose(slope, verdict.ours.value)
        print(f"{method}: operations ~ N^{slope:.2f} over N = {sizes}: {verdict.verdict}")
    else:
        print(f"{method}: {len(sizes)} sizes are too few for an exponent: {verdict.verdict}")

# %% [markdown]
# ## Independent boxes
# The leaf level was factorized again with boxes and pairs in a random order. Every bit of the factors must be the same.

# %%
independence = table[table["quantity"] == "independence"]
verdict = judge(claims["h2-boxes-independent"], table)
assert np.isclose(independence["identical"].astype(bool).mean(), verdict.ours.value)
print(f"{independence['boxes'].astype(int).tolist()} boxes, all bits the same: {verdict.verdict}")

# %% [markdown]
# ## Where the accuracy ends
# On the natural diagonal the bases have to span the fill-ins as well, and at one rank the error grows with N. As a
# preconditioner the same factors still lead to the residual of the block low-rank Cholesky.

# %%
natural = results[results["diagonal"] == "natural"]
natural.pivot_table(index="n", columns="method", values="relative_residual").map("{:.1e}".format)

# %%
names = ("accuracy-at-fixed-rank", "decoupled-lifts-help", "iterations-reach-blr-residual", "few-iterations")
for name in (f"h2-{name}" for name in names):
    verdict = judge(claims[name], table)
    value = f"{verdict.ours.value:.3g}" if verdict.ours else "too few sizes"
    print(f"{claims[name].statement} {value}: {verdict.verdict}")

# %%
show_figure("h2_scaling", table)
