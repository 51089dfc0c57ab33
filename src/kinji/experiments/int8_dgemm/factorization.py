"""Backward error against condition: Cholesky and LU with low-precision, native and emulated trailing updates.

Panels are FP64 whatever the product, so that the rows differ in the product alone. Matrices of order n, by their
2-norm condition number kappa:

``spectrum``
    Q D Q^T with Q the orthogonal factor of a Gaussian matrix and eigenvalues falling geometrically from 1 to 1/kappa.
``cauchy``
    The Cauchy matrix 1 / (x_i + x_j) of the nodes x_i = exp(i h), scaled to a unit diagonal: 1 / cosh(h (i - j) / 2).
    Hilbert's matrix is the same with x_i = i - 1/2, but singular in FP64 for n > 12; here h sets the condition.
``gaussian``
    The kernel exp(-r^2 / 2 s^2) on a grid of unit spacing: the Kronecker product of the kernels on its two sides, so
    that its condition is the product of theirs, which the length scale s sets.
``general``
    Q D P^T with two such orthogonal factors; not symmetric, hence for LU.

Condition of ``cauchy``: of a large Toeplitz matrix it is the ratio of its symbol's extremes, at 0 and pi; by Poisson's
summation that is exp(pi^2 / h) / 4.

Each factorization also solves A x = b for a known x; b is rounded, so that an error of about u kappa is left to every
product. One that does not break down may still leave no digit of x.

Dimension letters: N order of the matrix; M rows, K inner dimension of a product; R rows of an operand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
import torch
from scipy.optimize import brentq

from kinji.experiments.cases import Int8DgemmCase
from kinji.experiments.context import Context
from kinji.experiments.int8_dgemm.sides import Observation, Side, moduli_side, slices_side
from kinji.experiments.int8_dgemm.threads import limited_to
from kinji.gemm import scheme_one
from kinji.gemm.factorization import backward_error, cholesky, lu

BLOCK = 64


@dataclass(frozen=True)
class Family:
    """Matrices by order, condition and seed, and how to factorize them."""

    name: str
    make: Callable[[int, float, int], torch.Tensor]
    factorization: Literal["cholesky", "lu"] = "cholesky"


def compare_factorizations(case: Int8DgemmCase, context: Context, device: torch.device) -> Iterator[Observation]:
    """Yield a row for each matrix, condition and product; one that breaks down has no errors."""
    problems = list(product(FAMILIES, case.conditions))
    for family, target in context.progress.track(problems, "factorization"):
        a_NN, x_N, condition = _problem(family, target, case)
        about: Observation = {"matrix": family.name, "target_condition": target, "condition": condition}
        for side in SIDES:
            by: Observation = {"factorization": family.factorization, "method": side.method, "count": side.count}
            errors = _errors(family, side, a_NN.to(device), x_N.to(device))
            yield {"quantity": "factorization", **about, **by, **errors}


@limited_to(1)  # others cost more to wake than they save in such blocks, and would change bits
def _problem(family: Family, target: float, case: Int8DgemmCase) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return A, the solution x and the 2-norm condition number of A."""
    a_NN = family.make(case.n, target, case.seed)
    x_N = np.random.default_rng([case.seed, case.n, 2]).standard_normal(case.n)
    return a_NN, torch.from_numpy(x_N), float(torch.linalg.cond(a_NN))


def _errors(family: Family, side: Side, a_NN: torch.Tensor, x_N: torch.Tensor) -> Observation:
    try:
        order_N, left_NN, right_NN = _factorize(family, side, a_NN)
    except np.linalg.LinAlgError:
        return {"broke_down": True}
    factors = a_NN[order_N], left_NN, right_NN
    return {
        "broke_down": False,
        "backward_error": backward_error(*factors),
        "forward_error": _forward_error(*factors, x_N),
    }


