"""When a case's process died without a word, leave that in place of its record, so that the report can be made."""

from __future__ import annotations

from pathlib import Path

from kinji.experiments.cases import case_name, sources
from kinji.records.provenance import describe_run
from kinji.records.record import Record, write_record
from kinji.workflow.config import load_config
from kinji.workflow.rules import experiments

MESSAGE = "the process ended without a record: killed, or out of memory? Its output is in logs/"


def give_up(scale: str) -> list[Path]:
    """Write a record that holds only the error for each case of `scale` that has none; return their paths."""
    config = load_config(scale)
    missing = []
    for experiment in experiments(scale):
        for parameters in config["experiments"][experiment]:
            path = Path("results") / scale / experiment / f"{case_name(parameters)}.json"
            if not path.exists():
                write_record(_error_record(experiment, parameters, config["device"]), path)
                missing.append(path)
    return missing


def _error_record(experiment: str, parameters: dict[str, object], device: str) -> Record:
    return Record(
        experiment=experiment,
        parameters=parameters,
        observations=[],
        provenance=describe_run(sources(experiment), device, threads=0, seed=None),
        error={"message": MESSAGE, "traceback": ""},
    )
