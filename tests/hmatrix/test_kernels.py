import math

import numba
import numpy as np
import pytest
import torch
from scipy.integrate import quad

from kinji.hmatrix.geometry import GEOMETRIES, fibonacci_sphere, place_points
from kinji.hmatrix.kernels import FAR_AWAY, Kernel, natural_diagonal, product_by_rows, true_product
from tests.hmatrix.problems import cube_points, relative_error

SCALES = {"laplace": 1.0, "yukawa": 8.0, "gaussian": 2.0, "exponential": 6.0, "matern": 4.0}
PROFILES = {
    "laplace": lambda r, _s: 1 / r,
    "yukawa": lambda r, s: np.exp(-r / s) / r,
    "gaussian": lambda r, s: np.exp(-((r / s) ** 2)),
    "exponential": lambda r, s: np.exp(-r / s),
    "matern": lambda r, s: (1 + math.sqrt(3) * r / s) * np.exp(-math.sqrt(3) * r / s),
}


def exact_matrix(kernel, points):
    """The whole matrix from the definition, in extended precision, rounded once."""
    x = points.numpy().astype(np.longdouble)
    r = np.sqrt(np.square(x[:, None] - x[None]).sum(axis=2)) + np.eye(len(x), dtype=np.longdouble)
    matrix = PROFILES[kernel.name](r, np.longdouble(kernel.length_scale))
    np.fill_diagonal(matrix, kernel.diagonal)
    return matrix


def vectors(rows, columns=3):
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SCALES)
def test_blocks_are_those_of_the_definition(name):
    points = cube_points(60)
    kernel = Kernel(name, diagonal=3.0, length_scale=SCALES[name])
    exact = torch.from_numpy(exact_matrix(kernel, points).astype(np.float64))
    torch.testing.assert_close(kernel(points[:20], points[20:]), exact[:20, 20:], rtol=1e-14, atol=0)
    torch.testing.assert_close(kernel.self_block(points), exact, rtol=1e-14, atol=0)


def test_every_entry_is_counted():
    kernel = Kernel(diagonal=1.0)
    points = cube_points(12).reshape(3, 4, 3)
    kernel(points[:1], points[1:])
    assert kernel.entries == 2 * 4 * 4
    kernel.self_block(points)
    assert kernel.entries == 2 * 16 + 3 * 16


@pytest.mark.parametrize("name", SCALES)
def test_a_point_far_away_has_no_kernel_value(name):
    points = torch.cat([cube_points(3), torch.full((1, 3), FAR_AWAY, dtype=torch.float64)])
    kernel = Kernel(name, diagonal=2.0, length_scale=SCALES[name])
    x = torch.tensor([[0.0], [0.0], [0.0], [1.0]], dtype=torch.float64)
    assert torch.equal(kernel(points[:3], points[3:]), torch.zeros(3, 1, dtype=torch.float64))
    assert torch.equal(true_product(kernel, points, x), 2.0 * x)


@pytest.mark.parametrize("product", [true_product, product_by_rows])
@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("n", [1, 65, 300])
def test_the_product_is_the_exact_one_entry_by_entry_and_is_not_counted(product, name, n):
    points, x = fibonacci_sphere(n), vectors(n)
    kernel = Kernel(name, diagonal=2.0, length_scale=SCALES[name])
    exact = exact_matrix(kernel, points)
    error = np.abs(product(kernel, points, x).numpy() - exact @ x.numpy())
    assert (error <= 2e-15 * (np.abs(exact) @ np.abs(x.numpy()))).all()
    assert kernel.entries == 0


def test_small_and_large_arguments_of_the_exponential():
    distance = torch.tensor([1e-300, 1e-9, 0.3465, 0.3466, 1.0, 30.0, 707.9, 709.0, 1e9], dtype=torch.float64)
    kernel = Kernel("exponential", diagonal=1.0)
    for r in distance:
        points = torch.tensor([[0.0, 0.0, 0.0], [float(r), 0.0, 0.0]], dtype=torch.float64)
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        value = float(true_product(kernel, points, x)[0, 0])
        assert value == pytest.approx(math.exp(-r) if r < 708 else 0.0, rel=5e-16, abs=0)


def test_both_ways_agree_on_more_than_one_batch_of_rows():
    points, x, kernel = fibonacci_sphere(1700), vectors(1700), Kernel("yukawa", diagonal=2.0, length_scale=8.0)
    assert relative_error(true_product(kernel, points, x), product_by_rows(kernel, points, x)) < 1e-14


def test_the_product_has_the_same_bits_for_any_number_of_threads():
    points, x, kernel = fibonacci_sphere(1001), vectors(1001), Kernel()
    before = numba.get_num_threads()
    try:
        products = [(numba.set_num_threads(count), true_product(kernel, points, x))[1] for count in (1, before)]
    finally:
        numba.set_num_threads(before)
    assert torch.equal(products[0], products[-1])


