"""What a scale asks of a cluster, from its configuration alone: limits, since a case ends before its time does."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from kinji.workflow.imagenet import DISK_GIGABYTES
from kinji.workflow.rules import cases, experiments, parameters, request, tunings


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What the cases of one experiment ask for: the largest of a case, and sums over all.

    Attributes
    ----------
    hours : float
        Of the longest case, at its time limit.
    gpu_hours : float
        Of all cases together, at their time limits, without retries.
    memory_gigabytes : float
        Of the largest case, on each node.
    disk_gigabytes : float
        Of what all cases leave, data sets not included.
    """

    experiment: str
    cases: int
    gpus: int
    hours: float
    gpu_hours: float
    memory_gigabytes: float
    disk_gigabytes: float


def demand(scale: str, experiment: str) -> Demand:
    """Add up the cases of `experiment` at `scale`."""
    asked = [request(scale, experiment, case) for case in cases(scale, experiment)]
    hours = [one["runtime_minutes"] / 60 for one in asked]
    return Demand(
        experiment=experiment,
        cases=len(asked),
        gpus=max(one["gpus"] for one in asked),
        hours=max(hours),
        gpu_hours=sum(hour * one["gpus"] for hour, one in zip(hours, asked, strict=True)),
        memory_gigabytes=max(one["memory_megabytes"] for one in asked) / 1000,
        disk_gigabytes=sum(one["disk_megabytes"] for one in asked) / 1000,
    )


def plan(scale: str) -> list[Demand]:
    """Return the demand of each experiment of `scale`, tuning last."""
    return [demand(scale, experiment) for experiment in (*experiments(scale), *tunings(scale))]


def needs_imagenet(scale: str) -> bool:
    """Return whether a case of `scale` trains on ImageNet."""
    names = [(experiment, case) for experiment in experiments(scale) for case in cases(scale, experiment)]
    return any(parameters(scale, experiment, case).get("images") == "imagenet" for experiment, case in names)


def print_plan(scale: str) -> None:
    """Print the table, and the data sets it needs."""
    rows = plan(scale)
    table = Table(title=f"Scale {scale}: at most, without retries", show_footer=True)
    sums = {"GPU-hours": sum(r.gpu_hours for r in rows), "disk GB": sum(r.disk_gigabytes for r in rows)}
    table.add_column("experiment", "all")
    for name in ("cases", "GPUs of a case", "hours of a case", "memory GB", "GPU-hours", "disk GB"):
        table.add_column(name, _number(sums[name]) if name in sums else "", justify="right")
    for r in rows:
        cells = (r.cases, r.gpus, r.hours, r.memory_gigabytes, r.gpu_hours, r.disk_gigabytes)
        table.add_row(r.experiment, *map(_number, cells))
    Console(width=120).print(table)
    if needs_imagenet(scale):
        print(f"ImageNet besides: {DISK_GIGABYTES} GB of disk.")


def _number(value: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".")
