import math
import re

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from kinji.hmatrix import geometry
from kinji.hmatrix.geometry import (
    GEOMETRIES,
    cube_surface,
    fibonacci_sphere,
    molecule,
    place_points,
    uniform_cube,
)
from kinji.hmatrix.point_cloud import check_points, measure_cells
from kinji.hmatrix.point_file import points_from_file


def nearest(points):
    """Distance of each point to its nearest neighbour."""
    return cKDTree(points.numpy()).query(points.numpy(), 2)[0][:, 1]


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 97, 1000])
def test_exactly_as_many_distinct_points_as_asked_for_and_the_same_ones_again(name, n):
    points = place_points(name, n).points
    assert points.shape == (n, 3)
    check_points(points)
    assert torch.equal(points, place_points(name, n).points)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("n", [2000, 20000])
def test_points_are_as_far_apart_as_what_they_own(name, n):
    points, measure, dimension = place_points(name, n)
    spacing = measure ** (1 / dimension)
    assert nearest(points).min() > 0.4 * spacing
    assert nearest(points).max() < 2.1 * spacing
    assert 0.6 * spacing < np.median(nearest(points)) < 1.1 * spacing


@pytest.mark.parametrize("n", [1, 2, 97, 1000])
def test_points_lie_on_a_sphere_of_radius_sqrt_n(n):
    torch.testing.assert_close(fibonacci_sphere(n).norm(dim=1), torch.full((n,), math.sqrt(n), dtype=torch.float64))


def test_the_sphere_is_covered_evenly():
    points = fibonacci_sphere(2000)
    assert nearest(points).min() > 2.0  # an area of 4 pi is a disc of radius 2
    assert nearest(points).max() < 4.0
    assert points.mean(dim=0).norm() < 0.05


@pytest.mark.parametrize("n", [6, 7, 1001, 6 * 4096])
def test_points_lie_on_the_faces_of_a_cube_of_the_right_area(n):
    half = math.sqrt(4 * math.pi * n / 6) / 2
    points = cube_surface(n)
    torch.testing.assert_close(points.abs().max(dim=1).values, torch.full((n,), half, dtype=torch.float64))
    faces = [int((points[:, axis] == side).sum()) for axis in range(3) for side in (-half, half)]
    assert sum(faces) == n
    assert max(faces) - min(faces) <= 1


def test_equal_parts_of_a_face_have_as_many_points():
    points = cube_surface(6 * 5000)
    half = float(points.max())
    face = points[points[:, 2] == half] / half
    count, _, _ = np.histogram2d(face[:, 0], face[:, 1], bins=5, range=[[-1, 1], [-1, 1]])
    assert np.abs(count / 200 - 1).max() < 0.1


def test_equal_parts_of_the_cube_have_as_many_points():
    points = uniform_cube(27 * 500)
    half = (27 * 500 * 4 / 3 * math.pi * 8) ** (1 / 3) / 2
    assert points.abs().max() < half
    count, _ = np.histogramdd(points.numpy() / half, bins=3, range=[[-1, 1]] * 3)
    assert np.abs(count / 500 - 1).max() < 0.08  # independent random points: 0.1; their spacing is tested above


def atoms(n):
    """Centres and radius of the atoms in the scale of ``molecule(n)``; the exposed share of each, sampled at random."""
    centres, area = geometry._atoms()
    scale = math.sqrt(4 * math.pi * n / area)
    normal = np.random.default_rng(0).standard_normal((4000, 3))
    sphere = geometry.ATOM_RADIUS * normal / np.linalg.norm(normal, axis=1, keepdims=True)
    distance = np.linalg.norm((centres[:, None] + sphere)[:, :, None] - centres, axis=3)
    exposed = (distance > geometry.ATOM_RADIUS * (1 - 1e-9)).all(axis=2).mean(axis=1)
    return scale * centres, scale * geometry.ATOM_RADIUS, exposed


@pytest.mark.parametrize("n", [100, 20000])
def test_points_of_the_molecule_lie_on_one_atom_and_outside_all_others(n):
    centres, radius, _ = atoms(n)
    distance, _ = cKDTree(centres).query(molecule(n).numpy(), 2)
    np.testing.assert_allclose(distance[:, 0], radius, rtol=1e-12)
    assert (distance[:, 1] > 1.001 * radius).all()


def test_each_point_of_the_molecule_owns_an_area_of_4_pi():
    n = 100_000
    centres, radius, exposed = atoms(n)
    area = 4 * math.pi * radius**2 * exposed
    assert area.sum() == pytest.approx(4 * math.pi * n, rel=5e-3)
    count = np.bincount(cKDTree(centres).query(molecule(n).numpy())[1], minlength=len(centres))
    assert np.abs(count * 4 * math.pi / area - 1).max() < 0.12


