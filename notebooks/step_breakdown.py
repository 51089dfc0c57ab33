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
# # Where the time of a step goes: check it yourself
#
# One training step of ResNet-50 by momentum SGD and by K-FAC, on ranks that share the batch and, with K-FAC, the
# inversion of the Fisher blocks. The claims: what K-FAC adds is about half of the step; the seven published parts are
# all there is; symmetric factors travel as triangles; nothing but the statistics is sent beyond what SGD sends; the
# ranks compute what one rank would.
#
# Below, each verdict is taken from the raw observations by hand, then compared with the one in the claims table.

# %%
import numpy as np

from kinji.records import judge, load_claims, load_table
from kinji.records.metrics.step_breakdown import with_kinds
from kinji.report.figures import show_figure

everything = load_table("step_breakdown")
verdicts = {c.id: judge(c, everything) for c in load_claims() if c.experiment == "step_breakdown"}
table = everything[everything.network == "resnet50"]
table = with_kinds(table[table.ranks == table[table.quantity == "part"].ranks.max()])
table.groupby(["ranks", "quantity"]).size().unstack(fill_value=0)


# %%
def show(claim_id, by_hand):
    """Print our own number beside the judge's."""
    verdict = verdicts[claim_id]
    judged = verdict.ours.value if verdict.ours else None
    print(f"{verdict.claim.statement}\n  by hand {by_hand:.4g}, judge {judged:.4g}: {verdict.verdict}")
    assert np.isclose(by_hand, judged, atol=1e-14)


# %% [markdown]
# ## Do the parts add up?
#
# `step_seconds` is the wall time of a step, `parts_timed` says whether its parts were timed inside. What the parts do
# not explain is `unattributed_seconds`. A stopwatch might slow the step it times; the steps timed as a whole show it.

# %%
step = ["kind", "rank", "repetition"]
parts = table[table.quantity == "part"].groupby([*step, "part"]).part_seconds.sum().unstack(fill_value=0)
whole = table[(table.quantity == "step") & table.unattributed_seconds.notna()].set_index(step)
rest = whole.step_seconds - parts.sum(axis=1)
assert (rest - whole.unattributed_seconds).abs().max() < 1e-9
share = (rest / whole.step_seconds).groupby("kind").median()
print(f"unattributed, worst kind of step: {share.max():.2%}; with every network and rank that was timed:")
others = everything[everything.unattributed_seconds.notna()]
of_run = [others[name].fillna("") for name in ("record", "run", "optimizer", "refreshed") if name in others]
show("step-parts-are-complete", (others.unattributed_seconds / others.step_seconds).groupby(of_run).median().max())

# %%
table[table.quantity == "step"].groupby(["kind", "parts_timed"]).step_seconds.describe().round(3)

# %% [markdown]
# ## Is what K-FAC adds half of the step?
#
# Published for up to 2,048 GPUs, where hundreds of ranks share the inversion. Here as many as this machine has; a
# rank that waits for a slower one is charged to the part it has finished (`waiting_seconds`, contained in the part).

# %%
shares = parts.div(whole.step_seconds, axis=0)
show("step-half-is-second-order", (shares["K-FAC"] + shares["K-FAC communication"]).loc["K-FAC"].median())
shares.groupby("kind").median().style.format("{:.1%}")

# %%
waiting = table[table.quantity == "part"].groupby(["kind", "part"]).waiting_seconds.median()
waiting[waiting > 0].round(3)

# %% [markdown]
# ## What is sent?
#
# The collectives count the bytes of the vectors they carry. An all-reduce passes over its vector twice, a
# ReduceScatterV or an AllGatherV once.

# %%
sent = table[(table.quantity == "traffic") & (table["rank"] == 0)]
sent = sent.set_index(["kind", "content"])[["collective", "vector_bytes", "passes"]]
moved = sent.vector_bytes * sent.passes
show("step-only-statistics-are-extra", moved["K-FAC"].drop("statistics").sum() / moved["SGD"].sum())

