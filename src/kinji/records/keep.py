"""Keep what a run measured, or forget what failed."""

from __future__ import annotations

import shutil
from pathlib import Path

from kinji.records import layout
from kinji.records.record import RecordError, read_record


def keep_records(scale: str) -> list[Path]:
    """Copy each finished record of `scale` to paper/measured/<its machine>/<scale>/<experiment>/; return the copies."""
    copies = []
    for path in sorted(layout.results(scale).glob("*/*.json")):
        record = read_record(path)
        if record.error is None:
            copy = layout.measured(record.provenance["machine"], scale) / record.experiment / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            copies.append(copy)
    return copies


def forget_failed(scale: str) -> list[Path]:
    """Delete the records of `scale` that hold an error or cannot be read; return them."""
    forgotten = [path for path in sorted(layout.results(scale).glob("*/*.json")) if _failed(path)]
    for path in forgotten:
        path.unlink()
    return forgotten


def _failed(path: Path) -> bool:
    try:
        return read_record(path).error is not None
    except RecordError:
        return True
