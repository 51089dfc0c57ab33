"""Kernel matrices that are evaluated block by block, count their entries, and are never stored whole.

Dimension letters: P points of one side, Q points of the other side, N all points, K right-hand sides.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
from scipy.special import gammainc
from torch import Tensor

from kinji.hmatrix.geometry import CELL_AREA
from kinji.hmatrix.profiles import CODES, SQRT_3, product

KernelName = Literal["laplace", "yukawa", "gaussian", "exponential", "matern"]

FAR_AWAY = 1e160
"""Coordinate whose square overflows: a point out there has kernel value zero to every other point."""


class Kernel:
    """Radial kernel with an explicit diagonal; counts every entry it evaluates.

    Parameters
    ----------
    name : {"laplace", "yukawa", "gaussian", "exponential", "matern"}
        ``1/r``, ``exp(-r/s)/r``, ``exp(-(r/s)^2)``, ``exp(-r/s)`` (the Matérn covariance of smoothness 1/2, on which
        LORAPO was measured) or ``(1 + t) exp(-t)`` with ``t = sqrt(3) r/s`` (that of smoothness 3/2), with the length
        scale ``s``.
    diagonal : float, optional
        Entry of a point with itself, where ``1/r`` has no value. By default the `natural_diagonal` of a point that
        owns an area of 4 pi, as on the surfaces of `geometry`.
    length_scale : float
        ``s``, in units of the coordinates.

    Attributes
    ----------
    entries : int
        Number of entries evaluated since the kernel was made.

    Raises
    ------
    ValueError
        If the name is unknown, or the diagonal or the length scale is not positive and finite.
    """

    def __init__(
        self, name: KernelName = "laplace", *, diagonal: float | None = None, length_scale: float = 1.0
    ) -> None:
        natural = natural_diagonal(name, CELL_AREA, length_scale, dimension=2)
        if diagonal is not None and not 0.0 < diagonal < math.inf:
            raise ValueError(f"diagonal = {diagonal}: a positive-definite matrix needs a positive, finite one")
        self.name = name
        self.diagonal = natural if diagonal is None else diagonal
        self.length_scale = length_scale
        self.entries = 0

    def __call__(self, xP: Tensor, yQ: Tensor) -> Tensor:
        """Evaluate the block between two disjoint point sets.

        Parameters
        ----------
        xP, yQ : Tensor
            Coordinates, shapes ``(..., P, 3)`` and ``(..., Q, 3)``.

        Returns
        -------
        Tensor
            Entries, shape ``(..., P, Q)``.
        """
        distance = _distances(xP, yQ)
        self.entries += distance.numel()
        return _PROFILES[self.name](distance, self.length_scale)

    def self_block(self, xP: Tensor) -> Tensor:
        """Evaluate the block of a point set with itself, shape ``(..., P, P)``, diagonal included."""
        block = self(xP, xP)
        block.diagonal(dim1=-2, dim2=-1).fill_(self.diagonal)
        return block


def _distances(xP: Tensor, yQ: Tensor) -> Tensor:
    # torch.cdist takes a block of threads for each distance on a GPU
    squared = (xP[..., 0, None] - yQ[..., None, :, 0]).square_()
    for axis in (1, 2):
        difference = xP[..., axis, None] - yQ[..., None, :, axis]
        squared.addcmul_(difference, difference)
    return squared.sqrt_()


def natural_diagonal(name: KernelName, cell_measure: float, length_scale: float = 1.0, *, dimension: int) -> float:
    """Average a singular kernel over the disc or ball that one point owns; a smooth one has the value 1 at 0.

    With radius p and dimension d the average of ``1/r`` is ``d / ((d - 1) p)``, and that of ``exp(-r/s)/r`` is
    ``d s^(d-1) / p^d`` times the integral of ``t^(d-2) exp(-t)`` from 0 to p/s, which is a regularized incomplete
    gamma function.

    Parameters
    ----------
    name : str
        As in `Kernel`.
    cell_measure : float
        Area (dimension 2) or volume (dimension 3) that a point owns, as `geometry.place_points` says.
    length_scale : float
        ``s``, in units of the coordinates.
    dimension : int
        2 for a surface, 3 for a volume.

    Returns
    -------
    float
        Diagonal entry. A nugget is for the caller to add.

    Raises
    ------
    ValueError
        If the name is unknown, the dimension is neither 2 nor 3, or a length or measure is not positive and finite.
    """
    if name not in get_args(KernelName):
        raise ValueError(f"unknown kernel {name!r}: choose one of {', '.join(get_args(KernelName))}")
    if dimension not in (2, 3):
        raise ValueError(f"dimension = {dimension}: 2 for a surface, 3 for a volume")
    if not 0.0 < length_scale < math.inf:
        raise ValueError(f"length_scale = {length_scale}: it must be positive and finite")
    if not 0.0 < cell_measure < math.inf:
        raise ValueError(f"cell_measure = {cell_measure}: it must be positive and finite")
    radius = math.sqrt(cell_measure / math.pi) if dimension == 2 else math.cbrt(cell_measure * 3.0 / (4.0 * math.pi))
    if name == "laplace":
        return dimension / ((dimension - 1) * radius)
    if name == "yukawa":
        t = radius / length_scale
        return dimension / (radius * t ** (dimension - 1)) * float(gammainc(dimension - 1, t))
    return 1.0


def _laplace(distance: Tensor, _scale: float) -> Tensor:
    return distance.reciprocal_()


def _yukawa(distance: Tensor, scale: float) -> Tensor:
    return torch.exp(distance / -scale).div_(distance)


def _gaussian(distance: Tensor, scale: float) -> Tensor:
    return distance.div_(scale).square_().neg_().exp_()


def _exponential(distance: Tensor, scale: float) -> Tensor:
    return distance.div_(-scale).exp_()


def _matern(distance: Tensor, scale: float) -> Tensor:
    t = distance.mul_(SQRT_3).div_(scale)
    return torch.exp(-t).mul_(1.0 + t).masked_fill_(t.isinf(), 0.0)  # where the product is infinity times 0


_PROFILES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "laplace": _laplace,
    "yukawa": _yukawa,
    "gaussian": _gaussian,
    "exponential": _exponential,
    "matern": _matern,
}


def batches(count: int, item_bytes: int, device: torch.device) -> Iterator[slice]:
    """Cut ``range(count)`` into slices whose items fit the cache of a CPU, or a share of a GPU's memory."""
    budget = 1 << 30 if device.type == "cuda" else 1 << 24
    step = max(1, budget // max(1, item_bytes))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def true_product(kernel: Kernel, points: Tensor, xNK: Tensor) -> Tensor:
    """Multiply the true kernel matrix, evaluated in passing, with one or more vectors.

    This is the O(N^2) reference that accuracy is judged against; its entries are not counted. On a CPU it is one
    compiled loop over numba's threads, with the same bits for any number of them.

    Parameters
    ----------
    kernel : Kernel
        Kernel and diagonal.
    points : Tensor
        Shape ``(N, 3)``, float64.
    xNK : Tensor
        Vectors, shape ``(N, K)``, float64.

    Returns
    -------
    Tensor
        Product, shape ``(N, K)``.

    Raises
    ------
    TypeError
        If points or vectors are not float64.
    ValueError
        If a shape is wrong or a vector is not finite.
    """
    _check_product(points, xNK)
    if points.device.type != "cpu":
        return product_by_rows(kernel, points, xNK)
    productKN = xNK.new_empty(xNK.shape[1], len(points))
    arrays = (points.T.contiguous().numpy(), xNK.contiguous().numpy(), productKN.numpy())
    product(CODES[kernel.name], kernel.length_scale, kernel.diagonal, *arrays)
    return productKN.T.contiguous()


def _check_product(points: Tensor, xNK: Tensor) -> None:
    if points.dtype != torch.float64 or xNK.dtype != torch.float64:
        raise TypeError(f"points are {points.dtype} and vectors {xNK.dtype}: convert both to torch.float64")
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points have shape {tuple(points.shape)}: pass one row of 3 coordinates per point")
    if xNK.ndim != 2 or len(xNK) != len(points):
        raise ValueError(f"vectors have shape {tuple(xNK.shape)}: pass {len(points)} rows, one per point, as a matrix")
    bad = ~torch.isfinite(xNK).all(dim=1)
    if bad.any():
        raise ValueError(f"row {int(bad.nonzero()[0])} of the vectors is not finite")


def product_by_rows(kernel: Kernel, points: Tensor, xNK: Tensor) -> Tensor:
    """Do the same with torch, some rows of the matrix at a time: the way of a GPU."""
    counted = kernel.entries
    productNK = torch.empty_like(xNK)
    for rows in batches(len(points), 8 * len(points), points.device):
        block = kernel(points[rows], points)
        block.diagonal(offset=rows.start).fill_(kernel.diagonal)
        torch.matmul(block, xNK, out=productNK[rows])
    kernel.entries = counted
    return productNK