# %%
factors = table[table.quantity == "factor"]
triangles = (factors.matrices * factors["size"] * (factors["size"] + 1) / 2).sum()
squares = (factors.matrices * factors["size"] ** 2).sum()
show("step-packing-halves-statistics", moved["K-FAC"]["statistics"] / (4 * triangles))
print(f"{triangles / squares:.4f} of the {4 * squares / 1e6:.0f} MB of full matrices")

# %% [markdown]
# ## Who inverts what?

# %%
owners = table[table.quantity == "ownership"]
busiest = owners.pivot_table(index="owning_ranks", columns="rule", values="busiest_flops") / 1e9
show("step-balanced-inversion", (busiest.balanced / busiest.contiguous)[busiest.index > 1].max())
busiest.round(1).rename_axis("ranks (operations of the busiest, in 1e9)")

# %% [markdown]
# ## Do ranks matter?

# %%
show("step-ranks-do-not-matter", table[table.quantity == "equality"].relative_difference.max())

# %% [markdown]
# ## Does communication hide?
#
# In the steps above each stage ends before the next begins. In a whole step the statistics of inputs travel while the
# backward pass goes on; `first_exchange_seconds` is what their exchange takes on its own, or what is left to wait for.

# %%
if "first_exchange_seconds" in table:
    exchange = table[(table.quantity == "step") & (table.kind == "K-FAC")]
    exchange = exchange.pivot_table(
        index=["rank", "repetition"], columns="parts_timed", values="first_exchange_seconds"
    )
    show("step-input-statistics-are-hidden", (1 - exchange[False] / exchange[True]).median())

# %% [markdown]
# ## Can the steps measured here be predicted?
#
# From the stages of ResNet-50 on one rank (each rank alone, all at once), and collectives measured on a transformer
# block. ResNet-18 was not looked at but for its counts of operations and bytes.

# %%
if (everything.quantity == "own step").any():
    own = with_kinds(everything[everything.quantity == "own step"])
    own = own.groupby(["predicted_network", "kind", "repetition"])[["measured_seconds", "modelled_seconds"]].sum()
    own["error"] = (own.modelled_seconds / own.measured_seconds - 1).abs()
    errors = own.error.groupby(["predicted_network", "kind"]).median()
    show("step-own-steps-are-predicted", errors["resnet50"].max())
    show("step-held-out-network-is-predicted", errors["resnet18"].max())
    print(own.groupby(["predicted_network", "kind"]).median().round(3))

# %% [markdown]
# ## Can a model of the step be believed where nobody here can measure?
#
# It was fitted to the published steps on at most 32 GPUs (`held_out` is false) and judged on the others, beside the
# naive prediction that nothing changes beyond 32. Trees or rings between nodes fit equally well up to 32 GPUs; the
# published code's library of that time used trees, and beyond 32 GPUs they predict better.

# %%
modelled = everything[everything.quantity == "predicted step"].copy() if "between_nodes" in everything else None
if modelled is not None:
    modelled["error"] = (modelled.modelled_seconds / modelled.seconds_per_step - 1).abs()
    modelled["naive"] = (modelled.last_seconds / modelled.seconds_per_step - 1).abs()
    held = modelled[modelled.held_out.astype(bool)]
    trees = held[held.between_nodes == "halving"]
    by_variant = trees.groupby(["fisher", "batch_norm", "stale"])[["error", "naive"]].median()
    show("step-model-predicts-unseen-steps", trees.error.median())
    show("step-model-beats-last-value", (by_variant.error / by_variant.naive).max())
    print(held.groupby(["between_nodes", "fisher", "batch_norm", "stale"])[["error", "naive"]].median().round(3))

# %%
if modelled is not None:
    residuals = modelled[modelled.between_nodes == "halving"].assign(
        residual=lambda t: (t.modelled_seconds / t.seconds_per_step - 1).round(3)
    )
    print(residuals.pivot_table(index="gpus", columns=["fisher", "batch_norm", "stale"], values="residual"))

# %% [markdown]
# ## The figure

# %%
show_figure("step_breakdown", everything)
