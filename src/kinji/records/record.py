"""One record per case: parameters in, observations out, and where they came from.

A record is JSON, written to a temporary file beside its destination and renamed, so that a reader never sees half of
one whatever kills the writer.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kinji.errors import KinjiError

SCHEMA_VERSION = 1

Scalar = int | float | str | bool | None


class RecordError(KinjiError):
    """A record that cannot be written, or is truncated, of another version, or not a record at all."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one case measured.

    Attributes
    ----------
    observations
        One flat row per observation; units are in the field names (``factor_seconds``, ``peak_bytes``).
    error
        The traceback's last line, and the traceback, of a case that failed; ``None`` for one that ran.
    """

    experiment: str
    parameters: dict[str, Any]
    observations: list[dict[str, Scalar]]
    provenance: dict[str, Any]
    error: dict[str, str] | None = None
    schema_version: int = field(default=SCHEMA_VERSION)


def write_record(record: Record, path: Path) -> None:
    """Write `record` to `path` atomically; raise `RecordError` and leave `path` as it was if that fails."""
    text = json.dumps(asdict(record), indent=1, allow_nan=True) + "\n"
    try:
        _replace(path, text)
    except OSError as error:
        raise RecordError(
            f"could not write the record {path}: {error.strerror}. Free space or change --out and run the case again;"
            " every finished record is untouched."
        ) from error


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_record(path: Path) -> Record:
    """Read and validate the record at `path`; raise `RecordError` saying what is wrong and how to mend it."""
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RecordError(f"no record at {path}. Run its case, or check the path.") from error
    except ValueError as error:
        raise RecordError(
            f"{path} is not a whole JSON document ({error}). Delete it and run the case again."
        ) from error
    return _validate(fields, path)


def _validate(fields: Any, path: Path) -> Record:
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{path} has record schema version {version}, this kinji reads {SCHEMA_VERSION}."
            " Delete it and run the case again, or use the kinji that wrote it."
        )
    try:
        record = Record(**fields)
    except TypeError as error:
        raise RecordError(f"{path} is not a record: {error}. Delete it and run the case again.") from error
    if not all(isinstance(row, dict) for row in record.observations):
        raise RecordError(f"{path}: `observations` must be a list of flat objects. Delete it and run the case again.")
    return record


def is_machine_dependent(name: str) -> bool:
    """Whether the field `name` may differ between two runs of one case on one machine (times, energy, peaks)."""
    return name.endswith(("_seconds", "_joules")) or name.startswith("peak_")


def fingerprint(record: Record) -> str:
    """SHA-256 of the parameters and of every observed field that must come out the same in each run."""
    rows = [{k: v for k, v in row.items() if not is_machine_dependent(k)} for row in record.observations]
    content = {"experiment": record.experiment, "parameters": record.parameters, "observations": rows}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
