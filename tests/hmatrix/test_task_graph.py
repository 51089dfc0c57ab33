import pytest

from kinji.hmatrix.h2_matrix import build_near_field, compress
from kinji.hmatrix.h2_ulv import factorize
from kinji.hmatrix.task_graph import h2_ulv_graph, tile_cholesky_graph
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
    factor = factorize(compress(build_near_field(kernel, points, leaf_size=32), rank=16))
    graph = h2_ulv_graph(factor)
    assert graph.depth == 3 * len(factor.levels) + 1
    assert graph.width == len(factor.levels[0].pairs)
    assert graph.tasks == 1 + sum(2 * len(level.transform) + len(level.pairs) for level in factor.levels)
