import math

import pytest
import torch

from kinji.hmatrix.geometry import check_points, fibonacci_sphere, self_term


@pytest.mark.parametrize("n", [1, 2, 97, 1000])
def test_points_lie_on_a_sphere_of_radius_sqrt_n(n):
    torch.testing.assert_close(fibonacci_sphere(n).norm(dim=1), torch.full((n,), math.sqrt(n), dtype=torch.float64))


def test_points_are_spread_evenly():
    points = fibonacci_sphere(2000)
    distance = torch.cdist(points, points).fill_diagonal_(math.inf)
    nearest = distance.min(dim=1).values
    assert nearest.min() > 2.0  # an area of 4 pi is a disc of radius 2
    assert nearest.max() < 4.0
    assert points.mean(dim=0).norm() < 0.05


def test_self_term_is_the_average_of_the_kernel_over_the_disc_of_a_point():
    side = 4.0 * math.sqrt(math.pi) / 2.0
    grid = torch.linspace(-side, side, 2000, dtype=torch.float64)
    r = torch.hypot(grid[:, None], grid[None, :])
    disc = r < 2.0
    assert self_term(4.0 * math.pi) == pytest.approx(float((1.0 / r[disc]).mean()), rel=2e-3)
    assert self_term(4.0 * math.pi) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("mutate", "error", "message"),
    [
        (lambda p: p.float(), TypeError, "float64"),
        (lambda p: p[:, :2], ValueError, r"shape \(20, 2\)"),
        (lambda p: p[:0], ValueError, "shape"),
        (lambda p: p.index_fill(0, torch.tensor([7]), math.nan), ValueError, "point 7 .* not finite"),
        (lambda p: p.index_fill(0, torch.tensor([3]), math.inf), ValueError, "point 3 .* not finite"),
        (lambda p: p.index_copy(0, torch.tensor([11]), p[4:5]), ValueError, "points 4 and 11 coincide"),
    ],
)
def test_unusable_points_are_refused(mutate, error, message):
    with pytest.raises(error, match=message):
        check_points(mutate(fibonacci_sphere(20)))


def test_empty_sphere_is_refused():
    with pytest.raises(ValueError, match="n = 0"):
        fibonacci_sphere(0)
