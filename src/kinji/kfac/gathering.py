"""Stages 1 and 2: the statistics of one step, summed over its backward passes and averaged onto their owners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kinji.kfac.block import Batch, Block
from kinji.kfac.columns import Columns
from kinji.kfac.communicator import Exchange, Parcel
from kinji.kfac.overlap import SideStream
from kinji.kfac.packing import unpack
from kinji.kfac.triangle import panels

Statistic = tuple[Block, int]
"""A block and the number of one of its statistics."""


class Gathering:
    """The statistics of a step on their way to their owners.

    Parameters
    ----------
    owned
        The blocks of each rank.
    exchange
        Its collectives.
    memory
        Returns memory for a statistic.
    passes
        Backward passes that make one step.
    of_loss
        Whether statistics are made of the gradients of the loss, of which each pass sees its share.
    pack
        Whether symmetric statistics travel as triangles.
    dtype
        To which operands are rounded, and in which statistics travel; None to leave them.
    overlap
        Whether statistics are formed beside the backward pass, on a device that can.

    Attributes
    ----------
    sums
        What has been formed; after `finish`, on the owner, the average over ranks and passes.
    formed
        How many passes each holds.
    passes
        How many make a step.
    side
        Where they are formed.
    columns
        What the gradients of some blocks in the last pass are products of.
    """

    def __init__(
        self,
        owned: Sequence[Sequence[Block]],
        exchange: Exchange,
        memory: Callable[[Statistic], Tensor],
        *,
        passes: int,
        of_loss: bool,
        pack: bool,
        dtype: torch.dtype | None,
        overlap: bool,
    ) -> None:
        self._owned, self._exchange, self._memory, self.passes = owned, exchange, memory, passes
        self._of_loss, self._pack, self._dtype = of_loss, pack, dtype
        self.side = SideStream(exchange.device, wanted=overlap)
        self.sums: dict[Statistic, Tensor] = {}
        self.formed: Counter[Statistic] = Counter()
        self.columns: dict[Block, Columns] = {}
        self._under_way: Callable[[], None] | None = None

    @property
    def under_way(self) -> bool:
        """Whether the statistics of inputs have been sent."""
        return self._under_way is not None

    @torch.no_grad()
    def add(self, statistic: Statistic, batch: Batch, further: bool = False) -> None:
        """Form one statistic of a layer and add it to the step's; ``further`` if it belongs to the same batch."""
        block, k = statistic
        with self.side.beside(batch), torch.autocast(self._exchange.device.type, enabled=False):
            if statistic not in self.sums:
                self.sums[statistic] = self._memory(statistic)
            fresh = self.formed[statistic] == 0
            block.add_statistic(k, self.sums[statistic], batch, fresh=fresh, dtype=self._dtype)
        self.formed[statistic] += not further

    def complete(self, statistics: Sequence[Statistic]) -> bool:
        """Whether every pass of the step has been seen."""
        return all(self.formed[statistic] == self.passes for statistic in statistics)

    @torch.no_grad()
    def start(self, of_inputs: Sequence[Statistic]) -> None:
        """Send the statistics of inputs on their way, unless they are."""
        if self._under_way is None:
            with self.side.beside():
                self._under_way = self._start(of_inputs, "statistics of inputs")

    def finish(self, others: Sequence[Statistic], scale: float = 1.0) -> None:
        """Send the statistics that need gradients, formed of a loss times ``scale``, and wait for all of them."""
        self.side.join()
        assert self._under_way is not None
        finish_others = self._start(others, "other statistics", scale)
        self._under_way()
        finish_others()

    def forget(self) -> None:
        """End a step, whether its statistics were used or not."""
        self.side.join()
        self._under_way = None
        self.formed.clear()
        self.columns.clear()

    def abandon(self) -> None:
        """Drop the statistics formed so far, once those under way have arrived."""
        if self._under_way is not None:
            self.side.join()
            self._under_way()
        self.forget()

    def _start(self, statistics: Sequence[Statistic], name: str, scale: float = 1.0) -> Callable[[], None]:
        """Start to average statistics onto their owners; what is returned puts them into the owner's sums."""
        for statistic in statistics:
            if statistic not in self.sums:
                self.sums[statistic] = self._memory(statistic)
            self._average_passes(statistic, scale)
        if self._exchange.communicator.size == 1 or not statistics:
            return lambda: None
        by_owner = [[s for s in statistics if s[0] in blocks] for blocks in self._owned]
        symmetric = [[self._pack and block.symmetric[k] for block, k in of_rank] for of_rank in by_owner]
        parcel = Parcel([[self.sums[s] for s in of_rank] for of_rank in by_owner], symmetric)
        finish = self._exchange.start_average(parcel, "statistics", name, self._dtype)
        rank = self._exchange.communicator.rank

        def take() -> None:
            pieces = finish().split(parcel.lengths(rank))
            for tensor, packed, piece in zip(parcel.tensors[rank], symmetric[rank], pieces, strict=True):
                unpack(piece, [tensor], packed)

        return take

    def _average_passes(self, statistic: Statistic, scale: float) -> None:
        """Turn the sum over the passes of a step into the mean.

        Each pass saw gradients of a loss divided by their number (and times the scale), so products of the loss's
        gradients need its square, of which the mean takes one back.
        """
        block, k = statistic
        of_loss = self._of_loss and not block.of_inputs[k]
        factor = self.passes / scale**2 if of_loss else 1 / self.passes
        if factor != 1:
            for part in panels(self.sums[statistic], block.symmetric[k]):
                part.mul_(factor)
