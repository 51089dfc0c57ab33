"""The kernel matrix, a known solution, and how solutions are judged: always against the true kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from kinji.experiments.cases import H2ScalingCase
from kinji.hmatrix.geometry import place_points
from kinji.hmatrix.h2_matrix import H2Matrix
from kinji.hmatrix.kernels import Kernel, natural_diagonal, true_product
from kinji.hmatrix.krylov import extreme_eigenvalues

Row: TypeAlias = dict[str, int | float | str | bool]


@dataclass(frozen=True)
class Problem:
    """Points, the natural diagonal and the one in use, a known solution and its exact right-hand side, ``(N, 1)``."""

    points: Tensor
    natural: float
    diagonal: float
    x: Tensor
    b: Tensor

    def kernel(self) -> Kernel:
        """Return an evaluator whose count of entries starts at zero."""
        return Kernel("laplace", diagonal=self.diagonal)


def build_problem(case: H2ScalingCase, device: str, *, times_natural: float | None = None) -> Problem:
    """Choose the diagonal, of the case or a multiple of the natural one, and multiply a random solution with it."""
    points, cell_measure, dimension = place_points(case.geometry, case.n, device=device)
    natural = natural_diagonal("laplace", cell_measure, 1.0, dimension=dimension)
    # SC22: 1/(r + 1e-3/N) on the unit sphere, so 1000 N there and 1000 sqrt(N) on a sphere of radius sqrt(N)
    multiple = times_natural or (1.0 if case.diagonal == "natural" else 1000.0 * math.sqrt(case.n))
    x = torch.randn(case.n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(case.seed)).to(device)
    diagonal = multiple * natural
    return Problem(points, natural, diagonal, x, true_product(Kernel(diagonal=diagonal), points, x))


def judge(problem: Problem, solutions: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Measure residuals against the true kernel, and errors against the known solution, both relative."""
    columns = torch.cat(list(solutions.values()), dim=1)
    residuals = (true_product(problem.kernel(), problem.points, columns) - problem.b).norm(dim=0) / problem.b.norm()
    return {
        method: {"relative_residual": float(residual), "relative_error": error_of(problem, solution)}
        for (method, solution), residual in zip(solutions.items(), residuals, strict=True)
    }


def error_of(problem: Problem, solution: Tensor) -> float:
    """Return the error of a solution relative to the known one."""
    return float((solution - problem.x).norm() / problem.x.norm())


def describe_problem(problem: Problem, operator: H2Matrix) -> Row:
    """Say how hard the problem is: the condition number, and the error of dividing by the diagonal."""
    smallest, largest = extreme_eigenvalues(operator.matvec, problem.b)
    return {
        "diagonal_entry": problem.diagonal,
        "condition_number": largest / smallest,
        "diagonal_solve_relative_error": error_of(problem, problem.b / problem.diagonal),
    }
