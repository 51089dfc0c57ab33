"""The steps measured on several ranks, predicted: stages of one rank alone, collectives measured on another network.

The case's network, trained by each rank alone, gives the rates of everything but collectives; theirs come from a small
transformer block on all ranks. What a prediction is compared with has no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from kinji.cost import count
from kinji.cost.networks import is_transformer
from kinji.cost.step import PARTS
from kinji.cost.transfer import COLLECTIVES, STAGES, carry_over, stage_work
from kinji.experiments.cases import StepBreakdownCase
from kinji.experiments.step_breakdown.trials import Row

Kind = tuple[str, float]
KINDS: tuple[Kind, ...] = (("SGD", 1.0), ("K-FAC", 1.0), ("K-FAC", 0.0))
"""Optimizers, and the share of statistics that a step refreshes."""


def collectives_case(case: StepBreakdownCase) -> StepBreakdownCase:
    """Return the step on which collectives are measured: many bytes to send for little to compute."""
    return replace(case, network="bert-base-block", tokens=16, batch_per_rank=4)


def predictions(case: StepBreakdownCase, rows: Sequence[Row]) -> Iterator[Row]:
    """Yield each part of the steps to predict, beside what was measured in each repetition.

    Parameters
    ----------
    case
        Names the networks to predict; none, and nothing is yielded.
    rows
        What all ranks observed.
    """
    if not case.predicted:
        return
    table = pd.DataFrame(rows).assign(refreshed=lambda t: t["refreshed"].fillna(1.0))
    alone, sharing = _calibration(table, "alone"), _calibration(table, "collectives")
    for network in case.predicted:
        measured = _own(table, case) if network == case.network else _calibration(table, network)
        for kind in KINDS:
            target = _work(replace(case, network=network), kind, case.ranks)
            computed = _carry(_of(alone, kind), _work(case, kind, 1), target, sent=False)
            sent = _carry(_of(sharing, kind), _work(collectives_case(case), kind, 1), target, sent=True)
            names: Row = {"quantity": "own step", "predicted_network": network}
            names |= {"optimizer": kind[0], "refreshed": kind[1]}
            yield from (names | row for row in _compare(_of(measured, kind), computed | sent, case.ranks))


def _own(table: pd.DataFrame, case: StepBreakdownCase) -> pd.DataFrame:
    """Return the stages of the case's network, with K-FAC in the first variant."""
    others = (table["optimizer"] == "K-FAC") & (
        (table["fisher"] != case.fishers[0]) | (table["batch_norm"] != case.batch_norms[0])
    )
    return table[(table["quantity"] == "part") & ~others]


def _calibration(table: pd.DataFrame, run: str) -> pd.DataFrame:
    rows = table[table["quantity"] == "calibration part"]
    return rows[rows["run"] == run]


def _of(stages: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    return stages[(stages["optimizer"] == kind[0]) & (stages["refreshed"] == kind[1])]


def _work(case: StepBreakdownCase, kind: Kind, ranks: int) -> dict[str, float]:
    """Count what a step has to do on the busiest rank; SGD shares no inverses and updates everything everywhere."""
    size = case.tokens if is_transformer(case.network) else case.pixels
    counts = count(case.network, case.batch_per_rank, size)
    return stage_work(counts, ranks if kind[0] == "K-FAC" else 1, refreshed=kind[1] > 0)


def _carry(
    measured: pd.DataFrame, source: dict[str, float], target: dict[str, float], *, sent: bool
) -> dict[str, float]:
    """Carry the collectives of a step over, or everything else."""
    chosen = measured[measured["stage"].isin(COLLECTIVES) == sent]
    medians = chosen.groupby("stage")["part_seconds"].median()
    return carry_over({str(stage): float(seconds) for stage, seconds in medians.items()}, source, target)


def _compare(steps: pd.DataFrame, predicted: dict[str, float], ranks: int) -> Iterator[Row]:
    """Yield measured and modelled seconds of each part; measured ones are means over the ranks, which end together."""
    for repetition, rows in steps.groupby("repetition"):
        measured = rows.groupby("part")["part_seconds"].sum() / ranks
        for part in PARTS:
            modelled = sum(seconds for stage, seconds in predicted.items() if STAGES[stage] == part)
            seconds = {"measured_seconds": float(measured.get(part, 0.0)), "modelled_seconds": modelled}
            yield {"repetition": int(float(str(repetition))), "part": part, **seconds}
