"""The step of K-FAC and SGD modelled on a cluster nobody here owns; every number is fitted to published steps.

Rows: the published steps beside the model's (``predicted step``: which were held out, and the naive prediction; with
trees and, for comparison, with rings between nodes), the parts of a step at 1 to 2,048 GPUs (``modelled part``), what
was fitted (``fitted rate``), and a network the fit knows nothing of (``held-out network``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from kinji.cost import Calibration, Plan, count, find_fabric
from kinji.cost.validation import calibrate, hold_out, published_plans
from kinji.experiments.cases import StepBreakdownCase
from kinji.records import load_reference

Row = dict[str, int | float | str | bool]

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
MODELLED = (
    Plan(optimizer="SGD"),
    Plan(fisher="sampled", batch_norm="full"),
    Plan(fisher="empirical", batch_norm="unit-wise"),
)


def model(case: StepBreakdownCase) -> Iterator[Row]:
    """Fit to the published steps on few GPUs, predict the published rest, and model what the case asks for.

    Raises
    ------
    ValueError
        There is no such fabric.
    """
    fabric = find_fabric(str(case.fabric))
    reference = load_reference()
    variants, spngd = reference["step_breakdown_variants"], reference["resnet50_spngd"]
    yield from _predicted(variants, spngd)
    calibration = calibrate(variants, spngd).on(fabric)
    for name, (value, deviation) in calibration.parameters.items():
        yield {"quantity": "fitted rate", "rate": name, "fitted": value, "relative_deviation": deviation}
    plans = [(plan, gpus) for plan in MODELLED for gpus in GPUS]
    stale = variants[variants["stale"]]
    plans += zip(published_plans(stale, spngd), stale["gpus"].tolist(), strict=True)
    for plan, gpus in plans:
        yield from _parts(case, calibration, plan, gpus)
    yield from _bert(calibration, reference["step_breakdown_bert_block"])


def _predicted(variants: pd.DataFrame, spngd: pd.DataFrame) -> Iterator[Row]:
    for algorithm in ("halving", "ring"):
        predicted = hold_out(variants, spngd, replace(find_fabric("abci"), algorithm=algorithm))
        columns = ["gpus", "fisher", "batch_norm", "stale", "seconds_per_step", "modelled_seconds", "last_seconds"]
        for row in predicted[[*columns, "held_out"]].to_dict("records"):
            yield {"quantity": "predicted step", "between_nodes": algorithm} | {str(k): v for k, v in row.items()}


def _parts(case: StepBreakdownCase, calibration: Calibration, plan: Plan, gpus: int) -> Iterator[Row]:
    step = calibration.predict(count(case.network, case.batch_per_rank, case.pixels), plan, gpus)
    row: Row = {"quantity": "modelled part", "optimizer": plan.optimizer, "gpus": gpus, "fisher": plan.fisher}
    row |= {"batch_norm": plan.batch_norm, "refreshed": plan.refreshed, "hidden_seconds": step.hidden_seconds}
    yield from (row | {"part": part, "modelled_seconds": seconds} for part, seconds in step.parts.items())


def _bert(calibration: Calibration, published: pd.DataFrame) -> Iterator[Row]:
    for row in published.to_dict("records"):
        block = count(row["network"], 32, 128)
        seconds = sum(calibration.rates.inversion_seconds(n) for x in block.layers for n in (x.inputs, x.outputs) if n)
        held_out: Row = {"quantity": "held-out network", "held_out_network": row["network"], "part": "inverses"}
        yield held_out | {"seconds_per_step": row["inverses_ms"] / 1000, "modelled_seconds": seconds}
