import pytest
import torch

from kinji.hmatrix.cluster_tree import build_tree
from kinji.hmatrix.geometry import fibonacci_sphere
from kinji.hmatrix.kernels import Kernel
from kinji.hmatrix.tile_compression import Accuracy, compress
from kinji.hmatrix.tile_kernels import FlopCount
from tests.hmatrix.problems import cube_points

SIZE = 128
KERNELS = [("laplace", 1.0), ("yukawa", 8.0), ("gaussian", 2.0), ("gaussian", 5.0), ("gaussian", 20.0)]


def compressed(dense, *, tolerance=1e-6, max_rank=SIZE, samples=32, flops=None):
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn(min(len(dense), max_rank + 20), len(dense), dtype=torch.float64, generator=generator)
    return compress(
        lambda rows: rows @ dense.mT,
        lambda rows: rows @ dense,
        sketch,
        samples,
        Accuracy(tolerance, max_rank),
        flops or FlopCount(),
    )


def assert_as_good_as_the_svd(dense, tile, tolerance):
    singular_values = torch.linalg.svdvals(dense)
    wanted = int((singular_values > tolerance * singular_values[0]).sum())
    error = torch.linalg.matrix_norm(tile.left @ tile.right.mT - dense, 2)
    assert error < 2.0 * tolerance * singular_values[0]
    assert abs(tile.left.shape[1] - wanted) <= max(1.0, 0.1 * wanted)


@pytest.mark.parametrize("points", [fibonacci_sphere(1024), cube_points(1024)], ids=["sphere", "cube"])
@pytest.mark.parametrize(("name", "length_scale"), KERNELS)
def test_tiles_of_kernels_have_the_rank_of_the_svd(points, name, length_scale):
    tree, kernel = build_tree(points, leaf_size=SIZE), Kernel(name, diagonal=1.0, length_scale=length_scale)
    boxes = tree.points[tree.members]
    for i in range(1, len(boxes)):
        dense = kernel(boxes[i], boxes[0])
        if float(dense.max()) > 1e-100:  # a product of subnormal numbers has no relative accuracy
            assert_as_good_as_the_svd(dense, compressed(dense), 1e-6)


@pytest.mark.parametrize("samples", [1, 32, 128])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-8, 1e-12])
def test_the_first_guess_does_not_matter(samples, tolerance):
    generator = torch.Generator().manual_seed(1)
    u, v = torch.linalg.qr(torch.randn(2, SIZE, SIZE, dtype=torch.float64, generator=generator))[0]
    dense = u * 0.7 ** torch.arange(float(SIZE), dtype=torch.float64) @ v.mT
    assert_as_good_as_the_svd(dense, compressed(dense, samples=samples, tolerance=tolerance), tolerance)


def test_a_single_entry_is_not_missed():
    dense = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    dense[100, 7] = 3.0
    tile = compressed(dense)
    assert tile.left.shape[1] == 1
    torch.testing.assert_close(tile.left @ tile.right.mT, dense, rtol=0, atol=1e-13)


def test_nothing_is_compressed_to_nothing():
    tile = compressed(torch.zeros(SIZE, SIZE, dtype=torch.float64))
    assert tile.left.shape == tile.right.shape == (SIZE, 1)
    assert not tile.right.any()


def test_without_a_tolerance_nothing_is_lost():
    dense = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tile = compressed(dense, tolerance=0.0)
    torch.testing.assert_close(tile.left @ tile.right.mT, dense, rtol=0, atol=1e-11)


def test_the_largest_rank_keeps_the_largest_singular_values():
    tree = build_tree(fibonacci_sphere(256), leaf_size=SIZE)
    dense = Kernel(diagonal=1.0)(*tree.points[tree.members])
    tile = compressed(dense, max_rank=10)
    error = torch.linalg.matrix_norm(tile.left @ tile.right.mT - dense, 2)
    assert tile.left.shape == (SIZE, 10)
    assert error < 1.5 * torch.linalg.svdvals(dense)[10]
