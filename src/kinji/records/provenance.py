"""Where a record came from: source, versions, machine, command, time."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import threadpoolctl

import kinji

PACKAGE = Path(kinji.__file__).parent
VERSIONED = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "numba",
    "scikit-learn",
    "mpi4py",
    "cupy-cuda13x",
    "triton",
)


def source_hash(sources: Iterable[str]) -> str:
    """SHA-256 over the Python and CUDA files of `sources`, packages or modules relative to ``kinji`` (``gemm``)."""
    digest = hashlib.sha256()
    for source in sorted(sources):
        for file in _files(source):
            digest.update(file.relative_to(PACKAGE).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _files(source: str) -> list[Path]:
    path = PACKAGE / source
    files = sorted([*path.rglob("*.py"), *path.rglob("*.cu")]) if path.is_dir() else [path.with_suffix(".py")]
    if not files:
        raise FileNotFoundError(f"no Python source under {path}: is {source!r} a package of kinji?")
    return files


def machine_name(device: str = "cpu") -> str:
    """A short name of the hardware, such as ``intel-xeon-2-cores``; it names a folder under paper/measured/."""
    hardware = _gpu_name() if _has_gpu(device) else f"{_cpu_model()} {psutil.cpu_count(logical=False)} cores"
    words = re.sub(r"\((?:r|tm)\)|processor|cpu|@.*ghz", " ", hardware.lower())
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def _has_gpu(device: str) -> bool:
    """Whether `device` is a GPU that is there: a case asked for a missing one fails, and its record says where."""
    if device != "cuda":
        return False
    import torch

    return torch.cuda.is_available()


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def _gpu() -> dict[str, str]:
    import torch

    cuda = str(torch.version.cuda)
    identifier = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    memory = str(torch.cuda.mem_get_info()[1])
    return {"gpu": _gpu_name(), "gpu_uuid": identifier, "cuda": cuda, "gpu_memory_bytes": memory}


def _versions() -> dict[str, str]:
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions() if d.metadata["Name"]}
    return {"python": platform.python_version()} | {name: installed[name] for name in VERSIONED if name in installed}


def describe_job() -> dict[str, str]:
    """The Slurm job that this process belongs to, its node, and the GPUs it was given; empty outside Slurm."""
    names = {
        "slurm_job": "SLURM_JOB_ID",
        "slurm_node": "SLURMD_NODENAME",
        "slurm_nodes": "SLURM_JOB_NODELIST",
        "slurm_partition": "SLURM_JOB_PARTITION",
        "visible_gpus": "CUDA_VISIBLE_DEVICES",
    }
    inside = "SLURM_JOB_ID" in os.environ
    return {name: os.environ[variable] for name, variable in names.items() if inside and variable in os.environ}


def describe_rank(device: str) -> dict[str, str]:
    """What one of several ranks runs on: host, node and GPU."""
    return {"host": platform.node(), **(_gpu() if _has_gpu(device) else {}), **describe_job()}


def describe_run(sources: Iterable[str], device: str, threads: int, seed: int | None) -> dict[str, Any]:
    """Provenance of the run going on now: everything a reader needs to judge, or repeat, its numbers."""
    blas = [
        f"{p['internal_api']} {p['version']} {p.get('architecture', '')}".strip()
        for p in threadpoolctl.threadpool_info()
    ]
    return {
        "kinji": kinji.__version__,
        "source_hash": source_hash(sources),
        "versions": _versions(),
        "machine": machine_name(device),
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "thread_pools": sorted(set(blas)),
        "device": device,
        "threads": threads,
        "seed": seed,
        "command": ["kinji", *sys.argv[1:]],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **(_gpu() if _has_gpu(device) else {}),
        **describe_job(),
    }
