"""Digests of products under changes that leave exact arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kinji.experiments.cases import Int8DgemmCase
from kinji.experiments.context import Context
from kinji.experiments.int8_dgemm.operands import exponential
from kinji.experiments.int8_dgemm.sides import (
    NARROW,
    Multiply,
    Observation,
    digest,
    moduli_side,
    native_sides,
    slices_side,
)
from kinji.experiments.int8_dgemm.threads import limited_to

SLICES, MODULI = 9, 15


def compare_bits(case: Int8DgemmCase, context: Context, device: torch.device) -> Iterator[Observation]:
    """Yield a digest for each side and variation; one slice or modulus fewer must have others."""
    a, b = exponential(min(case.n, NARROW), case.n, 1.0, case.seed, device)
    schemes = [slices_side(SLICES), slices_side(SLICES - 1), moduli_side(MODULI), moduli_side(MODULI - 1)]
    for side in context.progress.track([*schemes, *native_sides(device)], "bits"):
        for variation, product in variations(side.multiply, a, b):
            about: Observation = {"method": side.method, "count": side.count, "variation": variation}
            yield {"quantity": "identity", **about, "digest": digest(product)}


def variations(multiply: Multiply, a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield A B by ways that would agree to the bit if no addition rounded."""
    order = torch.randperm(a.shape[1], generator=torch.Generator().manual_seed(0)).to(a.device)
    yield "reference", multiply(a, b)
    with limited_to(1):
        yield "one thread", multiply(a, b)
    yield "row blocks", torch.vstack([multiply(block, b) for block in a.chunk(5)])
    yield "column blocks", torch.hstack([multiply(a, block.contiguous()) for block in b.chunk(3, dim=1)])
    yield "summation order", multiply(a[:, order], b[order])
    yield "transposed", multiply(b.T.contiguous(), a.T.contiguous()).T
    yield "scaled by powers of two", multiply(a * 2.0**20, b * 2.0**-33) * 2.0**13
    more_a, more_b = torch.nn.functional.pad(a, (0, 13, 0, 7)), torch.nn.functional.pad(b, (0, 7, 0, 13))
    yield "padded", multiply(more_a, more_b)[: a.shape[0], : b.shape[1]]
