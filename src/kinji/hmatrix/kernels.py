"""Kernel matrices that are evaluated block by block, count their entries, and are never stored whole.

Dimension letters: P points of one side, Q points of the other side, N all points, K right-hand sides.
"""

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

KernelName = Literal["laplace", "yukawa", "gaussian"]

FAR_AWAY = 1e160
"""Coordinate whose square overflows: a point out there has kernel value zero to every other point."""


class Kernel:
    """Radial kernel with an explicit diagonal; counts every entry it evaluates.

    Parameters
    ----------
    name : {"laplace", "yukawa", "gaussian"}
        ``1/r``, ``exp(-r/s)/r`` or ``exp(-(r/s)^2)`` with the length scale ``s``.
    diagonal : float
        Entry of a point with itself, where ``1/r`` has no value. See `geometry.self_term`.
    length_scale : float
        ``s``, in units of the coordinates.

    Attributes
    ----------
    entries : int
        Number of entries evaluated since the kernel was made.

    Raises
    ------
    ValueError
        If the name is unknown, the diagonal is not positive, or the length scale is not positive.
    """

    def __init__(self, name: KernelName = "laplace", *, diagonal: float, length_scale: float = 1.0) -> None:
        if name not in get_args(KernelName):
            raise ValueError(f"unknown kernel {name!r}: choose one of {', '.join(get_args(KernelName))}")
        if not diagonal > 0.0:
            raise ValueError(f"diagonal = {diagonal}: a positive-definite matrix needs a positive one")
        if not length_scale > 0.0:
            raise ValueError(f"length_scale = {length_scale}: it must be positive")
        self.name = name
        self.diagonal = diagonal
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
        distance = torch.cdist(xP, yQ, compute_mode="donot_use_mm_for_euclid_dist")
        self.entries += distance.numel()
        return _PROFILES[self.name](distance, self.length_scale)

    def self_block(self, xP: Tensor) -> Tensor:
        """Evaluate the block of a point set with itself, shape ``(..., P, P)``, diagonal included."""
        block = self(xP, xP)
        block.diagonal(dim1=-2, dim2=-1).fill_(self.diagonal)
        return block


def _laplace(distance: Tensor, _scale: float) -> Tensor:
    return distance.reciprocal_()


def _yukawa(distance: Tensor, scale: float) -> Tensor:
    return torch.exp(distance / -scale).div_(distance)


def _gaussian(distance: Tensor, scale: float) -> Tensor:
    return distance.div_(scale).square_().neg_().exp_()


_PROFILES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "laplace": _laplace,
    "yukawa": _yukawa,
    "gaussian": _gaussian,
}


def batches(count: int, item_bytes: int, device: torch.device) -> Iterator[slice]:
    """Cut ``range(count)`` into slices whose items fit the cache of a CPU, or a share of a GPU's memory."""
    budget = 1 << 30 if device.type == "cuda" else 1 << 24
    step = max(1, budget // max(1, item_bytes))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def true_product(kernel: Kernel, points: Tensor, xNK: Tensor) -> Tensor:
    """Multiply the true kernel matrix, evaluated in passing, with one or more vectors.

    This is the O(N^2) reference that accuracy is judged against; its entries are not counted.

    Parameters
    ----------
    kernel : Kernel
        Kernel and diagonal.
    points : Tensor
        Shape ``(N, 3)``.
    xNK : Tensor
        Vectors, shape ``(N, K)``.

    Returns
    -------
    Tensor
        Product, shape ``(N, K)``.
    """
    counted = kernel.entries
    product = torch.empty_like(xNK)
    for rows in batches(len(points), 8 * len(points), points.device):
        block = kernel(points[rows], points)
        block.diagonal(offset=rows.start).fill_(kernel.diagonal)
        torch.matmul(block, xNK, out=product[rows])
    kernel.entries = counted
    return product
