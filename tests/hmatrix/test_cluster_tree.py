import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinji.hmatrix.cluster_tree import build_tree
from kinji.hmatrix.geometry import fibonacci_sphere
from tests.hmatrix.problems import cube_points


@given(n=st.integers(1, 400), leaf_size=st.integers(1, 64))
def test_every_point_is_in_one_leaf_and_leaves_are_balanced(n, leaf_size):
    tree = build_tree(fibonacci_sphere(n), leaf_size=leaf_size)
    members = tree.members.flatten()
    assert sorted(members[members < n].tolist()) == list(range(n))
    assert len(members.unique()) == len(members)
    sizes = (tree.members < n).sum(dim=1)
    assert sizes.max() - sizes.min() <= 1
    assert tree.depth == 0 or leaf_size <= tree.members.shape[1] <= 2 * leaf_size


def test_boxes_are_bounding_boxes_of_consecutive_leaves():
    points = cube_points(300)
    tree = build_tree(points, leaf_size=20)
    for level in range(tree.depth + 1):
        for box, rows in enumerate(tree.members.reshape(1 << level, -1)):
            own = points[rows[rows < 300]].numpy()
            np.testing.assert_array_equal(tree.centres[level][box], (own.min(0) + own.max(0)) / 2)
            half = (own.max(0) - own.min(0)) / 2
            np.testing.assert_allclose(tree.half_widths[level][box], half, rtol=1e-15)


def test_boxes_are_halved_across_their_longest_axis():
    points = cube_points(128) * torch.tensor([1.0, 100.0, 1.0], dtype=torch.float64)
    left, right = build_tree(points, leaf_size=64).members
    assert points[left, 1].max() < points[right, 1].min()


@pytest.mark.parametrize("n", [1, 63, 100])
def test_fewer_points_than_two_leaves_make_one_leaf(n):
    assert build_tree(fibonacci_sphere(n), leaf_size=64).members.shape == (1, n)


@given(n=st.integers(2, 200))
def test_gather_undoes_scatter(n):
    tree = build_tree(fibonacci_sphere(n), leaf_size=16)
    x = torch.arange(1.0, 2.0 * n + 1.0, dtype=torch.float64).reshape(n, 2)
    assert torch.equal(tree.gather(tree.scatter(x)), x)
    assert tree.scatter(x).sum() == x.sum()


def test_senseless_leaf_size_is_refused():
    with pytest.raises(ValueError, match="leaf_size = 0"):
        build_tree(fibonacci_sphere(10), leaf_size=0)
