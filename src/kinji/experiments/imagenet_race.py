"""The race to train ResNet-50 on ImageNet: what our steps would make of it, beside the published history.

The history itself is printed (paper/reference/resnet50_history.csv); a record holds what is added to it. ``modelled
step``: one step of SGD and of K-FAC on 8 to 2,048 GPUs by the cost model, with every statistic fresh, and with the
published share of them refreshed where that is printed. ``measured step``: the whole steps that `step_breakdown` timed
at this scale, by the number of ranks, whatever the size of their images.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from kinji.cost import Plan, count, find_fabric
from kinji.cost.validation import calibrate, hold_out
from kinji.experiments.cases import ImagenetRaceCase
from kinji.experiments.context import Context
from kinji.records import load_reference, tidy
from kinji.records.layout import default_scale
from kinji.records.metrics.step_breakdown import STALE, with_kinds
from kinji.records.tables import NoRecords, record_paths

Row = dict[str, int | float | str | bool]

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def measure(case: ImagenetRaceCase, context: Context) -> Iterator[Row]:
    """Yield modelled steps, the model's error on published steps it has not seen, and measured steps.

    Raises
    ------
    ValueError
        There is no such fabric, or no image on a GPU.
    """
    reference = load_reference()
    variants, spngd = reference["step_breakdown_variants"], reference["resnet50_spngd"]
    calibration = calibrate(variants, spngd).on(find_fabric(case.fabric))
    counts = count("resnet50", case.batch_per_gpu, case.pixels)
    for plan, gpus in plans(spngd):
        seconds = calibration.predict(counts, plan, gpus).seconds
        row: Row = {"quantity": "modelled step", "optimizer": plan.optimizer, "gpus": gpus}
        yield row | {"refreshed": plan.refreshed, "batch": gpus * case.batch_per_gpu, "step_seconds": seconds}
    yield {"quantity": "model error", "relative_error": largest_usual_error(hold_out(variants, spngd))}
    yield from measured_steps()


def plans(spngd: pd.DataFrame) -> Iterator[tuple[Plan, int]]:
    """Yield SGD and K-FAC on every number of GPUs, then K-FAC with stale statistics where their share is printed."""
    yield from ((Plan(optimizer="SGD"), gpus) for gpus in GPUS)
    yield from ((Plan(), gpus) for gpus in GPUS)
    printed = spngd.dropna(subset=["gpus"])
    for gpus, percent in zip(printed["gpus"], printed["statistics_left_percent"], strict=True):
        yield Plan(refreshed=percent / 100), int(gpus)


def largest_usual_error(predicted: pd.DataFrame) -> float:
    """Return the 95th percentile of the model's relative error on the steps that it was not fitted to."""
    held = predicted[predicted["held_out"]]
    return float((held["modelled_seconds"] / held["seconds_per_step"] - 1).abs().quantile(0.95))


def measured_steps() -> Iterator[Row]:
    """Yield the whole steps of ResNet-50 that were timed at this scale, here or by a machine that left its records."""
    scale = default_scale()
    try:
        table = tidy(record_paths("step_breakdown", scale), scale)
    except NoRecords:
        return
    if "parts_timed" not in table:  # every measured case failed
        return
    steps = with_kinds(table[(table["quantity"] == "step") & (table["network"] == "resnet50") & (table["rank"] == 0)])
    steps = steps[steps["kind"] != STALE]
    for step in steps[~steps["parts_timed"].astype(bool)].to_dict("records"):
        row: Row = {"quantity": "measured step", "optimizer": step["optimizer"], "step_seconds": step["step_seconds"]}
        row |= {"gpus": int(step["ranks"]), "batch": int(step["ranks"] * step["batch_per_rank"])}
        yield row | {"pixels": int(step["pixels"]), "measured_on": step["machine"]}
