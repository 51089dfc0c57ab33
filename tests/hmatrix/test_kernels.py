import pytest
import torch

from kinji.hmatrix.geometry import fibonacci_sphere
from kinji.hmatrix.kernels import Kernel, true_product
from tests.hmatrix.problems import LENGTH_SCALES, cube_points, dense_matrix, relative_error


@pytest.mark.parametrize("name", LENGTH_SCALES)
def test_blocks_are_those_of_the_definition(name):
    points = cube_points(60)
    kernel = Kernel(name, diagonal=3.0, length_scale=LENGTH_SCALES[name])
    dense = dense_matrix(kernel, points)
    torch.testing.assert_close(kernel(points[:20], points[20:]), dense[:20, 20:], rtol=1e-14, atol=0)
    torch.testing.assert_close(kernel.self_block(points), dense, rtol=1e-14, atol=0)


def test_every_entry_is_counted():
    kernel = Kernel(diagonal=1.0)
    points = cube_points(12).reshape(3, 4, 3)
    kernel(points[:1], points[1:])
    assert kernel.entries == 2 * 4 * 4
    kernel.self_block(points)
    assert kernel.entries == 2 * 16 + 3 * 16


@pytest.mark.parametrize("name", LENGTH_SCALES)
def test_true_product_is_the_dense_one_and_is_not_counted(name):
    points = fibonacci_sphere(1700)  # more than one batch of rows
    kernel = Kernel(name, diagonal=2.0, length_scale=LENGTH_SCALES[name])
    x = torch.randn(1700, 3, dtype=torch.float64)
    assert relative_error(true_product(kernel, points, x), dense_matrix(kernel, points) @ x) < 1e-14
    assert kernel.entries == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "laplacian", "diagonal": 1.0}, "laplacian.*laplace, yukawa, gaussian"),
        ({"diagonal": 0.0}, "diagonal = 0.0"),
        ({"diagonal": float("nan")}, "diagonal = nan"),
        ({"diagonal": 1.0, "length_scale": -1.0}, "length_scale = -1.0"),
    ],
)
def test_senseless_kernels_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Kernel(**arguments)
