"""What a step must not go on with: layers outside the loss, statistics not formed once a pass, numbers not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from kinji.kfac.block import Block
from kinji.kfac.fisher import FisherKind


def missing(blocks: Sequence[Block], passes: Sequence[set[int]], expected: int, fisher: FisherKind) -> list[str]:
    """Say of each block what is missing, and how to mend it.

    Parameters
    ----------
    passes
        For each block how often its statistics were formed.
    expected
        How often they should have been.
    """
    messages = []
    for block, formed in zip(blocks, passes, strict=True):
        if any(parameter.grad is None for parameter in block.parameters):
            messages.append(f"{block.name} took no part in the loss; freeze it with requires_grad_(False)")
        elif formed - {expected}:
            messages.append(_unexpected(block, min(formed), expected, fisher))
    return messages


def not_finite(blocks: Sequence[Block]) -> list[str]:
    """Name the blocks with a gradient that is not finite."""
    pairs = [(block.name, gradient(p)) for block in blocks for p in block.parameters if p.grad is not None]
    finite = are_finite([tensor for _, tensor in pairs])
    names = dict.fromkeys(name for (name, _), good in zip(pairs, finite, strict=True) if not good)
    return [f"{name} has a gradient that is not finite" for name in names]


def are_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Return of each tensor whether all its numbers are finite; the host waits for the device once.

    A sum shows it faster than a test of each number, unless it overflows.
    """
    if not tensors:
        return []
    sums = torch.stack([tensor.sum().to(tensors[0].dtype) for tensor in tensors])
    return [
        good or bool(tensor.isfinite().all()) for good, tensor in zip(sums.isfinite().tolist(), tensors, strict=True)
    ]


def telling_part(statistic: Tensor, symmetric: bool) -> Tensor:
    """Return what is finite if the statistic is: the diagonal of a Gram matrix bounds the rest."""
    return statistic.diagonal(dim1=-2, dim2=-1) if symmetric else statistic


def gradient(parameter: Parameter) -> Tensor:
    """Return the gradient of a parameter, not sparse, and zero if there is none."""
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad


def _unexpected(block: Block, formed: int, expected: int, fisher: FisherKind) -> str:
    """Say what to do about statistics that were not formed once in each backward pass."""
    if formed == 0 and fisher != "empirical":
        return f"{block.name} has no statistics: call form_statistics(output) before the backward pass"
    return (
        f"the statistics of {block.name} were formed {formed} times in a step of accumulation_steps={expected}: "
        "call each layer once per forward pass, or exclude it"
    )
