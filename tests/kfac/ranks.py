"""Run a function on several gloo ranks of this machine."""

from collections.abc import Callable
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def run_on_ranks(ranks: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what ``work(*arguments)`` returned on each rank."""
    set_forkserver_preload(["torch", "kinji.kfac"])  # imported once, not once for each rank
    multiprocessing.start_processes(_rank, (ranks, folder, work, arguments), ranks, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _rank(rank: int, ranks: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    torch.save(work(*arguments), folder / f"{rank}.pt")
    distributed.destroy_process_group()
