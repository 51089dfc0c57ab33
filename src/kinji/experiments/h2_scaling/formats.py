"""The block structure of the formats, with the rank of each block: of the true matrix, by singular values.

"blr" and "blr2" cut the matrix into tiles of one size, "hodlr" and "hss" halve it towards the diagonal, "h" and "h2" do
so where boxes are near each other. In "blr", "hodlr" and "h" each block has bases of its own; in the others a box has
one basis for all of its far blocks, in "hss" and "h2" for those of the boxes around it as well (nested bases).

Dimension letters: N points, B boxes of a level, M points of a box.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from kinji.experiments.cases import H2ScalingCase
from kinji.experiments.context import Context
from kinji.experiments.h2_scaling.problem import Problem, Row
from kinji.hmatrix.admissibility import LevelPairs, Pairs, find_pairs
from kinji.hmatrix.cluster_tree import build_tree


def describe_formats(case: H2ScalingCase, context: Context, problem: Problem) -> Iterator[Row]:
    """Yield every block of the lower triangle in every format; ``block_rank`` is 0 where it is dense."""
    if not case.structure_leaf:
        return
    tree = build_tree(problem.points, leaf_size=case.structure_leaf)
    matrixNN = problem.kernel().self_block(tree.points[tree.members.flatten()])
    halved, near_or_far = find_pairs(tree, theta=0.0), find_pairs(tree, theta=case.theta)
    structures = {
        ("blr", "blr2"): _tiles(tree.depth),
        ("hodlr", "hss"): halved,
        ("h", "h2"): near_or_far,
    }
    for (own, shared), levels in context.progress.track(structures.items(), "formats"):
        for i, j in levels[-1].near:
            for method in (own, shared):
                yield _row(method, tree.depth, i, j, 0)
        for level, (far, ofBlock, ofBox) in enumerate(_ranks(matrixNN, levels, case.tolerance)):
            for (i, j), rank in zip(far, ofBlock, strict=True):
                yield _row(own, level, i, j, rank)
                yield _row(shared, level, i, j, max(ofBox[i], ofBox[j]))


def _row(method: str, level: int, i: int, j: int, rank: int) -> Row:
    about: Row = {"level": level, "row": int(i), "column": int(j), "block_rank": rank}
    return {"quantity": "block", "method": method, **about}


def _tiles(depth: int) -> list[LevelPairs]:
    """Return the pairs of a flat structure: none above the leaves, where all distinct boxes are far."""
    none, boxes = np.empty((0, 2), dtype=np.int64), np.arange(1 << depth)
    leaves = LevelPairs(near=np.stack([boxes, boxes], axis=1), far=np.argwhere(boxes[:, None] > boxes))
    return [LevelPairs(none, none)] * depth + [leaves]


def _ranks(
    matrixNN: Tensor, levels: list[LevelPairs], tolerance: float
) -> Iterator[tuple[Pairs, list[int], list[int]]]:
    """Yield, from the root, the far pairs, the rank of each block, and that of the far field of each box."""
    farBN = torch.zeros(1, len(matrixNN), dtype=torch.bool, device=matrixNN.device)
    for level, pairs in enumerate(levels):
        boxes = 1 << level
        farBN = farBN.repeat_interleave(boxes // len(farBN), dim=0)
        columns = farBN.view(boxes, boxes, -1)
        for i, j in pairs.far:
            columns[i, j] = columns[j, i] = True
        blocks = matrixNN.view(boxes, len(matrixNN) // boxes, boxes, -1)
        of_block = [_rank(blocks[i, :, j], tolerance) for i, j in pairs.far]
        of_box = [_rank(blocks[i].flatten(1)[:, farBN[i]], tolerance) for i in range(boxes)] if of_block else []
        yield pairs.far, of_block, of_box


def _rank(matrix: Tensor, tolerance: float) -> int:
    """Return how many singular values are above the tolerance, itself above 1e-7, times the largest.

    They are the roots of the eigenvalues of ``A A^T``, which are right to 1e-15 of the largest.
    """
    squares = torch.linalg.eigvalsh(matrix @ matrix.mT)
    return int((squares > tolerance**2 * squares[-1:]).sum())
