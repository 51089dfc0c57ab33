"""The diagonal blocks of the Fisher matrix: which parameters each holds, and what the stages do with them.

A block turns a layer's input and output gradient into statistics, statistics into an inverse, and gradients
into an update direction. It holds no state: statistics and inverses belong to the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from kinji.kfac import inverse, statistics
from kinji.kfac.ownership import inversion_flops
from kinji.kfac.packing import pack_symmetric, unpack_symmetric

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
    """

    def __init__(self, name: str, module: nn.Module | None, parameters: Sequence[Parameter]) -> None:
        self.name = name
        self.module = module
        self.parameters = tuple(parameters)

    @property
    def flops(self) -> int:
        """Operations of inversion and preconditioning, by which owners are chosen."""
        return sum(parameter.numel() for parameter in self.parameters)

    def form(self, input_: Tensor, gradient: Tensor, training: bool) -> list[Tensor]:
        """Form the statistics of one batch."""
        return []

    def over_batches(self, summed: Sequence[Tensor], count: int) -> list[Tensor]:
        """Turn the sum of the statistics of ``count`` backward passes into those of one batch.

        Each pass saw gradients of a loss divided by ``count``, so their products need its square, the mean
        takes one back.
        """
        return [products * count for products in summed]

    def pack(self, formed: Sequence[Tensor]) -> list[Tensor]:
        """Drop what symmetry makes redundant."""
        return list(formed)

    def unpack(self, packed: Sequence[Tensor]) -> list[Tensor]:
        """Restore what `pack` dropped."""
        return list(packed)

    def invert(self, averaged: Sequence[Tensor], damping: float) -> list[Tensor]:
        """Invert the damped block."""
        return []

    def precondition(self, gradients: Sequence[Tensor], inverted: Sequence[Tensor]) -> list[Tensor]:
        """Multiply the gradients of the parameters by the inverse of the block."""
        return list(gradients)


class KroneckerBlock(Block):
    """Weight and bias of a linear layer or a convolution: ``G (x) A``."""

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

    def form(self, input_: Tensor, gradient: Tensor, training: bool) -> list[Tensor]:
        """Form ``A`` and ``G``."""
        return list(statistics.kronecker_factors(self.layer, input_, gradient))

    def over_batches(self, summed: Sequence[Tensor], count: int) -> list[Tensor]:
        """As for any block, but ``A`` holds no gradients and is a plain mean."""
        a_ii, g_oo = summed
        return [a_ii / count, g_oo * count]

    def pack(self, formed: Sequence[Tensor]) -> list[Tensor]:
        """Keep one triangle of ``A`` and of ``G``."""
        return [pack_symmetric(factor) for factor in formed]

    def unpack(self, packed: Sequence[Tensor]) -> list[Tensor]:
        """Restore ``A`` and ``G`` from one triangle of each."""
        sizes = (self.inputs, self.outputs)
        return [unpack_symmetric(triangle, n) for triangle, n in zip(packed, sizes, strict=True)]

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

    def form(self, input_: Tensor, gradient: Tensor, training: bool) -> list[Tensor]:
        """Form the upper triangles of the 2 x 2 matrices."""
        return [statistics.unit_wise_fisher(self.layer, input_, gradient, training)]

    def invert(self, averaged: Sequence[Tensor], damping: float) -> list[Tensor]:
        """Invert every 2 x 2 matrix."""
        return [inverse.unit_wise_inverse(averaged[0], damping, self.name)]

    def precondition(self, gradients: Sequence[Tensor], inverted: Sequence[Tensor]) -> list[Tensor]:
        """Multiply each channel's pair of gradients by the inverse of its matrix."""
        return list(inverse.precondition_unit_wise(gradients[0], gradients[1], inverted[0]))


def invert_kronecker(
    blocks: Sequence[KroneckerBlock], averaged: Sequence[Sequence[Tensor]], damping: float
) -> Iterator[list[Tensor]]:
    """Cholesky factors of the damped ``A`` and ``G`` of many blocks, those of one size in one batch."""
    factors = [factor for pair in averaged for factor in pair]
    shifts = [shift for a_ii, g_oo in averaged for shift in inverse.damping_shifts(a_ii, g_oo, damping)]
    names = [f"{block.name}: factor {letter}" for block in blocks for letter in "AG"]
    lowers = inverse.damped_cholesky(factors, shifts, names)
    return (list(pair) for pair in zip(lowers[::2], lowers[1::2], strict=True))


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
