"""Operations and bytes of one training step, read off the network itself layer by layer.

Dimension letters: m examples on one rank, s positions (of a feature map, or tokens), i inputs of a layer (with the
homogeneous coordinate of its bias), o its outputs, c channels of a normalization. A product of (p, q) by (q, r) counts
2 p q r operations; numbers take four bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from kinji.cost.networks import Attention, build
from kinji.kfac.ownership import inversion_flops

BYTES = 4
NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)
UPDATE_PASSES = 5
"""Momentum reads weight, gradient and velocity, and writes weight and velocity."""
NORMALIZATION_BACKWARD_PASSES = 5
"""Input and gradient are read for the sums and read again, the input's gradient is written."""
NORMALIZATION_PASSES = 3 + NORMALIZATION_BACKWARD_PASSES
"""Forward: read for the moments, read, write."""


@dataclass(frozen=True, kw_only=True)
class LayerCounts:
    """What one layer costs on one rank.

    Attributes
    ----------
    name
        As in the network.
    forward_flops
        Operations of the forward pass; the backward pass takes twice as many.
    parameters
        Numbers trained.
    inputs, outputs
        Sizes i and o of the Kronecker factors; 0 if the layer has none.
    rows
        m s: columns of inputs from which a factor is formed.
    patches
        Numbers copied to lay the inputs out as columns (im2col).
    channels
        c of a normalization, 0 otherwise.
    elements
        Numbers normalized.
    """

    name: str
    forward_flops: int = 0
    parameters: int = 0
    inputs: int = 0
    outputs: int = 0
    rows: int = 0
    patches: int = 0
    channels: int = 0
    elements: int = 0

    @property
    def factor_flops(self) -> int:
        """Operations of forming both Kronecker factors."""
        return 2 * self.rows * (self.inputs**2 + self.outputs**2)

    @property
    def precondition_flops(self) -> int:
        """Operations of ``G^-1 g A^-1``."""
        return 2 * self.inputs * self.outputs * (self.inputs + self.outputs)

    @property
    def owner_flops(self) -> int:
        """Operations by which `kinji.kfac` chooses owners."""
        return inversion_flops(self.inputs, self.outputs) if self.inputs else self.parameters


@dataclass(frozen=True)
class NetworkCounts:
    """The layers of a network with parameters or operations, in the order of the forward pass."""

    network: str
    batch: int
    size: int
    layers: tuple[LayerCounts, ...]

    @cached_property
    def forward_flops(self) -> int:
        """Operations of the forward pass."""
        return sum(layer.forward_flops for layer in self.layers)

    @cached_property
    def factor_flops(self) -> int:
        """Operations of forming every Kronecker factor."""
        return sum(layer.factor_flops for layer in self.layers)

    @cached_property
    def patch_bytes(self) -> int:
        """Bytes of the inputs written as columns and read again."""
        return 2 * BYTES * sum(layer.patches for layer in self.layers)

    @cached_property
    def normalization_bytes(self) -> int:
        """Bytes that the normalizations move, forward and backward."""
        return NORMALIZATION_PASSES * BYTES * sum(layer.elements for layer in self.layers)

    @cached_property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients, which are as long as the weights."""
        return BYTES * sum(layer.parameters for layer in self.layers)

    @cached_property
    def input_statistic_bytes(self) -> int:
        """Bytes of the triangles of every factor A, known after the forward pass."""
        return BYTES * sum(triangle(layer.inputs) for layer in self.layers)

    def gradient_statistic_bytes(self, batch_norm: str) -> int:
        """Bytes of the triangles of every factor G and of the Fisher blocks of the normalizations."""
        return BYTES * sum(triangle(layer.outputs) + normalization_numbers(layer, batch_norm) for layer in self.layers)


def triangle(n: int) -> int:
    """Return the numbers of one triangle of a symmetric (n, n) matrix."""
    return n * (n + 1) // 2


def normalization_numbers(layer: LayerCounts, batch_norm: str) -> int:
    """Return the numbers in the triangles of a normalization's Fisher block: c matrices of order 2, or one of 2 c."""
    return layer.channels * triangle(2) if batch_norm == "unit-wise" else triangle(2 * layer.channels)


def count(network: str, batch: int, size: int) -> NetworkCounts:
    """Count one step of a named network.

    Parameters
    ----------
    network
        One of `kinji.cost.networks.NETWORKS`.
    batch
        Examples on one rank.
    size
        Pixels along an edge, or tokens of a sequence.

    Raises
    ------
    ValueError
        There is no such network, or batch or size is below one.
    """
    if batch < 1 or size < 1:
        raise ValueError(f"batch={batch}, size={size}: both must be at least 1")
    model, example = build(network, size)
    return NetworkCounts(network, batch, size, count_layers(model, (batch, *example)))


def count_layers(model: nn.Module, shape: Sequence[int]) -> tuple[LayerCounts, ...]:
    """Run a model that lies on the meta device on one batch of a shape, and count its layers as they are called."""
    found: list[LayerCounts] = []

    def watch(name: str, module: nn.Module) -> Any:
        def seen(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            found.extend(_layer(name, module, inputs[0], output))

        return module.register_forward_hook(seen)

    hooks = [watch(name, module) for name, module in model.named_modules()]
    model(torch.empty(*shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return tuple(found)


def _layer(name: str, module: nn.Module, input_: torch.Tensor, output: torch.Tensor) -> list[LayerCounts]:
    parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    if isinstance(module, nn.Linear | nn.Conv2d):
        return [_kronecker(name, module, output, parameters)]
    if isinstance(module, NORMALIZATIONS):
        channels = module.weight.numel()
        return [LayerCounts(name=name, parameters=parameters, channels=channels, elements=input_.numel())]
    if isinstance(module, Attention):
        return [LayerCounts(name=name, forward_flops=4 * input_.numel() * input_.shape[1])]
    return [LayerCounts(name=name, parameters=parameters)] if parameters else []


def _kronecker(name: str, module: nn.Linear | nn.Conv2d, output: torch.Tensor, parameters: int) -> LayerCounts:
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        raise ValueError(f"{name}: convolutions in groups have no Kronecker factors")
    weights, outputs = module.weight[0].numel(), len(module.weight)
    rows = output.numel() // outputs
    inputs = weights + (module.bias is not None)
    return LayerCounts(
        name=name,
        forward_flops=2 * rows * weights * outputs,
        parameters=parameters,
        inputs=inputs,
        outputs=outputs,
        rows=rows,
        patches=rows * weights if isinstance(module, nn.Conv2d) else 0,
    )
