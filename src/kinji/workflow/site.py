"""The site that `snakemake --profile slurm` runs on: the knobs of slurm/config.yaml, checked before any job is sent.

The profile hands its knobs on as default resources, so that every job has them too.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kinji.errors import KinjiError

JOB_PREFIX = "kinji"


@dataclass(frozen=True, kw_only=True)
class Site:
    """The knobs, named as the default resources of the profile; an empty one is not used."""

    slurm_account: str
    slurm_partition: str
    gpu_partition: str
    gpu_type: str
    gpus_per_node: int
    setup: str
    scratch: str
    imagenet: str

    def preamble(self) -> str:
        """Return the shell lines that go before the command of each job."""
        here = hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:8]  # two clones on one scratch disk
        exports = {
            "KINJI_CHECKPOINTS": f"{self.scratch}/kinji-{here}" if self.scratch else "results/checkpoints",
            "KINJI_IMAGENET": self.imagenet,
        }
        if self.scratch:
            exports["TMPDIR"] = self.scratch
        lines = [
            self.setup and f"{{ {self.setup}; }} || exit 1",
            *(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        ]
        return "\n".join(line for line in lines if line)

    def partition(self, gpus: int) -> str:
        """Return the partition of a job with so many GPUs."""
        return self.gpu_partition if gpus else self.slurm_partition

    def nodes(self, ranks: int) -> int:
        """Return the nodes that so many GPUs, or ranks without, take."""
        return max(1, -(-ranks // self.gpus_per_node))


def read_site(default_resources: Mapping[str, Any] | None) -> Site | None:
    """Return the site, or None if Snakemake runs without the Slurm profile."""
    given = {name: getattr(value, "raw", value) for name, value in (default_resources or {}).items()}
    if not {field.name for field in fields(Site)} <= set(given):
        return None
    return Site(**{field.name: _literal(given[field.name]) for field in fields(Site)})


def _literal(value: Any) -> Any:
    return ast.literal_eval(value) if isinstance(value, str) else value


def check_site(site: Site, uses_gpus: bool) -> None:
    """Raise `KinjiError` that lists every knob which cannot be right; what Slurm has is asked of `sinfo`."""
    if not shutil.which("sinfo"):
        raise KinjiError("no sinfo here: `--profile slurm` works on a login node of a Slurm cluster (or add -n).")
    found = [*_account(site), *_partitions(site), *_gpus(site, uses_gpus), *_folders(site)]
    if found:
        raise KinjiError(
            "nothing was submitted; mend the block `Adjust` of slurm/config.yaml:\n"
            + "".join(f"  - {x}\n" for x in found)
        )


def _account(site: Site) -> list[str]:
    if site.slurm_account == "unset" or "$" in site.slurm_account:
        return [f"account is {site.slurm_account!r}: write yours (sacctmgr -n show assoc user=$USER format=account)"]
    return []


def _partitions(site: Site) -> list[str]:
    there = set(_ask("sinfo", "--noheader", "--format=%R"))
    knobs = {"partition": site.gpu_partition, "cpu_partition": site.slurm_partition}
    return [
        f"{knob} is {name!r}, but sinfo knows {', '.join(sorted(there))}"
        for knob, name in knobs.items()
        if name not in there and (knob == "partition" or name != site.gpu_partition)
    ]


def _gpus(site: Site, uses_gpus: bool) -> list[str]:
    if not uses_gpus or site.gpu_partition not in set(_ask("sinfo", "--noheader", "--format=%R")):
        return []
    there = _ask("sinfo", "--noheader", f"--partition={site.gpu_partition}", "--format=%G")
    if not any("gpu" in resources for resources in there):
        return [f"partition {site.gpu_partition!r} has no GPUs (sinfo -o '%R %G')"]
    if site.gpu_type and not any(f"gpu:{site.gpu_type}:" in resources for resources in there):
        return [f"gpu_model is {site.gpu_type!r}, but partition {site.gpu_partition!r} has {', '.join(sorted(there))}"]
    return []


def _folders(site: Site) -> list[str]:
    found = []
    if site.scratch and not os.access(site.scratch, os.W_OK | os.X_OK):
        found.append(f"scratch is {site.scratch!r}: there is no such folder that you can write to")
    if site.imagenet and not (Path(site.imagenet) / "train").is_dir():
        found.append(f"imagenet is {site.imagenet!r}: there is no folder train in it")
    return found


def _ask(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise KinjiError(f"`{shlex.join(command)}` failed: {done.stderr.strip()}. Is Slurm up?")
    return sorted(set(done.stdout.split()))


def earlier_jobs() -> list[str]:
    """Return the ids of the jobs that an earlier call from this folder, killed since, left in the queue."""
    command = ("squeue", "--noheader", "--format=%i|%j|%Z")
    rows = [line.split("|", 2) for line in _lines(command)]
    return [job for job, name, folder in rows if name.startswith(f"{JOB_PREFIX}_") and folder == str(Path.cwd())]


def _lines(command: tuple[str, ...]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()


def wait_for_earlier_jobs() -> bool:
    """Wait until no earlier job is in the queue, so that none runs twice; return whether there was one."""
    if not earlier_jobs():
        return False
    pause = 2.0
    while jobs := earlier_jobs():
        print(f"Waiting for jobs of an earlier call: {' '.join(jobs)} (or: scancel them).", file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(2 * pause, 60.0)
    return True


def start_over() -> None:
    """Replace this process by the same command, which plans again."""
    os.execv(sys.executable, sys.orig_argv)
