"""What decides the claims on one step of K-FAC: shares of its time, bytes sent, balance, equality of rank counts.

Every metric of a measured step looks at ResNet-50 on the largest number of ranks; K-FAC has the empirical Fisher matrix
and unit-wise BatchNorm where not said otherwise. Those of a modelled step are exact in the model; their intervals are
as wide as the model's error on the published steps it was not fitted to (its 95th percentile).
"""

from __future__ import annotations

import pandas as pd

from kinji.records.estimates import Estimate, exact, median_estimate
from kinji.records.tables import load_reference

STEP = ["kind", "rank", "repetition"]
FRESH, STALE = "K-FAC", "K-FAC, stale"
KINDS = ("SGD", FRESH, STALE)
"""Of steps: a stale one uses the statistics and inverses of an earlier step."""
BYTES_PER_NUMBER = 4
VARIANT = ["fisher", "batch_norm", "stale"]
SAMPLED = {"fisher": "sampled", "batch_norm": "full", "refreshed": 1.0}
PLAIN = {"fisher": "empirical", "batch_norm": "unit-wise", "refreshed": 1.0}
LARGEST_PUBLISHED_GPUS = 2048
TRAINED_GPUS = 1024


def second_order_share(table: pd.DataFrame) -> Estimate | None:
    """Return the share of a K-FAC step that SGD does not have: K-FAC and K-FAC communication."""
    shares = part_shares(table)
    if shares.empty:
        return None
    return median_estimate((shares["K-FAC"] + shares["K-FAC communication"]).loc[FRESH].tolist())


def unattributed_share(table: pd.DataFrame) -> Estimate | None:
    """Return the share of a step that none of the seven parts explains, worst of all kinds, networks and ranks."""
    steps = with_kinds(table[table["quantity"].isin(["step", "calibration step"])])
    steps = steps[steps["unattributed_seconds"].notna()] if len(steps) else steps
    if steps.empty:
        return None
    runs = [steps[name].fillna("") for name in ("record", "run", "kind") if name in steps.columns]
    shares = (steps["unattributed_seconds"] / steps["step_seconds"]).abs().groupby(runs).apply(list)
    return max((median_estimate(share) for share in shares), key=lambda estimate: estimate.value)


def hidden_exchange_share(table: pd.DataFrame) -> Estimate | None:
    """Return the share of the exchange of the input statistics that nobody waits for in a whole step."""
    steps = largest_case(table, "step")
    if "first_exchange_seconds" not in steps.columns:
        return None
    fresh = steps[steps["kind"] == FRESH].set_index(["rank", "repetition"])
    timed = fresh["parts_timed"].astype(bool)
    on_its_own, waited = (fresh[chosen]["first_exchange_seconds"] for chosen in (timed, ~timed))
    return median_estimate((1 - waited / on_its_own).tolist())


def own_step_error(table: pd.DataFrame) -> Estimate | None:
    """Return the relative error of ResNet-50's steps predicted from one rank, for the kind where it is largest."""
    return _largest_error(own_steps(table), "resnet50")


def held_out_network_error(table: pd.DataFrame) -> Estimate | None:
    """Return the same for the steps of ResNet-18, predicted from those of ResNet-50."""
    return _largest_error(own_steps(table), "resnet18")


def empirical_over_sampled(table: pd.DataFrame) -> Estimate | None:
    """Return the step with the empirical over that with the sampled Fisher matrix, BatchNorm unit-wise."""
    return _variant_ratio(table, ("empirical", "unit-wise"), ("sampled", "unit-wise"))


def unit_wise_over_full(table: pd.DataFrame) -> Estimate | None:
    """Return the step with unit-wise over that with full BatchNorm, the Fisher matrix empirical."""
    return _variant_ratio(table, ("empirical", "unit-wise"), ("empirical", "full"))


def packed_over_triangles(table: pd.DataFrame) -> Estimate | None:
    """Return the bytes of statistics sent over those of a triangle, n (n + 1) / 2 numbers, of each matrix."""
    sent, factors = _sent(table, FRESH, ("statistics",)), largest_case(table, "factor")
    if not sent or factors.empty:
        return None
    triangles = (factors["matrices"] * factors["size"] * (factors["size"] + 1) / 2).sum()
    return exact(sent / (BYTES_PER_NUMBER * triangles))


def shared_traffic_over_sgd(table: pd.DataFrame) -> Estimate | None:
    """Return the bytes of K-FAC's gradients and weights over those of SGD's all-reduce, which passes twice."""
    ours, sgd = _sent(table, FRESH, ("gradients", "weights")), _sent(table, "SGD", ("gradients",))
    return exact(ours / sgd) if ours and sgd else None


