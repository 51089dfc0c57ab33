"""The optimizer of Osawa et al., "Scalable and practical natural gradient", 2020, in its stages.

One step, on each of the ranks that share the work:

1. while the loss is computed and differentiated, every rank forms the statistics of its part of the batch
   (`accumulate`);
2. ReduceScatterV brings gradients and statistics to the rank that owns each layer (`reduce_gradients`,
   `reduce_statistics`);
3. owners invert (`invert`), precondition (`precondition`) and update (`update`) their layers;
4. AllGatherV gives the updated weights to everyone (`gather_weights`).

Only the ReduceScatterV of the statistics is traffic that SGD does not have: the other two collectives are the
two halves of its all-reduce. With one rank the collectives do nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from kinji.kfac.blocks import BatchNormRule, Block, KroneckerBlock, fisher_blocks
from kinji.kfac.communicator import Communicator, Exchange, SerialCommunicator
from kinji.kfac.ownership import OwnershipRule, assign_owners
from kinji.kfac.packing import pack as pack_tensors
from kinji.kfac.packing import packed_lengths, unpack

logger = logging.getLogger(__name__)

Proposal = list[tuple[Tensor, Tensor]]
"""New weight and velocity of each parameter of a block."""


class KFAC(torch.optim.Optimizer):
    """Natural gradient descent with a block-diagonal empirical Fisher matrix.

    Blocks are Kronecker-factored, unit-wise or, for parameters of no supported layer, the identity.

    The update is ``w += -lr (F^-1 g + weight_decay w) + momentum v``, where ``v`` is the previous change of
    ``w``. The loss must be the mean over the batch; several backward passes before a step count as one batch
    if each loss was divided by their number. Every supported layer is called once per forward pass.

    Parameters
    ----------
    model
        The network. Linear layers, convolutions without groups and batch normalizations are preconditioned,
        other parameters follow the first-order rule (same formula, ``F = I``) and are named in a warning of
        the log.
    lr, momentum, damping, weight_decay
        Also entries of ``param_groups[0]``, which a schedule may change between steps.
    statistics_decay
        Weight of the past in the running average of the statistics; 0 is the published method.
    refresh_interval
        Steps between two refreshes of statistics and inverses.
    rescale_weights
        Whether each weight of a linear layer or convolution is scaled to the norm ``sqrt(2 d_out)`` after its
        update, as published; ``v`` is then the change that includes the scaling.
    batch_norm
        ``unit-wise``: 2 x 2 blocks per channel. ``first-order``: no preconditioning.
    ownership
        How layers are given to ranks, see `kinji.kfac.ownership.assign_owners`.
    pack
        Whether symmetric statistics travel as one triangle.
    communicator
        How ranks talk; None for one process. Ranks must start from equal weights and give equally large batches.
        Each keeps the state of the layers it owns: `state_dict` is saved and loaded rank by rank. Batch
        normalizations use the statistics of their own rank's part of the batch, as published.

    Raises
    ------
    ValueError
        An option is out of range, or the model has nothing to train.
    FloatingPointError
        In `step`: a gradient, a statistic or an updated weight is not finite. No weight has changed then, on
        any rank.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        momentum: float = 0.9,
        damping: float = 1e-3,
        weight_decay: float = 0.0,
        statistics_decay: float = 0.95,
        refresh_interval: int = 1,
        rescale_weights: bool = False,
        batch_norm: BatchNormRule = "unit-wise",
        ownership: OwnershipRule = "balanced",
        pack: bool = True,
        communicator: Communicator | None = None,
    ) -> None:
        _refuse_out_of_range(lr, momentum, damping, weight_decay, statistics_decay, refresh_interval)
        self.blocks = fisher_blocks(model, batch_norm)
        if not self.blocks:
            raise ValueError("the model has no parameter that requires a gradient")
        options: dict[str, float] = {"lr": lr, "momentum": momentum, "damping": damping}
        options |= {"weight_decay": weight_decay, "statistics_decay": statistics_decay}
        options |= {"refresh_interval": refresh_interval, "steps": 0}
        super().__init__([p for block in self.blocks for p in block.parameters], options)
        self.communicator = communicator or SerialCommunicator()
        self.rescale_weights = rescale_weights
        self.exchange = Exchange(self.communicator, like=self.blocks[0].parameters[0].detach())
        self.pack = pack
        owners = assign_owners([block.flops for block in self.blocks], self.communicator.size, ownership)
        self.owned: list[list[Block]] = [[] for _ in range(self.communicator.size)]
        for block, owner in zip(self.blocks, owners, strict=True):
            self.owned[owner].append(block)
        self.mine = self.owned[self.communicator.rank]
        self._sums: dict[Block, list[Tensor]] = {}
        self._passes: Counter[Block] = Counter()
        self._watch_layers()

    @property
    def refreshing(self) -> bool:
        """Whether the coming step renews statistics and inverses."""
        group = self.param_groups[0]
        return group["steps"] % group["refresh_interval"] == 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the weights from the gradients of the last backward pass(es)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = self.reduce_gradients()
        if self.refreshing:
            self.reduce_statistics()
            self.invert()
        self.gather_weights(self.update(self.precondition(gradients)))
        self.param_groups[0]["steps"] += 1
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, and the statistics formed beside them."""
        super().zero_grad(set_to_none)
        self._passes.clear()

    @torch.no_grad()
    def accumulate(self, block: Block, input_: Tensor, training: bool, gradient: Tensor) -> None:
        """Form the statistics of one layer during the backward pass and add them to the step's."""
        if block not in self._sums:
            self._sums[block] = block.new_statistics()
        fresh = self._passes[block] == 0
        block.add_statistics(self._sums[block], input_, gradient, training, fresh=fresh)
        self._passes[block] += 1

    def reduce_gradients(self) -> list[list[Tensor]]:
        """Average the gradients of each block of this rank over the ranks.

        A first number beside each rank's gradients counts what is not finite anywhere, so that every rank
        refuses the step.
        """
        faults = self._faults()
        count = self.blocks[0].parameters[0].new_tensor([float(len(faults))])
        sent = [[count, *(_gradient(p) for block in owned for p in block.parameters)] for owned in self.owned]
        total, *averaged = self.exchange.average_onto_owners(sent, "gradients")
        if total.item() > 0:
            self._passes.clear()
            elsewhere = "another rank met a gradient or statistic that is missing or not finite"
            raise FloatingPointError("; ".join(faults) or elsewhere)
        return _grouped(averaged, [block.parameters for block in self.mine])

    def reduce_statistics(self) -> None:
        """Average the statistics over the ranks and, at their owner, over the steps."""
        for block, passes in self._passes.items():
            if passes > 1:
                block.mean_statistics(self._sums[block], passes)
        if self.communicator.size > 1:
            self._exchange_statistics()
        for block in self.mine:
            self._average_over_steps(block)
        self._passes.clear()

    def invert(self) -> None:
        """Invert the damped blocks of this rank."""
        for block in self.mine:
            state = self._state(block)
            if "inverse" not in state:
                state["inverse"] = block.new_inverse()
            block.invert(state["statistics"], self.param_groups[0]["damping"], state["inverse"])

    def precondition(self, gradients: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """Multiply the gradients of each block of this rank by its inverse."""
        pairs = zip(self.mine, gradients, strict=True)
        return [block.precondition(of_block, self._state(block)["inverse"]) for block, of_block in pairs]

    def update(self, directions: Sequence[Sequence[Tensor]]) -> list[Proposal]:
        """Propose a new weight and velocity for each parameter of this rank's blocks."""
        return [self._propose(block, of_block) for block, of_block in zip(self.mine, directions, strict=True)]

    def gather_weights(self, proposals: Sequence[Proposal]) -> None:
        """Give every rank the updated weights; they are taken only if all of them are finite."""
        owned: list[list[Tensor]] = [[p for block in blocks for p in block.parameters] for blocks in self.owned]
        parameters = [parameter for of_rank in owned for parameter in of_rank]
        owned[self.communicator.rank] = [weight for proposal in proposals for weight, _ in proposal]
        gathered = self.exchange.gather_from_owners(owned, "weights")
        weights = [weight for of_rank in gathered for weight in of_rank]
        if not all(weight.isfinite().all() for weight in weights):
            raise FloatingPointError("the updated weights are not finite and were not taken: lower lr or raise damping")
        torch._foreach_copy_(parameters, weights)
        for block, proposal in zip(self.mine, proposals, strict=True):
            for parameter, (_, velocity) in zip(block.parameters, proposal, strict=True):
                self.state[parameter]["velocity"] = velocity

    def _watch_layers(self) -> None:
        for block in self.blocks:
            if block.module is not None:
                block.module.register_forward_hook(partial(self._watch, block))
        first_order = [block.name for block in self.blocks if block.module is None]
        if first_order:
            logger.warning("updated by the first-order rule: %s", ", ".join(first_order))

    def _watch(self, block: Block, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Form the statistics once the output's gradient is known; autograd keeps the input until then."""
        if self.refreshing and output.requires_grad:
            input_, training = inputs[0].detach(), module.training
            output.register_hook(lambda gradient: self.accumulate(block, input_, training, gradient))

    def _faults(self) -> list[str]:
        """Name what this rank must not share: gradients and statistics that are missing or not finite."""
        faults = []
        for block in self.blocks:
            gradients = [parameter.grad for parameter in block.parameters]
            if any(gradient is None for gradient in gradients):
                faults.append(f"{block.name} took no part in the loss; freeze it with requires_grad_(False)")
            elif not all(gradient.isfinite().all() for gradient in gradients if gradient is not None):
                faults.append(f"{block.name} has a gradient that is not finite")
            elif self.refreshing and block.module is not None and not _finite(self._statistics(block)):
                faults.append(f"{block.name} has statistics that are missing or not finite")
        return faults

    def _statistics(self, block: Block) -> list[Tensor]:
        """Return what the backward pass(es) since the last step formed; the memory itself is kept between steps."""
        return self._sums[block] if self._passes[block] else []

    def _exchange_statistics(self) -> None:
        """Replace this rank's statistics of the blocks that it owns by the average over the ranks."""
        lengths = [[self._packed_length(block) for block in blocks] for blocks in self.owned]
        vectors = self.exchange.vectors("statistics", [sum(of_rank) for of_rank in lengths])
        for blocks, vector, of_rank in zip(self.owned, vectors, lengths, strict=True):
            for block, piece in zip(blocks, vector.split(of_rank), strict=True):
                pack_tensors(self._statistics(block), piece, symmetric=self.pack and block.symmetric)
        averaged = self.exchange.average(vectors, "statistics").split(lengths[self.communicator.rank])
        for block, piece in zip(self.mine, averaged, strict=True):
            unpack(piece, self._statistics(block), symmetric=self.pack and block.symmetric)

    def _packed_length(self, block: Block) -> int:
        return sum(packed_lengths(self._statistics(block), symmetric=self.pack and block.symmetric))

    def _average_over_steps(self, block: Block) -> None:
        averaged, state = self._statistics(block), self._state(block)
        if state.get("statistics"):
            torch._foreach_lerp_(state["statistics"], averaged, 1 - self.param_groups[0]["statistics_decay"])
        else:
            state["statistics"] = [tensor.clone() for tensor in averaged]

    def _propose(self, block: Block, directions: Sequence[Tensor]) -> Proposal:
        group = self.param_groups[0]
        proposal = []
        for parameter, direction in zip(block.parameters, directions, strict=True):
            velocity = direction.add(parameter, alpha=group["weight_decay"]).mul_(-group["lr"])
            if "velocity" in self.state[parameter]:
                velocity.add_(self.state[parameter]["velocity"], alpha=group["momentum"])
            proposal.append((parameter + velocity, velocity))
        if self.rescale_weights and isinstance(block, KroneckerBlock):
            weight = _rescaled(proposal[0][0])
            proposal[0] = (weight, weight - block.parameters[0])
        return proposal

    def _state(self, block: Block) -> dict[str, Any]:
        return self.state[block.parameters[0]]


def _finite(statistics: Sequence[Tensor]) -> bool:
    """Whether there are statistics and they are finite; the diagonal of a Gram matrix bounds the rest."""
    diagonals = [t.diagonal() if t.ndim == 2 and t.shape[0] == t.shape[1] else t for t in statistics]
    return bool(diagonals) and all(bool(diagonal.isfinite().all()) for diagonal in diagonals)


def _gradient(parameter: Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _grouped(tensors: Sequence[Tensor], like: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Cut a list into lists as long as those given."""
    remaining = iter(tensors)
    return [[next(remaining) for _ in group] for group in like]


def _rescaled(weight: Tensor) -> Tensor:
    """Scale a weight with d_out outputs to the norm sqrt(2 d_out)."""
    return weight * ((2 * len(weight)) ** 0.5 / (weight.norm() + 1e-9))


def _refuse_out_of_range(
    lr: float,
    momentum: float,
    damping: float,
    weight_decay: float,
    statistics_decay: float,
    refresh_interval: int,
) -> None:
    allowed = {
        f"lr={lr}: must be >= 0": lr >= 0,
        f"momentum={momentum}: must be in [0, 1)": 0 <= momentum < 1,
        f"damping={damping}: must be >= 0": damping >= 0,
        f"weight_decay={weight_decay}: must be >= 0": weight_decay >= 0,
        f"statistics_decay={statistics_decay}: must be in [0, 1)": 0 <= statistics_decay < 1,
        f"refresh_interval={refresh_interval}: must be >= 1": refresh_interval >= 1,
    }
    refused = [message for message, holds in allowed.items() if not holds]
    if refused:
        raise ValueError("; ".join(refused))
