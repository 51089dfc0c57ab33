import dataclasses
import functools

import pytest
import torch

from kinji.hmatrix import eager
from kinji.hmatrix.h2_matrix import build_near_field, compress
from kinji.hmatrix.h2_ulv import factorize
from kinji.hmatrix.substitution import solve
from tests.hmatrix.problems import assembled, complement_and_lift, normal, relative_error, sphere_problem

N = 500
WAYS = ["parallel", "sequential", "diagonal"]


@functools.cache
def problem(lift="decoupled", method="cholesky", executor="compiled", rank=10):
    kernel, points, dense, x = sphere_problem(N, diagonal=5.0)
    field = build_near_field(kernel, points, theta=1.0, leaf_size=16)
    field = dataclasses.replace(field, on=eager) if executor == "eager" else field
    return factorize(compress(field, rank=rank), lift=lift, method=method), dense, x


def split_level(level):
    """``C``, ``U``, the near part of the matrix, ``D`` and ``L``, all dense."""
    boxes, complement, _ = level.lift.shape
    C, U = complement_and_lift(level)
    A = assembled(level.blocks, level.near, boxes)
    coupled = (C.mT @ A @ C).reshape(boxes, complement, boxes, complement)
    mask = torch.ones(boxes, boxes).tril(-1)[:, None, :, None]
    D = torch.block_diag(*coupled.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
    return C, U, A, D, (coupled * mask).reshape(D.shape)


def inverted_couplings(D, L, substitution):
    """What stands for ``(D + L)^-1``."""
    inverse = torch.linalg.inv(D)
    if substitution == "sequential":
        return torch.linalg.inv(D + L)
    return inverse - inverse @ L @ inverse if substitution == "parallel" else inverse


def inverse_from_factors(levels, root, substitution):
    """The inverse that a factorization stands for, on the places of its finest level.

    With ``V`` for ``(D + L)^-1`` and ``Y = U^T - U^T A C V C^T`` it is ``Y^T X Y + C V^T D V C^T``, where X is that of
    the next level; in Y of the parallel substitution, blocks of distinct boxes meet ``D^-1`` in place of V.
    """
    if not levels:
        triangle = root.triangles[0].tril()
        return torch.linalg.inv(triangle @ triangle.mT)
    C, U, A, D, L = split_level(levels[0])
    V = inverted_couplings(D, L, substitution)
    own, sizes = torch.zeros_like(A), (len(levels[0].lift), levels[0].basis.order.shape[1])
    own.view(*sizes, *sizes).diagonal(dim1=0, dim2=2).copy_(levels[0].blocks[: sizes[0]].permute(1, 2, 0))
    passed_on = torch.linalg.inv(D) if substitution == "parallel" else V
    Y = U.mT - U.mT @ (own @ C @ V + (A - own) @ C @ passed_on) @ C.mT
    return Y.mT @ inverse_from_factors(levels[1:], root, substitution) @ Y + C @ V.mT @ D @ V @ C.mT


def matrix_from_factors(levels, root):
    """The matrix whose inverse the sequential sweep is: ``P^-T M P^-1`` with P = [C U], level by level."""
    if not levels:
        triangle = root.triangles[0].tril()
        return triangle @ triangle.mT
    C, U, A, D, L = split_level(levels[0])
    W, B = D + L, torch.linalg.solve(D, (U.mT @ A @ C).mT)  # B: D^-1 C^T A U
    rest = matrix_from_factors(levels[1:], root) + B.mT @ D @ B
    M = torch.cat([torch.cat([W @ torch.linalg.solve(D, W.mT), W @ B], 1), torch.cat([(W @ B).mT, rest], 1)])
    inverse = torch.linalg.inv(torch.cat([C, U], 1))
    return inverse.mT @ M @ inverse


def points_of(factor, whole):
    """A matrix on all places, ghosts included, as one on the points."""
    members = factor.matrix.field.tree.members.flatten()
    result = whole.new_zeros(len(members), len(members))
    result[members[:, None], members] = whole
    return result[:N, :N]


@pytest.mark.parametrize("lift", ["decoupled", "orthonormal"])
@pytest.mark.parametrize("substitution", WAYS)
@pytest.mark.parametrize("executor", ["compiled", "eager"])
def test_a_substitution_is_the_inverse_its_factors_stand_for(lift, substitution, executor):
    factor, _, _ = problem(lift, executor=executor)
    assert len(factor.levels) >= 2
    expected = points_of(factor, inverse_from_factors(factor.levels, factor.root, substitution))
    inverse = solve(factor, torch.eye(N, dtype=torch.float64), substitution=substitution)
    assert relative_error(inverse, expected) < 1e-12


@pytest.mark.parametrize("lift", ["decoupled", "orthonormal"])
def test_the_sequential_sweep_solves_with_the_matrix_of_its_factors(lift):
    """Ghosts, padding of the leaves, couple with nothing but themselves."""
    factor, dense, x = problem(lift)
    matrix = points_of(factor, matrix_from_factors(factor.levels, factor.root))
    assert relative_error(solve(factor, x, substitution="sequential"), torch.linalg.solve(matrix, x)) < 1e-11
    assert 0.0 < relative_error(matrix, dense) < 5e-2


@pytest.mark.parametrize("lift", ["decoupled", "orthonormal"])
@pytest.mark.parametrize("substitution", WAYS)
def test_the_inverse_is_symmetric_positive_definite_and_close_to_the_true_one(lift, substitution):
    factor, dense, _ = problem(lift, rank=16)
    inverse = solve(factor, torch.eye(N, dtype=torch.float64), substitution=substitution)
    assert relative_error(inverse, inverse.mT) < 1e-12
    assert torch.linalg.eigvalsh(inverse)[0] > 0
    assert relative_error(inverse, torch.linalg.inv(dense)) < 5e-2


@pytest.mark.parametrize("substitution", WAYS)
def test_lu_and_cholesky_solve_alike(substitution):
    ours, theirs = (solve(*problem(method=m)[::2], substitution=substitution) for m in ("cholesky", "lu"))
    assert relative_error(theirs, ours) < 1e-12


def test_parallel_and_sequential_agree_to_second_order():
    factor, dense, x = problem(rank=16)
    b = dense @ x
    parallel, sequential = solve(factor, b), solve(factor, b, substitution="sequential")
    error = relative_error(parallel, x)
    assert 0.0 < relative_error(parallel, sequential) < error
    assert relative_error(sequential, x) == pytest.approx(error, rel=0.3)
    assert error < relative_error(solve(factor, b, substitution="diagonal"), x)


@pytest.mark.parametrize("substitution", WAYS)
def test_right_hand_sides_of_any_number_layout_and_precision(substitution):
    factor, _, _ = problem()
    b = normal(3, N).mT
    together = solve(factor, b, substitution=substitution)
    assert torch.equal(together, solve(factor, b.contiguous(), substitution=substitution))
    apart = torch.cat([solve(factor, b[:, k : k + 1], substitution=substitution) for k in range(3)], dim=1)
    assert relative_error(together, apart) < 1e-12
    single = solve(factor, b.float(), substitution=substitution)
    assert single.dtype == torch.float32
    assert relative_error(single.double(), together) < 1e-5


@pytest.mark.parametrize("b", [torch.ones(N, dtype=torch.float64), torch.ones(7, 1, dtype=torch.float64)])
def test_a_misshapen_right_hand_side_is_refused(b):
    with pytest.raises(ValueError, match=r"expected \(500, number of sides\)"):
        solve(problem()[0], b)


def test_an_unknown_substitution_is_refused():
    with pytest.raises(ValueError, match="'neumann': choose one of parallel, sequential, diagonal"):
        solve(*problem()[::2], substitution="neumann")
