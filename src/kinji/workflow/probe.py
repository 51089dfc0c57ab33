"""Do the processes of a job find each other, and the GPUs that they asked for? One sum over all ranks says so."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from kinji.errors import KinjiError
from kinji.experiments.context import check_device
from kinji.experiments.ranks import gather, join
from kinji.records.provenance import describe_job


def probe(by: str, ranks: int, device: str, out: Path) -> None:
    """Sum the ranks' numbers over all of them, and let the first write who took part.

    Parameters
    ----------
    by
        "none" (one process), "torch" (torchrun, or srun) or "mpi".
    ranks
        How many must take part.
    device
        "cpu" or "cuda", where each rank takes the GPU of its number on its node.
    out
        The first rank's file.

    Raises
    ------
    KinjiError
        Another number of ranks takes part, the sum is wrong, or there is no such device.
    """
    import torch

    check_device(device, torch.cuda.is_available)
    rows = {"none": _alone, "torch": _by_torch, "mpi": _by_mpi}[by](device, ranks)
    if len(rows) != ranks or any(row["sum"] != ranks * (ranks + 1) / 2 for row in rows):
        raise KinjiError(
            f"{ranks} ranks were to take part, got {rows}. Too few tasks, or srun without --mpi=pmi2 in an MPI job?"
        )
    if rows[0]["is_me"]:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"by": by, "ranks": rows}, indent=1) + "\n")


def _describe(rank: int, total: float, device: str) -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {"rank": rank, "sum": total, "host": platform.node(), "gpu": gpu, **describe_job()}


def _alone(device: str, ranks: int) -> list[dict[str, Any]]:
    import torch

    return [_describe(0, torch.ones(1, device=device).item(), device) | {"is_me": True}]


def _by_torch(device: str, ranks: int) -> list[dict[str, Any]]:
    import torch
    from torch import distributed

    with join(ranks, device) as communicator:
        total = torch.full((1,), communicator.rank + 1.0, device=device)
        distributed.all_reduce(total)
        rows = gather(communicator, _describe(communicator.rank, total.item(), device))
    return [row | {"is_me": row["rank"] == communicator.rank} for row in rows]


def _by_mpi(device: str, ranks: int) -> list[dict[str, Any]]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    total = float(world.allreduce(world.rank + 1))
    rows = world.allgather(_describe(world.rank, total, device))
    return [row | {"is_me": row["rank"] == world.rank} for row in rows]