def test_unknown_geometries_and_empty_ones_are_refused():
    with pytest.raises(ValueError, match="'torus': choose one of sphere, cube_surface, molecule, uniform_cube"):
        place_points("torus", 10)
    for name in GEOMETRIES:
        with pytest.raises(ValueError, match="n = 0"):
            place_points(name, 0)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_what_a_point_owns_is_estimated_from_the_points(name):
    points, measure, dimension = place_points(name, 20000)
    assert measure_cells(3.0 * points, dimension=dimension) == pytest.approx(3.0**dimension * measure, rel=0.1)


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(ValueError, match="1 point"):
        measure_cells(fibonacci_sphere(1), dimension=2)
    with pytest.raises(ValueError, match="dimension = 4"):
        measure_cells(fibonacci_sphere(9), dimension=4)


def test_text_comes_back_to_the_bit(tmp_path):
    points = uniform_cube(50)
    lines = [f"{x!r}\t {y!r} {z!r} 17 bucket" for x, y, z in points.tolist()]
    file = tmp_path / "points.txt"
    file.write_text("# x y z bucket\n\n" + "  # a remark\n".join(lines))
    assert torch.equal(points_from_file(file), points)


def test_arrays_come_back_to_the_bit(tmp_path):
    points = uniform_cube(50)
    np.save(tmp_path / "points.npy", np.hstack([points.numpy(), np.ones((50, 2))]))
    assert torch.equal(points_from_file(tmp_path / "points.npy"), points)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n4 5\n", "line 2: 2 of the 3 coordinates"),
        ("# one\n1 2 three\n", "line 2: could not convert string to float: 'three'"),
        ("1 2 3\n\n1 nan 3\n", "line 3: coordinates 1 nan 3 are not all finite"),
        ("1 2 1e999\n", "line 1: coordinates 1 2 1e999 are not all finite"),
        ("1,2,3\n", "line 1: 1 of the 3 coordinates"),
        ("", "no points in it"),
        ("# nothing\n", "no points in it"),
    ],
)
def test_unusable_text_is_refused_by_file_and_line(tmp_path, text, message):
    file = tmp_path / "points.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"points.txt.*{re.escape(message)}"):
        points_from_file(file)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 2)), r"float64 of shape \(4, 2\)"),
        (np.ones(9), r"float64 of shape \(9,\)"),
        (np.ones((4, 3), dtype=complex), "complex128"),
        (np.array([[None, 1, 2]]), "not a complete .npy array"),
        (np.array([[1.0, 2, 3], [1, math.inf, 2]]), "row 1: a coordinate is not finite"),
        (np.ones((0, 3)), "no points"),
    ],
)
def test_unusable_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "points.npy", array)
    with pytest.raises(ValueError, match=f"points.npy.*{message}"):
        points_from_file(tmp_path / "points.npy")


@pytest.mark.parametrize("kept", [0, 60, 200])
def test_a_truncated_array_is_refused(tmp_path, kept):
    file = tmp_path / "points.npy"
    np.save(file, np.ones((40, 3)))
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"points\.npy: not a complete"):
        points_from_file(file)


@pytest.mark.parametrize("name", ["none.txt", "none.npy"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        points_from_file(tmp_path / name)


@pytest.mark.parametrize(
    ("mutate", "error", "message"),
    [
        (lambda p: p.float(), TypeError, "float64"),
        (lambda p: p[:, :2], ValueError, r"shape \(20, 2\)"),
        (lambda p: p[:0], ValueError, "shape"),
        (lambda p: p.index_fill(0, torch.tensor([7]), math.nan), ValueError, "point 7 .* not finite"),
        (lambda p: p.index_fill(0, torch.tensor([3]), math.inf), ValueError, "point 3 .* not finite"),
        (lambda p: p.index_copy(0, torch.tensor([11]), p[4:5]), ValueError, "points 4 and 11 coincide"),
        (lambda p: p.index_copy(0, torch.tensor([11, 19]), p[[4, 2]]), ValueError, "points 2 and 19 coincide"),
    ],
)
def test_unusable_points_are_refused(mutate, error, message):
    with pytest.raises(error, match=message):
        check_points(mutate(fibonacci_sphere(20)))


def test_zeros_of_both_signs_coincide():
    with pytest.raises(ValueError, match="points 0 and 2 coincide"):
        check_points(torch.tensor([[0.0, 1, 2], [0.0, 1, 3], [-0.0, 1, 2]], dtype=torch.float64))


def test_points_that_share_two_coordinates_are_distinct():
    grid = torch.arange(6, dtype=torch.float64)
    check_points(torch.cartesian_prod(grid, grid, grid).flip(0))
