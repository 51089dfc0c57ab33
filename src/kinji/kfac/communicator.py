"""What travels between ranks, over torch.distributed, MPI or nothing, its bytes counted.

The method has two collectives: ReduceScatterV brings statistics and gradients to their owners, AllGatherV brings
updated weights back. Both are made of one direct exchange between every pair of ranks, which can run in the
background, takes any type of number, and leaves sums to their owner: they are formed in the order of the ranks and in
full precision, whatever precision travelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, distributed

from kinji.kfac.packing import pack, packed_lengths, split_like


class Communicator(Protocol):
    """What the optimizer needs to know about the other ranks."""

    rank: int
    size: int
    carried_bytes: Counter[str]
    """Length of the vectors reduced or gathered so far, by what they held."""

    def start(self, segments: Sequence[Tensor], received: Sequence[Tensor]) -> Callable[[], None]:
        """Start to send every other rank k ``segments[k]`` and to receive ``received[k]`` from it.

        Segments are pieces of one vector; any may be empty. Return what waits for the end.
        """
        ...


class SerialCommunicator:
    """One process: nothing travels."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.carried_bytes: Counter[str] = Counter()

    def start(self, segments: Sequence[Tensor], received: Sequence[Tensor]) -> Callable[[], None]:
        """Send nothing."""
        return lambda: None


class TorchCommunicator:
    """Exchanges of `torch.distributed` (gloo on CPUs, NCCL on GPUs; the latter not yet run on several).

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

    def start(self, segments: Sequence[Tensor], received: Sequence[Tensor]) -> Callable[[], None]:
        """Start to exchange segments with every other rank."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        transfers = [self._transfer(distributed.isend, segments[k], k) for k in others if len(segments[k])]
        transfers += [self._transfer(distributed.irecv, received[k], k) for k in others if len(received[k])]
        requests = distributed.batch_isend_irecv(transfers) if transfers else []

        def wait() -> None:
            for request in requests:
                request.wait()

        return wait

    def _transfer(self, way: Callable[..., Any], segment: Tensor, other: int) -> distributed.P2POp:
        return distributed.P2POp(way, segment, group=self.group, group_peer=other)


class MPICommunicator:
    """Exchanges of an mpi4py communicator, on CPU tensors.

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

    def start(self, segments: Sequence[Tensor], received: Sequence[Tensor]) -> Callable[[], None]:
        """Start to exchange segments with every other rank."""
        sent, arriving = (self._message(pieces) for pieces in (segments, received))
        request = self.comm.Ialltoallv(sent, arriving)

        def wait(_memory: Any = (sent, arriving)) -> None:
            request.Wait()

        return wait

    def _message(self, pieces: Sequence[Tensor]) -> list[Any]:
        """Describe pieces of one vector to MPI, as bytes, as it knows no half precision; nothing goes to oneself."""
        storage = torch.empty(0, dtype=torch.uint8).set_(pieces[0].untyped_storage())
        counts = [0 if rank == self.rank else piece.nbytes for rank, piece in enumerate(pieces)]
        starts = [piece.storage_offset() * piece.element_size() for piece in pieces]
        return [storage.numpy(), (counts, starts)]


class Workspace:
    """Vectors kept by name between steps; what they hold lasts until their name is asked for again."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def vectors(self, name: str, lengths: Sequence[int], like: Tensor) -> list[Tensor]:
        """Return pieces of one vector, of the type and device of ``like``."""
        kept = self._kept.get(name)
        if kept is None or len(kept) != sum(lengths) or kept.dtype != like.dtype or kept.device != like.device:
            kept = self._kept[name] = like.new_empty(sum(lengths))
        return list(kept.split(list(lengths)))


class Parcel:
    """Tensors on their way to the rank that owns them: their average over the ranks.

    Parameters
    ----------
    tensors
        What each rank owns; all ranks have all of them.
    symmetric
        Of each tensor, whether it travels as a triangle.
    """

    def __init__(self, tensors: Sequence[Sequence[Tensor]], symmetric: Sequence[Sequence[bool]] | None = None) -> None:
        self.tensors = tensors
        self.symmetric = symmetric or [[False] * len(of_rank) for of_rank in tensors]

    def lengths(self, rank: int) -> list[int]:
        """How many numbers each tensor of a rank takes."""
        pairs = zip(self.tensors[rank], self.symmetric[rank], strict=True)
        return [length for tensor, symmetric in pairs for length in packed_lengths([tensor], symmetric)]

    def pack(self, rank: int, vector: Tensor) -> None:
        """Write the tensors of a rank into a vector."""
        pieces = vector.split(self.lengths(rank))
        for tensor, symmetric, piece in zip(self.tensors[rank], self.symmetric[rank], pieces, strict=True):
            pack([tensor], piece, symmetric)


class Exchange:
    """The collectives of the method.

    Parameters
    ----------
    communicator
        Of one or more ranks.
    like
        A tensor of the type and device of everything that is averaged or gathered.
    """

    def __init__(self, communicator: Communicator, like: Tensor) -> None:
        self.communicator = communicator
        self.dtype, self.device = like.dtype, like.device
        self._like = like
        self._workspace = Workspace()

    def start_average(
        self, parcel: Parcel, content: str, name: str, dtype: torch.dtype | None = None
    ) -> Callable[[], Tensor]:
        """Start to average a parcel over the ranks, onto the owners.

        Parameters
        ----------
        content
            Under what its bytes are counted.
        name
            Of its memory, which is in use until the average has been read.
        dtype
            In which it travels; that of ``like`` if None. The sum is formed in that of ``like``.

        Returns
        -------
        callable
            Waits, and returns the vector of this rank.
        """
        rank, size = self.communicator.rank, self.communicator.size
        like = self._like.to(dtype or self._like.dtype)
        segments = self._workspace.vectors(name, [sum(parcel.lengths(k)) for k in range(size)], like)
        for owner, segment in enumerate(segments):
            parcel.pack(owner, segment)
        received = self._workspace.vectors(f"{name} received", [len(segments[rank])] * size, like)
        received[rank].copy_(segments[rank])
        self.communicator.carried_bytes[content] += sum(segment.nbytes for segment in segments)
        wait = self.communicator.start(segments, received)

        def finish() -> Tensor:
            wait()
            total = received[0].to(self._like.dtype)
            for segment in received[1:]:
                total += segment
            return total.div_(size)

        return finish

    def gather_from_owners(self, owned: Sequence[Sequence[Tensor]], content: str) -> list[list[Tensor]]:
        """Give every rank the tensors that rank k holds in ``owned[k]``; the others' give only shapes."""
        rank, size = self.communicator.rank, self.communicator.size
        if size == 1:
            return [list(owned[0])]
        lengths = [sum(tensor.numel() for tensor in tensors) for tensors in owned]
        received = self._workspace.vectors(f"{content} received", lengths, self._like)
        pack(owned[rank], received[rank], symmetric=False)
        self.communicator.carried_bytes[content] += sum(lengths) * self._like.element_size()
        self.communicator.start([received[rank]] * size, received)()
        return [split_like(segment, tensors) for segment, tensors in zip(received, owned, strict=True)]
