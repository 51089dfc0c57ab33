import dataclasses

import numpy as np
import pytest
import torch
from numpy.linalg import LinAlgError

from kinji.hmatrix.geometry import fibonacci_sphere
from kinji.hmatrix.h2_matrix import build_near_field, compress
from kinji.hmatrix.h2_ulv import (
    eliminate_complements,
    factorize,
    merge_blocks,
    orthogonalize,
    transform_blocks,
)
from kinji.hmatrix.kernels import Kernel
from kinji.hmatrix.substitution import solve
from tests.hmatrix.problems import LENGTH_SCALES, cube_points, dense_matrix, relative_error, sphere_problem


def solve_error(n, *, leaf_size=64, theta=2.0, compression=None, **problem):
    kernel, points, dense, x = sphere_problem(n, **problem)
    matrix = compress(build_near_field(kernel, points, theta=theta, leaf_size=leaf_size), **(compression or {}))
    return relative_error(solve(factorize(matrix), dense @ x), x)


@pytest.mark.parametrize("theta", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(("leaf_size", "rank"), [(32, 28), (64, 48)])
def test_the_solution_is_the_dense_one(theta, leaf_size, rank):
    assert solve_error(1100, leaf_size=leaf_size, theta=theta, compression={"rank": rank}) < 3e-3


@pytest.mark.parametrize("name", LENGTH_SCALES)
def test_other_kernels_are_solved_too(name):
    assert solve_error(1024, name=name, compression={"rank": 56}) < 1e-3


def test_volumes_are_solved_too():
    points = cube_points(800)
    kernel = Kernel("yukawa", diagonal=20.0, length_scale=2.0)
    dense = dense_matrix(kernel, points)
    x = torch.ones(800, 1, dtype=torch.float64)
    factor = factorize(compress(build_near_field(kernel, points, theta=1.0, leaf_size=50), rank=40))
    assert factor.levels
    assert relative_error(solve(factor, dense @ x), x) < 1e-2


@pytest.mark.parametrize("diagonal", [1.0, 10.0, 1e3])
@pytest.mark.parametrize("n", [600, 1024])
def test_full_rank_is_exact(diagonal, n):
    """With as many skeletons as points nothing is dropped at any level."""
    error = solve_error(n, leaf_size=32, theta=1.0, diagonal=diagonal, compression={"rank": 10_000, "tolerance": 0.0})
    assert error < 1e-10


def test_with_fill_ins_the_error_falls_with_the_rank_and_without_it_does_not():
    options = [{"rank": rank, "fill_ins": f} for f in (True, False) for rank in (24, 40, 56)]
    errors = np.array([solve_error(1024, diagonal=5.0, compression=o) for o in options]).reshape(2, 3)
    assert errors[0, 0] > 3 * errors[0, 1] > 9 * errors[0, 2]
    assert errors[1, 1] < 1.1 * errors[1, 2]
    assert errors[0, 2] < errors[1, 2] / 10


def test_a_broken_transfer_spoils_the_solution():
    kernel, points, dense, x = sphere_problem(1024)
    matrix = compress(build_near_field(kernel, points, leaf_size=32), rank=30)
    top = min(matrix.levels)
    broken = dataclasses.replace(matrix.levels[top], interpolation=-matrix.levels[top].interpolation.roll(1, dims=1))
    spoilt = dataclasses.replace(matrix, levels=matrix.levels | {top: broken})
    b = dense @ x
    assert relative_error(solve(factorize(spoilt), b), x) > 10 * relative_error(solve(factorize(matrix), b), x)


@pytest.mark.parametrize("n", [3, 60, 127])
def test_one_leaf_is_a_dense_cholesky(n):
    kernel, points, dense, x = sphere_problem(n)
    factor = factorize(compress(build_near_field(kernel, points, leaf_size=64)))
    torch.testing.assert_close(
        factor.root.tril(),
        torch.linalg.cholesky(dense[factor.matrix.field.tree.members[0]][:, factor.matrix.field.tree.members[0]]),
    )
    assert relative_error(solve(factor, dense @ x), x) < 1e-13


def test_any_order_of_boxes_gives_the_same_bits():
    kernel, points, _, _ = sphere_problem(2048)
    matrix = compress(build_near_field(kernel, points, leaf_size=32), rank=16)
    factor = factorize(matrix).levels[0]
    blocks, boxes = matrix.field.blocks, len(factor.transform)
    orthogonal, _ = orthogonalize(matrix.levels[matrix.field.tree.depth], None)
    order, pairs = torch.randperm(boxes), torch.randperm(len(blocks))
    transform = eliminate_complements(blocks[:boxes][order], orthogonal[order], factor.rank, level=0)
    renumbered = torch.argsort(order)[factor.pairs[pairs]]
    assert torch.equal(transform, factor.transform[order])
    assert torch.equal(transform_blocks(blocks[pairs], transform, renumbered), factor.blocks[pairs])


def test_a_box_depends_on_no_other():
    """Changing one box's block changes that box's factors and no other's."""
    kernel, points, _, _ = sphere_problem(1024)
    matrix = compress(build_near_field(kernel, points, leaf_size=32), rank=16)
    orthogonal, _ = orthogonalize(matrix.levels[matrix.field.tree.depth], None)
    diagonal = matrix.field.blocks[: len(orthogonal)]
    changed = diagonal.clone()
    changed[3] *= 2.0
    before = eliminate_complements(diagonal, orthogonal, 16, level=0)
    after = eliminate_complements(changed, orthogonal, 16, level=0)
    assert [box for box in range(len(before)) if not torch.equal(before[box], after[box])] == [3]


def test_the_complement_is_whitened():
    kernel, points, _, _ = sphere_problem(1024)
    for level in factorize(compress(build_near_field(kernel, points, leaf_size=64), rank=30)).levels:
        own = level.blocks[: len(level.transform), level.rank :, level.rank :]
        identity = torch.eye(own.shape[1], dtype=torch.float64)
        torch.testing.assert_close(own, identity.expand_as(own), rtol=0, atol=1e-12)


def test_merging_assembles_the_parents_matrix():
    whole = torch.randn(8, 8, dtype=torch.float64)
    whole = whole + whole.mT
    children = np.array([(i, j) for i in range(4) for j in range(i + 1)])
    blocks = torch.stack([whole[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] for i, j in children])
    order = np.random.default_rng(0).permutation(len(children))
    parents = np.array([(0, 0), (1, 1), (1, 0)])
    merged = merge_blocks(blocks[order], children[order], parents)
    for block, (i, j) in zip(merged, parents, strict=True):
        assert torch.equal(block, whole[4 * i : 4 * i + 4, 4 * j : 4 * j + 4])


def test_flops_and_bytes_are_linear_in_the_number_of_points():
    sizes = {}
    for n in (4096, 8192):
        kernel = Kernel(diagonal=100.0)
        factor = factorize(compress(build_near_field(kernel, fibonacci_sphere(n), leaf_size=32), rank=16, samples=64))
        sizes[n] = (factor.flops, factor.nbytes)
    assert sizes[8192][0] < 2.2 * sizes[4096][0]
    assert sizes[8192][1] < 2.2 * sizes[4096][1]


def test_an_indefinite_matrix_is_refused_with_the_place():
    points = fibonacci_sphere(1024)
    kernel = Kernel(diagonal=0.3)
    with pytest.raises(LinAlgError, match=r"(level \d|root), box \d+: .* raise the diagonal"):
        factorize(compress(build_near_field(kernel, points, leaf_size=64), rank=40, fill_ins=False))
