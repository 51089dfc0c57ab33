"""Tidy tables: one observation a row, from this run's records or from the committed measurements."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kinji.errors import KinjiError
from kinji.records import layout
from kinji.records.record import Record, read_record

ORIGIN = ["scale", "machine", "record"]


class NoRecords(KinjiError):
    """An experiment without a record, neither of this run nor committed."""


def record_paths(experiment: str, scale: str | None = None, machine: str | None = None) -> list[Path]:
    """Return the records of `experiment`: `machine`'s committed ones, or this run's, or (if none) committed ones."""
    scale = scale or layout.default_scale()
    own = sorted((layout.results(scale) / experiment).glob("*.json"))
    if own and machine is None:
        return own
    machines = layout.machines_with(experiment, scale)
    chosen = machine or (machines[0] if machines else None)
    if chosen is None or chosen not in machines:
        raise NoRecords(
            f"no records of {experiment} at scale {scale}"
            + (f" from machine {machine}" if machine else "")
            + f". Run `snakemake results/{scale}/{experiment}.csv`; machines with committed ones: {machines or 'none'}."
        )
    return sorted((layout.measured(chosen, scale) / experiment).glob("*.json"))


def load_records(experiment: str, scale: str | None = None, machine: str | None = None) -> list[Record]:
    """Return the validated records of `experiment`, failed cases included; see `record_paths` for which."""
    return [read_record(path) for path in record_paths(experiment, scale, machine)]


def load_table(experiment: str, scale: str | None = None, machine: str | None = None) -> pd.DataFrame:
    """Return the tidy table of `experiment`: this run's, or made of the records `record_paths` finds."""
    scale = scale or layout.default_scale()
    own = layout.results(scale) / f"{experiment}.csv"
    if own.exists() and machine is None:
        return pd.read_csv(own)
    return tidy(record_paths(experiment, scale, machine), scale)


def tidy(paths: list[Path], scale: str) -> pd.DataFrame:
    """Return one row per observation of the records at `paths`: scalar parameters, fields, then `ORIGIN`.

    What a case observed before it failed stays in its record: half a case must not be judged as a whole one.
    """
    records = [(path, read_record(path)) for path in paths]
    frames = [_rows(record, path.stem, scale) for path, record in records if record.observations and not record.error]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=ORIGIN)


def _rows(record: Record, name: str, scale: str) -> pd.DataFrame:
    parameters = {k: v for k, v in record.parameters.items() if not isinstance(v, (list, tuple))}
    origin = dict(zip(ORIGIN, (scale, record.provenance["machine"], name), strict=True))
    return pd.DataFrame([parameters | row | origin for row in record.observations])


def failures(paths: list[Path]) -> dict[str, str]:
    """Return the message of each failed case among the records at `paths`, by record name."""
    records = {path.stem: read_record(path) for path in paths}
    return {name: record.error["message"] for name, record in records.items() if record.error}


def load_reference() -> dict[str, pd.DataFrame]:
    """Return the published numbers, one table per file of paper/reference/, by file name without ending."""
    folder = layout.repository() / "paper" / "reference"
    return {file.stem: pd.read_csv(file, comment="#") for file in sorted(folder.glob("*.csv"))}
