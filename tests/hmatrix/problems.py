"""Point sets, kernels and dense references that the tests share."""

import torch
from torch import Tensor

from kinji.hmatrix.geometry import fibonacci_sphere
from kinji.hmatrix.kernels import Kernel, KernelName

LENGTH_SCALES: dict[KernelName, float] = {"laplace": 1.0, "yukawa": 8.0, "gaussian": 2.0}


def dense_matrix(kernel: Kernel, points: Tensor) -> Tensor:
    """The whole kernel matrix, entry by entry from the definition."""
    distance = (points[:, None, :] - points[None, :, :]).square().sum(dim=2).sqrt()
    distance.fill_diagonal_(1.0)
    scaled = distance / kernel.length_scale
    profile = {
        "laplace": 1.0 / distance,
        "yukawa": torch.exp(-scaled) / distance,
        "gaussian": torch.exp(-scaled.square()),
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
    sides_matrix = torch.randn(n, sides, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return kernel, points, dense_matrix(kernel, points), sides_matrix


def relative_error(approximate: Tensor, exact: Tensor) -> float:
    """Frobenius norm of the difference over that of the exact."""
    return float((approximate - exact).norm() / exact.norm())
