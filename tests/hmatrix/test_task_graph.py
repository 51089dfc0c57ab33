import pytest

from kinji.hmatrix.h2_matrix import build_near_field, compress
from kinji.hmatrix.h2_ulv import factorize
from kinji.hmatrix.task_graph import TaskGraph, h2_ulv_graph, tile_cholesky_graph
from tests.hmatrix.problems import sphere_problem


def simulate_tile_cholesky(width):
    """Earliest step of every task of the right-looking loop, by the tiles it reads and writes."""
    ready = dict.fromkeys(((i, j) for i in range(width) for j in range(i + 1)), 0)
    steps = []
    for k in range(width):
        accesses = [[(k, k)], *([(i, k), (k, k)] for i in range(k + 1, width))]
        accesses += [[(i, j), (i, k), (j, k)] for j in range(k + 1, width) for i in range(j, width)]
        for tiles in accesses:
            ready[tiles[0]] = max(ready[tile] for tile in tiles) + 1
            steps.append(ready[tiles[0]])
    return steps


@pytest.mark.parametrize("width", [1, 2, 3, 8, 13])
def test_tile_graph_is_that_of_the_loop(width):
    steps = simulate_tile_cholesky(width)
    graph = tile_cholesky_graph(width)
    assert graph.tasks == len(steps)
    assert graph.depth == max(steps)
    assert graph.width == max(steps.count(step) for step in set(steps))


def test_h2_graph_counts_boxes_and_pairs():
    kernel, points, _, _ = sphere_problem(1024)
    field = build_near_field(kernel, points, leaf_size=32)
    factor = factorize(compress(field, rank=16))
    graph = h2_ulv_graph(factor)
    levels = [field.pairs[field.tree.depth - k].near for k in range(len(factor.levels))]
    boxes = [int(near.max()) + 1 for near in levels]
    assert boxes[0] == 32
    assert graph.depth == 2 * len(levels) + 1
    assert graph.width == len(levels[0]) - 32
    assert graph.tasks == 1 + sum(len(near) for near in levels)


def test_one_leaf_is_one_task():
    kernel, points, _, _ = sphere_problem(60)
    assert h2_ulv_graph(factorize(compress(build_near_field(kernel, points, leaf_size=64)))) == TaskGraph(1, 1, 1)
