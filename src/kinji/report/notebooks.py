"""Execute a notebook kept as text, notebooks/<experiment>.py, against the records of one scale."""

from __future__ import annotations

import os
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

from kinji.errors import KinjiError
from kinji.records import layout
from kinji.records.tables import failures, record_paths

TIMEOUT_SECONDS = 300


def execute_notebook(name: str, scale: str, out: Path | None = None) -> Path:
    """Execute notebooks/<name>.py in the repository's root, keep the page; raise `KinjiError` if a cell fails."""
    root = layout.repository()
    source = root / "notebooks" / f"{name}.py"
    if not source.exists():
        known = sorted(path.stem for path in source.parent.glob("*.py"))
        raise KinjiError(f"no notebook {name!r}. Known: {', '.join(known)}.")
    out = out or layout.results(scale) / "notebooks" / f"{name}.html"
    notebook = jupytext.read(source)
    os.environ["KINJI_SCALE"] = scale
    holes = bool(failures(record_paths(name, scale)))  # where cases failed, the page shows which cells that cost
    client = NotebookClient(
        notebook, timeout=TIMEOUT_SECONDS, allow_errors=holes, resources={"metadata": {"path": str(root)}}
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise KinjiError(f"notebooks/{name}.py failed at scale {scale}: {error.ename}: {error.evalue}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        nbformat.writes(notebook) if out.suffix == ".ipynb" else HTMLExporter().from_notebook_node(notebook)[0]
    )
    return out
