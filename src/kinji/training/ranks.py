"""What the training loop does with other ranks, over the communicators of `kinji.kfac`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from kinji.kfac import Communicator, SerialCommunicator
from kinji.kfac.communicator import Exchange, Parcel


class Ranks:
    """The processes that share a run.

    Parameters
    ----------
    communicator
        How they talk; None for one process.
    like
        A parameter of the model: device and type of what travels.
    """

    def __init__(self, communicator: Communicator | None, like: Tensor) -> None:
        self.communicator = communicator or SerialCommunicator()
        self.rank, self.size = self.communicator.rank, self.communicator.size
        self._tensors = Exchange(self.communicator, like=like.detach())
        self._numbers = Exchange(self.communicator, like=like.new_empty(0, dtype=torch.float64))

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """Return the numbers of every rank, equally many of each."""
        if self.size == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.float64, device=self._numbers.device)
        return [vector.tolist() for (vector,) in self._numbers.gather_from_owners([[mine]] * self.size, "progress")]

    def mean(self, number: float) -> float:
        """Return the mean of a number over the ranks."""
        return sum(of_rank for (of_rank,) in self.gather([number])) / self.size

    def average(self, tensors: Sequence[Tensor], content: str) -> None:
        """Average tensors over the ranks, in place: ReduceScatterV and AllGatherV, the halves of an all-reduce."""
        if self.size == 1 or not tensors:
            return
        vector = torch.cat([tensor.flatten() for tensor in tensors])
        shares = [[share] for share in vector.tensor_split(self.size)]
        mine = self._tensors.start_average(Parcel(shares), content, content)()
        shares[self.rank] = [mine]
        averaged = torch.cat([share for (share,) in self._tensors.gather_from_owners(shares, content)])
        for tensor, piece in zip(tensors, averaged.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(piece.view(tensor.shape))

    def average_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Average the gradients over the ranks, each of which has one of the same parameters."""
        self.average([parameter.grad for parameter in parameters if parameter.grad is not None], "gradients")
