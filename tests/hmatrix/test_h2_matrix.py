import dataclasses

import pytest
import torch

from kinji.hmatrix import eager
from kinji.hmatrix.geometry import fibonacci_sphere
from kinji.hmatrix.h2_matrix import build_near_field, compress
from kinji.hmatrix.kernels import Kernel
from tests.hmatrix.problems import LENGTH_SCALES, cube_points, dense_matrix, relative_error, sphere_problem


def reconstruct(matrix, n):
    return matrix.matvec(torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("name", LENGTH_SCALES)
@pytest.mark.parametrize("theta", [0.0, 1.0, 2.0])
def test_the_matrix_is_the_dense_one(name, theta):
    kernel, points, dense, _ = sphere_problem(523, name=name)
    matrix = compress(
        build_near_field(kernel, points, theta=theta, leaf_size=32), rank=200, fill_ins="none", tolerance=1e-13
    )
    assert relative_error(reconstruct(matrix, 523), dense) < 1e-8
    assert len(matrix.levels) >= 2


@pytest.mark.parametrize("fill_ins", ["none", "sc22", "2023"])
@pytest.mark.parametrize("on", ["compiled", "eager"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_full_rank_is_exact(fill_ins, on, dtype, bound):
    """With as many skeletons as points nothing is lost, and there is nothing to interpolate."""
    kernel, points, dense, _ = sphere_problem(300)
    field = build_near_field(kernel, points, theta=1.0, leaf_size=32, dtype=dtype)
    field = dataclasses.replace(field, on=eager) if on == "eager" else field
    matrix = compress(field, rank=10_000, tolerance=0.0, fill_ins=fill_ins)
    assert [basis.interpolation.shape[1] for basis in matrix.levels.values()] == [0] * len(matrix.levels) != []
    assert relative_error(reconstruct(matrix, 300), dense) < bound


def test_the_matrix_is_symmetric():
    kernel, points, _, _ = sphere_problem(700)
    whole = reconstruct(compress(build_near_field(kernel, points, leaf_size=32), rank=12), 700)
    assert relative_error(whole, whole.mT) < 1e-14


def test_the_error_falls_with_the_rank():
    kernel, points, dense, _ = sphere_problem(1200)
    field = build_near_field(kernel, points, leaf_size=64)
    errors = [
        relative_error(reconstruct(compress(field, rank=rank, fill_ins="none"), 1200), dense) for rank in (8, 16, 32)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_a_broken_interpolation_spoils_the_product():
    kernel, points, dense, _ = sphere_problem(700)
    matrix = compress(build_near_field(kernel, points, leaf_size=32), rank=24, fill_ins="none")
    right = relative_error(reconstruct(matrix, 700), dense)
    for level, basis in matrix.levels.items():
        broken = dataclasses.replace(basis, interpolation=basis.interpolation.roll(1, dims=1))
        spoilt = dataclasses.replace(matrix, levels=matrix.levels | {level: broken})
        assert relative_error(reconstruct(spoilt, 700), dense) > 10 * right


def test_volumes_work_too():
    points = cube_points(900)
    kernel = Kernel("yukawa", diagonal=5.0, length_scale=3.0)
    matrix = compress(
        build_near_field(kernel, points, theta=1.0, leaf_size=40), rank=80, fill_ins="none", tolerance=0.0
    )
    assert relative_error(reconstruct(matrix, 900), dense_matrix(kernel, points)) < 1e-5


def test_both_executors_build_the_same_matrix():
    kernel, points, _, x = sphere_problem(700)
    field = build_near_field(kernel, points, leaf_size=32)
    products = [compress(f, rank=16).matvec(x) for f in (field, dataclasses.replace(field, on=eager))]
    assert relative_error(*products) < 1e-9


def test_vectors_of_any_layout_and_precision():
    kernel, points, _, _ = sphere_problem(500)
    matrix = compress(build_near_field(kernel, points, leaf_size=32), rank=16)
    x = torch.randn(3, 500, dtype=torch.float64).mT
    exact = matrix.matvec(x.contiguous())
    assert torch.equal(matrix.matvec(x), exact)
    assert relative_error(torch.cat([matrix.matvec(x[:, k : k + 1]) for k in range(3)], dim=1), exact) < 1e-14
    single = matrix.matvec(x.float())
    assert single.dtype == torch.float32
    assert relative_error(single.double(), exact) < 1e-6


@pytest.mark.parametrize("n", [5, 64, 100])
def test_one_leaf_is_dense(n):
    kernel, points, dense, _ = sphere_problem(n)
    matrix = compress(build_near_field(kernel, points, leaf_size=64))
    assert not matrix.levels
    assert relative_error(reconstruct(matrix, n), dense) < 1e-14


def test_kernel_entries_and_bytes_grow_linearly():
    entries, sizes = [], []
    for n in (4096, 8192):
        kernel = Kernel(diagonal=10.0)
        field = build_near_field(kernel, fibonacci_sphere(n), leaf_size=32)
        sizes.append(compress(field, rank=16, samples=64).nbytes)
        entries.append(kernel.entries)
    assert entries[1] < 2.2 * entries[0]
    assert entries[1] < 8192**2 / 8
    assert sizes[1] < 2.2 * sizes[0]


def test_bytes_are_those_of_what_is_stored():
    kernel, points, _, _ = sphere_problem(512)
    matrix = compress(build_near_field(kernel, points, theta=0.0, leaf_size=128), rank=8)
    leaves, (inner, coupling) = 4 * 128 * 128, (4 * 120 * 8 + 2 * 8 * 8, 3 * 8 * 8)
    assert matrix.nbytes == 8 * (leaves + inner + coupling)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        ({}, {"rank": 0}, "rank = 0"),
        ({}, {"samples": 0}, "samples = 0"),
        ({}, {"fill_ins": True}, "unknown fill-ins True: choose none, sc22 or 2023"),
        ({"leaf_size": -1}, {}, "leaf_size = -1"),
        ({"theta": float("nan")}, {}, "theta = nan"),
    ],
)
def test_senseless_parameters_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        compress(build_near_field(Kernel(diagonal=1.0), fibonacci_sphere(50), **build), **options)


def test_a_precision_that_is_neither_single_nor_double_is_refused():
    with pytest.raises(TypeError, match=r"dtype = torch.float16: choose torch.float64 or torch.float32"):
        build_near_field(Kernel(diagonal=1.0), fibonacci_sphere(50), dtype=torch.float16)
