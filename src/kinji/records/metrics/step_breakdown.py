"""What decides the claims on one step of K-FAC: shares of its time, bytes sent, balance, equality of rank counts.

Every metric looks at ResNet-50 on the largest number of ranks measured.
"""

from __future__ import annotations

import pandas as pd

from kinji.records.estimates import Estimate, exact, median_estimate

STEP = ["optimizer", "rank", "repetition"]
BYTES_PER_NUMBER = 4


def second_order_share(table: pd.DataFrame) -> Estimate | None:
    """Return the share of a K-FAC step that SGD does not have: K-FAC and K-FAC communication."""
    shares = part_shares(table)
    if shares.empty:
        return None
    return median_estimate((shares["K-FAC"] + shares["K-FAC communication"]).loc["K-FAC"].tolist())


def unattributed_share(table: pd.DataFrame) -> Estimate | None:
    """Return the share of a step that none of the seven parts explains, for the optimizer where it is larger."""
    steps = timed_steps(table)
    if steps.empty:
        return None
    shares = (steps["unattributed_seconds"] / steps["step_seconds"]).groupby(steps["optimizer"]).apply(list)
    return max((median_estimate(share) for share in shares), key=lambda estimate: estimate.value)


def packed_over_triangles(table: pd.DataFrame) -> Estimate | None:
    """Return the bytes of statistics sent over those of a triangle, n (n + 1) / 2 numbers, of each matrix."""
    sent, factors = _sent(table, "K-FAC", ("statistics",)), largest_case(table, "factor")
    if not sent or factors.empty:
        return None
    triangles = (factors["matrices"] * factors["size"] * (factors["size"] + 1) / 2).sum()
    return exact(sent / (BYTES_PER_NUMBER * triangles))


def shared_traffic_over_sgd(table: pd.DataFrame) -> Estimate | None:
    """Return the bytes of K-FAC's gradients and weights over those of SGD's all-reduce, which passes twice."""
    ours, sgd = _sent(table, "K-FAC", ("gradients", "weights")), _sent(table, "SGD", ("gradients",))
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


def largest_case(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Return the observations of one quantity for ResNet-50 on the most ranks."""
    if not {"network", "ranks"} <= set(table.columns):
        return table.iloc[:0]
    rows = table[(table["quantity"] == quantity) & (table["network"] == "resnet50")]
    return rows[rows["ranks"] == rows["ranks"].max()]


def timed_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Return the steps of which the parts were timed."""
    steps = largest_case(table, "step")
    return steps[steps["unattributed_seconds"].notna()] if len(steps) else steps


def part_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Return the share of each part (columns) in each step (rows: optimizer, rank, repetition)."""
    parts = largest_case(table, "part")
    if parts.empty:
        return parts
    seconds = parts.pivot_table(index=STEP, columns="part", values="part_seconds")
    return seconds.div(timed_steps(table).set_index(STEP)["step_seconds"], axis=0)


def median_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Return, for each optimizer (rows), the parts of the one step whose time is the median: they add up to it."""
    steps = timed_steps(table)
    chosen = [of_one.sort_values("step_seconds").iloc[len(of_one) // 2] for _, of_one in steps.groupby("optimizer")]
    parts = largest_case(table, "part").pivot_table(index=STEP, columns="part", values="part_seconds")
    rows = {
        step["optimizer"]: {
            **parts.loc[tuple(step[STEP])],
            "unattributed": step["unattributed_seconds"],
            "whole step": step["step_seconds"],
        }
        for step in chosen
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _sent(table: pd.DataFrame, optimizer: str, contents: tuple[str, ...]) -> float:
    rows = largest_case(table, "traffic")
    if rows.empty:
        return 0.0
    chosen = rows[(rows["optimizer"] == optimizer) & rows["content"].isin(contents) & (rows["rank"] == 0)]
    return float((chosen["vector_bytes"] * chosen["passes"]).sum())
