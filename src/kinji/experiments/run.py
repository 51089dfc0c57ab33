"""Run one case and leave its record, or the error it met, in one file."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from kinji.experiments.cases import Case, as_parameters, case_name, sources
from kinji.experiments.context import open_context
from kinji.records.energy import gpu_joules, joules_since
from kinji.records.provenance import describe_run
from kinji.records.record import Record, write_record


def run_case(case: Case, *, out: Path, device: str, threads: int, record_failure: bool) -> None:
    """Measure `case` and write its record to `out`.

    With `record_failure`, a case that raises leaves its error in the record and the run goes on (the DAG's way);
    without it the exception passes through and nothing is written.
    """
    experiment = importlib.import_module(f"kinji.experiments.{case.experiment}")
    parameters = as_parameters(case)
    observations: list[dict[str, Any]] = []
    error = None
    before = gpu_joules(device)
    try:
        with open_context(f"{case.experiment} {out.stem}", device, threads) as context:
            for observation in experiment.measure(case, context):  # what came before a failure is kept
                observations.append(observation)
            provenance = describe_run(sources(case.experiment), device, threads, parameters.get("seed"))
    except Exception as exception:
        if not record_failure:
            raise
        error = {"message": f"{type(exception).__name__}: {exception}", "traceback": traceback.format_exc()}
        provenance = describe_run(sources(case.experiment), device, threads, parameters.get("seed"))
        print(f"{case.experiment} failed, the error is kept in {out}: {error['message']}", file=sys.stderr)
    record = Record(
        experiment=case.experiment,
        parameters=parameters,
        observations=observations,
        provenance=provenance | joules_since(before, device),
        error=error,
    )
    write_record(record, out)


def default_path(case: Case) -> Path:
    """Return where a case run by hand leaves its record if not told."""
    return Path("results") / "by-hand" / case.experiment / f"{case_name(as_parameters(case))}.json"
