"""What the stages do with a diagonal block of the Fisher matrix, whatever it is made of.

A block turns a layer's input and output gradient into statistics, statistics into an inverse, and gradients
into an update direction. It holds no state: statistics and inverses belong to the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import Parameter


class Block:
    """Parameters handled by the first-order rule: their block of the Fisher matrix is the identity.

    Attributes
    ----------
    name
        The layer's or parameter's name in the model.
    module
        The layer, None if the block is a single parameter.
    parameters
        What the block updates.
    symmetric
        For each statistic, whether it is made of symmetric matrices, of which the lower triangle is all that counts.
    of_inputs
        For each statistic, whether the layer's inputs alone make it.
    inverts_in_place
        Whether the parts of the inverse are like the statistics, so that each may take the other's memory.
    """

    symmetric: tuple[bool, ...] = ()
    of_inputs: tuple[bool, ...] = ()
    inverts_in_place = True

    def __init__(self, name: str, module: nn.Module | None, parameters: Sequence[Parameter]) -> None:
        self.name = name
        self.module = module
        self.parameters = tuple(parameters)

    @property
    def flops(self) -> int:
        """Operations of inversion and preconditioning, by which owners are chosen."""
        return sum(parameter.numel() for parameter in self.parameters)

    def new_statistic(self, k: int) -> Tensor:
        """Return memory for the block's k-th statistic."""
        raise NotImplementedError

    def add_statistic(
        self, k: int, sums: Tensor, batch: Batch, *, fresh: bool, dtype: torch.dtype | None = None
    ) -> None:
        """Form the k-th statistic of one batch and add it to a sum, which holds nothing yet if ``fresh``."""
        raise NotImplementedError

    def new_inverse(self) -> list[Tensor]:
        """Return memory for the inverse of the block."""
        return []

    def invert(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> Tensor:
        """Invert the damped block and return whether that went well (), left on the device; `mend` it if not."""
        raise NotImplementedError

    def mend(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> None:
        """Invert by slower means; `torch.linalg.LinAlgError` if no damping helps."""
        raise torch.linalg.LinAlgError(f"{self.name}: the damped block has no inverse; damping is {damping}")

    def precondition(self, gradients: Sequence[Tensor], inverted: Sequence[Tensor]) -> list[Tensor]:
        """Multiply the gradients of the parameters by the inverse of the block, into new memory."""
        return [gradient.clone() for gradient in gradients]


class Batch:
    """What one backward pass shows of a layer: its input, whether it was training, and the gradient of its output."""

    def __init__(self, input_: Tensor, training: bool, gradient: Tensor | None = None) -> None:
        self.input = input_
        self.training = training
        self._gradient = gradient

    @property
    def nbytes(self) -> int:
        """Of the memory that is kept."""
        return self.input.nbytes + self.gradient.nbytes

    @property
    def gradient(self) -> Tensor:
        """The gradient; asked for only by statistics that are not of inputs alone."""
        assert self._gradient is not None
        return self._gradient
