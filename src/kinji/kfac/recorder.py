"""Stage 1: what forward and backward passes show of the layers, gathered by hooks.

A layer's input is kept, by the graph that its output belongs to, until the gradient of its output arrives. The first
gradient of a backward pass means that a step is under way: all input factors are formed then, so that they can travel
while the rest of the pass goes on. On a CPU, gradients of several layers are held until it is worth while to share
their work out among the threads, at the latest to the end of the pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kinji.kfac.block import Batch, Block

HELD = 2**28
"""Bytes of inputs and gradients that are held at most; they would have been free for the rest of the pass."""


@dataclass(eq=False)
class Pass:
    """One forward pass: the input of each layer, its output's place in the graph, and whether backward has begun."""

    inputs: dict[Block, Batch] = field(default_factory=dict)
    outputs: dict[Block, GradientEdge] = field(default_factory=dict)
    begun: bool = False


class Recorder:
    """Hooks on the layers of blocks.

    Parameters
    ----------
    blocks
        Those with a layer are watched.
    wanted
        Tells, given a block and its layer's output, whether the backward pass should show it.
    begin
        Called with the inputs of all layers when the backward pass of the loss begins.
    arrive
        Called with inputs and gradients of layers as the latter arrive in the backward pass of the loss. Neither is
        called unless the statistics are those of the loss.
    of_loss
        Whether they are.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        wanted: Callable[[Block, Tensor], bool],
        begin: Callable[[dict[Block, Batch]], None],
        arrive: Callable[[dict[Block, Batch]], None],
        *,
        of_loss: bool,
    ) -> None:
        self._wanted, self._begin, self._arrive, self._of_loss = wanted, begin, arrive, of_loss
        self._latest: Callable[[], Pass | None] = lambda: None
        self._held: dict[Block, Batch] = {}
        for block in blocks:
            if block.module is not None:
                block.module.register_forward_hook(partial(self._watch, block))

    def gradients(self, output: Tensor, by_output: Tensor) -> dict[Block, Batch]:
        """Propagate a gradient of the model's output to the outputs of all layers of the latest forward pass.

        Parameters
        ----------
        output
            Of the model; its graph stays.
        by_output
            The gradient, in the shape of ``output``.
        """
        latest = self._latest() or Pass()
        edges = tuple(latest.outputs.values())
        found = torch.autograd.grad(output, edges, by_output, retain_graph=True, allow_unused=True) if edges else ()
        seen = zip(latest.outputs, found, strict=True)
        batches = {block: (latest.inputs[block], gradient) for block, gradient in seen if gradient is not None}
        return {block: Batch(batch.input, batch.training, gradient) for block, (batch, gradient) in batches.items()}

    def discard(self) -> None:
        """Let go of what is held, as it is after a backward pass that has failed."""
        self._held = {}

    def forget(self) -> None:
        """Let go of the latest forward pass and its graph."""
        self._latest = lambda: None

    def _watch(self, block: Block, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad or not self._wanted(block, output):
            return
        seen = self._pass_of(block)
        seen.inputs[block] = Batch(inputs[0].detach(), module.training)
        if self._of_loss:
            output.register_hook(partial(self._gradient, seen, block))
        else:
            seen.outputs[block] = get_gradient_edge(output)

    def _pass_of(self, block: Block) -> Pass:
        """Return the pass under way; a layer that is called again, or after a backward pass, begins another one."""
        latest = self._latest()
        if latest is None or latest.begun or block in latest.inputs:
            latest = Pass()
            # the graph of the loss keeps its pass alive and drops it; without hooks in the graph it is kept here
            self._latest = weakref.ref(latest) if self._of_loss else partial(_same, latest)
        return latest

    def _gradient(self, seen: Pass, block: Block, gradient: Tensor) -> None:
        if not seen.begun:
            seen.begun = True
            torch.autograd.Variable._execution_engine.queue_callback(self._deliver)  # at the end of the pass
            self._begin(seen.inputs)
        if block not in seen.inputs:
            raise RuntimeError(f"{block.name}: one forward pass was differentiated twice; repeat the forward pass too")
        if block in self._held:
            self._deliver()
        batch = seen.inputs.pop(block)
        self._held[block] = Batch(batch.input, batch.training, gradient.detach())
        if gradient.device.type != "cpu" or sum(batch.nbytes for batch in self._held.values()) > HELD:
            self._deliver()

    def _deliver(self) -> None:
        held, self._held = self._held, {}
        if held:
            self._arrive(held)


def _same(seen: Pass) -> Pass:
    return seen