def test_vectors_need_not_be_contiguous():
    points, x, kernel = fibonacci_sphere(100), vectors(100, 6), Kernel()
    assert torch.equal(true_product(kernel, points, x[:, ::2]), true_product(kernel, points, x[:, ::2].contiguous()))
    assert torch.equal(true_product(kernel, points.T.contiguous().T, x), true_product(kernel, points, x))
    assert true_product(kernel, points, x[:, :0]).shape == (100, 0)


@pytest.mark.parametrize(
    ("points", "x", "error", "message"),
    [
        (fibonacci_sphere(9).float(), vectors(9), TypeError, "points are torch.float32"),
        (fibonacci_sphere(9), vectors(9).float(), TypeError, "vectors torch.float32"),
        (fibonacci_sphere(9)[:, :2], vectors(9), ValueError, r"points have shape \(9, 2\)"),
        (fibonacci_sphere(9), vectors(8), ValueError, r"shape \(8, 3\): pass 9 rows"),
        (fibonacci_sphere(9), vectors(9)[:, 0], ValueError, r"shape \(9,\).*matrix"),
        (fibonacci_sphere(9), vectors(9).index_fill(0, torch.tensor([4]), math.nan), ValueError, "row 4 .* not finite"),
        (fibonacci_sphere(9), vectors(9).index_fill(0, torch.tensor([2]), math.inf), ValueError, "row 2 .* not finite"),
    ],
)
def test_a_senseless_product_is_refused(points, x, error, message):
    with pytest.raises(error, match=message):
        true_product(Kernel(), points, x)


def test_coinciding_points_show_in_the_product():
    points = fibonacci_sphere(9).index_copy(0, torch.tensor([3]), fibonacci_sphere(9)[5:6])
    assert not true_product(Kernel(), points, vectors(9).abs()).isfinite().all()


@pytest.mark.parametrize("name", ["laplace", "yukawa"])
@pytest.mark.parametrize("scale", [0.3, 8.0, 1e9])
@pytest.mark.parametrize("radius", [0.01, 2.0, 50.0])
def test_the_natural_diagonal_is_the_average_over_disc_and_ball(name, scale, radius):
    disc = quad(lambda r: 2 * math.pi * r * PROFILES[name](r, scale), 0, radius, limit=200, epsrel=1e-12)[0]
    ball = quad(lambda r: 4 * math.pi * r**2 * PROFILES[name](r, scale), 0, radius, limit=200, epsrel=1e-12)[0]
    area, volume = math.pi * radius**2, 4 / 3 * math.pi * radius**3
    assert natural_diagonal(name, area, scale, dimension=2) == pytest.approx(disc / area, rel=1e-10)
    assert natural_diagonal(name, volume, scale, dimension=3) == pytest.approx(ball / volume, rel=1e-10)


def test_natural_diagonals_in_closed_form():
    assert natural_diagonal("laplace", 4 * math.pi, dimension=2) == pytest.approx(1.0, rel=1e-15)
    assert natural_diagonal("laplace", 5.0, dimension=2) == pytest.approx(2.0 / math.sqrt(5.0 / math.pi), rel=1e-15)
    assert natural_diagonal("laplace", 32 / 3 * math.pi, dimension=3) == pytest.approx(0.75, rel=1e-15)
    assert {natural_diagonal(name, 7.0, 3.0, dimension=2) for name in ("gaussian", "exponential", "matern")} == {1.0}


@pytest.mark.parametrize("name", SCALES)
def test_the_diagonal_is_natural_by_default(name):
    assert Kernel(name, length_scale=3.0).diagonal == natural_diagonal(name, 4 * math.pi, 3.0, dimension=2)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_matrices_with_the_natural_diagonal_are_symmetric_and_positive_definite(geometry, name):
    points, measure, dimension = place_points(geometry, 500)
    diagonal = natural_diagonal(name, measure, SCALES[name], dimension=dimension)
    matrix = Kernel(name, diagonal=diagonal, length_scale=SCALES[name]).self_block(points)
    assert torch.equal(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix)[0] > 0.02 * diagonal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "laplacian", "diagonal": 1.0}, "laplacian.*laplace, yukawa, gaussian, exponential, matern"),
        ({"diagonal": 0.0}, "diagonal = 0.0"),
        ({"diagonal": math.nan}, "diagonal = nan"),
        ({"diagonal": math.inf}, "diagonal = inf"),
        ({"diagonal": 1.0, "length_scale": -1.0}, "length_scale = -1.0"),
        ({"length_scale": math.inf}, "length_scale = inf"),
        ({"length_scale": math.nan}, "length_scale = nan"),
    ],
)
def test_senseless_kernels_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Kernel(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("laplacian", 1.0, 1.0, 2), "laplacian"),
        (("laplace", 0.0, 1.0, 2), "cell_measure = 0.0"),
        (("laplace", math.nan, 1.0, 2), "cell_measure = nan"),
        (("laplace", 1.0, 1.0, 1), "dimension = 1"),
    ],
)
def test_senseless_natural_diagonals_are_refused(arguments, message):
    *positional, dimension = arguments
    with pytest.raises(ValueError, match=message):
        natural_diagonal(*positional, dimension=dimension)
