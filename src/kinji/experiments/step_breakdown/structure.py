"""What no clock decides: sizes of the factors, who owns which layer, and whether the number of ranks matters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

from kinji.experiments.step_breakdown.model import GPUS
from kinji.experiments.step_breakdown.trials import Row
from kinji.kfac import KFAC, Communicator, SerialCommunicator, TorchCommunicator
from kinji.kfac.blocks import Block, KroneckerBlock, UnitWiseBlock, fisher_blocks
from kinji.kfac.ownership import OwnershipRule, assign_owners, makespan
from kinji.training.models import ResidualNetwork


def structure_rows(model: nn.Module) -> Iterator[Row]:
    """Yield the factors of a model's layers, and how evenly they can be shared."""
    blocks = fisher_blocks(model, "unit-wise")
    yield from (row for block in blocks for row in _factor_rows(block))
    yield from _ownership_rows(blocks)


def _factor_rows(block: Block) -> Iterator[Row]:
    """Yield the size and number of the symmetric matrices that a block's statistics are made of."""
    row: Row = {"quantity": "factor", "layer": block.name}
    if isinstance(block, KroneckerBlock):
        yield row | {"factor": "A", "size": block.inputs, "matrices": 1}
        yield row | {"factor": "G", "size": block.outputs, "matrices": 1}
    elif isinstance(block, UnitWiseBlock):
        yield row | {"factor": "unit-wise", "size": 2, "matrices": len(block.parameters[0])}


def _ownership_rows(blocks: list[Block]) -> Iterator[Row]:
    """Yield the busiest rank's share of the inversion work for each rule and number of ranks."""
    costs = [block.flops for block in blocks]
    for ranks in GPUS:
        for rule in get_args(OwnershipRule):
            busiest = makespan(costs, assign_owners(costs, ranks, rule))
            row: Row = {"quantity": "ownership", "rule": rule, "owning_ranks": ranks, "blocks": len(blocks)}
            yield row | {"busiest_flops": busiest, "all_flops": sum(costs)}


def rank_count_difference(device: str, steps: int = 3, images_per_rank: int = 4) -> float:
    """Compare the weights of a small network trained in double precision on all ranks and on one.

    Returns
    -------
    float
        Largest relative difference of a parameter's norm. Batch normalizations are frozen: as published, each
        rank would normalize by its own part of the batch.
    """
    shared, alone = (_train(device, steps, images_per_rank, c) for c in (TorchCommunicator(), SerialCommunicator()))
    return max(((one - other).norm() / other.norm()).item() for one, other in zip(shared, alone, strict=True))


def _train(device: str, steps: int, images_per_rank: int, communicator: Communicator) -> list[Tensor]:
    """Train on this rank's part of the batch, or on all of it if the communicator knows no other rank."""
    torch.manual_seed(0)
    model = ResidualNetwork((4, 8)).double().to(device).eval()
    optimizer = KFAC(model, lr=0.1, damping=1e-2, communicator=communicator)
    for _ in range(steps):
        images = torch.randn(images_per_rank * distributed.get_world_size(), 1, 8, 8, dtype=torch.float64)
        mine = slice(communicator.rank, None, communicator.size)
        optimizer.zero_grad()
        labels = torch.arange(len(images)) % 10
        cross_entropy(model(images[mine].to(device)), labels[mine].to(device)).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]
