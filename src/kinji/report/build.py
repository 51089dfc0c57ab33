"""The report: paper/report.typ compiled to PDF and HTML over the tables, figures and verdicts of one scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import typst

from kinji.errors import KinjiError
from kinji.experiments.cases import EXPERIMENTS
from kinji.records import Record, layout, load_records


def write_report(scale: str) -> list[Path]:
    """Write results/<scale>/report.pdf and .html; raise `KinjiError` if the claims have not been judged yet."""
    folder = layout.results(scale)
    if not (folder / "claims.csv").exists():
        raise KinjiError(
            f"{folder / 'claims.csv'} is missing: run `snakemake {folder / 'report.pdf'}`, which makes it."
        )
    records = {name: load_records(name, scale) for name in EXPERIMENTS if _figure(name, scale).exists()}
    _write_run(folder, scale, records)
    root = layout.repository()
    formats: tuple[Literal["pdf", "html"], ...] = ("pdf", "html")
    for ending in formats:
        source = root / "paper" / "report.typ"
        content = typst.compile(source, root=root, format=ending, sys_inputs={"scale": scale, "format": ending})
        (folder / f"report.{ending}").write_bytes(content)
    return [folder / f"report.{ending}" for ending in formats]


def _figure(name: str, scale: str) -> Path:
    return layout.repository() / "figures" / scale / f"{name}.pdf"


def _write_run(folder: Path, scale: str, records: dict[str, list[Record]]) -> None:
    """Leave beside the tables what the report says of the run: machines, failures, provenance."""
    everything = [record for listed in records.values() for record in listed]
    run = {
        "experiments": list(records),
        "machines": sorted({record.provenance["machine"] for record in everything}),
        "finished": max(record.provenance["finished"] for record in everything),
        "failures": {_title(r): r.error["message"] for r in everything if r.error},
    }
    (folder / "run.json").write_text(json.dumps(run))
    pd.DataFrame([_provenance(record) for record in everything]).to_csv(folder / "provenance.csv", index=False)


def _title(record: Record) -> str:
    return f"{record.experiment} {record.parameters}"


def _provenance(record: Record) -> dict[str, Any]:
    origin = record.provenance
    return {
        "experiment": record.experiment,
        "command": " ".join(origin["command"][1:]).split(" --out")[0],
        "source": origin["source_hash"],
        "torch": origin["versions"].get("torch", ""),
        "threads": origin["threads"],
        "finished": origin["finished"],
    }