def busiest_balanced_over_contiguous(table: pd.DataFrame) -> Estimate | None:
    """Return the busiest rank's work of the balanced over the contiguous split, the worst of all numbers of ranks."""
    owners = largest_case(table, "ownership")
    if owners.empty:
        return None
    busiest = owners.pivot_table(index="owning_ranks", columns="rule", values="busiest_flops")
    shared = busiest[busiest.index > 1]
    return exact((shared["balanced"] / shared["contiguous"]).max())


def rank_count_difference(table: pd.DataFrame) -> Estimate | None:
    """Return the largest relative difference of a weight trained on all ranks from one trained on one."""
    rows = largest_case(table, "equality")
    rows = rows[rows["ranks"] > 1] if len(rows) else rows
    return exact(rows["relative_difference"].max()) if len(rows) else None


def model_error(table: pd.DataFrame) -> Estimate | None:
    """Return the median relative error of the model on the published steps that it was not fitted to."""
    held = held_out_steps(table)
    if held.empty:
        return None
    estimate = median_estimate(held["model_error"].tolist())
    return Estimate(estimate.value, estimate.low, estimate.high, modelled=True)


def model_over_last_value(table: pd.DataFrame) -> Estimate | None:
    """Return the model's median error over that of the last fitted value, for the variant where it is largest."""
    held = held_out_steps(table)
    if held.empty:
        return None
    medians = held.groupby(VARIANT)[["model_error", "last_error"]].median()
    ratio = float((medians["model_error"] / medians["last_error"]).max())
    return Estimate(ratio, ratio, ratio, modelled=True)


def modelled_second_order_share(table: pd.DataFrame) -> Estimate | None:
    """Return the share of a modelled K-FAC step that SGD does not have, with a sampled Fisher matrix."""
    parts = modelled_steps(table, "K-FAC", SAMPLED)
    if LARGEST_PUBLISHED_GPUS not in parts.index:
        return None
    step = parts.loc[LARGEST_PUBLISHED_GPUS].to_dict()
    return _widened(table, (step["K-FAC"] + step["K-FAC communication"]) / sum(step.values()))


def modelled_overhead(table: pd.DataFrame) -> Estimate | None:
    """Return the modelled step of stale K-FAC over SGD's, on the GPUs of the fastest published training."""
    stale, sgd = stale_steps(table), modelled_steps(table, "SGD", {})
    if TRAINED_GPUS not in stale.index or TRAINED_GPUS not in sgd.index:
        return None
    return _widened(table, float(stale.to_dict()[TRAINED_GPUS] / sgd.loc[TRAINED_GPUS].sum()))


def modelled_staleness_speedup(table: pd.DataFrame) -> Estimate | None:
    """Return the modelled step with every statistic fresh over the stale one, the median of the numbers of GPUs."""
    stale, fresh = stale_steps(table), modelled_steps(table, "K-FAC", PLAIN)
    if stale.empty or fresh.empty:
        return None
    return _widened(table, float((fresh.sum(axis=1) / stale).dropna().median()))


def modelled_64_over_1(table: pd.DataFrame) -> Estimate | None:
    """Return the modelled step on 64 GPUs over the one on a single GPU."""
    seconds = modelled_steps(table, "K-FAC", PLAIN).sum(axis=1)
    return _widened(table, seconds[64] / seconds[1]) if {1, 64} <= set(seconds.index) else None


def modelled_minutes(table: pd.DataFrame) -> Estimate | None:
    """Return the minutes of the printed number of modelled stale steps on 1,024 GPUs."""
    stale = stale_steps(table)
    if TRAINED_GPUS not in stale.index:
        return None
    printed = load_reference()["resnet50_spngd"].set_index("gpus")["iterations"]
    return _widened(table, printed[TRAINED_GPUS] * stale[TRAINED_GPUS] / 60)


def held_out_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Return the published steps that the model was not fitted to, with its error and that of the last value."""
    if "between_nodes" not in table.columns:
        return table.iloc[:0]
    steps = table[(table["quantity"] == "predicted step") & (table["between_nodes"] == "halving")]
    held = steps[steps["held_out"].astype(bool)]
    model, last = held["modelled_seconds"], held["last_seconds"]
    published = held["seconds_per_step"]
    return held.assign(model_error=(model / published - 1).abs(), last_error=(last / published - 1).abs())


def modelled_steps(table: pd.DataFrame, optimizer: str, plan: dict[str, object]) -> pd.DataFrame:
    """Return the modelled seconds of each part (columns) by the number of GPUs (rows); plan fixes other columns."""
    rows = table[table["quantity"] == "modelled part"] if "refreshed" in table.columns else table.iloc[:0]
    if rows.empty:
        return pd.DataFrame()
    chosen = (rows["optimizer"] == optimizer) & (rows["network"] == "resnet50")
    for column, value in plan.items():
        chosen &= rows[column] == value
    return rows[chosen].pivot_table(index="gpus", columns="part", values="modelled_seconds")


def stale_steps(table: pd.DataFrame) -> pd.Series:
    """Return the modelled seconds of stale steps by the number of GPUs."""
    rows = table[table["quantity"] == "modelled part"] if "refreshed" in table.columns else table.iloc[:0]
    rows = rows[rows["refreshed"] < 1] if len(rows) else rows
    return rows.groupby("gpus")["modelled_seconds"].sum() if len(rows) else pd.Series(dtype=float)


def _widened(table: pd.DataFrame, value: float) -> Estimate:
    error = held_out_steps(table)["model_error"].quantile(0.95)
    return Estimate(float(value), float(value * (1 - error)), float(value * (1 + error)), modelled=True)


def largest_case(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Return the observations of one quantity for ResNet-50 on the most ranks, by kind of step."""
    if not {"network", "ranks"} <= set(table.columns):
        return table.iloc[:0]
    rows = table[(table["quantity"] == quantity) & (table["network"] == "resnet50")]
    return with_kinds(rows[rows["ranks"] == rows["ranks"].max()])


