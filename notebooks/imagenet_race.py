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
# # Who won the race to train ImageNet, and on what?
#
# In 2017 ResNet-50 took 29 hours on 8 GPUs; two years later minutes. K-FAC (SP-NGD) took half the steps of SGD. Did it
# win on time, on throughput, or on steps alone?

# %%
from kinji.records import judge, load_claims, load_table
from kinji.records.metrics.imagenet_race import history
from kinji.records.summaries.imagenet_race import summarize
from kinji.report.figures import show_figure

table = load_table("imagenet_race")
claims = {claim.id: claim for claim in load_claims()}
summarize(table)

# %% [markdown]
# ## The printed rows agree with each other
# Images per second and device are batch / (devices x seconds per step); minutes and seconds per step give the steps,
# and these the epochs: 90 or so for all of first order but one.

# %%
rows = history().dropna(subset=["seconds_per_iteration"])
throughput = rows["batch"] / rows["devices"] / rows["seconds_per_iteration"]
assert ((throughput - rows["images_per_second_and_device"]).abs() < 1).all()
rows[["work", "optimizer", "batch", "steps", "epochs"]].round(1)

# %% [markdown]
# ## Half the steps, a fifth of the throughput
# The fastest SGD on the same kind of GPU ran another framework with another local batch, so the last ratio compares
# whole systems. To compare the optimizers alone, the cost model puts both on one machine.

# %%
modelled = table[(table["quantity"] == "modelled step") & (table["gpus"] == 1024)]
stale = modelled[modelled["refreshed"] < 1]["step_seconds"].iloc[0]
sgd = modelled[modelled["optimizer"] == "SGD"]["step_seconds"].iloc[0]
ours = history().set_index("optimizer").loc["SP-NGD", "steps"]
ratio = ours * stale / (90 * 1_281_167 / 32768 * sgd)
print(f"a stale step of K-FAC takes {stale / sgd:.2f} of SGD's; its training {ratio:.2f} of SGD's minutes")
verdict = judge(claims["race-same-machine"], table)
assert abs(verdict.ours.value - ratio) < 1e-9

# %%
for claim in claims.values():
    if claim.experiment == "imagenet_race":
        verdict = judge(claim, table)
        print(f"{verdict.verdict:16s} {verdict.ours.value:.2f}  {claim.statement}")

# %% [markdown]
# ## The figure

# %%
show_figure("imagenet_race", table)
