"""Run one case and leave its record, or the error it met, in one file."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from kinji.experiments.cases import Case, as_parameters, case_name, launched_ranks, sources
from kinji.experiments.context import open_context
from kinji.experiments.ranks import gather, join
from kinji.experiments.time_limit import nears_its_end, requeue
from kinji.records.energy import gpu_joules, joules_since
from kinji.records.provenance import describe_rank, describe_run
from kinji.records.record import Record, write_record
from kinji.training import Interrupted


def run_case(case: Case, *, out: Path, device: str, threads: int, record_failure: bool) -> None:
    """Measure `case` and write its record to `out`.

    With `record_failure`, a case that raises leaves its error in the record and the run goes on (the DAG's way);
    without it, or on several ranks, the exception passes through and nothing is written. A case that runs out of its
    job's time leaves a checkpoint and queues the job again.
    """
    with join(launched_ranks(case), device) as communicator:
        is_first = communicator is None or communicator.rank == 0
        checkpoints = checkpoint_folder(out)
        try:
            record = _measure(case, out, device, threads, record_failure, communicator, checkpoints)
        except Interrupted:
            if is_first:
                requeue()
            gather(communicator, {})  # a rank that ended before would take the first with it
            raise
        if is_first:
            write_record(record, out)
            shutil.rmtree(checkpoints, ignore_errors=True)


def _measure(
    case: Case, out: Path, device: str, threads: int, record_failure: bool, communicator: Any, checkpoints: Path
) -> Record:
    experiment = importlib.import_module(f"kinji.experiments.{case.experiment}")
    parameters = as_parameters(case)
    observations: list[dict[str, Any]] = []
    error = None
    ranks = communicator.size if communicator else 1
    before = gpu_joules(device, ranks)
    try:
        with open_context(
            f"{case.experiment} {out.stem}",
            device,
            threads,
            communicator=communicator,
            checkpoints=checkpoints,
            out_of_time=nears_its_end(),
        ) as context:
            for observation in experiment.measure(case, context):  # what came before a failure is kept
                observations.append(observation)
            provenance = describe_run(sources(case.experiment), device, threads, parameters.get("seed"))
    except Exception as exception:
        if not record_failure or ranks > 1 or isinstance(exception, Interrupted):
            raise
        error = {"message": f"{type(exception).__name__}: {exception}", "traceback": traceback.format_exc()}
        provenance = describe_run(sources(case.experiment), device, threads, parameters.get("seed"))
        print(f"{case.experiment} failed, the error is kept in {out}: {error['message']}", file=sys.stderr)
    return Record(
        experiment=case.experiment,
        parameters=parameters,
        observations=observations,
        provenance=provenance | _of_all_ranks(communicator, device, joules_since(before, device, ranks)),
        error=error,
    )


def _of_all_ranks(communicator: Any, device: str, used: dict[str, float]) -> dict[str, Any]:
    """Return the joules of all ranks and, where there are several, what each ran on."""
    if communicator is None:
        return dict(used)
    rows = gather(communicator, describe_rank(device) | used)
    joules = [row["gpu_joules"] for row in rows if "gpu_joules" in row]
    return {"ranks": rows} | ({"gpu_joules": sum(joules)} if len(joules) == len(rows) else {})


def checkpoint_folder(out: Path) -> Path:
    """Return where the case of a record leaves its checkpoints: below ``$KINJI_CHECKPOINTS``, or ``results``."""
    return Path(os.environ.get("KINJI_CHECKPOINTS", "results/checkpoints"), *out.parts[-3:-1], out.stem)


def default_path(case: Case) -> Path:
    """Return where a case run by hand leaves its record if not told."""
    return Path("results") / "by-hand" / case.experiment / f"{case_name(as_parameters(case))}.json"
