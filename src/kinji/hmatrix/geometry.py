"""Point sets of the boundary-integral test problems, and the checks every point set must pass."""

import math

import torch
from torch import Tensor


def fibonacci_sphere(n: int, *, device: str = "cpu") -> Tensor:
    """Spread ``n`` points evenly over a sphere of radius ``sqrt(n)``.

    Parameters
    ----------
    n : int
        Number of points, at least 1.
    device : str
        Torch device of the result.

    Returns
    -------
    Tensor
        Points, shape ``(n, 3)``, float64. Each owns an area of 4 pi, whatever ``n``.

    Raises
    ------
    ValueError
        If ``n`` is below 1.

    References
    ----------
    Gonzalez, "Measurement of areas on a sphere using Fibonacci and latitude-longitude lattices",
    Mathematical Geosciences 42 (2010).
    """
    if n < 1:
        raise ValueError(f"n = {n}: a sphere needs at least one point")
    index = torch.arange(n, dtype=torch.float64, device=device)
    height = 1.0 - (2.0 * index + 1.0) / n
    longitude = index * (math.pi * (3.0 - math.sqrt(5.0)))
    ring = torch.sqrt(1.0 - height.square())
    unit = torch.stack([ring * torch.cos(longitude), ring * torch.sin(longitude), height], dim=1)
    return math.sqrt(n) * unit


def self_term(area_per_point: float) -> float:
    """Average of ``1/r`` over the disc that one surface point owns: the natural diagonal of the kernel.

    A disc of radius ``p`` has the integral ``2 pi p`` and the area ``pi p^2``, so the average is ``2 / p``.

    Parameters
    ----------
    area_per_point : float
        Surface area divided by the number of points, in squared units of length.

    Returns
    -------
    float
        Diagonal entry in inverse units of length; 1 for `fibonacci_sphere`.
    """
    return 2.0 / math.sqrt(area_per_point / math.pi)


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
    _, group, count = torch.unique(points, dim=0, return_inverse=True, return_counts=True)
    twins = (count[group] > 1).nonzero().flatten()
    if twins.numel():
        twin = (group == group[twins[0]]).nonzero().flatten()[:2].tolist()
        raise ValueError(f"points {twin[0]} and {twin[1]} coincide: merge duplicates, their rows are equal")
