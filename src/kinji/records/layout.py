"""Where things lie in the repository; the only place that knows its folders."""

from __future__ import annotations

import os
from pathlib import Path

from kinji.errors import KinjiError

SCALES = ("smoke", "workstation", "paper")


def repository() -> Path:
    """Return the repository root: the current directory or the nearest one above it that holds paper/claims.yaml."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "paper" / "claims.yaml").exists():
            return folder
    raise KinjiError(f"{here} is not inside a kinji repository (no paper/claims.yaml above it). cd into your clone.")


def default_scale() -> str:
    """Return the scale that is meant if none is named: ``$KINJI_SCALE`` (set for notebooks), else smoke."""
    return check_scale(os.environ.get("KINJI_SCALE", "smoke"))


def check_scale(scale: str) -> str:
    """Return `scale` if there is such a scale, else raise naming those there are."""
    if scale not in SCALES:
        raise KinjiError(f"unknown scale {scale!r}: choose one of {', '.join(SCALES)}.")
    return scale


def results(scale: str) -> Path:
    """Return the folder of this repository's own runs at `scale`."""
    return repository() / "results" / check_scale(scale)


def measured(machine: str, scale: str) -> Path:
    """Return the folder of the committed records of `machine` at `scale`."""
    return repository() / "paper" / "measured" / machine / check_scale(scale)


def machines_with(experiment: str, scale: str) -> list[str]:
    """Return the machines whose committed measurements hold `experiment` at `scale`, sorted."""
    folders = (repository() / "paper" / "measured").glob(f"*/{check_scale(scale)}/{experiment}")
    return sorted(folder.parent.parent.name for folder in folders)
