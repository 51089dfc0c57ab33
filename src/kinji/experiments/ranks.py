"""The ranks of a case that torchrun or srun started: how they find each other, and what each of them runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kinji.errors import KinjiError
from kinji.experiments.context import check_device


def place() -> tuple[int, int]:
    """Return this process's rank and their number, as torchrun or a job step of srun says; (0, 1) without them."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


@contextmanager
def join(ranks: int, device: str) -> Iterator[Any]:
    """Join the other ranks by torch.distributed, NCCL on GPUs and gloo without, and leave them at the end.

    Parameters
    ----------
    ranks
        How many must take part.
    device
        "cpu" or "cuda", where each rank takes the GPU of its number on its node.

    Yields
    ------
    kinji.kfac.TorchCommunicator or None
        None for one rank.

    Raises
    ------
    KinjiError
        Another number of processes was started.
    """
    rank, size = place()
    if size != ranks:
        start = (
            f"torchrun --standalone --nproc-per-node {ranks} --no-python kinji ..., or srun --ntasks {ranks} kinji ..."
        )
        raise KinjiError(f"the case has {ranks} ranks, but {size} processes were started: {start}")
    if size == 1:
        yield None
        return
    import torch
    from torch import distributed

    from kinji.kfac import TorchCommunicator

    check_device(device, torch.cuda.is_available)
    _tell_torch_where()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=size)
    try:
        yield TorchCommunicator()
    finally:
        distributed.destroy_process_group()


def _tell_torch_where() -> None:
    """Name the first rank's address and this rank's number on its node, where srun started the ranks."""
    if "RANK" not in os.environ:
        os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
        os.environ["MASTER_ADDR"] = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
        os.environ["MASTER_PORT"] = str(20000 + int(os.environ["SLURM_JOB_ID"]) % 20000)


def gather(communicator: Any, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of all ranks, in their order, on every rank."""
    if communicator is None:
        return [row]
    from torch import distributed

    rows: list[Any] = [None] * communicator.size
    distributed.all_gather_object(rows, row)
    return rows
