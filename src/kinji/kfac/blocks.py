"""The diagonal blocks of the Fisher matrix: which parameters each holds, and what the stages do with them.

A block turns a layer's input and output gradient into statistics, statistics into an inverse, and gradients
into an update direction. It holds no state: statistics and inverses belong to the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from kinji.kfac import inverse, statistics
from kinji.kfac.ownership import inversion_flops

BatchNormRule = Literal["unit-wise", "first-order"]


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
        Whether its statistics are symmetric matrices, of which one triangle is enough.
    """

    symmetric = False

    def __init__(self, name: str, module: nn.Module | None, parameters: Sequence[Parameter]) -> None:
        self.name = name
        self.module = module
        self.parameters = tuple(parameters)

    @property
    def flops(self) -> int:
        """Operations of inversion and preconditioning, by which owners are chosen."""
        return sum(parameter.numel() for parameter in self.parameters)

    def new_statistics(self) -> list[Tensor]:
        """Return memory for the block's statistics."""
        return []

    def add_statistics(
        self, sums: Sequence[Tensor], input_: Tensor, gradient: Tensor, training: bool, *, fresh: bool
    ) -> None:
        """Form the statistics of one batch and add them to sums, which hold nothing yet if ``fresh``."""

    def mean_statistics(self, sums: Sequence[Tensor], passes: int) -> None:
        """Turn the sums over some backward passes into the statistics of one batch, in place.

        Each pass saw gradients of a loss divided by their number, so products of gradients need its square, of
        which the mean takes one back.
        """
        for products in sums:
            products.mul_(passes)

    def new_inverse(self) -> list[Tensor]:
        """Return memory for the inverse of the block."""
        return []

    def invert(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> None:
        """Invert the damped block."""

    def precondition(self, gradients: Sequence[Tensor], inverted: Sequence[Tensor]) -> list[Tensor]:
        """Multiply the gradients of the parameters by the inverse of the block."""
        return list(gradients)


class KroneckerBlock(Block):
    """Weight and bias of a linear layer or a convolution: ``G (x) A``."""

    symmetric = True

    def __init__(self, name: str, module: nn.Linear | nn.Conv2d) -> None:
        bias = statistics.trainable_bias(module)
        super().__init__(name, module, [p for p in (module.weight, bias) if isinstance(p, Parameter)])
        self.layer = module
        self.outputs = len(module.weight)
        self.inputs = module.weight[0].numel() + (bias is not None)

    @property
    def flops(self) -> int:
        """Operations of inversion and preconditioning, by which owners are chosen."""
        return inversion_flops(self.inputs, self.outputs)

    def new_statistics(self) -> list[Tensor]:
        """Return memory for ``A`` and ``G``."""
        return [self.layer.weight.new_empty(n, n) for n in (self.inputs, self.outputs)]

    def add_statistics(
        self, sums: Sequence[Tensor], input_: Tensor, gradient: Tensor, training: bool, *, fresh: bool
    ) -> None:
        """Form ``A`` and ``G``."""
        statistics.add_kronecker_factors(self.layer, input_, gradient, *sums, fresh=fresh)

    def mean_statistics(self, sums: Sequence[Tensor], passes: int) -> None:
        """As for any block, but ``A`` holds no gradients and is a plain mean."""
        a_ii, g_oo = sums
        a_ii.div_(passes)
        g_oo.mul_(passes)

    def new_inverse(self) -> list[Tensor]:
        """Return memory, by columns as LAPACK wants it, for the Cholesky factors of the damped ``A`` and ``G``."""
        return [self.layer.weight.new_empty(n, n).T for n in (self.inputs, self.outputs)]

    def invert(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> None:
        """Factor the damped ``A`` and ``G``."""
        a_ii, g_oo = averaged
        shift_a, shift_g = inverse.damping_shifts(a_ii, g_oo, damping)
        inverse.damped_cholesky(a_ii, shift_a, f"{self.name}: factor A", out[0])
        inverse.damped_cholesky(g_oo, shift_g, f"{self.name}: factor G", out[1])

    def precondition(self, gradients: Sequence[Tensor], inverted: Sequence[Tensor]) -> list[Tensor]:
        """Multiply by ``(G (x) A)^-1``, the bias's gradient being the last column."""
        joined = torch.cat([gradient.reshape(self.outputs, -1) for gradient in gradients], dim=1)
        directions = inverse.precondition(joined, *inverted)
        columns = [gradient[0].numel() for gradient in gradients]
        pieces = directions.split(columns, dim=1)
        return [piece.reshape(gradient.shape) for piece, gradient in zip(pieces, gradients, strict=True)]


class UnitWiseBlock(Block):
    """Scale and shift of a batch normalization: a 2 x 2 matrix per channel."""

    def __init__(self, name: str, module: statistics.BatchNorm) -> None:
        super().__init__(name, module, [module.weight, module.bias])
        self.layer = module

    def new_statistics(self) -> list[Tensor]:
        """Return memory for the upper triangles of the 2 x 2 matrices."""
        return [self.layer.weight.new_empty(3, len(self.layer.weight))]

    def add_statistics(
        self, sums: Sequence[Tensor], input_: Tensor, gradient: Tensor, training: bool, *, fresh: bool
    ) -> None:
        """Form the upper triangles of the 2 x 2 matrices."""
        fisher_3c = statistics.unit_wise_fisher(self.layer, input_, gradient, training)
        sums[0].copy_(fisher_3c if fresh else sums[0] + fisher_3c)

    def new_inverse(self) -> list[Tensor]:
        """Return memory for the upper triangles of the inverses."""
        return self.new_statistics()

    def invert(self, averaged: Sequence[Tensor], damping: float, out: Sequence[Tensor]) -> None:
        """Invert every 2 x 2 matrix."""
        out[0].copy_(inverse.unit_wise_inverse(averaged[0], damping, self.name))

    def precondition(self, gradients: Sequence[Tensor], inverted: Sequence[Tensor]) -> list[Tensor]:
        """Multiply each channel's pair of gradients by the inverse of its matrix."""
        return list(inverse.precondition_unit_wise(gradients[0], gradients[1], inverted[0]))


def fisher_blocks(model: nn.Module, batch_norm: BatchNormRule) -> list[Block]:
    """Divide the trainable parameters of a model into blocks, in the order of its modules.

    Linear layers, convolutions without groups and (if ``unit-wise``) batch normalizations with scale and
    shift get their own kind of block if their weight is trained and shared with no other layer; every
    parameter left is a first-order block of its own.
    """
    uses: dict[Parameter, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[parameter] = uses.get(parameter, 0) + 1
    blocks: list[Block] = []
    for name, module in model.named_modules():
        blocks.extend(_blocks_of(name, module, uses, batch_norm))
    return _each_parameter_once(blocks)


def _blocks_of(name: str, module: nn.Module, uses: dict[Parameter, int], batch_norm: BatchNormRule) -> list[Block]:
    trainable = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad}
    whole = "weight" in trainable and all(uses[parameter] == 1 for parameter in trainable.values())
    if whole and (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)):
        return [KroneckerBlock(name, module)]
    unit_wise = batch_norm == "unit-wise" and "bias" in trainable
    if whole and unit_wise and isinstance(module, statistics.BatchNorm):
        return [UnitWiseBlock(name, module)]
    return [Block(f"{name}.{key}".lstrip("."), None, [parameter]) for key, parameter in trainable.items()]


def _each_parameter_once(blocks: Sequence[Block]) -> list[Block]:
    seen: set[Parameter] = set()
    kept = []
    for block in blocks:
        if seen.isdisjoint(block.parameters):
            kept.append(block)
        seen.update(block.parameters)
    return kept
