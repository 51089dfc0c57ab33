"""Where the time of one training step goes, for momentum SGD and for K-FAC.

Files in the order the data flows: `stopwatch` -> `trials` (steps, timed) -> `ranks` (which take turns) -> `structure`
(what no clock decides) -> `prediction` (the steps measured here, predicted from one rank); `model` (steps nobody here
can measure).

A step is split into the seven parts of Yokota, fig. 4, and finer into stages: "K-FAC" is forming, inverting and
applying the Fisher blocks, "K-FAC communication" the ReduceScatterV of the statistics with their packing, "SGD
communication" the all-reduce of the gradients or its two halves (ReduceScatterV of gradients, AllGatherV of weights).
Where stages are timed each is measured on its own: an exchange ends before the computation that could hide it goes on,
and a rank that waits for the others before a collective is charged to the stage it has just finished, the waiting
recorded beside it. Each repetition also takes whole steps in which nothing is timed and exchanges overlap with the
backward pass.

``--device cuda`` takes one GPU for each rank. Ranks are started on this machine, unless torchrun or srun has done so,
on one or more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from kinji.cost.transfer import STAGES
from kinji.errors import KinjiError
from kinji.experiments.cases import StepBreakdownCase
from kinji.experiments.context import Context
from kinji.experiments.step_breakdown.model import model
from kinji.experiments.step_breakdown.prediction import predictions
from kinji.experiments.step_breakdown.ranks import run_ranks
from kinji.experiments.step_breakdown.trials import Row

__all__ = ["STAGES", "measure"]


def measure(case: StepBreakdownCase, context: Context) -> Iterator[Row]:
    """Yield the stages of every repetition on every rank, then what was sent, who owns what, and rank-count equality.

    Raises
    ------
    KinjiError
        There are fewer GPUs than ranks, or the device has not the precision.
    """
    if case.fabric:
        yield from model(case)
        return
    _refuse(case, context.device, launched=context.communicator is not None)
    rows = list(run_ranks(case, context))
    yield from rows
    yield from predictions(case, rows)


def _refuse(case: StepBreakdownCase, device: str, *, launched: bool) -> None:
    if device == "cuda" and not launched and torch.cuda.device_count() < case.ranks:
        gpus = torch.cuda.device_count()
        raise KinjiError(f"{case.ranks} ranks need as many GPUs, this machine has {gpus}: lower --ranks.")
    if device == "cpu" and case.precision == "tf32":
        raise KinjiError("--precision tf32 is a mode of CUDA's matrix units: choose fp32 or bf16, or --device cuda.")
    if case.trace and not Path(case.trace).parent.is_dir():
        raise KinjiError(f"--trace {case.trace}: there is no folder {Path(case.trace).parent}.")
