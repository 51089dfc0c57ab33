"""What a GPU gives against what the compiled loops give on the CPU."""

from dataclasses import replace

import pytest
import torch

from kinji.hmatrix import compiled, eager, true_product
from kinji.hmatrix.basis import BasisLevel
from kinji.hmatrix.block_low_rank import compress_tiles, factorize_tiles
from kinji.hmatrix.distributed import Ranks, share_out
from kinji.hmatrix.h2_matrix import H2Matrix, build_near_field, compress
from kinji.hmatrix.h2_ulv import factorize
from kinji.hmatrix.kernels import FAR_AWAY, Kernel
from kinji.hmatrix.solver import factorize as factorize_kernel
from kinji.hmatrix.substitution import solve
from kinji.hmatrix.tile_substitution import solve_tiles
from tests.hmatrix.problems import ALL_LENGTH_SCALES, cube_points, normal, relative_error, sphere_problem

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PRECISION = {torch.float64: 1e-12, torch.float32: 1e-4}
PRECISIONS = pytest.mark.parametrize(("dtype", "bound"), PRECISION.items())


def on_gpu(*tensors):
    return [x.cuda() for x in tensors]


def close(theirs, ours, bound):
    assert theirs.device.type == "cuda"
    assert theirs.shape == ours.shape
    assert ours.numel() == 0 or relative_error(theirs.cpu(), ours) < bound


@PRECISIONS
@pytest.mark.parametrize("name", ALL_LENGTH_SCALES)
def test_entries_and_products_with_the_true_kernel(name, dtype, bound):
    points = torch.cat([cube_points(60), torch.full((1, 3), FAR_AWAY, dtype=torch.float64)])
    kernel, rows, columns = Kernel(name, diagonal=3.0, length_scale=2.0), torch.arange(30), torch.arange(30, 61)
    ours, theirs = torch.empty(1, 30, 31, dtype=dtype), torch.empty(1, 30, 31, dtype=dtype, device="cuda")
    compiled.kernel_blocks(kernel, points, rows[None], columns[None], ours)
    eager.kernel_blocks(kernel, *on_gpu(points, rows[None], columns[None]), theirs)
    close(theirs, ours, bound)
    x = normal(60, 3)
    close(true_product(kernel, *on_gpu(points[:60], x)), true_product(kernel, points[:60], x), 1e-12)


@PRECISIONS
@pytest.mark.parametrize("method", ["cholesky", "lu"])
@pytest.mark.parametrize(("order", "sides"), [(0, 3), (1, 1), (150, 1), (150, 90)])
def test_factors_of_a_batch(order, sides, method, dtype, bound):
    root, b = normal(20, order, order), normal(20, order, sides, dtype=dtype)
    a = (root @ root.mT + torch.eye(order)).to(dtype)
    ours, theirs = compiled.factorize(a.clone(), method), eager.factorize(a.cuda(), method)
    assert not theirs.info.any()
    close(eager.solve(theirs, b.cuda()), compiled.solve(ours, b), 1e3 * bound)
    assert theirs.log_determinant() == pytest.approx(ours.log_determinant(), rel=bound, abs=bound)


@pytest.mark.parametrize(("method", "bad"), [("cholesky", -1.0), ("cholesky", torch.nan), ("lu", torch.nan)])
def test_boxes_that_fail_are_told_apart(method, bad):
    a = torch.eye(40, dtype=torch.float64).repeat(5, 1, 1)
    a[1, 2, 2], a[4, 0, 0] = bad, bad
    assert eager.factorize(a.cuda(), method).info.cpu().tolist() == [0, 3, 0, 0, 1]


def test_bases_choose_the_same_rows():
    decay = 0.8 ** torch.arange(64, dtype=torch.float64)
    rows = (normal(30, 96, 64) * decay) @ normal(30, 64, 80, seed=1)
    order, T = compiled.interpolate(rows.clone(), 40, 0.0)
    their_order, their_T = eager.interpolate(rows.cuda(), 40, 0.0)
    assert torch.equal(their_order.cpu(), order)
    close(their_T, T, 1e-8)


