"""Near and far pairs of boxes, level by level, and the sample of the far field of each box.

The matrix is symmetric: only pairs (i, j) with i >= j are listed.

Dimension letters: B boxes of a level, P pairs, S samples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinji.hmatrix.cluster_tree import ClusterTree

Pairs = NDArray[np.int64]


@dataclass(frozen=True)
class LevelPairs:
    """Pairs of one level whose parents are near, shape ``(P, 2)``; ``near`` starts with (0, 0), (1, 1), ..."""

    near: Pairs
    far: Pairs


def find_pairs(tree: ClusterTree, *, theta: float) -> list[LevelPairs]:
    """Split the matrix into near and far blocks by a dual traversal of the tree.

    Boxes are far from each other when ``|c_i - c_j|^2 > theta (|r_i|^2 + |r_j|^2)`` with the centres ``c``
    and the half diagonals ``r``; ``theta = 0`` makes all distinct boxes far, which is the HSS structure.

    Parameters
    ----------
    tree : ClusterTree
        The boxes.
    theta : float
        Admissibility constant, at least 0.

    Returns
    -------
    list of LevelPairs
        Root first. Each pair of points lies in one far block of one level or in one near block of the last
        level.

    Raises
    ------
    ValueError
        If ``theta`` is negative.
    """
    if not theta >= 0.0:
        raise ValueError(f"theta = {theta}: the admissibility constant must not be negative")
    root = np.zeros((1, 2), dtype=np.int64)
    levels = [LevelPairs(near=root, far=root[:0])]
    for centres, squared_radii in zip(tree.centres[1:], tree.squared_radii[1:], strict=True):
        i, j = _children(levels[-1].near).T
        squared_distance = np.square(centres[i] - centres[j]).sum(axis=1)
        far = (i != j) & (squared_distance > theta * (squared_radii[i] + squared_radii[j]))
        pairs = np.stack([i, j], axis=1)
        own = np.arange(len(centres))[:, None].repeat(2, axis=1)
        levels.append(LevelPairs(near=np.concatenate([own, pairs[~far & (i != j)]]), far=pairs[far]))
    return levels


def _children(pairs: Pairs) -> Pairs:
    offsets = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    children = (2 * pairs[:, None, :] + offsets).reshape(-1, 2)
    return children[children[:, 0] >= children[:, 1]]


def coarsest_far_level(levels: list[LevelPairs]) -> int:
    """First level, from the root, that has far pairs; ``len(levels)`` when the matrix is dense throughout."""
    return next((level for level, pairs in enumerate(levels) if len(pairs.far)), len(levels))


def sample_far_fields(tree: ClusterTree, pairs: list[LevelPairs], *, samples: int) -> dict[int, Tensor]:
    """Pick points that stand for the far field of each box, the denser the closer they are.

    Half of the sample comes in even strides from the boxes that become far at the level itself, half from the
    sample of the parent box: every coarser, more distant ring gets half the points of the one before. A far field
    that fits is taken whole.

    Parameters
    ----------
    tree : ClusterTree
        The boxes.
    pairs : list of LevelPairs
        Block structure, root first.
    samples : int
        Number of points per box, S.

    Returns
    -------
    dict of int to Tensor
        Per level from the coarsest that has far pairs: rows of ``tree.points``, shape ``(B, S)`` or less;
        `ClusterTree.nowhere` fills up.
    """
    top = coarsest_far_level(pairs)
    inherited = torch.empty(1 << top, 0, dtype=torch.int64, device=tree.members.device)
    fields = {}
    for level in range(top, tree.depth + 1):
        own = _sample_far_boxes(tree, pairs[level].far, 1 << level, samples - inherited.shape[1])
        fields[level] = torch.cat([own, inherited], dim=1)
        stride = 1 if 2 * fields[level].shape[1] <= samples else 2
        inherited = fields[level][:, ::stride].repeat_interleave(2, dim=0)
    return fields


def _sample_far_boxes(tree: ClusterTree, far: Pairs, boxes: int, samples: int) -> Tensor:
    width = tree.members.numel() // boxes
    partners, count = _padded_partners(far, boxes)
    taken = np.minimum(count * width, samples)[:, None]
    rank = np.arange(taken.max(initial=0))
    place = (2 * rank + 1) * (count * width)[:, None] // np.maximum(2 * taken, 1)
    place = np.where(rank < taken, place, 0)
    place = np.take_along_axis(partners, place // width, axis=1) * width + place % width
    rows = tree.members.flatten()[torch.from_numpy(place).to(tree.members.device)]
    return rows.masked_fill(torch.from_numpy(rank >= taken).to(rows.device), tree.nowhere)


def _padded_partners(pairs: Pairs, boxes: int) -> tuple[Pairs, Pairs]:
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    count = np.bincount(both[:, 0], minlength=boxes)
    padded = np.zeros((boxes, max(1, count.max())), dtype=np.int64)
    padded[both[:, 0], np.arange(len(both)) - (np.cumsum(count) - count)[both[:, 0]]] = both[:, 1]
    return padded, count
