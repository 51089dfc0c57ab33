"""Point sets, kernels and dense references that the tests share."""

import math

import torch
from torch import Tensor

from kinji.hmatrix.geometry import fibonacci_sphere
from kinji.hmatrix.h2_ulv import FactorLevel
from kinji.hmatrix.kernels import Kernel, KernelName

LENGTH_SCALES: dict[KernelName, float] = {"laplace": 1.0, "yukawa": 8.0, "gaussian": 2.0}
ALL_LENGTH_SCALES: dict[KernelName, float] = {**LENGTH_SCALES, "exponential": 6.0, "matern": 4.0}


def dense_matrix(kernel: Kernel, points: Tensor) -> Tensor:
    """The whole kernel matrix, entry by entry from the definition."""
    distance = (points[:, None, :] - points[None, :, :]).square().sum(dim=2).sqrt()
    distance.fill_diagonal_(1.0)
    scaled = distance / kernel.length_scale
    profile = {
        "laplace": 1.0 / distance,
        "yukawa": torch.exp(-scaled) / distance,
        "gaussian": torch.exp(-scaled.square()),
        "exponential": torch.exp(-scaled),
        "matern": (1.0 + math.sqrt(3.0) * scaled) * torch.exp(-math.sqrt(3.0) * scaled),
    }
    return profile[kernel.name].fill_diagonal_(kernel.diagonal)


def cube_points(n: int, seed: int = 0) -> Tensor:
    """Random points in a cube, one a unit of volume."""
    generator = torch.Generator().manual_seed(seed)
    return n ** (1 / 3) * torch.rand(n, 3, dtype=torch.float64, generator=generator)


def sphere_problem(
    n: int, *, diagonal: float = 10.0, name: KernelName = "laplace", sides: int = 2
) -> tuple[Kernel, Tensor, Tensor, Tensor]:
    """Kernel, points, dense matrix and right-hand sides."""
    points = fibonacci_sphere(n)
    kernel = Kernel(name, diagonal=diagonal, length_scale=LENGTH_SCALES[name])
    return kernel, points, dense_matrix(kernel, points), normal(n, sides, seed=1)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normally distributed numbers, the same in every run."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def relative_error(approximate: Tensor, exact: Tensor) -> float:
    """Frobenius norm of the difference over that of the exact."""
    return float((approximate - exact).norm() / exact.norm())


def assembled(blocks: Tensor, pairs: Tensor, boxes: int, *, mirrored: bool = True) -> Tensor:
    """Blocks of pairs (i, j), i >= j, at their places in the whole matrix; with their transposes unless told."""
    size = blocks.shape[1]
    whole = blocks.new_zeros(boxes, size, boxes, size)
    for (i, j), block in zip(pairs.tolist(), blocks, strict=True):
        whole[i, :, j] = block
        if mirrored and i != j:
            whole[j, :, i] = block.mT
    return whole.reshape(boxes * size, boxes * size)


def complement_and_lift(level: FactorLevel) -> tuple[Tensor, Tensor]:
    """``C`` and ``U = E - C N`` of a level as block-diagonal matrices, from the order and the interpolation."""
    complements, lifts = [], []
    rank = level.basis.rank
    for order, T, N in zip(level.basis.order, level.basis.interpolation, level.lift, strict=True):
        C, U = T.new_zeros(len(order), len(T)), T.new_zeros(len(order), rank)
        C[order[rank:]] = torch.eye(len(T), dtype=T.dtype)
        C[order[:rank]] = -T.mT
        U[order[:rank]] = torch.eye(rank, dtype=T.dtype)
        complements.append(C)
        lifts.append(U - C @ N)
    return torch.block_diag(*complements), torch.block_diag(*lifts)
