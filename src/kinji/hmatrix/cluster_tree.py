"""Balanced bisection of a point set into boxes of equal size.

Every level has boxes of one size, so that a level is one batch. Where N is no multiple of the number of
leaves, short leaves get a ghost: a point so far away that the kernel to every other point is zero, which
leaves an uncoupled row with the diagonal entry in the matrix and changes no other.

Dimension letters: N points, G ghosts, B boxes of a level, M points of a leaf.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinji.hmatrix.kernels import FAR_AWAY
from kinji.hmatrix.point_cloud import check_points


@dataclass(frozen=True, kw_only=True)
class ClusterTree:
    """Perfect binary tree over a point set.

    Attributes
    ----------
    points : Tensor
        Coordinates of the points and, after them, the ghosts, shape ``(N + G, 3)``. The last ghost is in no
        leaf.
    size : int
        Number of true points, N.
    members : Tensor
        Row of ``points`` at each place of each leaf, shape ``(B, M)``; a box of a coarser level owns
        consecutive leaves.
    centres : list of ndarray
        Per level, root first: centres of the bounding boxes, shape ``(B, 3)``.
    half_widths : list of ndarray
        Per level: half edges of the bounding boxes, shape ``(B, 3)``.
    """

    points: Tensor
    size: int
    members: Tensor
    centres: list[NDArray[np.float64]]
    half_widths: list[NDArray[np.float64]]

    @property
    def depth(self) -> int:
        """Level of the leaves; the root is level 0."""
        return len(self.centres) - 1

    @property
    def nowhere(self) -> int:
        """Row of the ghost that belongs to no leaf: it fills places of index arrays that must stay empty."""
        return len(self.points) - 1

    def scatter(self, xNK: Tensor) -> Tensor:
        """Bring vectors ``(N, K)`` into leaf order ``(B, M, K)``; ghosts get zero."""
        ghosts = xNK.new_zeros(len(self.points) - self.size, xNK.shape[1])
        return torch.cat([xNK, ghosts])[self.members]

    def gather(self, xBMK: Tensor) -> Tensor:
        """Bring leaf-ordered vectors ``(B, M, K)`` back to point order ``(N, K)``; ghosts are dropped."""
        flat = xBMK.new_empty(len(self.points), xBMK.shape[-1])
        flat[self.members.flatten()] = xBMK.flatten(0, 1)
        return flat[: self.size]


def build_tree(points: Tensor, *, leaf_size: int) -> ClusterTree:
    """Halve the point set at the median of each box's longest axis until the boxes have about ``leaf_size``
    points.

    Parameters
    ----------
    points : Tensor
        Distinct finite points, shape ``(N, 3)``, float64.
    leaf_size : int
        The depth is ``floor(log2(N / leaf_size))``, so leaves have ``leaf_size`` to ``2 leaf_size - 1``
        points.

    Returns
    -------
    ClusterTree
        One leaf when N is below ``2 leaf_size``.

    Raises
    ------
    TypeError, ValueError
        If the points are unusable (`point_cloud.check_points`) or ``leaf_size`` is below 1.
    """
    check_points(points)
    if leaf_size < 1:
        raise ValueError(f"leaf_size = {leaf_size}: a leaf needs at least one point")
    host = points.cpu().numpy()
    depth = max(0, (len(host) // leaf_size).bit_length() - 1)
    boxN = np.zeros(len(host), dtype=np.int64)
    centres, half_widths = [], []
    for level in range(depth + 1):
        low, high = _bounds(host, boxN, 1 << level)
        centres.append((low + high) / 2.0)
        half_widths.append((high - low) / 2.0)
        if level < depth:
            boxN = _bisect(host, boxN, (high - low).argmax(axis=1))
    members = torch.from_numpy(_pad_leaves(boxN, 1 << depth)).to(points.device)
    ghosts = torch.arange(1, members.numel() - len(host) + 2, dtype=points.dtype, device=points.device)
    return ClusterTree(
        points=torch.cat([points, FAR_AWAY * ghosts[:, None].expand(-1, 3)]),
        size=len(host),
        members=members,
        centres=centres,
        half_widths=half_widths,
    )


def _bounds(
    host: NDArray[np.float64], boxN: NDArray[np.int64], boxes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = np.argsort(boxN, kind="stable")
    starts = np.searchsorted(boxN[order], np.arange(boxes))
    return np.minimum.reduceat(host[order], starts), np.maximum.reduceat(host[order], starts)


def _bisect(host: NDArray[np.float64], boxN: NDArray[np.int64], axisB: NDArray[np.int64]) -> NDArray[np.int64]:
    coordinate = np.take_along_axis(host, axisB[boxN][:, None], axis=1)[:, 0]
    order = np.lexsort((coordinate, boxN))
    count = np.bincount(boxN, minlength=len(axisB))
    start = np.cumsum(count) - count
    place = np.arange(len(host)) - start[boxN[order]]
    child = np.empty_like(boxN)
    child[order] = 2 * boxN[order] + (place >= (count[boxN[order]] + 1) // 2)
    return child


def _pad_leaves(boxN: NDArray[np.int64], boxes: int) -> NDArray[np.int64]:
    count = np.bincount(boxN, minlength=boxes)
    order = np.argsort(boxN, kind="stable")
    place = np.arange(len(boxN)) - (np.cumsum(count) - count)[boxN[order]]
    members = np.full((boxes, count.max()), -1, dtype=np.int64)
    members[boxN[order], place] = order
    empty = members < 0
    members[empty] = len(boxN) + np.arange(empty.sum())
    return members
