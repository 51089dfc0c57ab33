"""The modelled step as a table on a terminal, with the range in which to believe it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from kinji.cost import Plan, count, find_fabric
from kinji.cost.networks import usual_size
from kinji.cost.step import PARTS, Step
from kinji.cost.trust import RANGE, doubts
from kinji.cost.validation import calibrate, held_out_errors, hold_out
from kinji.records import load_reference


def print_step(
    model: str,
    gpus: int,
    batch: int,
    fabric: str,
    size: int | None,
    fisher: Any,
    batch_norm: Any,
    refreshed: float,
    ownership: Any,
) -> None:
    """Print the parts of a step of SGD and of K-FAC, the throughput, and how far to trust them.

    Raises
    ------
    ValueError
        An option names nothing known or is out of range.
    """
    plan = Plan(fisher=fisher, batch_norm=batch_norm, refreshed=refreshed, ownership=ownership)
    where = find_fabric(fabric)
    counts = count(model, batch, usual_size(model) if size is None else size)
    variants, spngd = (load_reference()[name] for name in ("step_breakdown_variants", "resnet50_spngd"))
    calibration = calibrate(variants, spngd).on(where)
    steps = [calibration.predict(counts, each, gpus) for each in (Plan(optimizer="SGD"), plan)]
    console = Console(soft_wrap=True)
    console.print(_table(f"{model}, {gpus:,} GPUs, {batch} examples each, {fabric}", steps, gpus * batch))
    console.print(f"{1000 * steps[1].hidden_seconds:.1f} ms of K-FAC's communication hide behind the backward pass.")
    errors = held_out_errors(hold_out(variants, spngd))["model"]
    seen = f"median error of unseen steps by variant {errors.min():.0%} to {errors.max():.0%}"
    console.print(f"Modelled; {RANGE}; {seen}.")
    for doubt in doubts(counts, gpus, where):
        console.print(f"Outside that range: {doubt}.")


def _table(title: str, steps: list[Step], examples: int) -> Table:
    table = Table("part", title=title)
    for column in ("SGD (ms)", "K-FAC (ms)", "K-FAC (%)"):
        table.add_column(column, justify="right")
    sgd, kfac = steps
    for part in PARTS:
        share = f"{100 * kfac.parts[part] / kfac.seconds:.1f}"
        table.add_row(part, f"{1000 * sgd.parts[part]:.1f}", f"{1000 * kfac.parts[part]:.1f}", share)
    table.add_section()
    table.add_row("whole step", f"{1000 * sgd.seconds:.1f}", f"{1000 * kfac.seconds:.1f}", "100.0")
    table.add_row("examples a second", f"{examples / sgd.seconds:,.0f}", f"{examples / kfac.seconds:,.0f}", "")
    return table
