"""Run one case and leave its record, or the error it met, in one file."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from kinji.experiments.cases import Case, as_parameters, case_name, launched_ranks, sources
from kinji.experiments.context import Context, open_context
from kinji.experiments.ranks import gather, join, place
from kinji.experiments.time_limit import nears_its_end, requeue
from kinji.records.energy import gpu_joules, joules_since
from kinji.records.provenance import describe_job, describe_rank, describe_run
from kinji.records.record import Record, write_record
from kinji.training import Interrupted


def run_case(case: Case, *, out: Path, device: str, threads: int, record_failure: bool) -> None:
    """Measure `case` and write its record to `out`.

    With `record_failure`, a case that raises leaves its error in the record and the run goes on (the DAG's way);
    without it, or on several ranks, the exception passes through and nothing is written. A case that runs out of its
    job's time, or is told to stop, leaves a checkpoint; a job is queued again.
    """
    with join(launched_ranks(case, place()[1]), device) as communicator:
        size, rank = (communicator.size, communicator.rank) if communicator else (1, 0)
        checkpoints = checkpoint_folder(out)
        before = gpu_joules(device, size)
        open_here = partial(
            open_context,
            f"{case.experiment} {out.stem}",
            device,
            threads,
            communicator=communicator,
            checkpoints=checkpoints,
            out_of_time=nears_its_end() if rank == 0 else lambda: False,
        )
        try:
            record = _measure(case, open_here, device, threads, out if record_failure and size == 1 else None)
        except Interrupted:
            used = _describe_start(communicator, device, joules_since(before, device, size))
            if rank == 0:
                _note(used, checkpoints)
                requeue()
            gather(communicator, {})  # a rank that ended before would take the first with it
            raise
        used = _describe_start(communicator, device, joules_since(before, device, size))
        if rank == 0:
            provenance = record.provenance | used | _earlier_starts(checkpoints)
            write_record(replace(record, provenance=provenance), out)
            shutil.rmtree(checkpoints, ignore_errors=True)


def _measure(
    case: Case, open_here: Callable[[], AbstractContextManager[Context]], device: str, threads: int, failed: Path | None
) -> Record:
    """Return the record of a case; an exception passes through unless its error can be kept in `failed`."""
    experiment = importlib.import_module(f"kinji.experiments.{case.experiment}")
    parameters = as_parameters(case)
    observations: list[dict[str, Any]] = []
    error = None
    try:
        with open_here() as context:
            for observation in experiment.measure(case, context):  # what came before a failure is kept
                observations.append(observation)
            provenance = describe_run(sources(case.experiment), device, threads, parameters.get("seed"))
    except Exception as exception:
        if failed is None or isinstance(exception, Interrupted):
            raise
        error = {"message": f"{type(exception).__name__}: {exception}", "traceback": traceback.format_exc()}
        provenance = describe_run(sources(case.experiment), device, threads, parameters.get("seed"))
        print(f"{case.experiment} failed, the error is kept in {failed}: {error['message']}", file=sys.stderr)
    return Record(
        experiment=case.experiment,
        parameters=parameters,
        observations=observations,
        provenance=provenance,
        error=error,
    )


def _describe_start(communicator: Any, device: str, used: dict[str, float]) -> dict[str, Any]:
    """Return the joules of all ranks and, where there are several, what each ran on."""
    if communicator is None:
        return dict(used)
    rows = gather(communicator, describe_rank(device) | used)
    joules = [row["gpu_joules"] for row in rows if "gpu_joules" in row]
    return {"ranks": rows} | ({"gpu_joules": sum(joules)} if len(joules) == len(rows) else {})


STARTS = "starts.jsonl"


def _note(used: dict[str, Any], checkpoints: Path) -> None:
    """Leave beside the checkpoints what a start used that did not come to the end."""
    with (checkpoints / STARTS).open("a") as stream:
        stream.write(json.dumps(describe_job() | used) + "\n")


def _earlier_starts(checkpoints: Path) -> dict[str, Any]:
    file = checkpoints / STARTS
    return {"earlier_starts": [json.loads(line) for line in file.read_text().splitlines()]} if file.exists() else {}


def checkpoint_folder(out: Path) -> Path:
    """Return where the case of a record leaves its checkpoints: below ``$KINJI_CHECKPOINTS``, or ``results``."""
    return Path(os.environ.get("KINJI_CHECKPOINTS", "results/checkpoints"), *out.parts[-3:-1], out.stem)


def default_path(case: Case) -> Path:
    """Return where a case run by hand leaves its record if not told; its name says what is not as by default."""
    pairs = [(field, getattr(case, field.name)) for field in fields(case)]
    named = {field.name: value for field, value in pairs if value != field.default}
    return Path("results") / "by-hand" / case.experiment / f"{case_name(named)}.json"
