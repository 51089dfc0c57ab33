"""What depends on what: the task graphs of both solvers, and the bits of factors in a random order of the boxes."""

from __future__ import annotations

from dataclasses import replace

import torch

from kinji.experiments.h2_scaling.problem import Row
from kinji.hmatrix.basis import BasisLevel
from kinji.hmatrix.h2_ulv import H2Factor, eliminate_complements, lifted_blocks
from kinji.hmatrix.task_graph import TaskGraph


def describe_graph(method: str, graph: TaskGraph) -> Row:
    """Size, depth and width of a task graph."""
    return {
        "quantity": "task_graph",
        "method": method,
        "tasks": graph.tasks,
        "depth": graph.depth,
        "width": graph.width,
    }


def describe_independence(factor: H2Factor, seed: int) -> Row:
    """Factorize the leaf level again with boxes and pairs in a random order and compare the factors bit for bit."""
    level, on = factor.levels[0], factor.matrix.field.on
    boxes, pairs = len(level.lift), len(level.near)
    generator = torch.Generator().manual_seed(seed)
    order, others = torch.randperm(boxes, generator=generator), torch.randperm(pairs - boxes, generator=generator)
    shuffled = torch.cat([order, boxes + others]).to(level.near.device)
    order = order.to(level.near.device)
    basis = BasisLevel(*(array[order] for array in vars(level.basis).values()))
    again = replace(
        level,
        basis=basis,
        lift=level.lift[order],
        near=torch.argsort(order)[level.near][shuffled],
        blocks=level.blocks[shuffled],
    )
    complements, _, schur = eliminate_complements(on, again.blocks, basis, "cholesky", level=0)
    _, _, expected = eliminate_complements(on, level.blocks, level.basis, "cholesky", level=0)
    same = (
        torch.equal(complements.triangles, level.complements.triangles[order])
        and torch.equal(schur, expected[order])
        and torch.equal(lifted_blocks(on, again), lifted_blocks(on, level)[others.to(order.device)])
    )
    return {"quantity": "independence", "method": "h2_ulv", "boxes": boxes, "pairs": pairs, "identical": same}
