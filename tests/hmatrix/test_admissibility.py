import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinji.hmatrix.admissibility import coarsest_far_level, find_pairs, sample_far_fields
from kinji.hmatrix.cluster_tree import build_tree
from kinji.hmatrix.geometry import fibonacci_sphere
from tests.hmatrix.problems import cube_points


@given(
    n=st.integers(1, 600),
    leaf_size=st.integers(4, 32),
    theta=st.sampled_from([0.0, 1.0, 2.0, 3.5]),
    points=st.sampled_from([fibonacci_sphere, cube_points]),
)
def test_near_and_far_blocks_cover_each_pair_of_points_once(n, leaf_size, theta, points):
    tree = build_tree(points(n), leaf_size=leaf_size)
    levels = find_pairs(tree, theta=theta)
    covered = np.zeros((tree.members.numel(),) * 2, dtype=int)
    blocks = [(level, pair) for level, pairs in enumerate(levels) for pair in pairs.far]
    blocks += [(tree.depth, pair) for pair in levels[-1].near]
    for level, (i, j) in blocks:
        width = tree.members.numel() >> level
        rows, columns = slice(i * width, (i + 1) * width), slice(j * width, (j + 1) * width)
        covered[rows, columns] += 1
        covered[columns, rows] += i != j
    assert (covered == 1).all()


def test_far_pairs_satisfy_the_criterion_and_near_pairs_do_not():
    tree = build_tree(fibonacci_sphere(2000), leaf_size=32)
    for level, pairs in enumerate(find_pairs(tree, theta=2.0)):
        for kind, expected in ((pairs.far, True), (pairs.near[1 << level :], False)):
            for i, j in kind:
                gap = np.square(tree.centres[level][i] - tree.centres[level][j]).sum()
                radii = np.square(tree.half_widths[level][[i, j]]).sum()
                assert (gap > 2.0 * radii) == expected
                assert i > j


def test_near_lists_start_with_the_boxes_themselves():
    tree = build_tree(fibonacci_sphere(1000), leaf_size=32)
    for level, pairs in enumerate(find_pairs(tree, theta=1.0)):
        np.testing.assert_array_equal(pairs.near[: 1 << level], np.arange(1 << level)[:, None].repeat(2, 1))


def test_theta_zero_is_the_hss_structure():
    levels = find_pairs(build_tree(fibonacci_sphere(500), leaf_size=32), theta=0.0)
    assert all(len(pairs.near) == 1 << level for level, pairs in enumerate(levels))
    assert coarsest_far_level(levels) == 1


@pytest.mark.parametrize("samples", [50, 300, 10_000])
def test_samples_are_distinct_far_points_and_every_ring_is_sampled(samples):
    tree = build_tree(fibonacci_sphere(2000), leaf_size=32)
    levels = find_pairs(tree, theta=2.0)
    fields = sample_far_fields(tree, levels, samples=samples)
    assert list(fields) == list(range(coarsest_far_level(levels), tree.depth + 1))
    for level, field in fields.items():
        box_of = torch.empty(len(tree.points), dtype=torch.int64)
        box_of[tree.members.reshape(1 << level, -1)] = torch.arange(1 << level)[:, None]
        near = {tuple(pair) for pair in levels[level].near.tolist()}
        far = {tuple(pair) for pair in levels[level].far.tolist()}
        for box, rows in enumerate(field):
            rows = rows[rows != tree.nowhere]
            assert len(rows) <= samples
            assert len(rows.unique()) == len(rows)
            pairs = {(max(box, other), min(box, other)) for other in box_of[rows].tolist()}
            assert not pairs & near
            own_ring = {pair for pair in far if box in pair}
            assert samples < 300 or own_ring <= pairs


def test_negative_theta_is_refused():
    with pytest.raises(ValueError, match="theta = -1"):
        find_pairs(build_tree(fibonacci_sphere(10), leaf_size=4), theta=-1.0)
