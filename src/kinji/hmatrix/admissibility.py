"""Near and far pairs of boxes, level by level, and the sample of the far field of each box.

The matrix is symmetric: only pairs (i, j) with i >= j are listed.

Dimension letters: B boxes of a level, P pairs, S samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinji.hmatrix.cluster_tree import ClusterTree

Pairs = NDArray[np.int64]

CANDIDATES = 4
"""Points to choose a sample from, over its size."""


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
    for centres, half_widths in zip(tree.centres[1:], tree.half_widths[1:], strict=True):
        squared_radii = np.square(half_widths).sum(axis=1)
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


def sample_far_fields(
    tree: ClusterTree, pairs: list[LevelPairs], *, samples: int, parts: Sequence[slice] | None = None
) -> dict[int, Tensor]:
    """Pick points that stand for the far field of each box, the denser the closer they are.

    Candidates are points, in even strides, of the boxes that become far at the level itself, and the sample of the
    parent box. In the order of their distance d from the box, sample number t is about candidate ``t + c t^2``: the
    closest are all taken, since far boxes may touch and the kernel is least smooth there.

    Parameters
    ----------
    tree : ClusterTree
        The boxes.
    pairs : list of LevelPairs
        Block structure, root first.
    samples : int
        Number of points per box, S.
    parts : sequence of slice, optional
        Per level, the boxes to return the samples of, their parents among them; all by default.

    Returns
    -------
    dict of int to Tensor
        Per level from the coarsest that has far pairs: rows of ``tree.points``, shape ``(B, S)`` or less;
        `ClusterTree.nowhere` fills up.
    """
    top, parts = coarsest_far_level(pairs), parts or [slice(0, 1 << level) for level in range(tree.depth + 1)]
    fields: dict[int, Tensor] = {}
    for level in range(top, tree.depth + 1):
        boxes = np.arange(1 << level)[parts[level]]
        rows = _stride_far_boxes(tree, pairs[level].far, 1 << level, CANDIDATES * samples, parts[level])
        if level > top:
            rows = torch.cat([rows, fields[level - 1][boxes // 2 - parts[level - 1].start]], dim=1)
        fields[level] = _pick_closest(tree, level, rows, samples, parts[level])
    return fields


def _pick_closest(tree: ClusterTree, level: int, rowsBC: Tensor, samples: int, part: slice) -> Tensor:
    distanceBC = _distance_from_boxes(tree, level, rowsBC, part)
    _, order = distanceBC.sort(dim=1, stable=True)
    count = (rowsBC != tree.nowhere).sum(dim=1, keepdim=True)
    rank = torch.arange(min(samples, rowsBC.shape[1]), device=rowsBC.device)
    spread = (rank / max(1, samples - 1)) ** 2
    place = rank + ((count - samples).clamp(min=0) * spread).long()
    return rowsBC.gather(1, order.gather(1, place.clamp(max=rowsBC.shape[1] - 1)))


def _distance_from_boxes(tree: ClusterTree, level: int, rowsBC: Tensor, part: slice) -> Tensor:
    """Squared distance of points from the bounding boxes, a column at a time."""
    squared = torch.zeros(rowsBC.shape, dtype=torch.float64, device=rowsBC.device)
    for axis in range(3):
        centre, half = (
            torch.from_numpy(x[level][part, axis, None]).to(rowsBC.device) for x in (tree.centres, tree.half_widths)
        )
        squared += ((tree.points[:, axis][rowsBC] - centre).abs() - half).clamp(min=0.0).square()
    return squared


def _stride_far_boxes(tree: ClusterTree, far: Pairs, boxes: int, most: int, part: slice) -> Tensor:
    width = tree.members.numel() // boxes
    partners, count = _padded_partners(far, boxes)
    taken = np.minimum(count * width, most)[:, None]
    rank = np.arange(taken.max(initial=0))
    partners, count, taken = partners[part], count[part], taken[part]
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