def with_kinds(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the plain variant of K-FAC and of SGD, with the kind of their step (`KINDS`)."""
    if "optimizer" not in rows.columns:
        return rows
    other = pd.Series(False, rows.index)
    for column in ("fisher", "batch_norm"):
        if column in rows.columns:
            other |= rows[column].notna() & (rows[column] != PLAIN[column])
    stale = rows["refreshed"] == 0 if "refreshed" in rows.columns else pd.Series(False, rows.index)
    return rows[~other].assign(kind=rows["optimizer"].mask(stale, STALE))


def timed_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Return the steps of which the parts were timed."""
    steps = largest_case(table, "step")
    return steps[steps["unattributed_seconds"].notna()] if len(steps) else steps


def part_seconds(table: pd.DataFrame) -> pd.DataFrame:
    """Return the seconds of each part (columns) in each step (rows: kind, rank, repetition)."""
    parts = largest_case(table, "part")
    if parts.empty:
        return parts
    sums = parts.pivot_table(index=STEP, columns="part", values="part_seconds", aggfunc="sum")
    return sums.fillna(0.0)


def part_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Return the share of each part (columns) in each step (rows: kind, rank, repetition)."""
    parts = part_seconds(table)
    return parts if parts.empty else parts.div(timed_steps(table).set_index(STEP)["step_seconds"], axis=0)


def median_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Return, for each kind (rows), the parts of the one step whose time is the median: they add up to it."""
    steps, parts = timed_steps(table), part_seconds(table)
    rows = {}
    for kind in [kind for kind in KINDS if kind in parts.index]:
        of_kind = steps[steps["kind"] == kind].sort_values("step_seconds")
        chosen = of_kind.iloc[len(of_kind) // 2]
        rest = {"unattributed": chosen["unattributed_seconds"], "whole step": chosen["step_seconds"]}
        rows[kind] = {**parts.loc[tuple(chosen[STEP])], **rest}
    return pd.DataFrame.from_dict(rows, orient="index")


def own_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Return measured and modelled seconds (columns) of each predicted step (rows: network, kind, repetition)."""
    rows = with_kinds(table[table["quantity"] == "own step"])
    if rows.empty:
        return rows
    return rows.groupby(["predicted_network", "kind", "repetition"])[["measured_seconds", "modelled_seconds"]].sum()


def _largest_error(steps: pd.DataFrame, network: str) -> Estimate | None:
    if steps.empty or network not in steps.index:
        return None
    chosen = steps.loc[network]
    errors = (chosen["modelled_seconds"] / chosen["measured_seconds"] - 1).abs().groupby("kind").apply(list)
    worst = max((median_estimate(of_kind) for of_kind in errors), key=lambda estimate: estimate.value)
    return Estimate(worst.value, worst.low, worst.high, modelled=True)


def _variant_ratio(table: pd.DataFrame, one: tuple[str, str], other: tuple[str, str]) -> Estimate | None:
    """Return the seconds of a whole refreshing step of one variant of K-FAC over another's, ResNet-50, most ranks."""
    if not {"network", "fisher", "parts_timed"} <= set(table.columns):
        return None
    rows = table[(table["quantity"] == "step") & (table["network"] == "resnet50") & (table["refreshed"] == 1)]
    rows = rows[(rows["ranks"] == rows["ranks"].max()) & ~rows["parts_timed"].astype(bool)]
    seconds = rows.set_index(["fisher", "batch_norm", "record", "rank", "repetition"])["step_seconds"].sort_index()
    if not {one, other} <= {key[:2] for key in seconds.index}:
        return None
    return median_estimate((seconds.loc[one] / seconds.loc[other]).dropna().tolist())


def _sent(table: pd.DataFrame, kind: str, contents: tuple[str, ...]) -> float:
    rows = largest_case(table, "traffic")
    if rows.empty:
        return 0.0
    chosen = rows[(rows["kind"] == kind) & rows["content"].isin(contents) & (rows["rank"] == 0)]
    return float((chosen["vector_bytes"] * chosen["passes"]).sum())