@limited_to(1)
def _factorize(family: Family, side: Side, a_NN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (p, lower, upper) with A[p] = lower upper."""
    if family.factorization == "lu":
        return lu(a_NN, multiply=side.multiply, block=BLOCK)
    l_NN = cholesky(a_NN, multiply=side.multiply, block=BLOCK)
    return torch.arange(len(a_NN), device=a_NN.device), l_NN, l_NN.T


@limited_to(1)
def _forward_error(a_NN: torch.Tensor, left_NN: torch.Tensor, right_NN: torch.Tensor, x_N: torch.Tensor) -> float:
    """Return ||x' - x|| / ||x||, x' what the factors of A make of A x."""
    y_N1 = torch.linalg.solve_triangular(left_NN, (a_NN @ x_N)[:, None], upper=False)
    solution_N = torch.linalg.solve_triangular(right_NN, y_N1, upper=True)[:, 0]
    return float(torch.linalg.norm(solution_N - x_N) / torch.linalg.norm(x_N))


def multiply_rounded(a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    """Return A B by one INT8 product: what the unit offers without an Ozaki scheme.

    Each row of A and column of B is divided by a scale of its own and rounded to the nearest integers up to 127, which
    are one slice exactly.
    """
    (a, scale_M), (b, scale_N) = _round_rows(a_MK), _round_rows(b_KN.T)
    return scale_M[:, None] * scheme_one(a, b.T, slices=1) * scale_N


def _round_rows(x_RK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale_R = x_RK.abs().amax(dim=1) / torch.iinfo(torch.int8).max
    scale_R[scale_R == 0] = 1
    return (x_RK / scale_R[:, None]).round(), scale_R


def spectrum_matrix(n: int, condition: float, seed: int) -> torch.Tensor:
    """Return Q D Q^T of eigenvalues condition^(-i / (n - 1)), i = 0 ... n - 1."""
    half_NN = _orthogonal(n, seed, 0) * _geometric(n, condition).sqrt()
    return _symmetric(half_NN @ half_NN.T)


def general_matrix(n: int, condition: float, seed: int) -> torch.Tensor:
    """Return Q D P^T of singular values condition^(-i / (n - 1)), i = 0 ... n - 1."""
    return _orthogonal(n, seed, 0) * _geometric(n, condition) @ _orthogonal(n, seed, 1).T


@lru_cache(maxsize=2)  # one pair serves all conditions
def _orthogonal(n: int, seed: int, stream: int) -> torch.Tensor:
    return torch.linalg.qr(torch.from_numpy(np.random.default_rng([seed, n, stream]).standard_normal((n, n)))).Q


def _geometric(n: int, condition: float) -> torch.Tensor:
    return torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)


def _symmetric(a_NN: torch.Tensor) -> torch.Tensor:
    return (a_NN + a_NN.T) / 2


def cauchy_matrix(n: int, condition: float, seed: int = 0) -> torch.Tensor:
    """Return 1 / cosh(h (i - j) / 2), the Cauchy matrix of nodes exp(i h) scaled to a unit diagonal; no seed in it."""
    h = math.pi**2 / math.log(4 * condition)
    i_N = torch.arange(n, dtype=torch.float64)
    return 1 / torch.cosh(h / 2 * (i_N[:, None] - i_N))


def gaussian_matrix(n: int, condition: float, seed: int = 0) -> torch.Tensor:
    """Return exp(-r^2 / 2 s^2) between the points of a grid, as square as n allows, row by row; no seed in it."""
    rows = next(rows for rows in range(math.isqrt(n), 0, -1) if n % rows == 0)
    sides = rows, n // rows

    def excess(s: float) -> float:
        return sum(math.log(float(torch.linalg.cond(_gaussian_line(side, s)))) for side in sides) - math.log(condition)

    s = brentq(excess, 0.1, 10.0)
    return torch.kron(*(_gaussian_line(side, s) for side in sides))


def _gaussian_line(points: int, s: float) -> torch.Tensor:
    i_N = torch.arange(points, dtype=torch.float64)
    return torch.exp(-((i_N[:, None] - i_N) ** 2) / (2 * s**2))


FAMILIES = (
    Family("spectrum", spectrum_matrix),
    Family("cauchy", cauchy_matrix),
    Family("gaussian", gaussian_matrix),
    Family("general", general_matrix, "lu"),
)
SIDES = (
    Side("int8", 0, multiply_rounded),
    Side("fp32", 0, lambda a, b: (a.float() @ b.float()).double()),
    Side("native", 0, torch.matmul),
    slices_side(9),
    moduli_side(8),
    moduli_side(15),
)
