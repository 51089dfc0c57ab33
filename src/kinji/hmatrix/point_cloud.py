"""What can be told of points alone: whether a kernel matrix exists on them, and what each of them owns."""

import math

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

NEIGHBOURS = 16
"""Neighbours of a point that say how densely the points around it lie."""


def check_points(points: Tensor) -> None:
    """Refuse point sets on which a kernel matrix is undefined or singular.

    Parameters
    ----------
    points : Tensor
        Candidate point set, shape ``(n, 3)``, float64.

    Raises
    ------
    TypeError
        If the points are not float64.
    ValueError
        If the shape is wrong, a coordinate is not finite, or two points coincide.
    """
    if points.dtype != torch.float64:
        raise TypeError(f"points are {points.dtype}: convert them to torch.float64")
    if points.ndim != 2 or points.shape[1] != 3 or points.shape[0] == 0:
        raise ValueError(f"points have shape {tuple(points.shape)}: pass one row of 3 coordinates per point")
    bad = ~torch.isfinite(points).all(dim=1)
    if bad.any():
        raise ValueError(f"point {int(bad.nonzero()[0])} has a coordinate that is not finite: remove or mend it")
    order = _lexicographic_order(points + 0.0)  # a sort of bits, as on a GPU, tells -0.0 from 0.0
    twins = (points[order[1:]] == points[order[:-1]]).all(dim=1).nonzero().flatten()
    if twins.numel():
        at = twins[order[twins].argmin()]
        raise ValueError(
            f"points {int(order[at])} and {int(order[at + 1])} coincide: merge duplicates, their rows are equal"
        )


def _lexicographic_order(points: Tensor) -> Tensor:
    order = torch.arange(len(points), device=points.device)
    for axis in (2, 1, 0):
        order = order[points[order, axis].argsort(stable=True)]
    return order


def measure_cells(points: Tensor, *, dimension: int) -> float:
    """Estimate the area or volume that a point owns where only the points are known, such as from a file.

    A disc or ball up to neighbour j holds about j + 1/2 cells: the mean over 16 neighbours, the median over all points.
    With 16384 points it is within 7 % on each of `GEOMETRIES`; with 1500, 24 % low on the molecule.

    Parameters
    ----------
    points : Tensor
        At least two points that cover a surface or volume evenly, shape ``(n, 3)``.
    dimension : int
        2 for a surface, 3 for a volume.

    Returns
    -------
    float
        Area or volume in squared or cubed units of the coordinates.

    Raises
    ------
    ValueError
        If the dimension is neither or there are fewer than two points.
    """
    if dimension not in (2, 3):
        raise ValueError(f"dimension = {dimension}: 2 for a surface, 3 for a volume")
    if len(points) < 2:
        raise ValueError(f"{len(points)} point: one point alone does not show what it owns")
    neighbours = min(NEIGHBOURS, len(points) - 1)
    host = points.cpu().numpy()
    radiusNJ = cKDTree(host).query(host, k=np.arange(2, neighbours + 2))[0]  # the first neighbour is the point itself
    cellsJ = 1.5 + np.arange(neighbours)
    unit = math.pi if dimension == 2 else 4.0 / 3.0 * math.pi
    return unit * float(np.median(np.mean(radiusNJ**dimension, axis=1))) / float(cellsJ.mean())
