"""The optimizer of Osawa et al., "Scalable and practical natural gradient", 2020, in its stages.

One step, on each of the ranks that share the work:

1. while the loss is differentiated, every rank forms the statistics of its part of the batch (`accumulate`); those of
   inputs are formed first and travel while the backward pass goes on (`start_statistics`);
2. ReduceScatterV brings gradients and the other statistics to the rank that owns each layer (`reduce_gradients`,
   `reduce_statistics`);
3. owners average statistics over steps and invert (`invert`), precondition (`precondition`) and update (`update`) their
   layers;
4. AllGatherV gives the updated weights to everyone (`gather_weights`).

Only the ReduceScatterV of the statistics is traffic that SGD does not have: the other two collectives are the
two halves of its all-reduce. With one rank the collectives do nothing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from kinji.kfac import faults
from kinji.kfac.block import Batch, Block
from kinji.kfac.blocks import InverseForm, NormalizationRule, fisher_blocks
from kinji.kfac.communicator import Communicator, Exchange, Parcel, SerialCommunicator
from kinji.kfac.curvature import Curvature
from kinji.kfac.fisher import FisherKind, Likelihood, output_gradients
from kinji.kfac.gathering import Gathering, Statistic
from kinji.kfac.kronecker import KroneckerBlock
from kinji.kfac.options import grouped_parameters, refuse_choices, refuse_group
from kinji.kfac.ownership import OwnershipRule, assign_owners
from kinji.kfac.packing import split_like
from kinji.kfac.recorder import Recorder
from kinji.kfac.staleness import Adaptive, Clock
from kinji.kfac.state import portable
from kinji.kfac.threads import share_out
from kinji.kfac.update import MomentumRule, RescalingRule, rescaled, velocities

logger = logging.getLogger(__name__)

Proposal = tuple[list[Tensor], list[Tensor]]
"""New weights of the parameters that a rank owns, and their changes."""


class KFAC(torch.optim.Optimizer):
    """Natural gradient descent with a block-diagonal Fisher matrix.

    Blocks are Kronecker-factored, those of normalizations small matrices, those of other parameters the identity.

    The update is ``w += -lr (F^-1 g + weight_decay w) + momentum v``, where ``v`` is the previous change of
    ``w``. The loss must be the mean over the batch, the first dimension of each layer's input. Every supported layer
    is called once per forward pass.

    Parameters
    ----------
    model
        The network. Linear layers, convolutions, embeddings, batch and layer normalizations are preconditioned; other
        parameters, and weights shared by several layers, follow the first-order rule (same formula, ``F = I``) and are
        named in a warning of the log.
    lr, momentum, damping, weight_decay, statistics_decay
        Entries of ``param_groups``, which a schedule may change between steps. ``statistics_decay`` is the weight of
        the past in the running average of the statistics; 0 is the published method.
    param_groups
        Groups of parameters with entries of their own, as any optimizer of torch takes them; parameters in none of
        them make the first group. A block's damping and decay of statistics are those of its weight.
    statistics_interval
        Steps between two refreshes of statistics; ``adaptive``: as published, see `kinji.kfac.staleness`, which keeps
        the last two of each as well.
    inverse_interval
        Inverses are renewed in every step divisible by it, if statistics have changed since.
    similarity
        ``alpha`` of adaptive intervals.
    fisher, likelihood
        Whose gradients the Fisher matrix is made of, see `kinji.kfac.fisher`. All but ``empirical`` (published and
        released) need a call of `form_statistics` between forward and backward pass.
    inverse
        ``cholesky``: factors damped apart by the pi correction, published and released. ``eigen``: damped together.
    normalization
        Blocks of batch and layer normalizations: ``unit-wise``, 2 x 2 for each scale and shift, published;
        ``full``, released; ``diagonal``; ``first-order``.
    normalization_damping
        Multiplies their damping: 1 published, 16 released.
    momentum_rule, rescale_weights
        ``published`` or ``released``, see `kinji.kfac.update`; weights of linear layers and convolutions are
        rescaled after their update, and ``v`` is then the change that includes the scaling.
    exclude
        Layers left to the first-order rule, for example an output layer as wide as a vocabulary.
    accumulation_steps
        Backward passes that make one step, each of its part's mean loss divided by their number.
    grad_scaler
        The scaler that multiplies the loss, if any; ``grad_scaler.step`` then leaves out steps with overflow, on all
        ranks.
    ownership
        How layers are given to ranks: ``balanced`` or ``contiguous`` (released), see
        `kinji.kfac.ownership.assign_owners`.
    pack
        Whether symmetric statistics travel as one triangle (published and released).
    statistics_dtype
        Half precision to which operands of the factors are rounded, and in which statistics travel; sums are formed in
        full precision. None to leave them as they are.
    columns
        Whether one rank alone, on a CPU, preconditions layers that saw few positions in the order that is cheaper
        there, see `kinji.kfac.columns`; ranks that share the work cannot.
    overlap
        Whether, on a CUDA device, statistics are formed on a stream beside the backward pass. The attribute of this
        name may change between steps, when the device has finished.
    communicator
        How ranks talk; None for one process. Ranks must start from equal weights and give equally large batches.
        Each keeps the state of the layers it owns: `state_dict` is saved and loaded rank by rank. Batch
        normalizations use the statistics of their own rank's part of the batch, as published, so results change with
        the number of ranks unless they are frozen.

    Raises
    ------
    ValueError
        An option is out of range, or the model has nothing to train.
    FloatingPointError
        In `step`: a gradient or an updated weight is not finite. No weight has changed then, on any rank. A
        statistic that is not finite, or cannot be inverted, is only warned about: the last good one is used with ten
        times the damping, and where there is none, the first-order rule.
    """

    _step_supports_amp_scaling = True  # GradScaler.step leaves unscaling, and skipping on all ranks alike, to `step`

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        momentum: float = 0.9,
        damping: float = 1e-3,
        weight_decay: float = 0.0,
        statistics_decay: float = 0.95,
        param_groups: Sequence[Mapping[str, Any]] = (),
        statistics_interval: int | Adaptive = 1,
        inverse_interval: int = 1,
        similarity: float = 0.1,
        fisher: FisherKind = "empirical",
        likelihood: Likelihood = "categorical",
        inverse: InverseForm = "cholesky",
        normalization: NormalizationRule = "unit-wise",
        normalization_damping: float = 1.0,
        momentum_rule: MomentumRule = "published",
        rescale_weights: RescalingRule = "none",
        exclude: Collection[nn.Module] = (),
        accumulation_steps: int = 1,
        grad_scaler: torch.amp.GradScaler | None = None,
        ownership: OwnershipRule = "balanced",
        pack: bool = True,
        statistics_dtype: torch.dtype | None = None,
        columns: bool = True,
        overlap: bool = True,
        communicator: Communicator | None = None,
    ) -> None:
        self.statistics_interval, self.inverse_interval, self.similarity = (
            statistics_interval,
            inverse_interval,
            similarity,
        )
        self.fisher, self.likelihood = fisher, likelihood
        self.momentum_rule, self.rescale_weights = momentum_rule, rescale_weights
        self.grad_scaler, self.columns = grad_scaler, columns
        refuse_choices(vars(self) | {"accumulation_steps": accumulation_steps})
        self.blocks = fisher_blocks(
            model, normalization, inverse=inverse, normalization_damping=normalization_damping, exclude=exclude
        )
        if not self.blocks:
            raise ValueError("the model has no parameter that requires a gradient")
        defaults = {"lr": lr, "momentum": momentum, "damping": damping, "weight_decay": weight_decay}
        defaults |= {"statistics_decay": statistics_decay, "previous_lr": 0.0}
        parameters = [p for block in self.blocks for p in block.parameters]
        super().__init__(grouped_parameters(parameters, param_groups), defaults)
        for group in self.param_groups:
            refuse_group(group)
        self._group_of = {p: k for k, group in enumerate(self.param_groups) for p in group["params"]}
        self.communicator = communicator or SerialCommunicator()
        self.exchange = Exchange(self.communicator, like=parameters[0].detach())
        self._share(ownership)
        self.steps = 0
        self.curvature = Curvature(self.mine, self.exchange.device)
        self.clocks = {(block, k): Clock() for block in self.blocks for k in range(len(block.symmetric))}
        self._chosen: dict[Statistic, int] = {}
        self._gathering = Gathering(
            self.owned,
            self.exchange,
            lambda statistic: self.curvature.memory(statistic, self.steps % self.inverse_interval == 0),
            passes=accumulation_steps,
            of_loss=fisher == "empirical",
            pack=pack,
            dtype=statistics_dtype,
            overlap=overlap,
        )
        self._watch_layers()

    @property
    def accumulation_steps(self) -> int:
        """Backward passes that make one step; may change between steps."""
        return self._gathering.passes

    @accumulation_steps.setter
    def accumulation_steps(self, passes: int) -> None:
        self._gathering.passes = passes

    @property
    def overlap(self) -> bool:
        """Whether statistics are formed beside the backward pass."""
        return self._gathering.side.wanted

    @overlap.setter
    def overlap(self, wanted: bool) -> None:
        self._gathering.side.wanted = wanted

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the weights from the gradients of the last backward pass(es)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.autocast(self.exchange.device.type, enabled=False):
            self._take_step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, and the statistics formed beside them."""
        super().zero_grad(set_to_none)
        self._abandon()

    def form_statistics(self, output: Tensor) -> None:
        """Form the statistics of the ``sampled`` or ``exact`` Fisher matrix, between forward and backward pass.

        Parameters
        ----------
        output : (m, ..., k)
            What the model returned: logits, or means.
        """
        if self.fisher == "empirical" or not self._due():
            return
        for number, by_output in enumerate(output_gradients(output, self.fisher, self.likelihood)):
            batches = self._recorder.gradients(output, by_output)
            if number == 0:
                self._begin(batches)
            self._arrive(batches, further=number > 0)
        self._recorder.forget()

    def accumulate(self, statistic: Statistic, batch: Batch, further: bool = False) -> None:
        """Form one statistic of a layer and add it to the step's; ``further`` if it belongs to the same batch."""
        self._gathering.add(statistic, batch, further)

    def start_statistics(self) -> None:
        """Send the statistics of inputs on their way, unless they are."""
        self._gathering.start([s for s in self._due() if s[0].of_inputs[s[1]]])

    def reduce_gradients(self) -> list[list[Tensor]] | None:
        """Average the gradients of each block of this rank over the ranks.

        A first number beside each rank's gradients counts what is missing or not finite anywhere, so that every rank
        refuses the step, or, with a scaler, leaves it out (None).
        """
        missing, not_finite = self._faults()
        sent = [[faults.gradient(p) for block in owned for p in block.parameters] for owned in self.owned]
        mine, counts = sent[self.communicator.rank], [len(missing), len(not_finite)]
        if self.communicator.size > 1:
            count = self.blocks[0].parameters[0].new_tensor([float(number) for number in counts])
            parcel = Parcel([[count, *of_rank] for of_rank in sent])
            count, *mine = split_like(self.exchange.start_average(parcel, "gradients", "gradients")(), [count, *mine])
            counts = count.tolist()
        if counts[0] > 0 or (counts[1] > 0 and self.grad_scaler is None):
            self._gathering.abandon()
            elsewhere = "another rank met a gradient or statistic that is missing or not finite"
            raise FloatingPointError("; ".join([*missing, *not_finite]) or elsewhere)
        return None if counts[1] > 0 else _grouped(mine, [block.parameters for block in self.mine])

    def reduce_statistics(self) -> None:
        """Average the statistics over the ranks, onto their owners."""
        scaled = self.grad_scaler is not None and self.fisher == "empirical"
        scale = self.grad_scaler.get_scale() if self.grad_scaler is not None and scaled else 1.0
        self._gathering.finish([s for s in self._due() if not s[0].of_inputs[s[1]]], scale)

    def invert(self) -> None:
        """Take the new statistics and invert the damped blocks of this rank."""
        due = [s for s in self._due() if s[0] in self.curvature.states]
        fresh = self.curvature.accept({s: self._gathering.sums[s] for s in due})
        adaptive = self.statistics_interval == "adaptive"
        if adaptive:
            self._chosen = self.curvature.choose_intervals(fresh, self.clocks, self.similarity)
        for statistic in fresh:
            del self._gathering.sums[statistic]
        self.curvature.take(fresh, lambda block: self._group(block)["statistics_decay"], remember=adaptive)
        if self.steps % self.inverse_interval == 0:
            self.curvature.invert(lambda block: self._group(block)["damping"])

    def precondition(self, gradients: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """Multiply the gradients of each block of this rank by its inverse, into new memory."""
        return self.curvature.directions(dict(zip(self.mine, gradients, strict=True)), self._gathering.columns)

    def update(self, directions: Sequence[Sequence[Tensor]]) -> Proposal:
        """Propose a new weight for each parameter of this rank's blocks, in the directions' memory its change."""
        parameters: list[Tensor] = [parameter for block in self.mine for parameter in block.parameters]
        changes = dict(zip(parameters, (d for of_block in directions for d in of_block), strict=True))
        for group in self.param_groups:
            members = [parameter for parameter in group["params"] if parameter in changes]
            if not members:
                continue
            previous = [self.state[p]["velocity"] for p in members if "velocity" in self.state[p]]
            velocities(members, [changes[p] for p in members], previous, group, self.momentum_rule)
        updated = torch._foreach_add(parameters, list(changes.values())) if parameters else ()
        weights = dict(zip(parameters, updated, strict=True))
        if self.rescale_weights != "none":
            for weight in [block.parameters[0] for block in self.mine if isinstance(block, KroneckerBlock)]:
                weights[weight] = rescaled(weights[weight], self.rescale_weights)
                changes[weight] = weights[weight] - weight
        return list(weights.values()), list(changes.values())

    def gather_weights(self, proposal: Proposal | None) -> None:
        """Give every rank the updated weights; they are taken only if all of them are finite.

        Adaptive intervals, which owners choose, travel beside them. None stands for an owner that failed.
        """
        owned: list[list[Tensor]] = [[p for block in blocks for p in block.parameters] for blocks in self.owned]
        parameters = [parameter for of_rank in owned for parameter in of_rank]
        mine = owned[self.communicator.rank]
        weights, changes = proposal or ([torch.full_like(parameter, torch.nan) for parameter in mine], [])
        owned[self.communicator.rank] = list(weights)
        if self.statistics_interval == "adaptive":
            for of_rank, due in zip(owned, self._due_by_owner(), strict=True):
                of_rank.append(parameters[0].new_tensor([float(self._chosen.get(statistic, 1)) for statistic in due]))
        gathered = self.exchange.gather_from_owners(owned, "weights")
        intervals = self._read_intervals(gathered)
        updated = [weight for of_rank in gathered for weight in of_rank]
        if not all(faults.are_finite(updated)):
            raise FloatingPointError("the updated weights are not finite and were not taken: lower lr or raise damping")
        torch._foreach_copy_(parameters, updated)
        for parameter, change in zip(mine, changes, strict=True):
            self.state[parameter]["velocity"] = change
        self._end_step(intervals)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this rank; loaded into an optimizer with equal options it goes on to the bit."""
        clocks = [list(astuple(clock)) for clock in self.clocks.values()]
        saved = super().state_dict()
        kfac = {"steps": self.steps, "clocks": clocks, "blocks": self.curvature.state_dict()}
        return saved | {"state": portable(saved["state"]), "kfac": kfac}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned on a rank with the same layers."""
        super().load_state_dict(state_dict)
        saved = state_dict["kfac"]
        self.curvature.load_state_dict(saved["blocks"], self.exchange.device)
        self.steps = saved["steps"]
        self.clocks = {s: Clock(*clock) for s, clock in zip(self.clocks, saved["clocks"], strict=True)}
        self._abandon()

    def _take_step(self) -> None:
        self._unscale_gradients()
        self.start_statistics()
        gradients = self.reduce_gradients()
        if gradients is None:
            self._gathering.abandon()
            return
        self.reduce_statistics()
        try:
            self.invert()
            proposal = self.update(self.precondition(gradients))
        except Exception:
            if self.communicator.size > 1:
                with contextlib.suppress(FloatingPointError):  # the others are told, this rank says what happened
                    self.gather_weights(None)
            raise
        self.gather_weights(proposal)

    def _share(self, ownership: OwnershipRule) -> None:
        owners = assign_owners([block.flops for block in self.blocks], self.communicator.size, ownership)
        self.owned: list[list[Block]] = [[] for _ in range(self.communicator.size)]
        for block, owner in zip(self.blocks, owners, strict=True):
            self.owned[owner].append(block)
        self.mine = self.owned[self.communicator.rank]

    def _watch_layers(self) -> None:
        of_loss = self.fisher == "empirical"
        self._recorder = Recorder(self.blocks, self._wanted, self._begin, self._arrive, of_loss=of_loss)
        first_order = [block.name for block in self.blocks if block.module is None]
        if first_order:
            logger.warning("updated by the first-order rule: %s", ", ".join(first_order))

    def _due(self) -> list[Statistic]:
        return [statistic for statistic, clock in self.clocks.items() if clock.due <= self.steps]

    def _due_by_owner(self) -> list[list[Statistic]]:
        due = self._due()
        return [[statistic for statistic in due if statistic[0] in blocks] for blocks in self.owned]

    def _wanted(self, block: Block, output: Tensor) -> bool:
        due = any(self.clocks[block, k].due <= self.steps for k in range(len(block.symmetric)))
        return due or self._goes_by_columns(block, output)

    def _goes_by_columns(self, block: Block, output: Tensor) -> TypeGuard[KroneckerBlock]:
        """Whether to keep the columns of a gradient; it must be all of it, and a GPU would wait for the check."""
        whole = self.communicator.size == self.accumulation_steps == 1 and self.fisher == "empirical"
        wanted = self.columns and whole
        return wanted and not output.is_cuda and isinstance(block, KroneckerBlock) and block.has_few_columns(output)

    def _begin(self, inputs: Mapping[Block, Batch]) -> None:
        """Form the statistics of inputs; after the last pass of the step they are complete."""
        of_inputs = [(block, k) for block, k in self._due() if block.of_inputs[k]]
        there = sorted((s for s in of_inputs if s[0] in inputs), key=lambda s: -s[0].flops)
        share_out(lambda s: self.accumulate(s, inputs[s[0]]), there, self.exchange.device)
        if self.communicator.size > 1 and self._gathering.complete(of_inputs):
            self.start_statistics()

    def _arrive(self, batches: Mapping[Block, Batch], further: bool = False) -> None:
        """Form the statistics that need a gradient."""
        by_cost = sorted(batches, key=lambda block: -block.flops)
        share_out(lambda block: self._form(block, batches[block], further), by_cost, self.exchange.device)

    def _form(self, block: Block, batch: Batch, further: bool) -> None:
        for k, of_inputs in enumerate(block.of_inputs):
            if not of_inputs and self.clocks[block, k].due <= self.steps:
                self.accumulate((block, k), batch, further)
        if self._goes_by_columns(block, batch.gradient):
            self._gathering.columns[block] = block.columns(batch)

    def _abandon(self) -> None:
        self._recorder.discard()
        self._gathering.abandon()

    def _unscale_gradients(self) -> None:
        """Take the scale off the gradients if a scaler that has not done so itself says what it is."""
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_div_(gradients, scale)

    def _faults(self) -> tuple[list[str], list[str]]:
        """Name what this rank must not go on with: what is missing, and gradients that are not finite."""
        due = self._due()
        passes = [{self._gathering.formed[s] for s in due if s[0] is block} for block in self.blocks]
        missing = faults.missing(self.blocks, passes, self.accumulation_steps, self.fisher)
        return missing, faults.not_finite(self.blocks)

    def _read_intervals(self, gathered: list[list[Tensor]]) -> dict[Statistic, int]:
        """Take the intervals off the end of what each owner sent."""
        if self.statistics_interval != "adaptive":
            return dict.fromkeys(self._due(), self.statistics_interval)
        pairs = zip(gathered, self._due_by_owner(), strict=True)
        return {s: int(interval) for of_rank, due in pairs for s, interval in zip(due, of_rank.pop(), strict=True)}

    def _end_step(self, intervals: Mapping[Statistic, int]) -> None:
        for statistic, interval in intervals.items():
            self.clocks[statistic].advance(self.steps, interval)
        for group in self.param_groups:
            group["previous_lr"] = group["lr"]
        self._gathering.forget()
        self._chosen = {}
        self.steps += 1

    def _group(self, block: Block) -> dict[str, Any]:
        """Return the group of a block's weight."""
        return self.param_groups[self._group_of[block.parameters[0]]]


def _grouped(tensors: Sequence[Tensor], like: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Cut a list into lists as long as those given."""
    remaining = iter(tensors)
    return [[next(remaining) for _ in group] for group in like]
