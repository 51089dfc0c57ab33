import pytest
import torch

from kinji.hmatrix.geometry import fibonacci_sphere
from kinji.hmatrix.h2_matrix import build_near_field, compress
from kinji.hmatrix.kernels import Kernel
from tests.hmatrix.problems import LENGTH_SCALES, cube_points, dense_matrix, relative_error, sphere_problem


def reconstruct(matrix, n):
    return matrix.matvec(torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("name", LENGTH_SCALES)
@pytest.mark.parametrize("theta", [0.0, 1.0, 2.0])
def test_the_matrix_is_the_dense_one(name, theta):
    kernel, points, dense, _ = sphere_problem(777, name=name)
    matrix = compress(
        build_near_field(kernel, points, theta=theta, leaf_size=32), rank=300, fill_ins=False, tolerance=1e-13
    )
    assert relative_error(reconstruct(matrix, 777), dense) < 1e-8
    assert len(matrix.levels) >= 2


def test_the_matrix_is_symmetric():
    kernel, points, _, _ = sphere_problem(700)
    whole = reconstruct(compress(build_near_field(kernel, points, leaf_size=32), rank=12), 700)
    assert relative_error(whole, whole.mT) < 1e-14


def test_the_error_falls_with_the_rank():
    kernel, points, dense, _ = sphere_problem(1200)
    field = build_near_field(kernel, points, leaf_size=64)
    errors = [
        relative_error(reconstruct(compress(field, rank=rank, fill_ins=False), 1200), dense) for rank in (8, 16, 32)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_volumes_work_too():
    points = cube_points(900)
    kernel = Kernel("yukawa", diagonal=5.0, length_scale=3.0)
    matrix = compress(build_near_field(kernel, points, theta=1.0, leaf_size=40), rank=80, fill_ins=False, tolerance=0.0)
    assert relative_error(reconstruct(matrix, 900), dense_matrix(kernel, points)) < 1e-5


@pytest.mark.parametrize("n", [5, 64, 100])
def test_one_leaf_is_dense(n):
    kernel, points, dense, _ = sphere_problem(n)
    matrix = compress(build_near_field(kernel, points, leaf_size=64))
    assert not matrix.levels
    assert relative_error(reconstruct(matrix, n), dense) < 1e-14


def test_kernel_entries_grow_linearly():
    entries = []
    for n in (4096, 8192):
        kernel = Kernel(diagonal=10.0)
        field = build_near_field(kernel, fibonacci_sphere(n), leaf_size=32)
        compress(field, rank=16, samples=64)
        entries.append(kernel.entries)
    assert entries[1] < 2.2 * entries[0]
    assert entries[1] < 8192**2 / 8


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        ({}, {"rank": 0}, "rank = 0"),
        ({}, {"samples": 0}, "samples = 0"),
        ({"leaf_size": -1}, {}, "leaf_size = -1"),
        ({"theta": float("nan")}, {}, "theta = nan"),
    ],
)
def test_senseless_parameters_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        compress(build_near_field(Kernel(diagonal=1.0), fibonacci_sphere(50), **build), **options)
