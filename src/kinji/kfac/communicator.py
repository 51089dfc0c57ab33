"""The two collectives of the method, over torch.distributed, MPI or nothing, their bytes counted.

Statistics and gradients are summed onto their owners (ReduceScatterV), updated weights go back to everyone
(AllGatherV).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, distributed

from kinji.kfac.packing import flatten, split_like


class Communicator(Protocol):
    """What the optimizer needs to know about the other ranks."""

    rank: int
    size: int
    carried_bytes: Counter[str]
    """Length of the vectors reduced or gathered so far, by what they held, without any padding."""

    def reduce_scatter_v(self, segments: Sequence[Tensor], content: str) -> Tensor:
        """Sum every rank's ``segments[k]`` onto rank k; segments may differ in length."""
        ...

    def all_gather_v(self, segment: Tensor, lengths: Sequence[int], content: str) -> list[Tensor]:
        """Give every rank the segments of all ranks, rank k's being ``lengths[k]`` long."""
        ...


class SerialCommunicator:
    """One process: nothing travels."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.carried_bytes: Counter[str] = Counter()

    def reduce_scatter_v(self, segments: Sequence[Tensor], content: str) -> Tensor:
        """Return the only segment."""
        return segments[0]

    def all_gather_v(self, segment: Tensor, lengths: Sequence[int], content: str) -> list[Tensor]:
        """Return the only segment."""
        return [segment]


class TorchCommunicator:
    """Collectives of `torch.distributed` (gloo on CPUs, NCCL on GPUs).

    Parameters
    ----------
    group
        Process group; the default one if None. `torch.distributed.init_process_group` comes first.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = distributed.get_rank(group)
        self.size = distributed.get_world_size(group)
        self.carried_bytes: Counter[str] = Counter()

    def reduce_scatter_v(self, segments: Sequence[Tensor], content: str) -> Tensor:
        """Sum every rank's ``segments[k]`` onto rank k."""
        self.carried_bytes[content] += sum(segment.nbytes for segment in segments)
        mine = torch.empty_like(segments[self.rank])
        distributed.reduce_scatter(mine, list(segments), group=self.group)
        return mine

    def all_gather_v(self, segment: Tensor, lengths: Sequence[int], content: str) -> list[Tensor]:
        """Give every rank the segments of all ranks, padded to one length, as gloo gathers no other."""
        self.carried_bytes[content] += sum(lengths) * segment.element_size()
        padded = segment.new_zeros(max(lengths))
        padded[: len(segment)] = segment
        gathered = [torch.empty_like(padded) for _ in lengths]
        distributed.all_gather(gathered, padded, group=self.group)
        return [piece[:length] for piece, length in zip(gathered, lengths, strict=True)]


class MPICommunicator:
    """Collectives of an mpi4py communicator, on CPU tensors.

    Parameters
    ----------
    comm
        For example ``mpi4py.MPI.COMM_WORLD``.
    """

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.carried_bytes: Counter[str] = Counter()

    def reduce_scatter_v(self, segments: Sequence[Tensor], content: str) -> Tensor:
        """Sum every rank's ``segments[k]`` onto rank k."""
        self.carried_bytes[content] += sum(segment.nbytes for segment in segments)
        mine = torch.empty_like(segments[self.rank])
        lengths = [len(segment) for segment in segments]
        self.comm.Reduce_scatter(flatten(segments, mine).numpy(), mine.numpy(), lengths)
        return mine

    def all_gather_v(self, segment: Tensor, lengths: Sequence[int], content: str) -> list[Tensor]:
        """Give every rank the segments of all ranks."""
        self.carried_bytes[content] += sum(lengths) * segment.element_size()
        gathered = segment.new_empty(sum(lengths))
        self.comm.Allgatherv(segment.contiguous().numpy(), (gathered.numpy(), list(lengths)))
        return list(gathered.split(list(lengths)))


def average_onto_owners(communicator: Communicator, owned: Sequence[Sequence[Tensor]], content: str) -> list[Tensor]:
    """Average tensors over the ranks; rank k gets the averages of ``owned[k]``."""
    mine = owned[communicator.rank]
    if communicator.size == 1:
        return list(mine)
    segments = [flatten(tensors, _any_of(owned)) for tensors in owned]
    total = communicator.reduce_scatter_v(segments, content)
    return split_like(total.div_(communicator.size), mine)


def gather_from_owners(
    communicator: Communicator, owned: Sequence[Sequence[Tensor]], content: str
) -> list[list[Tensor]]:
    """Give every rank the tensors that rank k holds in ``owned[k]``; the others' give only shapes."""
    if communicator.size == 1:
        return [list(owned[0])]
    lengths = [sum(tensor.numel() for tensor in tensors) for tensors in owned]
    mine = flatten(owned[communicator.rank], _any_of(owned))
    segments = communicator.all_gather_v(mine, lengths, content)
    return [split_like(segment, tensors) for segment, tensors in zip(segments, owned, strict=True)]


def _any_of(owned: Sequence[Sequence[Tensor]]) -> Tensor:
    return next(tensor for tensors in owned for tensor in tensors)
