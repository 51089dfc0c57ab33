"""The time limit of a Slurm job, seen in advance: long training leaves a checkpoint and puts its job into the queue."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from datetime import datetime

from kinji.errors import KinjiError

MARGIN_SECONDS = 120.0
"""Time for the step that goes on, a reading and a checkpoint, if ``$KINJI_MARGIN_SECONDS`` says no other."""


def nears_its_end() -> Callable[[], bool]:
    """Return what says whether the job of this process ends within the margin; never, outside Slurm."""
    end, margin = end_of_job(), float(os.environ.get("KINJI_MARGIN_SECONDS", MARGIN_SECONDS))
    return lambda: end is not None and time.time() > end - margin


def end_of_job() -> float | None:
    """Return the time (seconds since 1970) at which Slurm ends this job; None outside Slurm or without a limit."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    command = ("squeue", "--noheader", f"--jobs={os.environ['SLURM_JOB_ID']}", "--format=%e")
    try:
        return datetime.fromisoformat(_ask(*command)).timestamp()
    except (ValueError, KinjiError):
        return None


def requeue() -> None:
    """Put the job of this process, if it is one, into the queue again; Slurm ends it now and starts it anew."""
    if "SLURM_JOB_ID" in os.environ:
        _ask("scontrol", "requeue", os.environ["SLURM_JOB_ID"])


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except subprocess.CalledProcessError as error:
        raise KinjiError(f"`{' '.join(command)}` failed: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KinjiError(f"`{' '.join(command)}` failed: {error}") from error
