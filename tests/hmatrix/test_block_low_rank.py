import math

import pytest
import torch
from numpy.linalg import LinAlgError

from kinji.hmatrix.block_low_rank import LowRankTile, compress_tiles, factorize_tiles
from kinji.hmatrix.geometry import fibonacci_sphere
from kinji.hmatrix.kernels import Kernel
from kinji.hmatrix.tile_substitution import solve_tiles
from tests.hmatrix.problems import LENGTH_SCALES, cube_points, dense_matrix, relative_error, sphere_problem


def densify(tile):
    return tile.left @ tile.right.mT if isinstance(tile, LowRankTile) else tile


def lower_triangle(matrix):
    size = matrix.tree.members.shape[1]
    whole = torch.zeros(matrix.width, size, matrix.width, size, dtype=torch.float64)
    for (i, j), tile in matrix.tiles.items():
        whole[i, :, j] = densify(tile)
    return whole.reshape(matrix.width * size, -1)


def tile_problem(n, *, tile_size=128, tolerance=1e-8, max_rank=500, band=1, **problem):
    kernel, points, dense, x = sphere_problem(n, **problem)
    tiles = compress_tiles(kernel, points, tile_size=tile_size, tolerance=tolerance, max_rank=max_rank, band=band)
    order = tiles.tree.members.flatten()
    return tiles, dense, x, order


def test_tiles_are_compressed_to_the_tolerance_at_the_rank_of_the_svd():
    tiles, dense, _, order = tile_problem(1024, tolerance=1e-6)
    dense = dense[order][:, order].reshape(8, 128, 8, 128)
    for (i, j), tile in tiles.tiles.items():
        exact = dense[i, :, j]
        if i == j:
            torch.testing.assert_close(tile, exact, rtol=1e-14, atol=0)
            continue
        singular_values = torch.linalg.svdvals(exact)
        wanted = int((singular_values > 1e-6 * singular_values[0]).sum())
        assert torch.linalg.matrix_norm(densify(tile) - exact, 2) < 1.5e-6 * singular_values[0]
        assert abs(tile.left.shape[1] - wanted) <= max(1, 0.1 * wanted)


@pytest.mark.parametrize("band", [1, 2, 9])
@pytest.mark.parametrize("diagonal", [1.0, 1e3])
def test_the_factor_is_the_dense_one(band, diagonal):
    tiles, dense, x, order = tile_problem(1000, band=band, diagonal=diagonal)
    factorize_tiles(tiles)
    factor = lower_triangle(tiles)
    keep = order < 1000
    expected = torch.linalg.cholesky(dense[order[keep]][:, order[keep]])
    assert relative_error(factor.tril()[keep][:, keep], expected) < (1e-13 if band == 9 else 1e-6)
    assert relative_error(solve_tiles(tiles, dense @ x), x) < (1e-12 if band == 9 else 1e-6)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9, 1e-11])
def test_the_error_follows_the_tolerance(tolerance):
    tiles, dense, x, _ = tile_problem(1024, tolerance=tolerance, diagonal=1.0)
    factorize_tiles(tiles)
    error = relative_error(solve_tiles(tiles, dense @ x), x)
    assert tolerance / 100 < error < 50 * tolerance


@pytest.mark.parametrize("name", LENGTH_SCALES)
def test_other_kernels_are_solved_too(name):
    tiles, dense, x, _ = tile_problem(700, name=name)
    factorize_tiles(tiles)
    assert relative_error(solve_tiles(tiles, dense @ x), x) < 1e-6


def test_left_factors_stay_orthonormal_below_the_tolerance():
    tiles, _, _, _ = tile_problem(1024, diagonal=1.0)
    factorize_tiles(tiles)
    for tile in tiles.tiles.values():
        if isinstance(tile, LowRankTile):
            identity = torch.eye(tile.left.shape[1], dtype=torch.float64)
            torch.testing.assert_close(tile.left.mT @ tile.left, identity, rtol=0, atol=1e-9)


def test_ranks_are_capped_and_the_loss_shows():
    tiles, dense, x, _ = tile_problem(1024, max_rank=10)
    assert max(tiles.ranks) == 10
    factorize_tiles(tiles)
    assert max(tiles.ranks) == 10
    assert relative_error(solve_tiles(tiles, dense @ x), x) > 1e-6


def test_low_rank_tiles_save_memory_and_work():
    tiles, _, _, _ = tile_problem(2048, tile_size=256, tolerance=1e-6)
    factorize_tiles(tiles)
    assert tiles.nbytes < 0.6 * 8 * 2048 * 2049 / 2
    assert tiles.flops.total > 0


def test_work_grows_with_nearly_the_square_of_the_size():
    def work(n, tile_size):
        tiles, _, _, _ = tile_problem(n, tile_size=tile_size, tolerance=1e-4, diagonal=1.0)
        tiles.flops.total = 0.0
        factorize_tiles(tiles)
        return tiles.flops.total

    assert 1.5 < math.log(work(4096, 128) / work(1024, 64), 4) < 2.2  # a cubic method has 3


def test_the_ranks_of_the_factor_are_on_average_those_of_the_svd():
    tiles, dense, _, order = tile_problem(1024, tolerance=1e-6, diagonal=1.0)
    factorize_tiles(tiles)
    exact = torch.linalg.cholesky(dense[order][:, order]).reshape(8, 128, 8, 128)
    wanted = 0
    for i, j in tiles.tiles:
        if i != j:
            schur = exact[i, :, j] @ exact[j, :, j].mT  # what is compressed: the tile before the triangular solve
            singular_values = torch.linalg.svdvals(schur)
            wanted += int((singular_values > 1e-6 * singular_values[0]).sum())
    assert sum(tiles.ranks) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("band", [1, 3])
def test_many_sides_are_solved_as_one_is(band):
    tiles, dense, x, _ = tile_problem(700, band=band, sides=5)
    factorize_tiles(tiles)
    b = dense @ x
    columns = torch.cat([solve_tiles(tiles, b[:, k : k + 1]) for k in range(5)], dim=1)
    torch.testing.assert_close(solve_tiles(tiles, b), columns, rtol=1e-9, atol=1e-9)


def test_volumes_are_solved_too():
    points, kernel = cube_points(500), Kernel("yukawa", diagonal=20.0, length_scale=2.0)
    dense, x = dense_matrix(kernel, points), torch.ones(500, 1, dtype=torch.float64)
    tiles = compress_tiles(kernel, points, tile_size=64, tolerance=1e-8, max_rank=64)
    factorize_tiles(tiles)
    assert relative_error(solve_tiles(tiles, dense @ x), x) < 1e-5


def test_an_indefinite_matrix_is_refused_with_the_tile():
    tiles, _, _, _ = tile_problem(1024, diagonal=0.3)
    with pytest.raises(LinAlgError, match=r"tile \(\d, \d\) is not positive definite .*raise the maximum rank"):
        factorize_tiles(tiles)


@pytest.mark.parametrize("wrong", [{"tolerance": -1.0}, {"max_rank": 0}, {"band": 0}])
def test_senseless_parameters_are_refused(wrong):
    options = {"tile_size": 32, "tolerance": 1e-6, "max_rank": 10} | wrong
    with pytest.raises(ValueError, match="at least 0, 1 and 1"):
        compress_tiles(Kernel(diagonal=1.0), fibonacci_sphere(100), **options)


def test_a_misshapen_right_hand_side_is_refused():
    tiles, _, _, _ = tile_problem(200)
    with pytest.raises(ValueError, match=r"expected \(200"):
        solve_tiles(tiles, torch.ones(199, 1, dtype=torch.float64))