@PRECISIONS
def test_products_over_pairs(dtype, bound):
    pairs = torch.tensor([[i, i] for i in range(6)] + [[i, j] for i in range(6) for j in range(i)])
    blocks, x = normal(len(pairs), 50, 50, dtype=dtype), normal(6, 50, 2, dtype=dtype)
    sums = torch.zeros(2, *x.shape, dtype=dtype)
    their_sums = sums.cuda()
    compiled.multiply_pairs(blocks, pairs, x, 2.0 * x, *sums, 6)
    eager.multiply_pairs(*on_gpu(blocks, pairs, x, 2.0 * x, *their_sums), 6)
    close(their_sums, sums, bound)
    close(eager.project(*on_gpu(blocks, pairs, x)), compiled.project(blocks, pairs, x), bound)
    chosen = {"left": pairs[:, 0], "right": pairs[:, 1], "transpose_a": True}
    theirs = eager.multiply(*on_gpu(blocks, x), **{k: v.cuda() if k != "transpose_a" else v for k, v in chosen.items()})
    close(theirs, compiled.multiply(blocks, x, **chosen), bound)


@PRECISIONS
@pytest.mark.parametrize("lift", ["decoupled", "orthonormal"])
@pytest.mark.parametrize("method", ["cholesky", "lu"])
def test_factors_and_solutions_of_one_matrix(lift, method, dtype, bound):
    kernel, points, dense, x = sphere_problem(1100, diagonal=5.0)
    matrix = compress(build_near_field(kernel, points, leaf_size=32, dtype=dtype), rank=24)
    ours, theirs = (factorize(m, lift=lift, method=method) for m in (matrix, moved_to_gpu(matrix)))
    close(theirs.matrix.matvec(x.cuda()), matrix.matvec(x), bound)
    for level, their_level in zip(ours.levels, theirs.levels, strict=True):
        close(their_level.lift, level.lift, 1e2 * bound)
        close(their_level.blocks, level.blocks, 1e2 * bound)
    for way in ("parallel", "sequential", "diagonal"):
        their_x, our_x = (solve(f, b, substitution=way) for f, b in ((theirs, (dense @ x).cuda()), (ours, dense @ x)))
        close(their_x, our_x, 1e2 * bound)
    assert theirs.logdet() == pytest.approx(ours.logdet(), rel=bound)


def moved_to_gpu(matrix):
    field = matrix.field
    tree = replace(field.tree, points=field.tree.points.cuda(), members=field.tree.members.cuda())
    shares = share_out(tree, field.pairs, Ranks())
    field = replace(field, tree=tree, blocks=field.blocks.cuda(), on=eager, shares=shares)
    levels = {level: BasisLevel(*on_gpu(*vars(basis).values())) for level, basis in matrix.levels.items()}
    return H2Matrix(field, levels, {level: blocks.cuda() for level, blocks in matrix.couplings.items()})


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("fill_ins", ["none", "sc22", "2023"])
def test_a_matrix_made_there_is_as_accurate(fill_ins, dtype):
    """Rounding may choose other rows for the bases, so that only errors are the same."""
    kernel, points, dense, x = sphere_problem(1100, diagonal=5.0)
    b, errors = dense @ x, []
    for device in ("cpu", "cuda"):
        field = build_near_field(kernel, points.to(device), leaf_size=32, dtype=dtype)
        matrix = compress(field, rank=24, fill_ins=fill_ins)
        product, solution = matrix.matvec(x.to(device)), solve(factorize(matrix), b.to(device))
        errors.append([relative_error(product.cpu(), b), relative_error(solution.cpu(), x)])
    assert errors[1] == pytest.approx(errors[0], rel=0.5)


def test_the_solver_of_the_library_is_as_accurate_and_comes_back_from_its_state():
    kernel, points, dense, x = sphere_problem(1100, diagonal=1.0)
    solver = factorize_kernel(points.cuda(), kernel, leaf_size=32)
    b = (dense @ x).cuda()
    solution = solver.solve(b, tolerance=1e-10)
    assert relative_error(solution.cpu(), x) < 1e-6
    again = type(solver).from_state(solver.state_dict())
    assert relative_error(again.solve(b, tolerance=1e-10), solution) < 1e-9
    assert solver.as_linear_operator() @ x[:, 0].numpy() == pytest.approx(solver.matvec(x[:, 0].cuda()).cpu().numpy())


def test_tiles_are_factorized_where_the_points_are():
    kernel, points, dense, x = sphere_problem(1024, diagonal=5.0)
    tiles = compress_tiles(kernel, points.cuda(), tile_size=128, tolerance=1e-8, max_rank=128)
    factorize_tiles(tiles)
    close(solve_tiles(tiles, (dense @ x).cuda()), x, 1e-6)
