"""The two collectives of the method, over torch.distributed, MPI or nothing, their bytes counted.

Statistics and gradients are summed onto their owners (ReduceScatterV), updated weights go back to everyone
(AllGatherV).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, distributed

from kinji.kfac.packing import pack, split_like


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


class Workspace:
    """Vectors kept by name between steps; what they hold lasts until their name is asked for again."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def vectors(self, name: str, lengths: Sequence[int], like: Tensor) -> list[Tensor]:
        """Return vectors of some lengths, of the type and device of ``like``."""
        kept = self._kept.get(name)
        if kept is None or len(kept) != sum(lengths) or kept.dtype != like.dtype or kept.device != like.device:
            kept = self._kept[name] = like.new_empty(sum(lengths))
        return list(kept.split(list(lengths)))


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
        self._workspace = Workspace()

    def reduce_scatter_v(self, segments: Sequence[Tensor], content: str) -> Tensor:
        """Sum every rank's ``segments[k]`` onto rank k, in the order of the ranks.

        Every pair of ranks exchanges its two segments directly: gloo's own reduce_scatter of uneven segments takes
        several times as long.
        """
        self.carried_bytes[content] += sum(segment.nbytes for segment in segments)
        mine = segments[self.rank]
        received = self._workspace.vectors(f"{content} received", [len(mine)] * self.size, mine)
        received[self.rank].copy_(mine)
        others = [rank for rank in range(self.size) if rank != self.rank]
        sends = [self._transfer(distributed.isend, segments[rank], rank) for rank in others]
        receives = [self._transfer(distributed.irecv, received[rank], rank) for rank in others]
        for request in distributed.batch_isend_irecv(sends + receives):
            request.wait()
        for segment in received[1:]:
            received[0] += segment
        return received[0]

    def all_gather_v(self, segment: Tensor, lengths: Sequence[int], content: str) -> list[Tensor]:
        """Give every rank the segments of all ranks, padded to one length, as gloo gathers no other."""
        self.carried_bytes[content] += sum(lengths) * segment.element_size()
        (padded,) = self._workspace.vectors(f"{content} sent", [max(lengths)], segment)
        padded[: len(segment)] = segment
        padded[len(segment) :] = 0
        gathered = self._workspace.vectors(f"{content} received", [max(lengths)] * self.size, segment)
        distributed.all_gather(gathered, padded, group=self.group)
        return [piece[:length] for piece, length in zip(gathered, lengths, strict=True)]

    def _transfer(self, way: Callable[..., Any], segment: Tensor, other: int) -> distributed.P2POp:
        peer = distributed.get_global_rank(self.group, other) if self.group else other
        return distributed.P2POp(way, segment, peer, self.group)


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
        self.comm.Reduce_scatter(torch.cat(list(segments)).numpy(), mine.numpy(), lengths)
        return mine

    def all_gather_v(self, segment: Tensor, lengths: Sequence[int], content: str) -> list[Tensor]:
        """Give every rank the segments of all ranks."""
        self.carried_bytes[content] += sum(lengths) * segment.element_size()
        gathered = segment.new_empty(sum(lengths))
        self.comm.Allgatherv(segment.contiguous().numpy(), (gathered.numpy(), list(lengths)))
        return list(gathered.split(list(lengths)))


class Exchange:
    """Lists of tensors through the collectives of a communicator.

    Parameters
    ----------
    communicator
        Of one or more ranks.
    like
        A tensor of the type and device of everything that travels.
    """

    def __init__(self, communicator: Communicator, like: Tensor) -> None:
        self.communicator = communicator
        self._like = like
        self._workspace = Workspace()

    def vectors(self, content: str, lengths: Sequence[int]) -> list[Tensor]:
        """Return memory for what goes to each owner."""
        return self._workspace.vectors(content, lengths, self._like)

    def average(self, vectors: Sequence[Tensor], content: str) -> Tensor:
        """Average ``vectors[k]`` over the ranks, onto rank k."""
        return self.communicator.reduce_scatter_v(vectors, content).div_(self.communicator.size)

    def average_onto_owners(self, owned: Sequence[Sequence[Tensor]], content: str) -> list[Tensor]:
        """Average the tensors ``owned[k]`` over the ranks, onto rank k."""
        mine = owned[self.communicator.rank]
        if self.communicator.size == 1:
            return list(mine)
        vectors = self.vectors(content, [_numbers(tensors) for tensors in owned])
        for tensors, vector in zip(owned, vectors, strict=True):
            pack(tensors, vector, symmetric=False)
        return split_like(self.average(vectors, content), mine)

    def gather_from_owners(self, owned: Sequence[Sequence[Tensor]], content: str) -> list[list[Tensor]]:
        """Give every rank the tensors that rank k holds in ``owned[k]``; the others' give only shapes."""
        if self.communicator.size == 1:
            return [list(owned[0])]
        lengths = [_numbers(tensors) for tensors in owned]
        (mine,) = self.vectors(content, [lengths[self.communicator.rank]])
        pack(owned[self.communicator.rank], mine, symmetric=False)
        segments = self.communicator.all_gather_v(mine, lengths, content)
        return [split_like(segment, tensors) for segment, tensors in zip(segments, owned, strict=True)]


def _numbers(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
