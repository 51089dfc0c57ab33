"""Stage 3, on the owner of blocks: statistics averaged over steps, inverses, directions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kinji.kfac import cholesky
from kinji.kfac.block import Block
from kinji.kfac.columns import Columns
from kinji.kfac.faults import are_finite, telling_part
from kinji.kfac.gathering import Statistic
from kinji.kfac.kronecker import KroneckerBlock
from kinji.kfac.products import full_precision
from kinji.kfac.staleness import Clock, next_intervals
from kinji.kfac.state import BlockState, on_device, portable
from kinji.kfac.threads import share_out

Attempt = tuple[Block, list[Tensor], Tensor]
"""A block, the memory of its inverse, and whether that is good."""


class Curvature:
    """What the owner of blocks knows of their Fisher matrices.

    Parameters
    ----------
    blocks
        The blocks of this rank.
    device
        Where they are.
    """

    def __init__(self, blocks: Sequence[Block], device: torch.device) -> None:
        self._device = device
        self.states = {block: BlockState(symmetric=block.symmetric) for block in blocks}
        self._spare: dict[Statistic, Tensor] = {}

    def memory(self, statistic: Statistic, renewing: bool) -> Tensor:
        """Return memory for a new statistic: what is left over, if need be of an inverse that this step renews."""
        block, k = statistic
        state = self.states.get(block)
        if renewing and statistic not in self._spare and state and state.inverse and block.inverts_in_place:
            self._spare |= {(block, number): part for number, part in enumerate(state.inverse)}
            state.inverse, state.changed = [], True
        return self._spare.pop(statistic) if statistic in self._spare else block.new_statistic(k)

    def accept(self, fresh: Mapping[Statistic, Tensor]) -> dict[Statistic, Tensor]:
        """Return the new statistics that are finite; a block with another one has its damping raised, and says so."""
        parts = [telling_part(tensor, block.symmetric[k]) for (block, k), tensor in fresh.items()]
        finite = dict(zip(fresh, are_finite(parts), strict=True))
        for block in {block for block, _ in fresh}:
            refused = [not finite[s] for s in fresh if s[0] is block]
            state = self.states[block]
            state.raised = state.raised * 10 ** sum(refused) if any(refused) else 1.0
            if any(refused):
                state.changed = True
                warnings.warn(
                    f"{block.name}: a statistic is not finite and was not taken; damping times {state.raised:g}",
                    stacklevel=2,
                )
        return {statistic: tensor for statistic, tensor in fresh.items() if finite[statistic]}

    def choose_intervals(
        self, fresh: Mapping[Statistic, Tensor], clocks: Mapping[Statistic, Clock], similarity: float
    ) -> dict[Statistic, int]:
        """Choose when statistics are due again by how they compare with those before."""
        before = [self.states[block].before[k] for block, k in fresh]
        symmetric = [block.symmetric[k] for block, k in fresh]
        chosen = next_intervals([clocks[s] for s in fresh], list(fresh.values()), before, symmetric, similarity)
        return dict(zip(fresh, chosen, strict=True))

    def take(self, fresh: Mapping[Statistic, Tensor], decay: Callable[[Block], float], *, remember: bool) -> None:
        """Average new statistics, whose memory is taken, into those over steps; ``remember`` to compare the next."""
        for (block, k), tensor in fresh.items():
            spare = self.states[block].take(k, tensor, decay(block), remember=remember)
            if spare is not None:
                self._spare[block, k] = spare

    def invert(self, damping: Callable[[Block], float]) -> None:
        """Invert the damped blocks whose statistics have changed; a host that waits for each would keep a GPU idle."""
        due = sorted((block for block in self.states if self._is_due(block)), key=lambda block: -block.flops)
        with full_precision():
            attempts = share_out(lambda block: self._attempt(block, damping(block)), due, self._device)
            goods = torch.stack([good for *_, good in attempts]).tolist() if attempts else []
            for (block, memory, _), good in zip(attempts, goods, strict=True):
                self._conclude(block, memory, good, damping(block))

    def directions(
        self, gradients: Mapping[Block, Sequence[Tensor]], columns: Mapping[Block, Columns]
    ) -> list[list[Tensor]]:
        """Multiply gradients by the inverses of blocks, into new memory; columns that make them up may be cheaper."""
        by_cost = sorted(gradients, key=lambda block: -block.flops)
        with full_precision():
            solved = share_out(lambda b: self._direction(b, gradients[b], columns.get(b)), by_cost, self._device)
        of_block = dict(zip(by_cost, solved, strict=True))
        return [of_block[block] for block in gradients]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each block by its name."""
        return {
            block.name: portable(state.saved() | _saved_inverse(block, state)) for block, state in self.states.items()
        }

    def load_state_dict(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Load what `state_dict` returned; ValueError if it is of other blocks."""
        if set(saved) != {block.name for block in self.states}:
            raise ValueError("the state is of other layers: it was saved by another rank, or of another model")
        for block in self.states:
            self.states[block] = BlockState(symmetric=block.symmetric, **on_device(saved[block.name], device))

    def _direction(self, block: Block, gradients: Sequence[Tensor], columns: Columns | None) -> list[Tensor]:
        inverse = self.states[block].inverse
        if not inverse:
            return [gradient.clone() for gradient in gradients]
        if isinstance(block, KroneckerBlock):
            return block.precondition(gradients, inverse, columns)
        return block.precondition(gradients, inverse)

    def _is_due(self, block: Block) -> bool:
        state = self.states[block]
        return state.changed and len(state.there) == len(state.statistics) > 0

    def _attempt(self, block: Block, damping: float) -> Attempt:
        """Invert a block in the memory of its last inverse, which is none until that is known to be good."""
        state = self.states[block]
        memory, state.inverse = state.inverse or self._new_inverse(block), []
        try:
            return block, memory, block.invert(state.there, state.raised * damping, memory)
        except torch.linalg.LinAlgError:
            return block, memory, torch.zeros((), dtype=torch.bool, device=memory[0].device)

    def _new_inverse(self, block: Block) -> list[Tensor]:
        """Return memory for an inverse, left over if there is some of each statistic."""
        spare = [(block, k) for k in range(len(block.symmetric)) if (block, k) in self._spare]
        if len(spare) == len(block.symmetric) and block.inverts_in_place:
            return [self._spare.pop(statistic) for statistic in spare]
        return block.new_inverse()

    def _conclude(self, block: Block, memory: list[Tensor], good: bool, damping: float) -> None:
        state = self.states[block]
        try:
            if not good:
                block.mend(state.there, state.raised * damping, memory)
            state.inverse, state.changed = memory, False
        except torch.linalg.LinAlgError as error:
            warnings.warn(f"{error}; {block.name} follows the first-order rule until it mends", stacklevel=2)


def _saved_inverse(block: Block, state: BlockState) -> dict[str, list[Tensor]]:
    if not block.inverts_in_place:
        return {"inverse": state.inverse}
    pairs = zip(state.inverse, block.symmetric, strict=False)  # there may be none yet
    return {"inverse": [cholesky.telling(part) if symmetric else part for part, symmetric in pairs]}
